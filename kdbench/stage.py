"""The protocol between methods and the training loop.

A method yields stages. A stage is one optimisation problem: a student, its trained parameters, data, an objective and
a schedule. The loop trains each stage when it is yielded. Code after a `yield` runs on the trained model.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, NotRequired, Protocol, TypedDict

from torch import Tensor, nn


class Batch(TypedDict):
    """A padded batch of B examples and T tokens. In token classification, the first token of a word has its label."""

    ids: Tensor  # (B,) number of each example in the source
    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T) 1 = token, 0 = padding
    token_type_ids: NotRequired[Tensor]  # (B, T) for pairs: 0 = first sentence and padding, 1 = second
    labels: Tensor  # (B,); multi-label (B, C); token classification (B, T), else IGNORED
    labelled: NotRequired[Tensor]  # (B,) bool; False: the label is a placeholder. Absent: all have labels
    weights: NotRequired[Tensor]  # of the shape of labels; 0 at IGNORED. Absent: all labels have the weight 1
    teacher_logits: NotRequired[Tensor]  # (B, C); token classification (B, T, C), else zero
    answered: NotRequired[Tensor]  # (B,) bool; False: the teacher's logits are NaN. Absent: all have an answer
    teacher_cls: NotRequired[Tensor]  # (B, L, H) [CLS] after each of the teacher's L layers
    mlm_labels: NotRequired[Tensor]  # (B, T) ids of the tokens to predict, else IGNORED
    other_input_ids: NotRequired[Tensor]  # (B, T2) of pairs of examples: the second ones; so are the next two
    other_attention_mask: NotRequired[Tensor]
    other_token_type_ids: NotRequired[Tensor]
    same: NotRequired[Tensor]  # (B,) bool: whether the two examples of a pair have one class


# What a loss is a mean over. tokens: real ones; pairs: of real tokens of one example; masked: tokens to predict.
Unit = Literal["examples", "tokens", "pairs", "masked"]


class Terms(NamedTuple):
    """The result of an objective for one batch."""

    losses: dict[str, Tensor]  # by name, already weighted; the loop logs and sums them
    logged: dict[str, float] = {}  # other numbers of this step, such as the replacement rate  # noqa: RUF012
    over: Mapping[str, Unit] = {}  # by name: what a loss is the mean over, if not examples


Objective = Callable[[Batch, int], Terms]  # (batch, optimiser steps already taken)
Predict = Callable[[Batch, int], Tensor]  # (batch, optimiser steps already taken) -> logits (B, C) or (B, T, C)


class Data(Protocol):
    """Training batches. Their order depends only on the epoch, so that a stage can resume at any step."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch. A batch is the input of one optimiser step, over all processes."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch`, beginning with number `start`."""


@dataclass(frozen=True)
class Schedule:
    """How one stage is optimised."""

    steps: int  # optimiser steps: epochs times batches, or as given
    lr: float  # peak
    accumulation: int  # forward passes for one optimiser step
    warmup: float  # share of the steps
    decay: str  # linear | constant
    weight_decay: float
    clip: float | None  # largest norm of the gradient of the trained parameters; None: no clipping
    patience: int | None  # epochs without a better dev score before the stage stops; None: never
    optimizer: str = "adamw"  # adamw | adadelta

    def lr_factor(self, step: int) -> float:
        """Return the learning rate of `step` (from 0) as a share of the peak: linear warm-up, then the decay."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        return 1.0 if self.decay == "constant" else (self.steps - step) / max(1, self.steps - warm)


class ParamGroup(NamedTuple):
    module: nn.Module  # all its parameters are trained
    lr_multiplier: float = 1.0


class Words(NamedTuple):
    """An embedding table that training reads only at input ids of the batches, and these ids."""

    table: nn.Embedding
    used: Tensor  # (U,) in ascending order


@dataclass(frozen=True, eq=False)
class Stage:
    name: str  # of its folder in the run; also its key under method.stages, unless `key` is set
    student: nn.Module  # trained, evaluated and saved; the student of the last stage is the result
    objective: Objective
    data: Data
    schedule: Schedule
    params: list[ParamGroup] | None = None  # None: all of the student; all other parameters are frozen
    extra: nn.Module | None = None  # trained with the student; saved with the stage, never exported
    # name -> logits, scored on dev after each epoch; the first selects the weights. None: the student's logits. Empty:
    # no score, the last weights are kept.
    predict: Mapping[str, Predict] | None = None
    key: str | None = None  # under method.stages, if several stages share one schedule
    words: Words | None = None  # None: all rows of all embedding tables are optimised
    through: nn.Module | None = None  # frozen, but gradients pass through it: its activations take memory, too
