"""NLL, Brier score, calibration error, temperature and thresholds, against scikit-learn, SciPy and loops."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import f1_score, log_loss

from kdbench.tasks import kind
from kdbench.tasks.probabilities import (
    MARGIN,
    Questions,
    confidence,
    coverage,
    cross_fitted,
    cross_fitted_nll,
    ece,
    figures,
    fit_temperature,
    fit_thresholds,
    of_classes,
    of_labels,
    reliability,
)

RNG = np.random.default_rng(0)
N, C = 300, 4
LABELS = RNG.integers(0, C, N)
LOGITS = (2.5 * (np.eye(C)[LABELS] + RNG.normal(size=(N, C)))).astype(np.float32)
SEVERAL = RNG.integers(0, 2, (N, 3)).astype(np.int8)
Z = (2.0 * (2 * SEVERAL - 1 + RNG.normal(size=(N, 3)))).astype(np.float32)


def ece_by_hand(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Sum over the intervals (k / bins, (k + 1) / bins] of the likeliest class's probability."""
    total = 0.0
    for number in range(bins):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if number / bins < row.max() <= (number + 1) / bins
        ]
        if inside:
            top, right = np.array(inside, float).T
            total += len(inside) / len(labels) * abs(top.mean() - right.mean())
    return total


def test_figures_of_one_class() -> None:
    probabilities = softmax(LOGITS.astype(np.float64), -1)
    found = figures(of_classes(LABELS, LOGITS))
    assert found["nll"] == pytest.approx(log_loss(LABELS, probabilities))
    assert found["brier"] == pytest.approx(((probabilities - np.eye(C)[LABELS]) ** 2).sum() / N)
    assert found["ece"] == pytest.approx(ece_by_hand(probabilities, LABELS, 15))
    assert of_classes(LABELS, LOGITS).logits.shape == (N, 1, C)
    assert kind("regression").questions(LABELS, LOGITS) is None


def test_figures_of_several_labels_are_those_of_their_questions() -> None:
    shares = expit(Z.astype(np.float64)).ravel()
    both = np.stack([1 - shares, shares], -1)
    found = figures(of_labels(SEVERAL, Z))
    assert found["nll"] == pytest.approx(log_loss(SEVERAL.ravel(), shares))
    assert found["brier"] == pytest.approx(2 * ((shares - SEVERAL.ravel()) ** 2).mean())
    assert found["ece"] == pytest.approx(ece_by_hand(both, SEVERAL.ravel(), 15))


def test_probabilities_that_are_the_shares_of_right_answers_have_no_error() -> None:
    """Of ten texts with probability 0.8, eight are right; a uniform answer of two classes is right in half."""
    z = np.log(np.array([[0.8, 0.2]] * 10 + [[0.5, 0.5]] * 4))
    labels = np.array([0] * 8 + [1] * 2 + [0, 0, 1, 1])
    assert figures(of_classes(labels, z))["ece"] == pytest.approx(0, abs=1e-12)
    counts = {number: one.size for number, one in enumerate(reliability(confidence(of_classes(labels, z)))) if one.size}
    assert counts == {7: 4, 11: 10}  # 0.5 is in (7/15, 8/15], 0.8 in (11/15, 12/15], 12/15 being its upper border


def test_a_probability_on_a_border_belongs_to_the_lower_bin() -> None:
    equal = of_classes(np.array([0, 1, 1]), np.zeros((3, 2)))  # one half
    assert [one.size for one in reliability(confidence(equal), bins=2)] == [3, 0]


def test_a_single_bin_compares_the_means() -> None:
    top = softmax(LOGITS.astype(np.float64), -1).max(-1)
    right = LOGITS.argmax(-1) == LABELS
    assert ece(reliability(confidence(of_classes(LABELS, LOGITS)), bins=1)) == pytest.approx(
        abs(top.mean() - right.mean())
    )


def test_coverage_answers_the_surest_first() -> None:
    curve = coverage(confidence(of_classes(LABELS, LOGITS)))
    top, right = softmax(LOGITS.astype(np.float64), -1).max(-1), LOGITS.argmax(-1) == LABELS
    for share in (0.1, 0.5, 1.0):
        at = int(share * N) - 1
        kept = top >= curve.least[at] - 1e-12
        assert curve.shares[at] == pytest.approx(kept.mean()) and curve.accuracy[at] == pytest.approx(
            right[kept].mean()
        )


