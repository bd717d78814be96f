"""Judge and correct probabilities: NLL, Brier score, calibration error, one temperature, thresholds of labels.

All functions take questions: logits (n, Q, C) and answers (n, Q). A text of one class is one question with C answers. A
text of several labels has a question for each label, with two answers. The probabilities are the softmax over C.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdbench.tasks.arrays import Labels, Logits

BINS = 15  # of the calibration error, of equal width [Guo et al. 2017, section 2]
MARGIN = 1e3  # a temperature is looked for from 1 / MARGIN to MARGIN [ours: beyond it, answers are certain, or uniform]
FOLDS = 5  # of dev, to judge temperature and thresholds on texts that they were not fitted to [ours]

Numbers = NDArray[np.float64]


class Questions(NamedTuple):
    """What a model was asked, in float64."""

    logits: Numbers  # (n, Q, C)
    right: NDArray[np.int64]  # (n, Q)

    def divided(self, temperature: float) -> "Questions":
        """Return the questions with logits divided by a temperature."""
        return Questions(self.logits / temperature, self.right)


def of_classes(labels: Labels, logits: Logits | Numbers) -> Questions:
    """Return one question a text, from labels (n,) and logits (n, C)."""
    return Questions(np.asarray(logits, np.float64)[:, None], np.asarray(labels, np.int64)[:, None])


def of_labels(labels: Labels, logits: Logits | Numbers) -> Questions:
    """Return a question for each label, from labels and logits (n, Q): softmax of (0, z) is 1 - sigmoid and sigmoid."""
    z = np.asarray(logits, np.float64)
    return Questions(np.stack([np.zeros_like(z), z], -1), np.asarray(labels, np.int64))


def log_probabilities(logits: Numbers) -> Numbers:
    """Return the logarithm of the softmax over the last dimension."""
    from scipy.special import log_softmax

    return np.asarray(log_softmax(logits, -1))


def figures(asked: Questions) -> dict[str, float]:
    """Return the mean NLL in nats, the Brier score, and the expected calibration error, over all questions.

    The Brier score is the squared distance to the answer's one-hot vector, summed over C (Brier 1950): from 0 to 2.
    """
    logs = log_probabilities(asked.logits)
    one_hot = np.arange(logs.shape[-1]) == asked.right[..., None]
    nll = -np.take_along_axis(logs, asked.right[..., None], -1).mean()
    brier = ((np.exp(logs) - one_hot) ** 2).sum(-1).mean()
    return {"nll": float(nll), "brier": float(brier), "ece": ece(reliability(confidence(asked)))}


# --- calibration


class Bin(NamedTuple):
    """The questions whose likeliest answer has a probability in one interval."""

    size: int
    confidence: float  # mean probability of the likeliest answer; the middle of the interval if there is none
    accuracy: float  # share of right answers; NaN if there is none


class Sure(NamedTuple):
    """How sure a model is of its answers to n * Q questions."""

    top: Numbers  # the probability of the likeliest answer
    right: NDArray[np.bool_]  # whether it is right


def confidence(asked: Questions) -> Sure:
    best = asked.logits.argmax(-1)  # of equal ones the first, as in a task's answers
    top = np.exp(log_probabilities(asked.logits).max(-1))
    return Sure(top.ravel(), (best == asked.right).ravel())


def reliability(answers: Sure, bins: int = BINS) -> list[Bin]:
    """Return `bins` bins of equal width. A probability on a border belongs to the lower one (Guo et al. 2017)."""
    top, right = answers
    which = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        inside = which == number
        middle = (number + 0.5) / bins
        count = int(inside.sum())
        mean, share = (top[inside].mean(), right[inside].mean()) if count else (middle, np.nan)
        found.append(Bin(count, float(mean), float(share)))
    return found


def ece(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error: the mean over questions of |accuracy - confidence| of their bin."""
    total = sum(one.size for one in bins)
    return sum(one.size * abs(one.accuracy - one.confidence) for one in bins if one.size) / total


class Coverage(NamedTuple):
    """How right a model is if it answers only what it is surest of."""

    shares: Numbers  # (n * Q,) of the questions that are answered, ascending to 1
    accuracy: Numbers  # of these
    least: Numbers  # the lowest probability among these


def coverage(answers: Sure) -> Coverage:
    """Return the curve, the surest answers first."""
    top, right = answers
    order = np.argsort(-top, kind="stable")
    counts = np.arange(1, len(order) + 1)
    return Coverage(counts / len(order), right[order].cumsum() / counts, top[order])


# --- temperature


