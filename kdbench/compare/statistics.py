"""Intervals and tests of scores and their differences: pure functions on per-example points.

Every score is a mean over S seeds and N examples. Both are samples: other seeds and another test set would give
another mean. So seeds and examples are crossed random effects. A plain bootstrap over both is far too narrow with three
seeds (scripts/study/error_rates.py checks it, and the methods below). A t interval over seeds alone ignores the test
set.

The differences of a table are tested together, as Dunnett (1955) tests several treatments against one control:

1. Three seeds say little about one row's spread between seeds, so the spread is pooled over the rows of the table. A
   row whose own spread is larger keeps its own. Runs of one seed are treated as independent. If a seed moves both rows
   of a pair alike, the test is conservative.
2. The examples' part of a difference's variance comes from that difference alone, paired by example. Two examples are
   added, one for each side (Bonett and Price 2012), so that it is not zero if two models differ on few examples.
3. A row that varies far more than the others (FAR_MORE), such as one that fails with some seeds, is not pooled: it
   would hide all other differences. Its pairs have n - 1 degrees of freedom and Bonferroni's correction.
4. The largest |difference / standard error| of all pairs is drawn DRAWS times under the hypothesis that no pair
   differs. The seeds' variance is drawn as well, from its chi-square. The 95 % quantile of these draws gives all
   intervals. The share of draws above a pair's own value is its p.

So p < 0.05 exactly if the interval excludes zero, and in 95 of 100 tables every interval contains its difference.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdbench.compare.table import Estimate

Points = NDArray[np.float64]
LEVEL = 0.05
DRAWS = 19_999  # with the table itself 20,000: the error of a p of 0.05 is 0.0015
FAR_MORE = 0.01  # level of the F test, Bonferroni's over the rows, by which a row is not pooled
MANY = 1e6  # degrees of freedom: as good as a normal distribution

# (S - 1) / degrees of freedom, at these shares of the seeds in the estimated variance. With 3 seeds, Satterthwaite's
# square of the share errs in 8 % of the cases instead of 5 %, because a variance from 2 degrees of freedom is often far
# too small. These values were solved numerically, so that the error is 4.9 to 5.1 % for every true share. With two
# seeds that is impossible, and the error is 2 to 5.5 %. scripts/study/error_rates.py makes the table
# (degrees).
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
DEGREES = {
    2: (0.0, 0.800, 0.800, 0.900, 1.0),
    3: (0.0, 0.009, 0.758, 0.836, 1.0),
    4: (0.0, 0.016, 0.455, 0.803, 1.0),
    5: (0.0, 0.026, 0.363, 0.749, 1.0),
    6: (0.0, 0.032, 0.324, 0.711, 1.0),
    8: (0.0, 0.037, 0.291, 0.663, 1.0),
    10: (0.0, 0.040, 0.277, 0.635, 1.0),
    15: (0.0, 0.042, 0.264, 0.601, 1.0),
    30: (0.0, 0.044, 0.252, 0.571, 1.0),
}


@dataclass(frozen=True)
class Scores:
    """The (N,) points of one row by seed. A row without seeds, such as TF-IDF, has one array for every seed."""

    by_seed: Mapping[int, Points]
    seedless: bool = False
    trained: bool = True  # False: teacher, TF-IDF, or an export, which shares the training of its row

    def of(self, seed: int) -> Points:
        return next(iter(self.by_seed.values())) if self.seedless else self.by_seed[seed]


def crossed(values: Points) -> Estimate:
    """Return the mean of (S seeds, N examples), with its interval for other seeds and examples; S = 1: examples."""
    from scipy import stats

    mean = float(values.mean())
    variance, degrees = variance_of_mean(values)
    half = float(stats.t.ppf(1 - LEVEL / 2, degrees)) * variance**0.5
    return Estimate(mean, mean - half, mean + half, variance**0.5, len(values))


def score(values: Points, lowest: float = 0.0) -> Estimate:
    """Return the mean of (S, N) points between `lowest` and 100, with an interval that stays between them.

    It is Wilson's interval with the variance of `crossed`; with one seed it is Wilson's interval of a proportion. It
    has a width even if all examples are right.
    """
    from scipy import stats

    mean = float(values.mean())
    variance, degrees = variance_of_mean(values)
    examples, span = values.shape[1], 100.0 - lowest
    z2 = float(stats.norm.ppf(1 - LEVEL / 2)) ** 2 / examples
    half = float(stats.t.ppf(1 - LEVEL / 2, degrees)) * variance**0.5
    centre = (mean + (lowest + span / 2) * z2) / (1 + z2)
    half = (half**2 + (span * z2 / 2) ** 2) ** 0.5 / (1 + z2)
    low, high = max(centre - half, lowest), min(centre + half, 100.0)
    # Rounding can put a bound on the wrong side of a mean at an end of the scale; a whisker must not be negative.
    return Estimate(mean, min(low, mean), max(high, mean), variance**0.5, len(values))


def differences(
    rows: Mapping[str, Scores], pairs: Sequence[tuple[str, str]], draws: int = DRAWS
) -> list[Estimate | None]:
    """Return the mean differences row a - row b of pairs (a, b), paired by seed and example; None: no common seed.

    The intervals and p values hold for all pairs together, see above. A pair with one common seed is not among them.
    Its interval is for other examples only, and it has no p.
    """
    pooled, degrees, apart = spread(rows)
    spreads = {name: 0.0 if row.seedless else max(pooled, _between_seeds(row)) for name, row in rows.items()}
    found = [difference(rows[a], rows[b]) for a, b in pairs]
    every = {
        at: Tested(*pair, len(values), (spreads[pair[0]] + spreads[pair[1]]) / len(values), *_by_examples(values))
        for at, (pair, values) in enumerate(zip(pairs, found, strict=True))
        if values is not None and (len(values) > 1 or all(rows[name].seedless for name in pair))
    }
    tested = [pair for pair in every.values() if not {pair.a, pair.b} & apart]
    used = dict.fromkeys(name for pair in tested for name in (pair.a, pair.b))
    drawn = np.zeros(0)
    if tested:
        drawn = largest(tested, {name: spreads[name] for name in used}, degrees, _covariance(rows, used), draws)
    estimates: list[Estimate | None] = []
    for at, values in enumerate(found):
        if values is None:
            estimates.append(None)
        elif at not in every:
            estimates.append(_one_seed(values))
        elif every[at] in tested:
            estimates.append(every[at].estimate(values, drawn))
        else:
            estimates.append(every[at].alone(values, len(every)))
    return estimates


def spread(rows: Mapping[str, Scores]) -> tuple[float, int, set[str]]:
    """Return the variance of a score between seeds, its degrees of freedom, and the rows that vary far more.

    It is pooled over all other trained rows. Rows are added in the order of their spread, the smallest first.
    """
    from scipy import stats

    known = sorted(
        (_between_seeds(row), len(row.by_seed) - 1, name)
        for name, row in rows.items()
        if row.trained and len(row.by_seed) > 1
    )
    total, degrees = 0.0, 0
    for at, (variance, own, name) in enumerate(known):
        step = 100 / len(rows[name].of(next(iter(rows[name].by_seed))))  # a score moves by whole examples
        ratio = variance / max(total / max(degrees, 1), step**2 / 12)
        if at and stats.f.sf(ratio, own, degrees) < FAR_MORE / len(known):
            return total / degrees, degrees, {name for *_, name in known[at:]}
        total, degrees = total + own * variance, degrees + own
    return total / max(degrees, 1), degrees, set()


def _between_seeds(row: Scores) -> float:
    means = [float(points.mean()) for points in row.by_seed.values()]
    return float(np.var(means, ddof=1)) if len(means) > 1 else 0.0


def difference(a: Scores, b: Scores) -> Points | None:
    """Return (S, N) a - b for the seeds that both have; a row without seeds is paired with each seed."""
    if a.seedless and b.seedless:
        shared = [next(iter(a.by_seed))]
    else:
        shared = sorted((a if b.seedless else b).by_seed.keys() & (b if a.seedless else a).by_seed.keys())
    return np.stack([a.of(seed) - b.of(seed) for seed in shared]) if shared else None


def _by_examples(values: Points) -> tuple[float, float]:
    """Return the mean of (S, N) differences and its variance over examples, with one example added for each side."""
    every = np.append(values.mean(0), (100.0, -100.0))
    both = _both(values) if len(values) > 1 else 0.0
    return float(every.mean()), max(float(every.var()) / len(every) - both, 0.0)


def _one_seed(values: Points) -> Estimate:
    from scipy import stats

    centre, variance = _by_examples(values)
    half = float(stats.norm.ppf(1 - LEVEL / 2)) * variance**0.5
    return Estimate(float(values.mean()), max(centre - half, -100.0), min(centre + half, 100.0), variance**0.5, 1)


class Tested(NamedTuple):
    """One of the pairs that are tested together, with the variances of its mean difference."""

    a: str
    b: str
    seeds: int
    by_seeds: float
    centre: float
    by_examples: float

    @property
    def error(self) -> float:
        return (self.by_seeds + self.by_examples) ** 0.5

    @property
    def size(self) -> float:
        return abs(self.centre) / self.error if self.error else np.inf if self.centre else 0.0

    def estimate(self, values: Points, drawn: Points) -> Estimate:
        """Return the pair's interval and p; `drawn`: see `largest`."""
        p = float(1 + len(drawn) - np.searchsorted(drawn, self.size)) / (1 + len(drawn))
        return self._around(values, critical(drawn) * self.error, p)

    def alone(self, values: Points, count: int) -> Estimate:
        """Return the interval and p of a pair that is tested by itself, corrected for `count` pairs."""
        from scipy import stats

        p = min(1.0, count * 2 * float(stats.t.sf(self.size, self.seeds - 1)))
        half = float(stats.t.ppf(1 - LEVEL / count / 2, self.seeds - 1)) * self.error
        return self._around(values, half, p)

    def _around(self, values: Points, half: float, p: float) -> Estimate:
        low, high = max(self.centre - half, -100.0), min(self.centre + half, 100.0)
        return Estimate(float(values.mean()), low, high, self.error, self.seeds, p)


