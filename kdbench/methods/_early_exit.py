"""Compute accuracy against speed for early exit: from the layers of one model, or from two models in a row.

All thresholds are evaluated from the logits of one pass over the data.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdbench.models.fastbert import uncertainty

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def exits(uncertainty: Floats, speed: float) -> Ints:
    """Return which classifier (n,), from 0, answers each row, from its uncertainty at L classifiers (L, n).

    This is the first one whose uncertainty is strictly below `speed`, or else the last.
    """
    sure = uncertainty < speed
    sure[-1] = True
    return sure.argmax(axis=0)


def curve(
    logits: Floats,
    labels: Ints,
    speeds: list[float],
    flops_at: Callable[[int], float],
    flops_full: float,
    first: int = 1,
) -> list[dict[str, Any]]:
    """Return the results at each speed, from the logits of all L classifiers (L, n, C) and the labels (n,).

    `first` is the layer of the first classifier; 0 is the embeddings. `flops_at(i)` gives the FLOPs of one row that
    exits at layer i and has passed all classifiers up to there. `flops_full` gives those of a row at speed 0, which
    passes only the last classifier.

    In a result, `exit_shares` has the share of rows that each classifier answers, and `mean_flops` the mean FLOPs of a
    row. `lost` is the share of rows that the last layer answers correctly and their exit layer wrongly; `gained` is
    the reverse. `mean_exit_layer_hard` is over the rows that the last layer answers wrongly (null if there are none).
    """
    layers, n, classes = logits.shape
    unsure = uncertainty(torch.from_numpy(logits).reshape(-1, classes)).reshape(layers, n).numpy()
    correct = logits.argmax(axis=-1) == labels  # (L, n)
    result = []
    for speed in speeds:
        classifier = exits(unsure, speed)
        exit_layer = classifier + first
        shares = np.bincount(classifier, minlength=layers) / n
        costs = [flops_at(i) if speed > 0 else flops_full for i in range(first, first + layers)]
        right, last = correct[classifier, np.arange(n)], correct[-1]
        result.append(
            {
                "speed": speed,
                "n": n,
                "accuracy": float(right.mean()),
                "lost": float((last & ~right).mean()),
                "gained": float((right & ~last).mean()),
                "mean_exit_layer": float(exit_layer.mean()),
                "mean_exit_layer_hard": None if last.all() else float(exit_layer[~last].mean()),
                "exit_shares": shares.tolist(),
                "mean_flops": float(shares @ costs),
            }
        )
    return result


def break_even_share(flops_at: Callable[[int], float], layers: int, flops_full: float, first: int = 1) -> float:
    """Return the share of rows that must exit at layer `first` for early exit to cost as much as none.

    All other rows exit at the last layer.
    """
    return (flops_at(layers) - flops_full) / (flops_at(layers) - flops_at(first))


def cascade_curve(
    small_logits: Floats,
    large_logits: Floats,
    labels: Ints,
    speeds: list[float],
    flops_small: float,
    flops_large: float,
) -> list[dict[str, Any]]:
    """Return the `curve` of two separate models with logits (n, C) each.

    The small model answers if its uncertainty is below `speed`. The large model answers the other rows, and reads
    their text again from the start. Exit layer 1 is the small model, 2 the large one. At speed 0 the small model is
    not used.
    """
    cost = {1: flops_small, 2: flops_small + flops_large}
    return curve(np.stack([small_logits, large_logits]), labels, speeds, cost.__getitem__, flops_large)
