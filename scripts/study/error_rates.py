"""How often are compare-runs' tests and intervals wrong, and what do they find? Simulated runs whose truth is known.

    python scripts/study/error_rates.py [families tables one_seed scores shares gate] [--repeats 2000]
    python scripts/study/error_rates.py degrees

families  Tables of K rows and their baseline, in a normal model. Error: how often any of the K differences has a star
          where all rows are alike (familywise). Power: how often a row has its star that is better by so many true
          standard errors. Beside both Holm's correction of paired t tests with n - 1 degrees of freedom.
tables    The same of runs that are right or wrong about each example, by compare-runs' own function; and how often the
          intervals of all rows hold.
one_seed  Coverage of the interval of a difference and of an accuracy of one seed, for other examples.
scores    Coverage of the interval of a score of several seeds, of the plain interval of a difference, and of a
          percentile bootstrap over seeds and examples, which is not used for that reason.
shares    Coverage of the interval of the share of a gap, of those that are shown, and how often one is shown.
gate      How often `compare-runs --gate` passes a candidate that is worse by exactly the margin, how often it fails
          it, and how often it passes one that is as good. The margin is 0.7 points, of 1,000 texts.
degrees   The table DEGREES of kdbench/compare/statistics.py, solved for (see `degrees`).

A run is right about an example where ability + difficulty + what this model makes of this example + what this seed
does + both together is above zero: all normal, their sizes as in the lines. All figures are in per cent.
"""

import argparse
import functools

import numpy as np
from scipy import optimize, stats
from scipy.stats import norm, t

from kdbench.compare.gate import CANNOT_TELL, FAILED, PASSED, judged
from kdbench.compare.statistics import (
    LEVEL,
    Points,
    Scores,
    Tested,
    critical,
    crossed,
    differences,
    largest,
    paired,
    score,
    share_excess,
    share_interval,
    variance_of_mean,
)
from kdbench.compare.statistics import (
    SHARES as DEGREES_AT,
)

EXAMPLES = 500
DRAWN = 1_999  # of the largest statistic: compare-runs draws ten times as many, for a p with less noise
SHARES = np.linspace(0, 1, 21)
TRUE_SHARES = np.concatenate([np.linspace(0, 0.1, 8), np.linspace(0.15, 0.9, 14), np.linspace(0.92, 1, 8)])
GAINS = (4, 6)  # of the better row, in standard errors
REGIMES = {  # standard deviations: of a model on an example, of a seed, of a seed on an example (difficulty: 1)
    "examples only": (0.3, 0.0, 0.0),
    "seeds small": (0.3, 0.03, 0.3),
    "like reuters_r52": (0.3, 0.06, 0.4),
    "seeds large": (0.3, 0.15, 0.4),
    "seeds only": (0.0, 0.3, 0.1),
}


SPREADS = {  # a row's s.d. between seeds, as a multiple; the first row is the baseline
    "equal": lambda rng, rows: np.ones(rows),
    "one row 3 x": lambda rng, rows: np.where(np.arange(rows) == 1, 3.0, 1.0),
    "baseline 2 x": lambda rng, rows: np.where(np.arange(rows) == 0, 2.0, 1.0),
    "1/2 to 2 x, mixed": lambda rng, rows: np.exp(rng.normal(0, 0.4, rows)),
}


def simulate(
    rng: np.random.Generator,
    ability: float,
    difficulty: Points,
    regime: tuple[float, float, float],
    seeds: int,
    alike: Points | float = 0.0,
) -> Points:
    """Draw (S, N) points of one model on examples of this difficulty. `alike` (S, 1): a seed's effect on all."""
    of_model, of_seed, of_both = regime
    latent = ability + difficulty + of_model * rng.standard_normal(len(difficulty)) + alike
    latent = latent + of_seed * rng.standard_normal((seeds, 1))
    latent = latent + of_both * rng.standard_normal((seeds, len(difficulty)), dtype=np.float32)
    return np.where(latent > 0, 100.0, 0.0)


def true_accuracy(ability: float, regime: tuple[float, float, float]) -> float:
    return 100 * float(norm.cdf(ability / (1 + sum(size**2 for size in regime)) ** 0.5))


