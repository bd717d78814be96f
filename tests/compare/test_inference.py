"""The tests of differences, against values by hand, other libraries and simulation."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from kdbench.compare import inference


@pytest.fixture(scope="module")
def study() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts/study/error_rates.py"
    spec = importlib.util.spec_from_file_location("error_rates", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_seeds_alone_give_the_paired_t_test() -> None:
    differences = np.array([1.0, 2.0, 4.5, 0.5])
    found = inference.crossed(np.repeat(differences[:, None], 50, 1))  # every example says the same
    expected = stats.ttest_1samp(differences, 0)
    assert found.p == pytest.approx(expected.pvalue) and found.p_safe == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_examples_alone_give_the_z_test() -> None:
    values = np.random.default_rng(0).normal(0.2, 1, 400)
    found = inference.crossed(np.repeat(values[None], 3, 0))  # every seed says the same
    assert found.error == pytest.approx(values.std(ddof=1) / 20)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(values.mean()) / found.error), rel=1e-3)


def test_what_seed_and_example_do_together_is_counted_once() -> None:
    rng = np.random.default_rng(1)
    variances = [inference.variance_of_mean(rng.normal(0, 1, (4, 50)))[0] for _ in range(4000)]
    assert np.mean(variances) == pytest.approx(1 / 200, rel=0.12)  # not 1 / 100; a part below 0 is 0


def test_one_seed_has_no_p_and_seedless_has() -> None:
    values = np.random.default_rng(0).normal(1, 1, (1, 100))
    one = inference.crossed(values)
    assert one.p is None and one.p_safe is None and one.detectable is None and one.low < one.mean < one.high
    assert inference.crossed(values, seedless=True).p == pytest.approx(0, abs=1e-6)


def test_equal_runs_differ_by_nothing() -> None:
    found = inference.crossed(np.zeros((3, 20)))
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_least_to_find_is_found_in_80_of_100_cases() -> None:
    rng = np.random.default_rng(2)
    true = inference.detectable(1 / 8**0.5, 7)
    ps = stats.ttest_1samp(rng.normal(true, 1, (20_000, 8)), 0, axis=1).pvalue
    assert np.mean(ps < 0.05) == pytest.approx(0.80, abs=0.01)


def test_degrees_never_fall_below_those_of_the_seeds() -> None:
    for seeds in (2, 3, 4, 7, 12, 50):
        found = [inference.degrees_of_freedom(share, seeds) for share in np.linspace(0, 1, 41)]
        assert min(found) == found[-1] == pytest.approx(seeds - 1) and found == sorted(found, reverse=True)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize(("seeds", "low", "high"), [(2, 2.0, 5.5), (3, 4.5, 5.5), (5, 4.5, 5.5), (7, 4.5, 5.5)])
def test_error_rate_whatever_share_the_seeds_have(seeds: int, low: float, high: float, share: float) -> None:
    """Exact but for the grid: the seeds' variance is a chi-square, the examples' as good as known."""
    at = (np.arange(2000) + 0.5) / 2000
    factor = stats.chi2.ppf(at, seeds - 1) / (seeds - 1)
    variance = share * factor + 1 - share
    degrees = [inference.degrees_of_freedom(part, seeds) for part in share * factor / variance]
    critical = stats.t.ppf(0.975, degrees)
    error = 100 * float(np.mean(2 * stats.norm.sf(critical * np.sqrt(variance))))
    assert low <= error <= high


def test_simulated_runs_are_judged_rightly(study: ModuleType) -> None:
    """A sample of scripts/study/error_rates.py, whose 20,000 repeats are within 4.5 to 5.5 and 94 to 96."""
    error, coverage, _ = study.rates(study.REGIMES["like reuters_r52"], 3, 1500, 0)
    assert 3.3 <= error <= 6.7 and 93.3 <= coverage <= 96.7  # 3 s.d. of 1,500


def test_a_plain_bootstrap_is_too_narrow_where_seeds_matter(study: ModuleType) -> None:
    assert study.rates(study.REGIMES["seeds only"], 3, 100, 100)[2] < 90


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["examples only", "seeds small", "like reuters_r52", "seeds large", "seeds only"])
def test_error_rates_in_full(study: ModuleType, regime: str) -> None:
    error, coverage, _ = study.rates(study.REGIMES[regime], 3, 20_000, 0)
    lowest = 3.8 if regime == "seeds only" else 4.5  # seeds of 7 points s.d.: their means are no longer normal
    assert lowest <= error <= 5.5 and 94 <= coverage <= 96


def test_macro_f1_scores_average_to_macro_f1_and_have_its_spread() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 600)
    predicted = np.where(rng.random(600) < 0.8, labels, rng.integers(0, 5, 600))  # a class that never is the label
    scores = inference.macro_f1_scores(labels, predicted)
    assert scores.mean() == pytest.approx(100 * f1_score(labels, predicted, average="macro", zero_division=0.0))
    draws = [rng.integers(0, 600, 600) for _ in range(1500)]
    resampled = [inference.macro_f1_scores(labels[draw], predicted[draw]).mean() for draw in draws]
    assert scores.std() / 600**0.5 == pytest.approx(np.std(resampled), rel=0.08)


def test_exact_mcnemar_is_the_binomial_test_of_the_discordant() -> None:
    a = np.array([True] * 9 + [False] * 2 + [True] * 50)
    b = np.array([False] * 9 + [True] * 2 + [True] * 50)
    assert inference.exact_mcnemar(a, b) == pytest.approx(stats.binomtest(2, 11).pvalue)


def test_seed_permutation_is_exact() -> None:
    assert inference.seed_permutation(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8)
    assert inference.seed_permutation(np.array([1.0, 2.0, -0.5, 1.0, 3.0, 2.0])) == pytest.approx(4 / 64)


def test_wilson_and_holm() -> None:
    assert inference.wilson(90, 100) == (pytest.approx(82.56, abs=0.01), pytest.approx(94.48, abs=0.01))
    assert inference.holm([0.01, 0.04, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06)]
    assert inference.holm([]) == []


def test_share_of_a_gap_is_fiellers_interval() -> None:
    """One seed, so that the variances are those of the examples alone and the ends are roots of a quadratic."""
    rng = np.random.default_rng(4)
    gain, gap = rng.normal(0.5, 2, (1, 900)), rng.normal(1.0, 2, (1, 900))
    (vv, vg), (_, gg) = np.cov(gain[0], gap[0]) / 900 * stats.norm.ppf(0.975) ** 2
    a, b = gain.mean(), gap.mean()
    assert inference.share_interval(gain, gap) == pytest.approx(
        sorted(np.roots([b**2 - gg, -2 * (a * b - vg), a**2 - vv])), rel=1e-4
    )


def test_a_gap_that_may_be_zero_is_not_divided_by() -> None:
    gain = np.random.default_rng(5).normal(0.5, 2, (3, 900))
    assert inference.share_interval(gain, gain - gain.mean() + 0.05) is None
    assert inference.share_interval(gain, gain - gain.mean() - 9.0) is None  # the teacher is surely worse


def test_share_of_a_gap_where_everything_is_the_same() -> None:
    gain = np.repeat([[10.0], [11.0], [12.0]], 50, 1)
    assert inference.share_interval(gain, 2 * gain) == pytest.approx((0.5, 0.5))


def test_intervals_of_a_gap_hold_the_true_share(study: ModuleType) -> None:
    coverage, of_shown, shown = study.share_rates(study.REGIMES["like reuters_r52"], 3, 250)
    assert 90.8 <= coverage <= 99.2 and 90.8 <= of_shown <= 99.2 and shown > 95  # 3 s.d. of 250
