"""Make length-bucketed batches, padded to their longest example. Their order depends only on seed and epoch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.data.tokenize import Tokens
from kdbench.losses import IGNORED
from kdbench.stage import Batch

POOL = 50  # batches shuffled together before sorting by length: wide enough to fill, narrow enough to mix


@dataclass(frozen=True)
class Examples:
    """The n tokenized examples of one split."""

    tokens: Tokens
    ids: NDArray[np.int64]  # (n,)
    labels: NDArray[Any]  # of n examples, in the form that kdbench.tasks lists
    pad_id: int
    teacher: dict[str, Tensor] = field(default_factory=dict)  # teacher_logits, teacher_cls: (outputs, ...)
    labelled: NDArray[np.bool_] | None = None  # (n,); None: all have labels
    weights: NDArray[Any] | None = None  # of the labels, in their form; None: all have the weight 1
    answered: NDArray[np.bool_] | None = None  # (n,); None: all have the teacher's answer

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the examples at `rows` as a batch, padded to the longest of them."""
        lengths = self.tokens.lengths[rows]
        mask = np.arange(lengths.max())[None, :] < lengths[:, None]

        def padded(flat: NDArray[Any], fill: int, dtype: Any = np.int64) -> Tensor:
            values = np.full(mask.shape, fill, dtype)
            values[mask] = np.concatenate([flat[self.tokens.span(row)] for row in rows])
            return torch.from_numpy(values)

        tagged = self.tokens.words is not None
        batch = Batch(
            ids=torch.from_numpy(self.ids[rows]),
            input_ids=padded(self.tokens.flat, self.pad_id),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            labels=padded(self._token_labels, IGNORED) if tagged else torch.from_numpy(self.labels[rows]),
        )
        if self.weights is not None:
            weights = padded(self._token_weights, 0, np.float32) if tagged else torch.from_numpy(self.weights[rows])
            batch["weights"] = weights
        if self.labelled is not None:
            batch["labelled"] = torch.from_numpy(self.labelled[rows])
        if self.answered is not None:
            batch["answered"] = torch.from_numpy(self.answered[rows])
        if self.tokens.types is not None:
            batch["token_type_ids"] = padded(self.tokens.types, 0)
        at = torch.from_numpy(self.rows(rows))
        for name, outputs in self.teacher.items():
            batch[name] = at_words(outputs[at], batch["labels"]) if tagged else outputs[at]  # type: ignore[literal-required]
        return batch

    @cached_property
    def _token_labels(self) -> NDArray[np.int64]:
        """Return the labels of words, laid out like the tokens: at the first token of a word, else IGNORED."""
        return self._at_first_tokens(self.labels, IGNORED)

    @cached_property
    def _token_weights(self) -> NDArray[np.float32]:
        """Return the weights of words, laid out likewise, else 0."""
        assert self.weights is not None
        return self._at_first_tokens(self.weights, 0)

    def _at_first_tokens(self, values: NDArray[Any], other: int) -> NDArray[Any]:
        """Return a value for each token: of the word that begins there, or `other`."""
        words = self.tokens.words
        assert words is not None
        before = np.concatenate([[0], np.cumsum([len(tags) for tags in self.labels])])[:-1]
        at = np.repeat(before, self.tokens.lengths) + words
        return np.where(words < 0, other, np.concatenate([*values])[np.where(words < 0, 0, at)])

    @cached_property
    def _read(self) -> NDArray[np.int64]:
        """Return (n + 1,): the number of words that are read in all examples before each example."""
        assert self.tokens.words is not None
        return np.concatenate([[0], np.cumsum(np.asarray(self.tokens.words) >= 0)])[self.tokens.offsets]

    @property
    def outputs(self) -> int:
        """Return the number of rows of a model's outputs: examples or, in token classification, words that are read."""
        return len(self) if self.tokens.words is None else int(self._read[-1])

    def rows(self, examples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of outputs that belong to these examples, in their order."""
        if self.tokens.words is None:
            return examples
        return np.concatenate([np.arange(self._read[one], self._read[one + 1]) for one in examples])

    def by_example(self, outputs: Tensor) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return outputs (rows, C) as (n, C). If words have labels: n times (words, C), with NaN for unread words."""
        whole: NDArray[np.float32] = outputs.numpy()
        if (words := self.tokens.words) is None:
            return whole
        result = []
        for example, tags in enumerate(self.labels):
            read = words[self.tokens.span(example)]
            arranged = np.full((len(tags), whole.shape[1]), np.nan, np.float32)
            arranged[read[read >= 0]] = whole[self._read[example] : self._read[example + 1]]
            result.append(arranged)
        return result

    def in_length_order(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield (rows, batch) until each example was in one batch, the shortest examples first."""
        order = np.argsort(self.tokens.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield rows, self.batch(rows)


def at_words(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return outputs (rows, C) of the words of a batch, laid out like its tokens (B, T, C); zero at other tokens."""
    laid = outputs.new_zeros(*labels.shape, outputs.shape[-1])
    laid[labels != IGNORED] = outputs
    return laid


@dataclass(frozen=True)
class TrainBatches:
    """Batches of similar lengths in random order (kdbench.stage.Data).

    Each example occurs once in an epoch. With `share`, the share of an epoch's examples that have no label: each of
    these occurs once, and of the others as many as that takes, each once before one of them occurs again.
    """

    examples: Examples
    batch_size: int  # examples for one optimiser step
    seed: int
    share: float | None = None

    def __len__(self) -> int:
        return -(-self._size // self.batch_size)

    @property
    def _size(self) -> int:
        """Return the number of examples of an epoch."""
        if self.share is None:
            return len(self.examples)
        raw = int((~self._labelled).sum())
        return raw + max(1, round(raw * (1 - self.share) / self.share))

    @property
    def _labelled(self) -> NDArray[np.bool_]:
        assert self.examples.labelled is not None
        return self.examples.labelled

    def _order(self, generator: np.random.Generator) -> NDArray[np.int64]:
        if self.share is None:
            return generator.permutation(len(self.examples))
        raw, labelled = np.flatnonzero(~self._labelled), np.flatnonzero(self._labelled)
        wanted = self._size - len(raw)
        rounds = [generator.permutation(labelled) for _ in range(-(-wanted // len(labelled)))]
        return generator.permutation(np.concatenate([raw, np.concatenate(rounds)[:wanted]]))

    def used_ids(self) -> Tensor:
        """Return (U,): the token ids that occur in a batch, including padding, in ascending order."""
        return torch.from_numpy(np.union1d(self.examples.tokens.used, self.examples.pad_id))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        generator = np.random.default_rng([self.seed, epoch])
        order = self._order(generator)
        lengths = self.examples.tokens.lengths
        pool = self.batch_size * POOL
        rows: list[NDArray[np.int64]] = []
        for begin in range(0, len(order), pool):
            by_length = order[begin : begin + pool]
            by_length[:] = by_length[np.argsort(lengths[by_length], kind="stable")]
            rows += [by_length[i : i + self.batch_size] for i in range(0, len(by_length), self.batch_size)]
        for index in generator.permutation(len(rows))[start:]:
            yield self.examples.batch(rows[index])
