"""Write and read the predictions of a run: labels and logits of each example of a split."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from kdbench.schema import DEFAULT_TASK
from kdbench.storage.results import PREDICTIONS
from kdbench.tasks import kind, traits
from kdbench.tasks.arrays import Labels, Logits, Points, plain


class NoPredictionsError(Exception):
    """A run has no usable predictions. The message gives the reason."""


@dataclass(frozen=True)
class Predictions:
    """The labels and answers of one split of one run: n examples in the order of their ids.

    Runs of one test have its examples in the same order, though their ids may differ: ids count on from train.
    """

    ids: NDArray[np.int64]
    labels: Labels
    predicted: Labels
    task: str = DEFAULT_TASK
    names: list[str] = field(default_factory=list)  # of the classes; files of older versions have none

    def points(self, metric: str) -> Points:
        """Return the points of each example, see `kdbench.tasks`."""
        return kind(self.task).points(metric, self.labels, self.predicted, self.names)


def read(results: Path, split: str) -> Predictions:
    """Return the predictions in the folder of a results.json. Raises NoPredictionsError."""
    with _explained(path := results.with_name(PREDICTIONS)):
        table, task = _opened(path, split)
        ids, labels = table["id"].to_numpy().astype(np.int64), kind(task).stored(table["label"])
        predicted = kind(task).answers(_logits(table["logits"], task))
        names = json.loads((table.schema.metadata or {}).get(b"labels", b"[]"))
    order = np.argsort(ids, kind="stable")
    return Predictions(ids[order], labels[order], predicted[order], task, names)


def read_logits(results: Path, split: str) -> tuple[Labels, Logits]:
    """Return labels and logits in the folder of a results.json, in the order of the file. Raises NoPredictionsError."""
    with _explained(path := results.with_name(PREDICTIONS)):
        table, task = _opened(path, split)
        return kind(task).stored(table["label"]), _logits(table["logits"], task)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NoPredictionsError(f"{path.parent} has no {PREDICTIONS}") from None
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise NoPredictionsError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _opened(path: Path, split: str) -> tuple[Any, str]:
    """Return the rows of a split, and the task."""
    table = pyarrow.parquet.read_table(path, filters=pyarrow.compute.field("split") == split)
    return table, (table.schema.metadata or {}).get(b"task", DEFAULT_TASK.encode()).decode()


def _logits(column: Any, task: str) -> Logits:
    if traits(task).words:
        return [np.array(words, np.float32) for words in column.to_pylist()]
    if len(pyarrow.compute.unique(pyarrow.compute.list_value_length(column))) != 1:
        raise ValueError("its logits differ in number")
    return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)  # type: ignore[no-any-return]


def predictions_file(
    task: str, label_names: list[str], splits: Mapping[str, tuple[NDArray[np.int64], Labels, Logits]]
) -> bytes:
    """Return the content of predictions.parquet: split, id, label and logits of each example.

    `splits` has (ids, labels, logits) of n examples by the name of the split, in the forms that `kdbench.tasks` lists.
    The metadata of the table hold the task and the names of the classes.
    """
    columns: dict[str, list[Any]] = {"split": [], "id": [], "label": []}
    every = []
    for name, (ids, labels, logits) in splits.items():
        columns["split"] += [name] * len(ids)
        columns["id"] += ids.tolist()
        columns["label"] += plain(labels)
        every.append(_column(logits, task))
    table = pyarrow.table({**columns, "logits": pyarrow.chunked_array(every)})
    table = table.replace_schema_metadata({"task": task, "labels": json.dumps(label_names)})
    content = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, content)
    return bytes(content.getvalue())


def _column(logits: Logits, task: str) -> Any:
    """Return a list for each example: of its logits, or of lists of those of its words."""
    number = pyarrow.list_(pyarrow.float32())
    if traits(task).words:
        return pyarrow.array([one.astype(np.float32).tolist() for one in logits], pyarrow.list_(number))
    numbers = np.asarray(logits, np.float32)
    # Not by Python's floats, which need eight times the memory.
    ends = pyarrow.array(np.arange(len(numbers) + 1) * numbers.shape[1], pyarrow.int32())
    return pyarrow.ListArray.from_arrays(ends, numbers.ravel())