def critical(drawn: Points) -> float:
    """Return the smallest of the sorted draws that a statistic must exceed for its p to be below LEVEL."""
    return float(drawn[1 - round(LEVEL * (1 + len(drawn)))])


def largest(
    tested: Sequence[Tested], spreads: Mapping[str, float], degrees: int, covariance: Points, draws: int = DRAWS
) -> Points:
    """Draw the largest |difference / standard error| of all pairs if no pair differs: (draws,), sorted.

    `spreads`: each row's variance between seeds, estimated with `degrees` degrees of freedom. `covariance`: of the
    rows' scores over examples, in the order of `spreads`.
    """
    draw = np.random.default_rng(0)
    at = {name: place for place, name in enumerate(spreads)}
    of_examples = np.linalg.cholesky(covariance) @ draw.standard_normal((len(at), draws))
    chi_square = draw.chisquare(degrees, draws) / degrees if degrees else np.ones(draws)
    of_seeds = draw.standard_normal((len(at), draws)) / chi_square**0.5
    of_seeds *= np.array([[spread**0.5] for spread in spreads.values()])
    found = np.zeros(draws)
    for pair in tested:
        if pair.error:
            a, b = at[pair.a], at[pair.b]
            # the interaction of seed and example is in the covariance, but not in the pair's own variance
            scale = pair.by_examples / (covariance[a, a] + covariance[b, b] - 2 * covariance[a, b])
            drawn = (of_examples[a] - of_examples[b]) * scale**0.5 + (of_seeds[a] - of_seeds[b]) / pair.seeds**0.5
            np.maximum(found, np.abs(drawn) / pair.error, out=found)
    return np.sort(found)


