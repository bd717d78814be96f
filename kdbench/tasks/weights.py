"""Weights of classes in the loss of the labels.

All are scaled so that their mean over the labels of train is 1. The loss of a batch is the weighted sum divided by the
number of texts (not by the sum of the weights, as PyTorch's). So a mean over accumulated passes, over processes, and
over texts with and without labels stays exact, and neither learning rate nor soft term has to be tuned again.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Given = str | Mapping[str, float]  # schedule.class_weights: balanced, or weights by name
Weights = NDArray[np.float64]


def balanced(counts: NDArray[np.int64]) -> Weights:
    """Return n / (K n_k) of K classes that occur n_k times, 1 for others (scikit-learn's `class_weight="balanced"`)."""
    found = counts > 0
    shares = counts.sum() / (found.sum() * np.maximum(counts, 1))
    return np.where(found, shares, 1.0)


def of_classes(given: Given, counts: NDArray[np.int64], names: list[str]) -> Weights:
    """Return the weight of each class, (K,), from the weights by name; a class without one has 1 before the scaling."""
    if isinstance(given, str):
        return balanced(counts)
    raw = np.array([given.get(name, 1.0) for name in names])
    return scaled(raw, counts)


def of_labels(given: Given, counts: NDArray[np.int64], names: list[str]) -> Weights:
    """Return (Q, 2): the weight of a text without and with each label; `counts` (Q, 2) is how often that is.

    A weight by name is of the texts that have the label; the others have 1 before the scaling.
    """
    if isinstance(given, str):
        return np.stack([balanced(one) for one in counts])
    raw = np.array([[1.0, given.get(name, 1.0)] for name in names])
    return scaled(raw, counts)


def scaled(raw: Weights, counts: NDArray[np.int64]) -> Weights:
    """Return the weights divided by their mean over `counts`."""
    return np.asarray(raw * counts.sum() / (raw * counts).sum())


def as_option(weights: Weights, classes: NDArray[Any]) -> dict[int, float]:
    """Return scikit-learn's `class_weight` of these classes."""
    return {int(one): float(weights[one]) for one in classes}
