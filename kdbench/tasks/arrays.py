"""Arrays of labels, logits and points, of any task."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[Any]  # of n examples; where words are labelled, n arrays
Logits = NDArray[np.float32] | Sequence[NDArray[np.float32]]
Points = NDArray[np.float64]  # of n examples: see Task.points


def plain(labels: Labels) -> list[Any]:
    """Return labels as Python has them: numbers, or lists of them."""
    return [label.tolist() for label in labels]


def in_points(shares: Any) -> Points:
    """Return an array of shares in points: 1 is 100."""
    return np.asarray(100.0 * shares, np.float64)


def softmax(z: NDArray[Any]) -> NDArray[Any]:
    """Return the probabilities of (..., C) logits of which one class is right."""
    powers = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def sigmoid(z: NDArray[Any]) -> NDArray[Any]:
    """Return the probability of each logit on its own."""
    return np.asarray((1 + np.tanh(z / 2)) / 2)


def ratio(over: NDArray[Any], under: NDArray[Any]) -> Points:
    """Return the points of sum(over) / sum(under), (n,) each; 0 where `under` sums to 0."""
    mean = float(under.mean())
    if mean == 0:
        return np.zeros(len(under))
    value = float(over.mean()) / mean
    return in_points(value + (over - value * under) / mean)
