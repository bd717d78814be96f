"""One class a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import Code, SourceError
from kdbench.tasks import Metric, Task
from kdbench.tasks.arrays import Labels, Logits, Points, in_points, ratio, softmax
from kdbench.tasks.cells import Label, LabelCells, ReadLabels, class_names, class_of, numbered, settled

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.schema import DatasetConfig
    from kdbench.stage import Batch
    from kdbench.tasks import Compare, SoftTargets
    from kdbench.tasks.probabilities import Questions
    from kdbench.tasks.weights import Given, Weights


class Traits(Task):
    metrics: ClassVar = {
        "accuracy": Metric("accuracy", "accuracy"),
        "macro_f1": Metric("macro-F1", "f1"),
        "f1": Metric("F1", "f1"),
        "matthews": Metric("Matthews", "matthews_correlation", "× 100"),
    }
    loss = "ce"
    one_class = True
    described = "A text classifier with {} labels"


class Answer(NamedTuple):
    """One class."""

    label: str
    probabilities: dict[str, float]  # of all labels, in the model's order; they sum to 1


class Scored(NamedTuple):
    """One class, given by a model without probabilities (TF-IDF)."""

    label: str
    scores: dict[str, float]  # of all labels: distances from planes, comparable with one another only


class Kind(Traits):
    def read(self, files: Sequence[LabelCells]) -> list[ReadLabels]:
        written = [[[class_of(value, where)] for value, where in file.places()] for file in files]
        return [ReadLabels([one for (one,) in rows], notes) for rows, notes in settled(written)]

    def label_names(self, train: Sequence[Label], declared: list[str] | None, config: DatasetConfig) -> list[str]:
        names = class_names(train, declared, config)
        if config.metric == "f1" and len(names) != 2:
            raise SourceError(
                Code.MISMATCHED_CLASSES,
                f"dataset.metric=f1 is of two classes, {config.name} has {len(names)}: set dataset.metric=macro_f1.",
            )
        return names

    def encode(self, labels: Sequence[Any], names: list[str], texts: Sequence[str], where: str) -> Labels:
        number = numbered(labels, names, where)
        return np.array([number[str(label)] for label in labels], np.int64)

    def stored(self, column: Any) -> Labels:
        return np.array(column.to_numpy(), np.int64)

    def hard_loss(self, z: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        from kdbench.losses import cross_entropy

        return cross_entropy(z, labels, weights)

    def class_weights(self, given: Given, labels: Labels, names: list[str]) -> Weights:
        from kdbench.tasks.weights import of_classes

        return of_classes(given, np.bincount(labels, minlength=len(names)), names)

    def weigh(self, weights: Weights, labels: Labels) -> Labels:
        return weights[labels].astype(np.float32)

    def soft_loss(self, z: Tensor, batch: Batch, p: SoftTargets, of_classes: Compare) -> Tensor:
        return of_classes(z, batch["teacher_logits"])

    def answers(self, logits: Logits) -> Labels:
        return np.asarray(np.argmax(np.asarray(logits), -1))

    def figures(self, labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, float]:
        """Macro-F1 is over the classes that occur in either; F1 is the second class's, of two (GLUE: MRPC, QQP)."""
        from sklearn.metrics import f1_score, matthews_corrcoef

        found = {
            "accuracy": float((labels == predicted).mean()),
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
            # of one class alone it is undefined, and scikit-learn warns
            "matthews": float(matthews_corrcoef(labels, predicted)) if len({*labels, *predicted}) > 1 else 0.0,
        }
        if len(names) == 2:
            found["f1"] = float(f1_score(labels, predicted, average="binary", zero_division=0.0))
        return found

    def points(self, metric: str, labels: Labels, predicted: Labels, names: Sequence[str]) -> Points:
        match metric:
            case "accuracy":
                return in_points(labels == predicted)
            case "macro_f1":
                return macro_f1(labels, predicted)
            case "f1":
                return ratio(2.0 * (labels * predicted), labels + predicted)
            case "matthews":
                return matthews(labels, predicted)
        raise ValueError(metric)

    def questions(self, labels: Labels, logits: Logits) -> Questions:
        from kdbench.tasks.probabilities import of_classes

        return of_classes(labels, logits)

    def answer(self, probable: bool) -> type[Answer] | type[Scored]:
        return Answer if probable else Scored

    def tell(self, logits: Logits, texts: Sequence[str], names: list[str], probable: bool) -> list[Any]:
        z = np.asarray(logits)
        every = [dict(zip(names, row, strict=True)) for row in (softmax(z) if probable else z).tolist()]
        return [self.answer(probable)(max(one, key=one.__getitem__), one) for one in every]

    def cells(self, answer: Answer | Scored | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("", "") if answer is None else (answer.label, f"{max(answer[1].values()):.4f}"), ()


def macro_f1(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> Points:
    """Return the points of macro-F1.

    With F1_c = 2 TP_c / (true_c + predicted_c), a point is the macro-F1 plus N times what the example adds to it. Rough
    where classes are rare.
    """
    classes = int(max(labels.max(), predicted.max())) + 1
    true, said = (np.bincount(which, minlength=classes) for which in (labels, predicted))
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    size = true + said
    f1 = np.divide(2.0 * hits, size, out=np.zeros(classes), where=size > 0)
    weight = np.divide(1.0, size, out=np.zeros(classes), where=size > 0) / np.count_nonzero(size)
    change = weight[labels] * (2.0 * (labels == predicted) - f1[labels]) - weight[predicted] * f1[predicted]
    return in_points(f1.sum() / np.count_nonzero(size) + len(labels) * change)


def matthews(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> Points:
    """Return the points of the correlation of classes (Gorodkin 2004); 0 where one side has one class alone."""
    classes = int(max(labels.max(), predicted.max())) + 1
    true, said = (np.bincount(which, minlength=classes) / len(labels) for which in (labels, predicted))
    right = labels == predicted
    together, spread, other = true @ said, 1 - true @ true, 1 - said @ said
    if spread * other <= 1e-12:  # rounding of 1 - 1
        return np.zeros(len(labels))
    top, bottom = right.mean() - together, np.sqrt(spread * other)
    of_top = right - right.mean() - (said[labels] + true[predicted] - 2 * together)
    of_bottom = (true[labels] - true @ true) / spread + (said[predicted] - said @ said) / other
    return in_points(top / bottom + of_top / bottom + top / bottom * of_bottom)
