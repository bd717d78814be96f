"""A number a text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from kdbench.errors import Code, SourceError
from kdbench.tasks import Metric, Task
from kdbench.tasks.arrays import Labels, Logits, Points, in_points
from kdbench.tasks.cells import ABSENT, Label, LabelCells, Place, ReadLabels

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.schema import DatasetConfig, RunConfig
    from kdbench.stage import Batch
    from kdbench.tasks import Compare, SoftTargets

_DECIMAL = re.compile(r"[+-]?\d*,\d+")  # 3,5
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


class Traits(Task):
    metrics: ClassVar = {
        "pearson": Metric("Pearson", "pearsonr", "× 100"),
        "spearman": Metric("Spearman", "spearmanr", "× 100"),
    }
    loss = "mse"
    numbers = True
    classes = False
    problem_type = "regression"
    pipeline_options = ', function_to_apply="none"'
    described = "A text regressor, which tells one number"

    def conflicts(self, config: RunConfig) -> Iterator[tuple[Code, str, str]]:
        if config.dataset.classes is not None:
            yield Code.INAPPLICABLE_KEY, "dataset.classes", "must be null: a number is predicted, no class"


class Value(NamedTuple):
    """A number."""

    value: float


class Kind(Traits):
    def read(self, files: Sequence[LabelCells]) -> list[ReadLabels]:
        """Read numbers; a comma is the decimal sign where the files cannot mean thousands by it."""
        texts = {value.strip() for file in files for value in file.values if isinstance(value, str)}
        commas = {text for text in texts if "," in text}
        decimal = (
            bool(commas)
            and all(_DECIMAL.fullmatch(text) for text in commas)
            and not all(_THOUSANDS.fullmatch(text) for text in commas)
            and not any("." in text for text in texts)
        )
        read = []
        for file in files:
            labels: list[Label] = [_number(value, where, decimal, commas) for value, where in file.places()]
            own = [value for value in file.values if isinstance(value, str)]
            notes = []
            if example := next((value.strip() for value in own if decimal and "," in value), None):
                notes.append(f"the comma is the decimal sign: {example} is read as {example.replace(',', '.')}")
            if words := sorted({value.strip() for value in own if value.strip() and value.strip().lower() in ABSENT}):
                notes.append(f"{', '.join(words)} among numbers says that a row has none")
            read.append(ReadLabels(labels, notes))
        return read

    def label_names(self, train: Sequence[Label], declared: list[str] | None, config: DatasetConfig) -> list[str]:
        """Return the name of the column."""
        return [config.label]

    def encode(self, labels: Sequence[Any], names: list[str], texts: Sequence[str], where: str) -> Labels:
        return np.array(labels, np.float32)

    def stored(self, column: Any) -> Labels:
        return np.array(column.to_numpy(), np.float32)

    def hard_loss(self, z: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the squared error; a number has no class, so no weight."""
        from kdbench.losses import squared_error

        return squared_error(z, labels)

    def soft_loss(self, z: Tensor, batch: Batch, p: SoftTargets, of_classes: Compare) -> Tensor:
        """Return the squared distance to the teacher's number, which has no distribution and so no temperature."""
        from kdbench.losses import logit_mse

        return logit_mse(z, batch["teacher_logits"], p.reduction)

    def answers(self, logits: Logits) -> Labels:
        return np.asarray(logits)[:, 0]

    def figures(self, labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, float]:
        """A correlation is 0 where one side is constant: there it is undefined."""
        from scipy.stats import pearsonr, spearmanr

        true, said = labels.astype(np.float64), predicted.astype(np.float64)
        varies = len(true) > 1 and np.ptp(true) > 0 and np.ptp(said) > 0
        return {
            "pearson": float(pearsonr(true, said).statistic) if varies else 0.0,
            "spearman": float(spearmanr(true, said).statistic) if varies else 0.0,
            "mean_squared_error": float(((true - said) ** 2).mean()),
        }

    def points(self, metric: str, labels: Labels, predicted: Labels, names: Sequence[str]) -> Points:
        if np.ptp(labels) == 0 or np.ptp(predicted) == 0:
            return np.zeros(len(labels))
        return {"pearson": pearson, "spearman": spearman}[metric](labels.astype(float), predicted.astype(float))

    def answer(self, probable: bool) -> type[Value]:
        return Value

    def tell(self, logits: Logits, texts: Sequence[str], names: list[str], probable: bool) -> list[Any]:
        return [Value(value) for (value,) in np.asarray(logits).tolist()]

    def cells(self, answer: Value | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("" if answer is None else f"{answer.value:.4f}",), ()


def _number(value: Any, where: Place, decimal: bool, commas: set[str]) -> float | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in ABSENT) or value != value:
        return None
    written = value.strip().replace(",", ".") if decimal and isinstance(value, str) else value
    try:
        found = float(written)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found) or (isinstance(written, str) and "_" in written):
        comma = " 1,234 may be 1.234 or 1234: write it without the comma." if value in commas else ""
        raise SourceError(
            Code.INVALID_LABEL,
            f"dataset.label: {where} has the label {value!r}; dataset.task=regression reads numbers.{comma}",
        )
    return found


def pearson(labels: Points, predicted: Points) -> Points:
    """Return the points of the correlation of two sides that vary."""
    x, y = ((side - side.mean()) / side.std() for side in (labels, predicted))
    value = float((x * y).mean())
    return in_points(value + x * y - value * (x**2 + y**2) / 2)


def spearman(labels: Points, predicted: Points) -> Points:
    """Return the points of the correlation of ranks, which change with each example too."""
    ones = np.ones(len(labels))
    u, v = (0.5 - above(side, ones) for side in (labels, predicted))  # share of the examples below, less one half
    both, first, second = (u * v).mean(), (u * u).mean(), (v * v).mean()
    of_both = u * v + above(labels, v) + above(predicted, u) - 3 * both
    of_first = u * u + 2 * above(labels, u) - 3 * first
    of_second = v * v + 2 * above(predicted, v) - 3 * second
    value = both / np.sqrt(first * second)
    change = of_both / np.sqrt(first * second) - value / 2 * (of_first / first + of_second / second)
    return in_points(value + change)


def above(values: Points, weights: Points) -> Points:
    """Return (N,) the mean over j of weights[j] where values[j] is above an example's value, half where equal."""
    order = np.argsort(values, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(weights[order])])
    left, right = (np.searchsorted(values[order], values, side) for side in ("left", "right"))
    return np.asarray((sums[-1] - (sums[left] + sums[right]) / 2) / len(values))
