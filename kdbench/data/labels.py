"""Labels as they were read, as arrays of the task's kind; classes go by name."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data.cells import Label
from kdbench.errors import SourceError, shown
from kdbench.metrics import ragged
from kdbench.schema import DatasetConfig
from kdbench.tasks import OUTSIDE, is_bio


def label_names(train: Sequence[Label], declared: list[str] | None, config: DatasetConfig) -> list[str]:
    """The classes: as the source declares them, else train's labels sorted, integers by value.

    The one name of a number to predict is its column's. Of BIO tags each entity has both, and O is the first.
    """
    if all(label is None for label in train):
        raise SourceError(f"dataset.splits.train={config.splits.train} has no row with a label.")
    if config.task == "regression":
        return [config.label]
    names = declared or _sorted({str(one) for one in _each(train)}, config)
    if config.classes is not None and len(names) != config.classes:
        raise SourceError(
            f"dataset.classes={config.classes}, but {config.name} has {len(names)} labels in train."
            " Set it to what the data have, or to null."
        )
    if len(names) < 2:
        raise SourceError(f"dataset.label={shown(config.label)}: train has the one label {names[0]!r}; two are needed.")
    if config.metric == "f1" and len(names) != 2:
        raise SourceError(
            f"dataset.metric=f1 is of two classes, {config.name} has {len(names)}: set dataset.metric=macro_f1."
        )
    if config.task == "token_classification" and config.metric != "word_accuracy" and not is_bio(names):
        raise SourceError(
            f"dataset.label={config.label}: tags such as {next(name for name in names if not is_bio([name]))!r} are no"
            " BIO (B-PER, I-PER, O), so there are no entities to count: set dataset.metric=word_accuracy."
        )
    return names


def _each(labels: Iterable[Label]) -> Iterator[Any]:
    """The labels of rows that have one or several."""
    for label in labels:
        if label is not None:
            yield from label if isinstance(label, list) else [label]


def _sorted(found: set[str], config: DatasetConfig) -> list[str]:
    if config.task == "token_classification" and is_bio(found):
        kinds = sorted({name[2:] for name in found if name != OUTSIDE})
        more = sorted(name for name in found if name[:2] in ("E-", "S-"))
        return [OUTSIDE, *(f"{start}-{kind}" for kind in kinds for start in "BI"), *more]
    integers = all(_reads_as(int, name) for name in found)
    if not integers and found and all(_reads_as(float, name) for name in found):
        example = min(name for name in found if not _reads_as(int, name))
        raise SourceError(
            f"dataset.label={config.label}: labels such as {example} are numbers with a fraction: name a column of"
            " class names or integers, or predict the number: dataset.task=regression."
        )
    return sorted(found, key=lambda name: (int(name), name)) if integers else sorted(found)


def _reads_as(kind: type, text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def hidden(labels: Sequence[Label]) -> bool:
    """Whether they are the hub's mark of labels that are kept back."""
    return {str(label) for label in labels} <= {"-1", "-1.0"}


def encoded(
    labels: Sequence[Any], texts: Sequence[str], names: list[str], config: DatasetConfig, where: str
) -> NDArray[Any]:
    """The labels of n rows, none of them missing, in the form that `kdbench.tasks` says."""
    if config.task == "regression":
        return np.array(labels, np.float32)
    number = {name: index for index, name in enumerate(names)}
    if unknown := sorted({str(one) for one in _each(labels)} - number.keys()):
        raise SourceError(f"{where} has labels that train lacks: {unknown[:5]}.")
    if config.task == "classification":
        return np.array([number[str(label)] for label in labels], np.int64)
    if config.task == "multi_label":
        result = np.zeros((len(labels), len(names)), np.int8)
        for row, several in enumerate(labels):
            result[row, [number[str(one)] for one in several]] = 1
        return result
    for text, tags in zip(texts, labels, strict=True):
        if len(tags) != len(text.split(" ")):
            raise SourceError(f"{where} has {len(tags)} tags for the {len(text.split(' '))} words {text[:60]!r}.")
    return ragged([np.array([number[str(tag)] for tag in tags], np.int64) for tags in labels])