class Temperature(NamedTuple):
    """The temperature with the lowest NLL, and its 95 % interval for other texts, within 1 / MARGIN and MARGIN."""

    value: float
    low: float
    high: float


def fit_temperature(asked: Questions) -> Temperature | str:
    """Return the temperature T whose softmax(logits / T) has the lowest NLL; or why there is none, in words.

    The NLL is convex in 1 / T, so its minimum is where the derivative is 0. If all answers are right, it falls without
    end as T goes to 0. The interval has the sandwich variance of 1 / T, by text.
    """
    from scipy.optimize import brentq

    if len(np.unique(asked.right)) < 2 and asked.right.shape[1] == 1:
        return "all dev texts have one class"
    own = np.take_along_axis(asked.logits, asked.right[..., None], -1)[..., 0]

    def moments(inverse: float) -> tuple[Numbers, Numbers]:
        """Return the first and second derivative of each text's NLL by 1 / T, (n,) each, summed over its questions."""
        shares = np.exp(log_probabilities(asked.logits * inverse))
        mean = (shares * asked.logits).sum(-1)
        spread = (shares * (asked.logits - mean[..., None]) ** 2).sum(-1)
        return (mean - own).sum(-1), spread.sum(-1)

    def slope(log_inverse: float) -> float:
        return float(moments(np.exp(log_inverse))[0].mean())

    if np.ptp(asked.logits, -1).max() == 0:
        return "the logits of each dev text are equal, at any temperature"
    end = np.log(MARGIN)
    if slope(end) <= 0:
        return "every answer on dev is right, so the NLL falls without end as the temperature goes to 0"
    if slope(-end) >= 0:
        return "on dev, equal probabilities have a lower NLL than the model's at any temperature"
    inverse = float(np.exp(brentq(slope, -end, end, xtol=1e-10)))
    first, second = moments(inverse)
    error = np.sqrt((first**2).mean() / len(first)) / (second.mean() * inverse)  # of log T
    low, high = (np.exp(np.clip(side * 1.96 * error - np.log(inverse), -end, end)) for side in (-1, 1))
    return Temperature(1 / inverse, float(low), float(high))


def cross_fitted_nll(asked: Questions) -> float:
    """Return the NLL by temperatures of other texts: each fold's by that of the other FOLDS - 1, if they have one."""
    folds, logits = _folds(len(asked.right)), asked.logits.copy()
    for fold in np.unique(folds):
        own = folds == fold
        fitted = "no other text" if own.all() else fit_temperature(Questions(asked.logits[~own], asked.right[~own]))
        if not isinstance(fitted, str):
            logits[own] /= fitted.value
    return figures(Questions(logits, asked.right))["nll"]


def _folds(n: int) -> NDArray[np.int64]:
    """Return the fold (n,) of each text."""
    return np.random.default_rng(0).permutation(n) % FOLDS


# --- thresholds of labels


def fit_thresholds(labels: Labels, probabilities: Numbers) -> Numbers:
    """Return (Q,): for each label, the threshold with the highest F1; a label holds above it.

    A threshold lies in the middle between two probabilities that occur. Of equal F1, the one nearest to one half is
    taken. A label that no text has, or all texts have, keeps one half.
    """
    found = np.full(probabilities.shape[1], 0.5)
    for number, (own, given) in enumerate(zip(np.asarray(labels).T, probabilities.T, strict=True)):
        if own.min() == own.max():
            continue
        values = np.unique(given)
        tried = np.unique(np.concatenate([(values[1:] + values[:-1]) / 2, [values[0] / 2, 0.5]]))
        order = np.sort(given)
        hits = own.sum() - np.searchsorted(np.sort(given[own == 1]), tried, "right")
        said = len(given) - np.searchsorted(order, tried, "right")
        f1 = 2 * hits / (said + own.sum())
        best = np.flatnonzero(f1 >= f1.max() - 1e-12)
        found[number] = tried[best[np.argmin(np.abs(tried[best] - 0.5))]]
    return found


def cross_fitted(labels: Labels, probabilities: Numbers, judge: Callable[[Labels, Labels], float]) -> float:
    """Return the score of thresholds on texts that they were not fitted to: each fold by those of the other FOLDS - 1.

    `judge` gets labels and answers (n, Q).
    """
    folds = _folds(len(labels))
    answers = np.zeros_like(labels)
    for fold in range(FOLDS):
        own = folds == fold
        answers[own] = probabilities[own] > fit_thresholds(labels[~own], probabilities[~own])
    return judge(labels, answers)