def _covariance(rows: Mapping[str, Scores], names: Iterable[str]) -> Points:
    """Return the covariance of the rows' scores over examples, with half of the two added examples in each row."""
    means = np.stack([np.mean([*rows[name].by_seed.values()], axis=0) for name in names])
    examples = means.shape[1]
    return np.cov(means, ddof=0) / examples + np.eye(len(means)) * (100 / (examples + 2)) ** 2


def share_interval(gain: Points, gap: Points) -> tuple[float, float] | None:
    """Return the 95 % interval of mean(gain) / mean(gap), (S, N) points each; None if the gap may be zero.

    It contains the shares for which gain - share * gap does not differ significantly from zero (Fieller 1954). If the
    gap itself does not, the interval is unbounded.
    """
    from scipy import optimize

    if crossed(gap).low <= 0:
        return None

    def excess(share: float) -> float:
        return share_excess(gain, gap, share)

    share, ends = float(gain.mean() / gap.mean()), []
    for step in (-1.0, 1.0):
        while excess(share + step) <= 0:
            step *= 2
        ends.append(float(optimize.brentq(excess, share, share + step, xtol=1e-6)))
    return ends[0], ends[1]


def share_excess(gain: Points, gap: Points, share: float) -> float:
    """Return how far mean(gain - share * gap) exceeds what LEVEL allows; up to 0, `share` is in the interval."""
    from scipy import special

    values = gain - share * gap
    variance, degrees = variance_of_mean(values)
    return abs(float(values.mean())) - float(special.stdtrit(degrees, 1 - LEVEL / 2)) * variance**0.5


