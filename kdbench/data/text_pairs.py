"""Pairs of train texts for contrastive learning: two texts of one class, and two of different classes.

They are drawn anew in each epoch, a fixed number for each text. So the memory grows with the number of texts, and not
with that of all pairs, its square.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdbench.data.batches import Examples
from kdbench.stage import Batch


class Pairs(NamedTuple):
    """Rows of texts; pair i is (left[i], right[i])."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    same: NDArray[np.bool_]  # whether they have one class


def drawn(labels: NDArray[np.int64], each: int, generator: np.random.Generator) -> Pairs:
    """Draw, for each text, `each` others of its class and `each` of other classes, with replacement.

    A text that is alone in its class has no pair of the first kind; in data of one class there is none of the second.
    """
    _, kind, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(kind, kind="stable")  # rows, class by class
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    size, first = counts[kind], (counts.cumsum() - counts)[kind]  # of a row's class: how many, and the first's place
    rows = np.repeat(np.arange(len(labels)), each)
    alike = rows[size[rows] > 1]
    partner = place[alike] - first[alike] + generator.integers(1, size[alike])
    same = first[alike] + partner % size[alike]
    unlike = rows if len(counts) > 1 else rows[:0]
    other = (first[unlike] + size[unlike] + generator.integers(0, len(labels) - size[unlike])) % len(labels)
    return Pairs(
        np.concatenate([alike, unlike]),
        order[np.concatenate([same, other])],
        np.arange(len(alike) + len(unlike)) < len(alike),
    )


@dataclass(frozen=True)
class PairBatches:
    """Batches of pairs in random order (kdbench.stage.Data)."""

    examples: Examples  # of one class each
    each: int  # pairs of each kind for a text and epoch
    batch_size: int  # pairs for one optimiser step
    seed: int

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    @cached_property
    def size(self) -> int:
        """The number of pairs of an epoch."""
        _, counts = np.unique(self.examples.labels, return_counts=True)
        return self.each * int(counts[counts > 1].sum() + (counts.sum() if len(counts) > 1 else 0))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        generator = np.random.default_rng([self.seed, epoch])
        pairs = drawn(self.examples.labels, self.each, generator)
        order = generator.permutation(len(pairs.left))
        for begin in range(start * self.batch_size, len(order), self.batch_size):
            chosen = order[begin : begin + self.batch_size]
            batch: Any = self.examples.batch(pairs.left[chosen])
            other: Any = self.examples.batch(pairs.right[chosen])
            batch |= {f"other_{name}": other[name] for name in other if name.endswith(("_ids", "_mask"))}
            batch["same"] = torch.from_numpy(pairs.same[chosen])
            yield batch
