"""The protocol between methods and the training loop.

A method yields stages; a stage is one optimisation problem: this student, these parameters, this data,
this objective, this schedule. The loop trains each as it is yielded; code after a `yield` runs on the
trained model.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, NotRequired, Protocol, TypedDict

from torch import Tensor, nn


class Batch(TypedDict):
    """One padded batch of B examples and T tokens."""

    ids: Tensor  # (B,) the examples' numbers in the source
    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T) 1 = token, 0 = padding
    token_type_ids: NotRequired[Tensor]  # (B, T) of sentence pairs: 0 = first sentence and padding, 1 = second
    labels: Tensor  # (B,); several labels (B, C); of tagged words (B, T), IGNORED but at a word's first token
    teacher_logits: NotRequired[Tensor]  # (B, C) cached; of tagged words (B, T, C), zero but at a word's first token
    teacher_cls: NotRequired[Tensor]  # (B, L, H) cached: [CLS] after each of the teacher's layers
    mlm_labels: NotRequired[Tensor]  # (B, T) the corpus' tokens to predict, IGNORED elsewhere


# What a batch has several of: real tokens, pairs of them in one example, tokens that are to be predicted.
Unit = Literal["examples", "tokens", "pairs", "masked"]


class Terms(NamedTuple):
    """What an objective returns for one batch."""

    losses: dict[str, Tensor]  # named, already weighted; the loop sums them and logs exactly what it summed
    logged: dict[str, float] = {}  # other numbers of this step (replacement rate)  # noqa: RUF012
    over: Mapping[str, Unit] = {}  # what a loss is the mean over, where that is not the examples


Objective = Callable[[Batch, int], Terms]  # (batch, optimiser steps already taken)
Predict = Callable[[Batch, int], Tensor]  # (batch, optimiser steps already taken) -> logits (B, C) or (B, T, C)


class Data(Protocol):
    """Training batches whose order is a function of the epoch alone, so that a stage resumes anywhere."""

    def __len__(self) -> int:
        """Batches in one epoch; a batch is what one optimiser step sees, over all processes."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, from number `start` on."""


@dataclass(frozen=True)
class Schedule:
    """How one stage is optimised; `steps` is settled (epochs times batches, or as given)."""

    steps: int
    lr: float
    accumulation: int  # forward passes of one optimiser step
    warmup: float  # share of the steps
    decay: str  # linear | constant
    weight_decay: float
    clip: float | None  # norm of the gradient of the trained parameters
    patience: int | None  # epochs without a better dev score
    optimizer: str = "adamw"  # adamw | adadelta

    def lr_factor(self, step: int) -> float:
        """Learning rate of `step` (counted from 0) as a share of the peak: linear warm-up, then linear decay to 0."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        return 1.0 if self.decay == "constant" else (self.steps - step) / max(1, self.steps - warm)


class ParamGroup(NamedTuple):
    module: nn.Module  # all its parameters are trained
    lr_multiplier: float = 1.0


class Words(NamedTuple):
    """A table that training reads at the batches' input ids and nowhere else, and the ids that they have."""

    table: nn.Embedding
    used: Tensor  # (U,) rising


@dataclass(frozen=True, eq=False)
class Stage:
    name: str  # its folder in the run; its key under method.stages, unless `key` says another
    student: nn.Module  # trained, evaluated, saved; the last stage's student is the result
    objective: Objective
    data: Data
    schedule: Schedule
    params: list[ParamGroup] | None = None  # None: all of student's; the rest stands still
    extra: nn.Module | None = None  # trained beside it: saved with the stage, never exported
    # name -> logits on dev each epoch; the first selects. None: the student's own; empty: the last weights are kept.
    predict: Mapping[str, Predict] | None = None
    key: str | None = None  # under method.stages, where several stages share one schedule
    words: Words | None = None  # None: every row of every table is optimised
