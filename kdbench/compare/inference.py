"""What a difference is worth: pure functions on per-example scores.

Every score is a mean over S seeds and N examples, and both are samples: other seeds and another test set would
have given another mean. So a difference is paired by seed and example and its seeds and examples are taken as
crossed random effects. A plain bootstrap over both is far too narrow with three seeds (see
scripts/study/error_rates.py, which also checks what is used here), a t interval over seeds alone leaves the test
set out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
POWER = 0.80
MANY = 1e6  # degrees of freedom: as good as a normal distribution

# (S - 1) / degrees of freedom, at these shares of the seeds in the estimated variance. Satterthwaite's square of the
# share errs in 8 % of the cases with 3 seeds instead of 5, since a variance from 2 degrees of freedom is often far
# too small. These were solved for numerically, so that the error is 4.9 to 5.1 % whatever the true share is; with two
# seeds that cannot be had, and it is 2 to 5.5 %. scripts/study/degrees_of_freedom.py makes the table.
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
class Estimate:
    """A mean with its 95 % interval, in the unit of the values."""

    mean: float
    low: float
    high: float
    error: float  # standard error
    degrees: float  # of freedom
    seeds: int
    p: float | None  # two-sided, that it is zero; None where one seed says nothing of other seeds
    p_safe: float | None  # the same, valid at any level: `p` is calibrated for 5 % alone
    detectable: float | None  # smallest true mean that such data would find in 80 % of the cases


def crossed(values: NDArray[np.float64], seedless: bool = False) -> Estimate:
    """Mean of `values` (S seeds, N examples) over other seeds and other examples.

    `seedless`: no seed would change anything, so S is 1 and the examples are all there is. With S = 1 of more than
    one possible seed the interval holds for this seed, and there is no p.
    """
    from scipy import stats

    seeds, mean = len(values), float(values.mean())
    variance, degrees = variance_of_mean(values)
    half = float(stats.t.ppf(1 - LEVEL / 2, degrees)) * variance**0.5
    p = p_value(mean, variance, degrees) if seeds > 1 or seedless else None
    safe = p_value(mean, variance, seeds - 1) if seeds > 1 else p
    found = detectable(variance**0.5, degrees) if seeds > 1 else None
    return Estimate(mean, mean - half, mean + half, variance**0.5, degrees, seeds, p, safe, found)


def share_interval(gain: NDArray[np.float64], gap: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % interval of mean(gain) / mean(gap), (S, N) points each; None where the gap may be zero.

    The shares at which gain - share * gap cannot be told from zero (Fieller 1954). Where the gap cannot be told from
    zero either, they have no end.
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


def share_excess(gain: NDArray[np.float64], gap: NDArray[np.float64], share: float) -> float:
    """How much further from zero mean(gain - share * gap) is than LEVEL allows; up to 0 it may be the share."""
    from scipy import special

    values = gain - share * gap
    variance, degrees = variance_of_mean(values)
    return abs(float(values.mean())) - float(special.stdtrit(degrees, 1 - LEVEL / 2)) * variance**0.5


def variance_of_mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Variance of the mean of (S, N) values, and its degrees of freedom; of the examples alone where S is 1."""
    seeds, examples = values.shape
    by_example = values.mean(0)
    of_examples = float(by_example.var(ddof=1)) / examples
    if seeds == 1:
        return of_examples, MANY
    by_seed = values.mean(1)
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    rest = values - by_seed[:, None] - by_example + by_seed.mean()
    # what seed and example do together is in both variances: it is taken out of one
    both = float((rest**2).sum()) / ((seeds - 1) * (examples - 1)) / (seeds * examples)
    variance = of_seeds + max(of_examples - both, 0.0)
    return variance, degrees_of_freedom(of_seeds / variance if variance else 1.0, seeds)


def degrees_of_freedom(share: float, seeds: int) -> float:
    """Of a variance of which the seeds' part is this share: S - 1 where it is all, more the smaller it is."""
    known = max(count for count in DEGREES if count <= seeds)
    inverse = float(np.interp(share, SHARES, DEGREES[known]))
    return min((seeds - 1) / inverse, MANY) if inverse else MANY


def p_value(mean: float, variance: float, degrees: float) -> float:
    """Two-sided, that the true mean is zero."""
    from scipy import stats

    if variance <= 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / variance**0.5, degrees))


def detectable(error: float, degrees: float) -> float:
    """The true mean at which a two-sided test at LEVEL finds a difference with POWER (noncentral t)."""
    from scipy import optimize, stats

    degrees = min(degrees, 1e4)
    critical = stats.t.ppf(1 - LEVEL / 2, degrees)
    return float(error * optimize.brentq(lambda d: stats.nct.sf(critical, degrees, d) - POWER, 0.5, 60))


def accuracy_scores(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) points of each example: 100 where it is right, 0 where not."""
    return 100.0 * (labels == predicted)


def macro_f1_scores(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) points whose mean is macro-F1 and whose spread is that of its first-order change with each example.

    Macro-F1 is no mean over examples; this is its infinitesimal jackknife (Efron 1982, section 6): with
    F1_c = 2 TP_c / (true_c + predicted_c), what one example adds to it, times N. Rough where classes are rare.
    """
    classes = int(max(labels.max(), predicted.max())) + 1
    true, said = (np.bincount(which, minlength=classes) for which in (labels, predicted))
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    size = true + said
    f1 = np.divide(2.0 * hits, size, out=np.zeros(classes), where=size > 0)
    weight = np.divide(1.0, size, out=np.zeros(classes), where=size > 0) / np.count_nonzero(size)
    change = weight[labels] * (2.0 * (labels == predicted) - f1[labels]) - weight[predicted] * f1[predicted]
    return 100.0 * (f1.sum() / np.count_nonzero(size) + len(labels) * change)


def wilson(right: int, examples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in points: of one run, for other examples and this seed."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(right, examples, LEVEL, method="wilson")
    return 100 * float(low), 100 * float(high)


def exact_mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Exact p that two runs of one seed are right equally often; (N,) each. It knows nothing of other seeds."""
    from statsmodels.stats.contingency_tables import mcnemar

    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    return float(mcnemar(table, exact=True).pvalue)


def seed_permutation(differences: NDArray[np.float64]) -> float:
    """Exact p of the mean of (S,) paired differences, by swapping the pair of each seed; never below 2 / 2**S."""
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


def holm(ps: list[float]) -> list[float]:
    """Holm's adjusted p values, in the same order."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(ps, method="holm")[1]] if ps else []