def bootstrap_holds(rng: np.random.Generator, values: Points, truth: float) -> bool:
    """Return whether the percentile interval of 400 resamples of seeds and of examples holds the truth."""
    seeds, examples = values.shape
    weights = rng.multinomial(examples, np.full(examples, 1 / examples), 400) / examples
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), 400) / seeds
    means = np.einsum("rs,sr->r", drawn, values @ weights.T)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return bool(low <= truth <= high)


def rates(regime: tuple[float, float, float], seeds: int, repeats: int, bootstraps: int) -> list[float]:
    """Return the coverage, %, of the interval of a score, of a difference's plain interval, and of its bootstrap."""
    rng = np.random.default_rng(0)
    held, held_difference, held_boot = 0, 0, 0
    truths = [true_accuracy(ability, regime) for ability in (1.4, 1.6)]
    for repeat in range(repeats):
        difficulty = rng.standard_normal(EXAMPLES)
        base, better = (simulate(rng, ability, difficulty, regime, seeds) for ability in (1.4, 1.6))
        one = score(better)
        held += one.low <= truths[1] <= one.high
        two = crossed(better - base)
        held_difference += two.low <= truths[1] - truths[0] <= two.high
        held_boot += repeat < bootstraps and bootstrap_holds(rng, better - base, truths[1] - truths[0])
    return [100 * held / repeats, 100 * held_difference / repeats, 100 * held_boot / max(bootstraps, 1)]


def holm(ps: Points) -> Points:
    """Return Holm's adjusted p values along the last axis. statsmodels' is slow: it collects garbage at each call."""
    order = np.argsort(ps, axis=-1)
    adjusted = np.maximum.accumulate(np.take_along_axis(ps, order, -1) * np.arange(ps.shape[-1], 0, -1), axis=-1)
    return np.take_along_axis(adjusted, np.argsort(order, axis=-1), -1)


@functools.cache
def critical_values(seeds: int, rows: int) -> Points:
    """Return compare-runs' own critical values at these SHARES of the seeds in the variance of a difference."""
    names = [str(at) for at in range(rows + 1)]
    found = []
    for share in SHARES:
        tested = [Tested(name, names[0], seeds, share, 0.0, 1 - share) for name in names[1:]]
        spreads = dict.fromkeys(names, share * seeds / 2)
        covariance = np.eye(rows + 1) * max(1 - share, 1e-9) / 2
        found.append(critical(largest(tested, spreads, (rows + 1) * (seeds - 1), covariance)))
    return np.array(found)


def family_rates(
    share: float, seeds: int, rows: int, repeats: int, spreads: str = "equal", gain: float = 0.0, alike: float = 0.0
) -> tuple[float, float]:
    """Return how often, %, a table has a star, and by Holm's correction; with a `gain`, how often the better row has.

    `share`: of the seeds in the variance of a difference of two rows of the common spread. `alike`: correlation of the
    runs of one seed. The part of the examples is as good as known, and independent between rows.
    """
    rng = np.random.default_rng(0)
    sizes = np.stack([SPREADS[spreads](rng, rows + 1) for _ in range(repeats)])[:, :, None]
    both = rng.standard_normal((repeats, 1, seeds)) * alike**0.5
    runs = both + rng.standard_normal((repeats, rows + 1, seeds)) * (1 - alike) ** 0.5
    runs *= sizes * (share * seeds / 2) ** 0.5
    means = runs.mean(2) + rng.standard_normal((repeats, rows + 1)) * ((1 - share) / 2) ** 0.5
    # in true standard errors, so that rows of other spreads are as hard to find
    true = np.sqrt(share * (sizes[:, 0, 0] ** 2 + sizes[:, 1, 0] ** 2) / 2 + 1 - share)
    means[:, 1] += gain * true
    found = means[:, 1:] - means[:, :1]
    own = runs.var(2, ddof=1)
    kept = np.maximum(own, own.mean(1, keepdims=True))
    by_seeds = (kept[:, 1:] + kept[:, :1]) / seeds
    variance = by_seeds + 1 - share
    stars = np.abs(found) / variance**0.5 > np.interp(by_seeds / variance, SHARES, critical_values(seeds, rows))
    paired = (runs[:, 1:] - runs[:, :1]).var(2, ddof=1) / seeds + 1 - share
    by_holm = holm(2 * t.sf(np.abs(found) / paired**0.5, seeds - 1)) < LEVEL
    rates = [100 * float((one[:, 0] if gain else one.any(1)).mean()) for one in (stars, by_holm)]
    return rates[0], rates[1]


