"""Fit a linear machine of scikit-learn to a task: one plane for each class or label, or one for a number."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.tasks import traits
from kdbench.tasks.weights import Weights, as_option

Floats = NDArray[np.float64]


def fitted(
    task: str, machine: Any, x: Any, labels: NDArray[Any], classes: int, weights: Weights | None, certain: float,
    of_two: float,
) -> tuple[Floats, Floats, NDArray[np.int64]]:  # fmt: skip
    """Return planes (C, H), offsets (C,), and the classes that train lacks, whose planes and offsets are 0.

    With several labels, each has a fit of its own. A label that all texts have, or none, gets the offset `certain`, or
    -`certain`. Of two classes, scikit-learn has one plane: each class gets it `of_two` times, with opposite signs.
    `weights` of classes multiply the errors of their texts: (C,) of classes, (C, 2) of texts without and with each
    label.
    """
    planes, offsets = np.zeros((classes, x.shape[1])), np.zeros(classes)

    def fit(target: NDArray[Any], found: NDArray[Any], own: Weights | None) -> tuple[Floats, Floats]:
        if own is not None:
            machine.set_params(class_weight=as_option(own, found))
        machine.fit(x, target)
        return np.atleast_2d(machine.coef_), np.ravel(machine.intercept_)

    if traits(task).several:
        for label, column in enumerate(labels.T):
            if len(np.unique(column)) == 1:
                offsets[label] = certain if column[0] else -certain
            else:
                own = None if weights is None else weights[label]
                plane, offset = fit(column, np.arange(2), own)
                planes[label], offsets[label] = plane[0], offset[0]
        return planes, offsets, np.arange(0)
    found = np.arange(1) if traits(task).numbers else np.unique(labels)
    if traits(task).numbers or len(found) > 1:
        signs = np.array([-of_two, of_two]) if len(found) == 2 else np.ones(len(found))
        plane, offset = fit(labels, found, weights)
        planes[found], offsets[found] = plane * signs[:, None], offset * signs
    return planes, offsets, np.setdiff1d(np.arange(classes), found)