class Given(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose texts are its logits."""

    classes_ = np.arange(C)

    def fit(self, rows: np.ndarray, labels: np.ndarray) -> "Given":
        return self

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return rows.argmax(-1)

    def decision_function(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def __sklearn_is_fitted__(self) -> bool:
        return True


def test_the_temperature_is_scikit_learns() -> None:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    fitted = fit_temperature(of_classes(LABELS, LOGITS))
    assert not isinstance(fitted, str) and fitted.low < fitted.value < fitted.high
    other = CalibratedClassifierCV(FrozenEstimator(Given()), method="temperature").fit(LOGITS.astype(float), LABELS)
    expected = other.predict_proba(LOGITS.astype(float))
    np.testing.assert_allclose(softmax(LOGITS / fitted.value, -1), expected, atol=2e-4)


@pytest.mark.parametrize("asked", [of_classes(LABELS, LOGITS), of_labels(SEVERAL, Z)], ids=["one", "several"])
def test_the_temperature_has_the_lowest_nll_and_changes_no_answer(asked: Questions) -> None:
    fitted = fit_temperature(asked)
    assert not isinstance(fitted, str)
    grid = [figures(asked.divided(temperature))["nll"] for temperature in np.geomspace(0.1, 10, 400)]
    assert figures(asked.divided(fitted.value))["nll"] <= min(grid)
    assert (asked.divided(fitted.value).logits.argmax(-1) == asked.logits.argmax(-1)).all()
    hot = fit_temperature(asked.divided(1 / 3))  # logits that are three times as large
    assert not isinstance(hot, str) and hot.value == pytest.approx(3 * fitted.value)
    assert hot.low / hot.value == pytest.approx(fitted.low / fitted.value)


def test_the_interval_has_the_temperature_of_other_texts() -> None:
    """The texts' true temperature is 2; 95 of 100 intervals should have it, and 85 to 100 are no surprise."""
    draw, hits = np.random.default_rng(1), 0
    for _ in range(100):
        z = draw.normal(size=(200, 3)) * 2
        labels = np.array([draw.choice(3, p=row) for row in softmax(z, -1)])
        fitted = fit_temperature(of_classes(labels, 2 * z))
        assert not isinstance(fitted, str)
        hits += fitted.low <= 2 <= fitted.high
    assert hits >= 85


def test_a_temperature_that_cannot_be_fitted_says_why() -> None:
    one_class = fit_temperature(of_classes(np.zeros(N, int), LOGITS))
    assert one_class == "all dev texts have one class"
    right = fit_temperature(of_classes(LOGITS.argmax(-1), LOGITS))
    assert isinstance(right, str) and right.startswith("every answer on dev is right")
    worse = fit_temperature(of_classes(LOGITS.argmin(-1), LOGITS))
    assert isinstance(worse, str) and "equal probabilities have a lower NLL" in worse
    equal = fit_temperature(of_classes(LABELS, np.ones_like(LOGITS)))
    assert equal == "the logits of each dev text are equal, at any temperature"


@pytest.mark.parametrize("asked", [of_classes(LABELS, LOGITS), of_labels(SEVERAL, Z)], ids=["one", "several"])
def test_each_fifth_is_judged_by_the_temperature_of_the_others(asked: Questions) -> None:
    folds, total = np.random.default_rng(0).permutation(N) % 5, 0.0
    for fold in range(5):
        rest, own = (Questions(asked.logits[part], asked.right[part]) for part in (folds != fold, folds == fold))
        tried = np.geomspace(0.1, 10, 801)
        best = min(tried, key=lambda one, rest=rest: figures(rest.divided(one))["nll"])
        total += figures(own.divided(best))["nll"] * len(own.right)
    assert cross_fitted_nll(asked) == pytest.approx(total / N, abs=1e-4)  # of the grid
    alone = Questions(asked.logits[:1], asked.right[:1])
    assert cross_fitted_nll(alone) == figures(alone)["nll"]


def test_an_interval_without_end_is_cut() -> None:
    """501 of 1,000 answers with one confidence are right: the temperature makes it 0.501, and could be any."""
    labels, half = np.repeat([0, 1], [501, 499]), 0.005
    fitted = fit_temperature(of_classes(labels, np.tile([half, -half], (1000, 1))))
    assert not isinstance(fitted, str) and fitted.value == pytest.approx(2 * half / np.log(501 / 499))
    assert (fitted.low, fitted.high) == pytest.approx((1 / MARGIN, MARGIN))


def f1(own: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Return the F1 of answers (..., N): that of scikit-learn, which takes seconds for thousands."""
    return 2 * (own & said).sum(-1) / (own.sum() + said.sum(-1))


def test_thresholds_have_the_highest_f1_of_all() -> None:
    shares = expit(Z.astype(np.float64) - [0.0, 2.0, -1.0])  # of the second label, too low
    found = fit_thresholds(SEVERAL, shares)
    for number, least in enumerate(found):
        own, given = SEVERAL[:, number], shares[:, number]
        every = f1(own, given > np.linspace(0, 1, 2001)[:, None])
        assert every[900] == pytest.approx(f1_score(own, given > 0.45)) and f1(own, given > least) >= every.max()
    assert found[1] < 0.3


def test_a_label_with_one_answer_keeps_one_half() -> None:
    labels = np.stack([np.ones(20, int), np.zeros(20, int), np.arange(20) % 2], -1)
    shares = np.stack([np.linspace(0.01, 0.4, 20)] * 3, -1)
    assert fit_thresholds(labels, shares)[:2].tolist() == [0.5, 0.5]


def test_thresholds_of_noise_are_no_better_on_other_texts() -> None:
    """Thresholds are fitted to noise, so that they are better on their own texts only."""
    draw = np.random.default_rng(2)
    labels, shares = draw.integers(0, 2, (40, 6)).astype(np.int8), draw.uniform(size=(40, 6))

    def judge(own: np.ndarray, said: np.ndarray) -> float:
        return float((own == said).mean())

    fitted = judge(labels, (shares > fit_thresholds(labels, shares)).astype(np.int8))
    assert cross_fitted(labels, shares, judge) < fitted