def table_rates(
    regime: tuple[float, float, float], seeds: int, rows: int, repeats: int, gain: float = 0.35
) -> dict[str, float]:
    """Return familywise error, power and coverage, %, of `rows` differences to one baseline, beside Holm's.

    `gain`: how much the ability of the better row is above the others'.
    """
    rng = np.random.default_rng(0)
    names = [str(at) for at in range(rows + 1)]
    pairs = [(name, names[0]) for name in names[1:]]
    found = dict.fromkeys(("error", "holm_error", "power", "holm_power", "coverage"), 0)
    for _ in range(repeats):
        for true in (0.0, gain):
            difficulty = rng.standard_normal(EXAMPLES)
            abilities = [1.4 + true * (at == rows) for at in range(rows + 1)]
            points = [simulate(rng, ability, difficulty, regime, seeds) for ability in abilities]
            scores = {name: Scores(dict(enumerate(one))) for name, one in zip(names, points, strict=True)}
            tested = [one for one in differences(scores, pairs, DRAWN) if one is not None]
            stars = [one.p is not None and one.p < LEVEL for one in tested]
            sizes = [
                abs(one.mean()) / max(variance_of_mean(one)[0], 1e-9) ** 0.5
                for one in np.subtract(points[1:], points[0])
            ]
            by_holm = holm(2 * t.sf(sizes, seeds - 1)) < LEVEL
            if true:
                truths = [true_accuracy(ability, regime) - true_accuracy(1.4, regime) for ability in abilities[1:]]
                found["power"] += stars[-1]
                found["holm_power"] += int(by_holm[-1])
                found["coverage"] += all(
                    one.low <= truth <= one.high for one, truth in zip(tested, truths, strict=True)
                )
            else:
                found["error"] += any(stars)
                found["holm_error"] += int(by_holm.any())
    return {name: 100 * count / repeats for name, count in found.items()}


def one_seed_rates(examples: int, abilities: tuple[float, float], repeats: int) -> tuple[float, float, float]:
    """Return the coverage, %, of the intervals of a difference of two runs and of an accuracy.

    The third figure is the share of examples on which the runs differ. It is small: so is a model's part of an example.
    """
    rng = np.random.default_rng(0)
    regime = (0.1, 0.0, 0.0)
    truths = [true_accuracy(ability, regime) for ability in abilities]
    held = held_score = 0
    apart = 0.0
    for _ in range(repeats):
        difficulty = rng.standard_normal(examples)
        a, b = (simulate(rng, ability, difficulty, regime, 1) for ability in abilities)
        (one,) = differences({"a": Scores({0: a[0]}), "b": Scores({0: b[0]})}, [("a", "b")])
        own = score(a)
        held += one is not None and one.low <= truths[0] - truths[1] <= one.high
        held_score += own.low <= truths[0] <= own.high
        apart += float((a != b).mean())
    return 100 * held / repeats, 100 * held_score / repeats, 100 * apart / repeats


def gate_rates(
    regime: tuple[float, float, float], seeds: int, repeats: int, one_model: bool = False
) -> tuple[float, float, float]:
    """Return how often, %, a candidate that is worse by exactly the margin passes, how often it fails, and the power.

    The power is how often a candidate passes that is as good as the baseline. `one_model`: both sides are one model
    each (`seeds` is 1), whose scores on other texts are the truth. The seed's part is then the model's own, and is 0.
    """
    rng = np.random.default_rng(0)
    counts = dict.fromkeys((PASSED, FAILED, CANNOT_TELL, "power"), 0)
    margin = true_accuracy(1.6, regime) - true_accuracy(1.55, regime)
    for _ in range(repeats):
        difficulty = rng.standard_normal(2 * EXAMPLES)
        base, worse, equal = (simulate(rng, ability, difficulty, regime, seeds) for ability in (1.6, 1.55, 1.6))
        counts[judged(paired(worse - base), margin, one_model)] += 1
        counts["power"] += judged(paired(equal - base), margin, one_model) == PASSED
    return tuple(100 * counts[key] / repeats for key in (PASSED, FAILED, "power"))  # type: ignore[return-value]


