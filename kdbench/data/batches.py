"""Length-bucketed batches, padded to the batch's longest. Their order is a function of (seed, epoch) alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.data.tokenize import Tokens
from kdbench.stage import Batch

POOL = 50  # batches shuffled together before sorting by length: wide enough to fill, narrow enough to mix


@dataclass(frozen=True)
class Examples:
    """One split, ready for batching: n examples."""

    tokens: Tokens
    ids: NDArray[np.int64]  # (n,)
    labels: NDArray[np.int64]  # (n,)
    pad_id: int
    teacher: dict[str, Tensor] = field(default_factory=dict)  # teacher_logits (n, C), teacher_cls (n, L, H)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The examples in `rows`, padded to the longest of them."""
        lengths = self.tokens.lengths[rows]
        mask = np.arange(lengths.max())[None, :] < lengths[:, None]

        def padded(flat: NDArray[Any], fill: int) -> Tensor:
            values = np.full(mask.shape, fill, np.int64)
            values[mask] = np.concatenate([flat[self.tokens.span(row)] for row in rows])
            return torch.from_numpy(values)

        batch = Batch(
            ids=torch.from_numpy(self.ids[rows]),
            input_ids=padded(self.tokens.flat, self.pad_id),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            labels=torch.from_numpy(self.labels[rows]),
        )
        if self.tokens.types is not None:
            batch["token_type_ids"] = padded(self.tokens.types, 0)
        at = torch.from_numpy(rows)
        return batch | {name: outputs[at] for name, outputs in self.teacher.items()}  # type: ignore[return-value]

    def in_length_order(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Every example once, shortest first: (rows, batch)."""
        order = np.argsort(self.tokens.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield rows, self.batch(rows)


@dataclass(frozen=True)
class TrainBatches:
    """Each example exactly once an epoch; batches of like lengths in random order (kdbench.stage.Data)."""

    examples: Examples
    batch_size: int  # examples of one optimiser step
    seed: int

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def used_ids(self) -> Tensor:
        """(U,) the ids that some batch has, padding among them, rising."""
        counts = np.bincount(self.examples.tokens.flat)
        return torch.from_numpy(np.union1d(np.flatnonzero(counts), self.examples.pad_id))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.examples))
        lengths = self.examples.tokens.lengths
        pool = self.batch_size * POOL
        rows: list[NDArray[np.int64]] = []
        for begin in range(0, len(order), pool):
            by_length = order[begin : begin + pool]
            by_length = by_length[np.argsort(lengths[by_length], kind="stable")]
            rows += [by_length[i : i + self.batch_size] for i in range(0, len(by_length), self.batch_size)]
        for index in generator.permutation(len(rows))[start:]:
            yield self.examples.batch(rows[index])
