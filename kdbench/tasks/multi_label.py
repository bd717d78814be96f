"""None, one or several labels a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from kdbench.errors import Code, SourceError
from kdbench.tasks import Metric, Task
from kdbench.tasks.arrays import Labels, Logits, Points, in_points, ratio, sigmoid
from kdbench.tasks.cells import WHOLE, LabelCells, Place, ReadLabels, class_of, listed, numbered, present, settled

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.stage import Batch
    from kdbench.tasks import Compare, SoftTargets
    from kdbench.tasks.probabilities import Questions
    from kdbench.tasks.weights import Given, Weights

BETWEEN = "|"  # labels in a cell of plain text: sport|politics
_OTHER_BETWEEN = (";", ",")  # what other programs write there


class Traits(Task):
    metrics: ClassVar = {
        "micro_f1": Metric("micro-F1", "f1"),
        "macro_f1": Metric("macro-F1", "f1"),
        "subset_accuracy": Metric("all labels right", "accuracy"),
    }
    loss = "bce"
    several = True
    problem_type = "multi_label_classification"
    pipeline_options = ", top_k=None"
    described = "A text classifier with {} labels, of which none, one or several hold"


class Chosen(NamedTuple):
    """The labels whose probability is above one half."""

    labels: list[str]
    probabilities: dict[str, float]  # of all labels, each on its own


class ScoredLabels(NamedTuple):
    """The labels whose score is above 0, given by a model without probabilities (TF-IDF)."""

    labels: list[str]
    scores: dict[str, float]


class Kind(Traits):
    def read(self, files: Sequence[LabelCells]) -> list[ReadLabels]:
        """Read lists, or text with a sign between the labels; an empty one says that no label holds."""
        cells: list[list[tuple[Any, Place]]] = []
        for file in files:
            cells.append([(listed(value) if isinstance(value, str) else value, at) for value, at in file.places()])
        sign = _between({value.strip() for rows in cells for value, _ in rows if isinstance(value, str)})
        written = [[_labels_of(value, at, sign) for value, at in rows] for rows in cells]
        read = []
        spelled = settled([[row or [] for row in rows] for rows in written])
        for (rows, notes), given, own_cells in zip(spelled, written, cells, strict=True):
            own = [value for value, _ in own_cells if isinstance(value, str)]
            if sign != BETWEEN and any(sign in value for value in own):
                notes.insert(0, f"labels of a cell are read as separated by {sign}")
            unread = [value for value in own if sign == BETWEEN and any(other in value for other in _OTHER_BETWEEN)]
            if unread:
                notes.insert(0, f"a cell such as {unread[0]!r} is one label: only {BETWEEN} separates labels here")
            labels = [None if row is None else present(found) for row, found in zip(given, rows, strict=True)]
            read.append(ReadLabels([*labels], notes))
        return read

    def read_columns(self, files: Sequence[dict[str, LabelCells]]) -> list[ReadLabels]:
        return [ReadLabels([*_one_hot(columns)], []) for columns in files]

    def encode(self, labels: Sequence[Any], names: list[str], texts: Sequence[str], where: str) -> Labels:
        number = numbered(labels, names, where)
        result = np.zeros((len(labels), len(names)), np.int8)
        for row, several in enumerate(labels):
            result[row, [number[str(one)] for one in several]] = 1
        return result

    def stored(self, column: Any) -> Labels:
        return np.array(column.to_pylist(), np.int8)

    def hard_loss(self, z: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        from kdbench.losses import binary_cross_entropy

        return binary_cross_entropy(z, labels, weights)

    def class_weights(self, given: Given, labels: Labels, names: list[str]) -> Weights:
        from kdbench.tasks.weights import of_labels

        having = labels.sum(0, dtype=np.int64)
        return of_labels(given, np.stack([len(labels) - having, having], -1), names)

    def weigh(self, weights: Weights, labels: Labels) -> Labels:
        return np.where(labels, weights[:, 1], weights[:, 0]).astype(np.float32)

    def soft_loss(self, z: Tensor, batch: Batch, p: SoftTargets, of_classes: Compare) -> Tensor:
        """Return the KL of each label's own two outcomes."""
        from kdbench.losses import soft_binary_kl

        return soft_binary_kl(z, batch["teacher_logits"], p.temperature, p.reduction, p.scale_by_temperature_squared)

    def answers(self, logits: Logits) -> Labels:
        return (np.asarray(logits) > 0).astype(np.int8)

    def figures(self, labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, float]:
        """Macro-F1 is over all labels; subset accuracy is the share of examples with every label right."""
        from sklearn.metrics import f1_score

        return {
            "micro_f1": float(f1_score(labels, predicted, average="micro", zero_division=0.0)),
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
            "subset_accuracy": float((labels == predicted).all(1).mean()),
        }

    def points(self, metric: str, labels: Labels, predicted: Labels, names: Sequence[str]) -> Points:
        match metric:
            case "micro_f1":
                return ratio(2.0 * (labels & predicted).sum(1), labels.sum(1) + predicted.sum(1))
            case "macro_f1":
                each = [ratio(2.0 * (a & b), a + b) for a, b in zip(labels.T, predicted.T, strict=True)]
                return np.asarray(np.mean(each, axis=0))
            case "subset_accuracy":
                return in_points((labels == predicted).all(1))
        raise ValueError(metric)

    def questions(self, labels: Labels, logits: Logits) -> Questions:
        from kdbench.tasks.probabilities import of_labels

        return of_labels(labels, logits)

    def answer(self, probable: bool) -> type[Chosen] | type[ScoredLabels]:
        return Chosen if probable else ScoredLabels

    def tell(self, logits: Logits, texts: Sequence[str], names: list[str], probable: bool) -> list[Any]:
        z = np.asarray(logits)
        every = [dict(zip(names, row, strict=True)) for row in (sigmoid(z) if probable else z).tolist()]
        least = 0.5 if probable else 0.0
        return [self.answer(probable)([name for name, value in one.items() if value > least], one) for one in every]

    def cells(self, answer: Chosen | ScoredLabels | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("" if answer is None else ",".join(answer.labels),), ()


def _labels_of(value: Any, where: Place, sign: str) -> list[str | None] | None:
    if isinstance(value, str):
        return [part.strip() for part in value.split(sign) if part.strip()]
    if value is None or value != value:
        return None
    items = [value] if isinstance(value, int) else value
    if not isinstance(items, list) or None in (found := [class_of(part, where) for part in items]):
        raise SourceError(
            Code.INVALID_LABEL,
            f"dataset.label: {where} has the label {value!r}; dataset.task=multi_label reads lists of labels, or"
            f" text with {BETWEEN} between them: sport{BETWEEN}politics.",
        )
    return found


def _between(texts: set[str]) -> str:
    """Return the sign between the labels of a cell; another than | only where its parts occur in other cells too."""
    if any(BETWEEN in text for text in texts):
        return BETWEEN
    for sign in _OTHER_BETWEEN:
        cells = [{part.strip() for part in text.split(sign)} for text in texts]
        counts = Counter(part for cell in cells for part in cell)
        parts = {part for cell in cells if len(cell) > 1 for part in cell}
        if parts and sum(counts[part] > 1 for part in parts) > len(parts) / 2:
            return sign
    return BETWEEN


def _one_hot(columns: dict[str, LabelCells]) -> list[list[str] | None]:
    """Return the labels of rows that have a column of 0 and 1 for each; None where all are empty or -1."""
    on = {"1": True, "true": True, "0": False, "false": False, "": None, "-1": None}
    rows: list[list[bool | None]] = []
    for name, cells in columns.items():
        found = []
        for value, where in cells.places():
            written = (class_of(value, where) or "").lower()
            written = whole[1] if (whole := WHOLE.fullmatch(written)) else written
            if written not in on:
                raise SourceError(
                    Code.INVALID_LABEL,
                    f"dataset.label: {where} has {value!r} in column {name}; a column for each label holds 0 and 1,"
                    " or false and true.",
                )
            found.append(on[written])
        rows.append(found)
    labels: list[list[str] | None] = []
    any_column = next(iter(columns.values()))
    for row, line in zip(zip(*rows, strict=True), any_column.lines, strict=True):
        if None in row and any(value is not None for value in row):
            empty = list(columns)[row.index(None)]
            raise SourceError(
                Code.INVALID_LABEL,
                f"dataset.label: {Place(any_column.unit, line)} has nothing in column {empty}, and 0 or 1 in others."
                " Write 0 where a label does not hold; a row without labels has none in any column.",
            )
        labels.append(None if None in row else [name for name, holds in zip(columns, row, strict=True) if holds])
    return labels