def share_rates(
    regime: tuple[float, float, float], seeds: int, repeats: int, better: float = 2.2, seed: int = 0
) -> tuple[float, float, float]:
    """Return the coverage, %, of Fieller's set of shares of the gap, of those shown, and how often one is shown.

    In per cent. Teacher and student have the abilities `better` and 1.6, the direct baseline 1.4. There is one teacher:
    the share is that of the way to this one, so its seed is drawn, and what it makes of the examples is not its merit.
    The set is an interval, and shown, where the gap is surely there.
    """
    rng = np.random.default_rng(seed)
    single = (regime[0], 0.0, regime[2])
    base, student, teacher = (
        true_accuracy(one, which) for one, which in ((1.4, regime), (1.6, regime), (better, single))
    )
    share = (student - base) / (teacher - base)
    held = shown = held_shown = 0
    for _ in range(repeats):
        difficulty = rng.standard_normal(EXAMPLES)
        direct = simulate(rng, 1.4, difficulty, regime, seeds)
        gain = simulate(rng, 1.6, difficulty, regime, seeds) - direct
        gap = simulate(rng, better, difficulty, single, 1) - direct
        held += share_excess(gain, gap, share) <= 0
        if (found := share_interval(gain, gap)) is not None:
            shown += 1
            held_shown += found[0] <= share <= found[1]
    return 100 * held / repeats, 100 * held_shown / max(shown, 1), 100 * shown / repeats


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["families", "tables", "one_seed", "scores", "shares", "gate"])
    parser.add_argument("--repeats", type=int, default=2_000)
    parser.add_argument("--tables-of", type=int, default=20_000, help="repeats of families, whose tables cost little")
    parser.add_argument("--bootstraps", type=int, default=500)
    parser.add_argument("--seeds", type=numbers, default=[2, 3, 5, 10])
    parser.add_argument("--rows", type=numbers, default=[4, 10, 27])
    options = parser.parse_args()
    made = {"families": families, "tables": tables, "one_seed": one_seed, "scores": scores, "shares": shares,
            "gate": gate, "degrees": degrees}  # fmt: skip
    noise = 100 * (0.05 * 0.95 / options.repeats) ** 0.5
    print(f"{EXAMPLES} examples, {options.repeats} repeats (s.d. of a rate of 5: {noise:.2f}), in per cent")
    for table in options.tables:
        made[table](options)


def families(options: argparse.Namespace) -> None:
    kinds = [(share, "equal", 0.0) for share in (1.0, 0.8, 0.5, 0.2)]
    kinds += [(0.8, name, 0.0) for name in SPREADS if name != "equal"] + [(0.8, "equal", 0.5)]
    print(f"\n{'spread of the rows':20}{'seeds part':>11}{'alike':>7}{'n':>4}{'rows':>6}", end="")
    print(f"{'error':>8}{'Holm':>8}" + "".join(f"{f'power {gain}':>10}{'Holm':>8}" for gain in GAINS))
    for share, name, alike in kinds:
        for seeds in options.seeds:
            for rows in options.rows:
                made = [family_rates(share, seeds, rows, options.tables_of, name, gain, alike) for gain in (0, *GAINS)]
                figures = "".join(
                    f"{ours:{8 + 2 * bool(at)}.1f}{theirs:8.1f}" for at, (ours, theirs) in enumerate(made)
                )
                print(f"{name:20}{share:11.1f}{alike:7.1f}{seeds:4}{rows:6}{figures}", flush=True)


def tables(options: argparse.Namespace) -> None:
    print(f"\n{'runs':20}{'n':>3}{'rows':>6}{'error':>8}{'Holm':>8}{'power':>8}{'Holm':>8}{'coverage':>10}")
    for name, regime in REGIMES.items():
        for seeds in options.seeds:
            for rows in options.rows:
                found = table_rates(regime, seeds, rows, options.repeats)
                figures = "".join(f"{found[key]:8.1f}" for key in ("error", "holm_error", "power", "holm_power"))
                print(f"{name:20}{seeds:3}{rows:6}{figures}{found['coverage']:10.1f}", flush=True)


