"""The kinds of task, one a file: labels, answers, losses, metrics. May import: schema and below.

A file here that defines `Traits` is a legal value of `dataset.task`: its name is the key. `Traits` says what a refusal
must know, without NumPy and torch. `Kind`, below it, computes. `Task` lists what both may say.

Task                  label of an example           its logits               answer
classification        a class, int                  (C,)                     the likeliest class
multi_label           0 or 1 for each label, (C,)   (C,)                     1 where the logit is above 0
regression            a number                      (1,)                     the number
token_classification  a class a word, (words,)      (words, C), NaN: unread  the likeliest class of each word
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from kdbench.declared import declared
from kdbench.errors import Code

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.schema import DatasetConfig, RunConfig
    from kdbench.stage import Batch
    from kdbench.tasks.arrays import Labels, Logits, Points
    from kdbench.tasks.cells import Label, LabelCells, ReadLabels
    from kdbench.tasks.probabilities import Questions
    from kdbench.tasks.weights import Given, Weights

    Compare = Callable[[Tensor, Tensor], Tensor]  # (N, C) logits of the student and of the teacher -> loss

# Figures of probabilities, by name in the record, and their names in tables; less is better.
PROBABILITIES = {"nll": "NLL", "brier": "Brier", "ece": "ECE"}


class Metric(NamedTuple):
    """A metric that may choose on dev: at most 1, and more is better."""

    shown: str  # its name in tables
    hub: str  # its name on the model hub
    unit: str = "%"  # of points; a correlation is no share


class SoftTargets(Protocol):
    """The keys of every method that learns from the teacher's logits."""

    temperature: float
    reduction: str

    @property
    def scale_by_temperature_squared(self) -> bool: ...


class Task:
    """A kind of task. The defaults are those of a task whose labels are classes."""

    # Traits
    metrics: ClassVar[dict[str, Metric]]  # by name in the record; the first chooses unless `dataset.metric` is set
    loss: ClassVar[str]  # the name of `hard_loss` in the log
    classes: ClassVar[bool] = True  # a label is made of classes, which may have weights
    one_class: ClassVar[bool] = False  # each text has exactly one class
    several: ClassVar[bool] = False  # none, one or several labels hold for a text
    numbers: ClassVar[bool] = False  # a label is a number
    words: ClassVar[bool] = False  # each word of a text has a label and logits of its own
    problem_type: ClassVar[str | None] = None  # of transformers' config.json
    pipeline: ClassVar[str] = "text-classification"  # of transformers
    pipeline_options: ClassVar[str] = ""  # of the call in the model card
    described: ClassVar[str]  # a model of the task, for its card; {} is the number of labels

    def conflicts(self, config: RunConfig) -> Iterable[tuple[Code, str, str]]:
        """Yield (code, key, problem) for each key that this task cannot have."""
        return ()

    # Labels

    def read(self, files: Sequence[LabelCells]) -> list[ReadLabels]:
        """Return the labels of each file, spelled alike over all of them. Raises SourceError, which names the cell."""
        raise NotImplementedError

    def read_columns(self, files: Sequence[dict[str, LabelCells]]) -> list[ReadLabels]:
        """Return the labels of files that have a column for each label, by its name. Raises SourceError."""
        raise NotImplementedError

    def label_names(self, train: Sequence[Label], declared: list[str] | None, config: DatasetConfig) -> list[str]:
        """Return the names of the classes: declared by the source, or found in train. Raises SourceError."""
        from kdbench.tasks.cells import class_names

        return class_names(train, declared, config)

    def encode(self, labels: Sequence[Any], names: list[str], texts: Sequence[str], where: str) -> Labels:
        """Return labels, none of them missing, as arrays. Raises SourceError, which names the file by `where`."""
        raise NotImplementedError

    def stored(self, column: Any) -> Labels:
        """Return the labels in a column of an Arrow table, which holds `plain(labels)`."""
        raise NotImplementedError

    def unknown(self, texts: Sequence[str]) -> Labels:
        """Return labels of the right form for texts that have none."""
        import numpy as np

        return np.zeros(len(texts), np.int64)

    # Learning

    def hard_loss(self, z: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of a batch's logits against its labels.

        `weights` has a weight for each label, as `weigh` gives them. The loss is not divided by their sum.
        """
        raise NotImplementedError

    def class_weights(self, given: Given, labels: Labels, names: list[str]) -> Weights:
        """Return the weights of the classes from `schedule.class_weights` and the labels of train."""
        raise NotImplementedError

    def weigh(self, weights: Weights, labels: Labels) -> Labels:
        """Return the weight of each label, float32, in the form of the labels."""
        raise NotImplementedError

    def soft_loss(self, z: Tensor, batch: Batch, p: SoftTargets, of_classes: Compare) -> Tensor:
        """Return the loss of a batch's logits against the teacher's.

        `of_classes` compares logits where one of C classes is right.
        """
        raise NotImplementedError

    # Judging

    def answers(self, logits: Logits) -> Labels:
        """Return what a model says of n examples, in the form of their labels."""
        raise NotImplementedError

    def figures(self, labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, float]:
        """Return all metrics; `names` are those of the classes, in their order."""
        raise NotImplementedError

    def points(self, metric: str, labels: Labels, predicted: Labels, names: Sequence[str]) -> Points:
        """Return (n,) points of the examples, whose mean is 100 * metric and whose spread allows for tests.

        A metric that is no mean over examples is given by its first-order change with each example (infinitesimal
        jackknife, Efron 1982, section 6). Intervals and tests are then those of a bootstrap over many examples.
        """
        raise NotImplementedError

    def judge(self, labels: Labels, logits: Logits, names: Sequence[str]) -> dict[str, float]:
        """Return all metrics of a model's logits, and the number of examples n."""
        return {"n": len(labels), **self.figures(labels, self.answers(logits), names)}

    def questions(self, labels: Labels, logits: Logits) -> Questions | None:
        """Return what probabilities are judged by; None if the logits of the task stand for no probabilities."""
        return None

    # Answers to people

    def answer(self, probable: bool) -> Any:
        """Return the NamedTuple that an answer is, of a model whose logits stand for probabilities or do not."""
        raise NotImplementedError

    def tell(self, logits: Logits, texts: Sequence[str], names: list[str], probable: bool) -> list[Any]:
        """Return an `answer` for each text."""
        raise NotImplementedError

    def cells(self, answer: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the cells before and after the text in a line of kdbench-predict; None is answered by empty ones."""
        raise NotImplementedError


@cache
def traits(task: str) -> Task:
    """Return what a task declares. Its file is not imported."""
    found: Task = declared(f"{__name__}.{task}", "Traits")()
    return found


@cache
def kind(task: str) -> Task:
    """Return all that a task is: its file is imported, with NumPy. torch is imported when a loss is computed."""
    found: Task = import_module(f"{__name__}.{task}").Kind()
    return found


def chosen_metric(task: str, metric: str | None) -> str:
    """Return the metric that chooses: `dataset.metric`, or the task's first."""
    return metric or next(iter(traits(task).metrics))
