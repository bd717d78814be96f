"""Each metric as points of the single examples, so that differences can be tested: see `inference`.

A metric that is no mean over examples stands as its first-order change with each example (infinitesimal jackknife,
Efron 1982, section 6): (N,) points whose mean is the metric and whose spread is that of its influence. So are
intervals and tests of F1, Matthews or a correlation what a bootstrap over examples would give for many examples.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.compare.inference import accuracy_scores, macro_f1_scores
from kdbench.storage.predictions import Predictions
from kdbench.tasks import tags

Points = NDArray[np.float64]


def scores(metric: str, one: Predictions) -> Points:
    """(N,) points of `metric`, one of the task's in `kdbench.tasks.METRICS`."""
    labels, predicted = one.labels, one.predicted
    match one.task, metric:
        case "classification", "accuracy":
            return accuracy_scores(labels, predicted)
        case "classification", "macro_f1":
            return macro_f1_scores(labels, predicted)
        case "classification", "f1":
            return ratio(2.0 * (labels * predicted), labels + predicted)
        case "classification", "matthews":
            return matthews(labels, predicted)
        case "multi_label", "micro_f1":
            return ratio(2.0 * (labels & predicted).sum(1), labels.sum(1) + predicted.sum(1))
        case "multi_label", "macro_f1":
            each = [ratio(2.0 * (a & b), a + b) for a, b in zip(labels.T, predicted.T, strict=True)]
            return np.mean(each, axis=0)
        case "multi_label", "subset_accuracy":
            return 100.0 * (labels == predicted).all(1)
        case "regression", "pearson":
            return pearson(labels, predicted)
        case "regression", "spearman":
            return spearman(labels, predicted)
        case "token_classification", "entity_f1":
            found = entities(one)
            return ratio(2.0 * found[:, 0], found[:, 1])
        case "token_classification", "word_accuracy":
            right = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(*tagged(one), strict=True)]
            return ratio(np.array(right, float), np.array([len(row) for row in labels]))
    raise ValueError(f"{metric} is no metric of {one.task}")


def ratio(over: NDArray[Any], under: NDArray[Any]) -> Points:
    """Of sum(over) / sum(under), (N,) each; 0 where there is nothing under."""
    mean = float(under.mean())
    if mean == 0:
        return np.zeros(len(under))
    value = float(over.mean()) / mean
    return 100.0 * (value + (over - value * under) / mean)


def matthews(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> Points:
    """Of the correlation of classes (Gorodkin 2004); 0 where one side has one class alone."""
    classes = int(max(labels.max(), predicted.max())) + 1
    true, said = (np.bincount(which, minlength=classes) / len(labels) for which in (labels, predicted))
    right = labels == predicted
    together, spread, other = true @ said, 1 - true @ true, 1 - said @ said
    if spread * other <= 1e-12:  # rounding of 1 - 1
        return np.zeros(len(labels))
    top, bottom = right.mean() - together, np.sqrt(spread * other)
    of_top = right - right.mean() - (said[labels] + true[predicted] - 2 * together)
    of_bottom = (true[labels] - true @ true) / spread + (said[predicted] - said @ said) / other
    return 100.0 * (top / bottom + of_top / bottom + top / bottom * of_bottom)


def pearson(labels: Points, predicted: Points) -> Points:
    """Of the correlation of numbers; 0 where one side is constant."""
    if np.ptp(labels) == 0 or np.ptp(predicted) == 0:
        return np.zeros(len(labels))
    x, y = ((side - side.mean()) / side.std() for side in (labels.astype(float), predicted.astype(float)))
    value = float((x * y).mean())
    return 100.0 * (value + x * y - value * (x**2 + y**2) / 2)


def spearman(labels: Points, predicted: Points) -> Points:
    """Of the correlation of ranks, whose ranks change with each example too; 0 where one side is constant."""
    if np.ptp(labels) == 0 or np.ptp(predicted) == 0:
        return np.zeros(len(labels))
    ones = np.ones(len(labels))
    u, v = (0.5 - above(side, ones) for side in (labels, predicted))  # share of the examples below, less one half
    both, first, second = (u * v).mean(), (u * u).mean(), (v * v).mean()
    of_both = u * v + above(labels, v) + above(predicted, u) - 3 * both
    of_first = u * u + 2 * above(labels, u) - 3 * first
    of_second = v * v + 2 * above(predicted, v) - 3 * second
    value = both / np.sqrt(first * second)
    change = of_both / np.sqrt(first * second) - value / 2 * (of_first / first + of_second / second)
    return 100.0 * (value + change)


def above(values: Points, weights: Points) -> Points:
    """(N,) The mean over j of weights[j], where values[j] is above an example's own value: whole; where equal: half."""
    order = np.argsort(values, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(weights[order])])
    left, right = (np.searchsorted(values[order], values, side) for side in ("left", "right"))
    return (sums[-1] - (sums[left] + sums[right]) / 2) / len(values)


def tagged(one: Predictions) -> tuple[list[list[str]], list[list[str]]]:
    """The tags of each sentence and those that were given, by name."""
    return tags(one.labels, one.names), tags(one.predicted, one.names)


def entities(one: Predictions) -> NDArray[np.int64]:
    """(N, 2) of each sentence: entities that were found, and those there are plus those that were claimed."""
    counts = []
    for true, said in zip(*tagged(one), strict=True):
        there, claimed = Counter(_spans(true)), Counter(_spans(said))
        counts.append((sum((there & claimed).values()), sum(there.values()) + sum(claimed.values())))
    return np.array(counts)


def _spans(sentence: Sequence[str]) -> list[tuple[str, int, int]]:
    from seqeval.metrics.sequence_labeling import get_entities

    return get_entities(list(sentence))