def one_seed(options: argparse.Namespace) -> None:
    print(f"\n{'examples':>10}{'differ':>8}{'coverage':>10}{'of an accuracy':>16}")
    for examples in (12, 25, 50, 100, 200, 500):
        for abilities in ((1.4, 1.4), (1.6, 1.4), (2.0, 1.4)):
            held, held_score, apart = one_seed_rates(examples, abilities, options.repeats)
            print(f"{examples:10}{apart:8.1f}{held:10.1f}{held_score:16.1f}", flush=True)


def scores(options: argparse.Namespace) -> None:
    print(f"\n{'runs':20}{'n':>3}{'score':>8}{'difference':>12}{'bootstrap':>12}")
    for seeds in options.seeds:
        for name, regime in REGIMES.items():
            held, difference, boot = rates(regime, seeds, options.repeats, options.bootstraps)
            print(f"{name:20}{seeds:3}{held:8.1f}{difference:12.1f}{boot:12.1f}", flush=True)


def shares(options: argparse.Namespace) -> None:
    print(f"\n{'share of the gap':20}{'n':>3}{'coverage':>10}{'of shown':>10}{'shown':>8}")
    for seeds in options.seeds:
        for name, regime in REGIMES.items():
            coverage, of_shown, shown = share_rates(regime, seeds, options.repeats)
            print(f"{name:20}{seeds:3}{coverage:10.2f}{of_shown:10.2f}{shown:8.1f}", flush=True)


def errors(inverse: Points, of_seeds: int) -> Points:
    """Return the rate of errors at each of TRUE_SHARES, for (S - 1) / degrees of freedom at the inner DEGREES_AT."""
    edges = stats.beta.cdf(np.linspace(0, 1, 401), 2, 2)  # finer where the chi-square's tails are
    factor, weight = stats.chi2.ppf((edges[1:] + edges[:-1]) / 2, of_seeds) / of_seeds, np.diff(edges)
    found = []
    for share in TRUE_SHARES:
        variance = share * factor + 1 - share
        curve = np.interp(share * factor / variance, DEGREES_AT, np.concatenate([[0], inverse, [1]]))
        critical_t = stats.t.ppf(1 - LEVEL / 2, of_seeds / np.maximum(curve, 1e-6))
        found.append((weight * 2 * stats.norm.sf(critical_t * np.sqrt(variance))).sum())
    return np.array(found)


def gate(options: argparse.Namespace) -> None:
    print(f"\n{'runs':20}{'n':>3}{'passed':>10}{'failed':>10}{'power':>10}")
    kinds = [(name, regime, seeds, False) for name, regime in REGIMES.items() for seeds in options.seeds]
    kinds.append(("one model each", (0.3, 0.0, 0.0), 1, True))
    for name, regime, seeds, one_model in kinds:
        figures = "".join(f"{rate:10.1f}" for rate in gate_rates(regime, seeds, options.repeats, one_model=one_model))
        print(f"{name:20}{seeds:3}{figures}", flush=True)


def degrees(options: argparse.Namespace) -> None:
    """Print degrees of freedom with which a two-sided 5 % test errs in 5 % of the cases, whatever the true share is.

    For S seeds the seeds' variance is a chi-square with S - 1 degrees of freedom. The examples are many, so theirs is
    as good as known. S = 2 has no solution: it was set by hand, so that the error is nowhere above 5.5 %.
    """
    for seeds in (3, 4, 5, 6, 8, 10, 15, 30):
        start = np.array(DEGREES_AT[1:-1]) ** 1.5

        def miss(inverse: Points, of_seeds: int = seeds - 1) -> Points:
            return errors(inverse, of_seeds) / LEVEL - 1

        solved = optimize.least_squares(miss, start, bounds=(0, 1))
        rates_ = 100 * errors(solved.x.round(3), seeds - 1)
        print(f"{seeds}: {solved.x.round(3).tolist()}, error {rates_.min():.2f} to {rates_.max():.2f} %")


if __name__ == "__main__":
    main()
