"""The stored predictions of a run: which examples it got right, in the order of their ids."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from kdbench.metrics import Labels, Logits, answers, plain, ragged
from kdbench.storage.results import PREDICTIONS


class NoPredictionsError(Exception):
    """A run without usable predictions; the message says why."""


@dataclass(frozen=True)
class Predictions:
    """One split of one run: N examples, ordered by id; labels and predictions as `kdbench.tasks` says."""

    ids: NDArray[np.int64]
    labels: Labels
    predicted: Labels
    task: str = "classification"
    names: list[str] = field(default_factory=list)  # of the classes; older files have none

    def same_examples(self, other: "Predictions") -> bool:
        if self.task != other.task or not np.array_equal(self.ids, other.ids):
            return False
        return all(np.array_equal(mine, theirs) for mine, theirs in zip(self.labels, other.labels, strict=True))


def read(results: Path, split: str) -> Predictions:
    """The predictions beside a results.json."""
    path = results.with_name(PREDICTIONS)
    try:
        table = pyarrow.parquet.read_table(path, filters=pyarrow.compute.field("split") == split)
        about = table.schema.metadata or {}
        task = about.get(b"task", b"classification").decode()
        ids, labels = table["id"].to_numpy().astype(np.int64), _labels(table["label"], task)
        predicted = answers(task, _logits(table["logits"], task))
        names = json.loads(about.get(b"labels", b"[]"))
    except FileNotFoundError:
        raise NoPredictionsError(f"{path.parent} has no {PREDICTIONS}") from None
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise NoPredictionsError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    order = np.argsort(ids, kind="stable")
    return Predictions(ids[order], labels[order], predicted[order], task, names)


def _labels(column: Any, task: str) -> Labels:
    values: NDArray[Any] = column.to_numpy()
    match task:
        case "classification":
            return values.astype(np.int64)
        case "regression":
            return values
        case "multi_label":
            return np.stack([*values]).astype(np.int8)
        case _:
            return ragged([np.asarray(tags) for tags in values])


def _logits(column: Any, task: str) -> Any:
    if task != "token_classification":
        return np.stack(column.to_numpy())
    return [np.array(words, np.float32) for words in column.to_pylist()]


def predictions_file(
    task: str, label_names: list[str], splits: Mapping[str, tuple[NDArray[np.int64], Labels, Logits]]
) -> bytes:
    """Return the content of predictions.parquet: split, id, label and logits of each example.

    `splits`: name -> (ids, labels, logits) of N examples, in the forms that `kdbench.tasks` lists. The task and the
    names of the classes are in the table's metadata.
    """
    columns: dict[str, list[Any]] = {"split": [], "id": [], "label": [], "logits": []}
    for name, (ids, labels, logits) in splits.items():
        columns["split"] += [name] * len(ids)
        columns["id"] += ids.tolist()
        columns["label"] += plain(labels)
        columns["logits"] += [one.astype(np.float32).tolist() for one in logits]
    number = pyarrow.list_(pyarrow.float32())
    kind = pyarrow.list_(number) if task == "token_classification" else number
    table = pyarrow.table(columns | {"logits": pyarrow.array(columns["logits"], kind)})
    table = table.replace_schema_metadata({"task": task, "labels": json.dumps(label_names)})
    content = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, content)
    return bytes(content.getvalue())