class Paired(NamedTuple):
    """The mean of (S seeds, N examples) paired differences, and how far other seeds and other examples would move it.

    Two examples are added, one for each side (Bonett and Price 2012), so that two models which agree on all examples
    are not equal for certain. `of_seeds` and `of_examples` are the variances of one seed and of one example.
    """

    mean: float
    centre: float  # of the interval: the mean with the two added examples
    of_seeds: float  # 0 for S = 1
    of_examples: float
    seeds: int
    examples: int

    def interval(self, level: float, seeds: int | None = None, examples: int | None = None) -> tuple[float, float]:
        """Return the two-sided interval that misses in the share `level`, with S and N, or with these numbers.

        S = 1: for other examples only. Each end misses at most in half of `level`: see DEGREES.
        """
        from scipy import stats

        seeds, examples = seeds or self.seeds, examples or self.examples
        by_seeds = self.of_seeds / seeds
        variance = by_seeds + self.of_examples / examples
        degrees = degrees_of_freedom(by_seeds / variance if variance else 1.0, seeds) if seeds > 1 else MANY
        half = float(stats.t.ppf(1 - level / 2, degrees)) * variance**0.5
        return max(self.centre - half, -100.0), min(self.centre + half, 100.0)


def paired(values: Points) -> Paired:
    """Return the mean of (S, N) paired differences, with what its interval needs."""
    seeds, examples = values.shape
    centre, by_examples = _by_examples(values)
    of_seeds = float(values.mean(1).var(ddof=1)) if seeds > 1 else 0.0
    return Paired(float(values.mean()), centre, of_seeds, by_examples * examples, seeds, examples)


def variance_of_mean(values: Points) -> tuple[float, float]:
    """Return the variance of the mean of (S, N) values and its degrees of freedom; S = 1: over examples only."""
    seeds, examples = values.shape
    of_examples = float(values.mean(0).var(ddof=min(1, examples - 1))) / examples
    if seeds == 1:
        return of_examples, MANY
    of_seeds = float(values.mean(1).var(ddof=1)) / seeds
    variance = of_seeds + max(of_examples - _both(values), 0.0)
    return variance, degrees_of_freedom(of_seeds / variance if variance else 1.0, seeds)


def _both(values: Points) -> float:
    """Return the variance of the interaction of seed and example, which both other variances contain."""
    seeds, examples = values.shape
    by_seed, by_example = values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_example + by_seed.mean()
    return float((rest**2).sum()) / ((seeds - 1) * max(examples - 1, 1)) / (seeds * examples)


def degrees_of_freedom(share: float, seeds: int) -> float:
    """Return the degrees of freedom, given the share of the variance due to seeds: S - 1 for 1, more for less."""
    known = max(count for count in DEGREES if count <= seeds)
    inverse = float(np.interp(share, SHARES, DEGREES[known]))
    return min((seeds - 1) / inverse, MANY) if inverse else MANY


def exact_mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the exact p that two runs of one seed are correct equally often; (N,) each. It ignores other seeds."""
    from statsmodels.stats.contingency_tables import mcnemar

    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    return float(mcnemar(table, exact=True).pvalue)


def seed_permutation(differences: Points) -> float:
    """Return the exact p of the mean of (S,) paired differences, by swapping the pair of a seed; at least 2 / 2**S."""
    from scipy import stats

    zero = np.zeros_like(differences)
    return float(
        stats.permutation_test(
            (differences, zero),
            lambda a, b, axis: np.mean(a - b, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=10_000,
            rng=0,
        ).pvalue
    )
