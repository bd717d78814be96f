"""A class for each word of a text, such as the tags of named entities.

A word behind the cut of a long text is not read: its logits are NaN, and its answer is UNREAD, which is shown as O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import Code, SourceError
from kdbench.tasks import Metric, Task
from kdbench.tasks.arrays import Labels, Logits, Points, ratio
from kdbench.tasks.cells import (
    Label,
    LabelCells,
    Place,
    ReadLabels,
    class_names,
    class_of,
    each,
    listed,
    numbered,
    present,
    settled,
)

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.schema import DatasetConfig, RunConfig
    from kdbench.stage import Batch
    from kdbench.tasks import Compare, SoftTargets
    from kdbench.tasks.weights import Given, Weights

UNREAD = -1
OUTSIDE = "O"  # the tag of a word that belongs to no entity


class Traits(Task):
    metrics: ClassVar = {
        "entity_f1": Metric("entity F1", "f1"),
        "word_accuracy": Metric("words right", "accuracy"),
    }
    loss = "ce"
    words = True
    pipeline = "token-classification"
    pipeline_options = ', aggregation_strategy="first"'
    described = "A classifier of words with {} tags"

    def conflicts(self, config: RunConfig) -> Iterator[tuple[Code, str, str]]:
        if config.dataset.text_pair is not None:
            yield Code.INAPPLICABLE_KEY, "dataset.text_pair", "must be null: the words of one text are labelled"
        if find_spec("seqeval") is None:
            yield Code.NOT_INSTALLED, "dataset.task", "needs seqeval, which counts entities: pip install 'kdbench[ner]'"


class Tagged(NamedTuple):
    """The tags of a text's words."""

    words: list[str]
    tags: list[str]  # O where a word was behind the model's length
    entities: list[tuple[str, str]]  # (kind, its words), where the tags are BIO


class Kind(Traits):
    def read(self, files: Sequence[LabelCells]) -> list[ReadLabels]:
        read = settled([[_tags_of(value, where) for value, where in file.places()] for file in files])
        return [ReadLabels([present(row) or None for row in rows], notes) for rows, notes in read]  # no words: no label

    def label_names(self, train: Sequence[Label], declared: list[str] | None, config: DatasetConfig) -> list[str]:
        """Return the tags. Where train's are BIO, each entity has both, and O is the first."""
        found = {str(tag) for tag in each(train)}
        names = class_names(train, declared or (_whole_bio(found) if is_bio(found) else None), config)
        if config.metric != "word_accuracy" and not is_bio(names):
            raise SourceError(
                Code.MISMATCHED_CLASSES,
                f"dataset.label={config.label}: tags such as {next(name for name in names if not is_bio([name]))!r} are"
                " no BIO (B-PER, I-PER, O), so there are no entities to count: set dataset.metric=word_accuracy.",
            )
        return names

    def encode(self, labels: Sequence[Any], names: list[str], texts: Sequence[str], where: str) -> Labels:
        number = numbered(labels, names, where)
        for text, row in zip(texts, labels, strict=True):
            if len(row) != len(text.split(" ")):
                raise SourceError(
                    Code.INVALID_LABEL,
                    f"{where} has {len(row)} tags for the {len(text.split(' '))} words {text[:60]!r}.",
                )
        return ragged([np.array([number[str(tag)] for tag in row], np.int64) for row in labels])

    def stored(self, column: Any) -> Labels:
        return ragged([np.array(row, np.int64) for row in column.to_pylist()])

    def unknown(self, texts: Sequence[str]) -> Labels:
        return ragged([np.zeros(len(text.split(" ")), np.int64) for text in texts])

    def hard_loss(self, z: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        from kdbench.losses import masked_cross_entropy

        return masked_cross_entropy(z.flatten(0, 1), labels.flatten(), None if weights is None else weights.flatten())

    def class_weights(self, given: Given, labels: Labels, names: list[str]) -> Weights:
        """Return the weights of the tags, by the number of words that have them."""
        from kdbench.tasks.weights import of_classes

        return of_classes(given, np.bincount(np.concatenate([*labels]), minlength=len(names)), names)

    def weigh(self, weights: Weights, labels: Labels) -> Labels:
        return ragged([weights[row].astype(np.float32) for row in labels])

    def soft_loss(self, z: Tensor, batch: Batch, p: SoftTargets, of_classes: Compare) -> Tensor:
        """Return the mean over the words that have a label."""
        from kdbench.losses import IGNORED

        labelled = batch["labels"] != IGNORED
        return of_classes(z[labelled], batch["teacher_logits"][labelled])

    def answers(self, logits: Logits) -> Labels:
        return ragged([np.where(np.isnan(one[:, 0]), UNREAD, one.argmax(-1)) for one in logits])

    def figures(self, labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, float]:
        """seqeval counts an entity as found where its type and both ends are right. Other tags than BIO have none."""
        from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

        true, said = tags(labels, names), tags(predicted, names)
        found = {"words": sum(map(len, true)), "word_accuracy": float(accuracy_score(true, said))}
        if is_bio(names):
            for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
                found[f"entity_{name}"] = float(score(true, said, zero_division=0))
        return found

    def points(self, metric: str, labels: Labels, predicted: Labels, names: Sequence[str]) -> Points:
        true, said = tags(labels, names), tags(predicted, names)
        if metric == "word_accuracy":
            right = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(true, said, strict=True)]
            return ratio(np.array(right, float), np.array([len(row) for row in labels]))
        counts = []  # of each text: entities that were found, and those there are plus those that were claimed
        for row, claim in zip(true, said, strict=True):
            there, claimed = Counter(_entities(row)), Counter(_entities(claim))
            counts.append((sum((there & claimed).values()), sum(there.values()) + sum(claimed.values())))
        found = np.array(counts)
        return ratio(2.0 * found[:, 0], found[:, 1])

    def answer(self, probable: bool) -> type[Tagged]:
        return Tagged

    def tell(self, logits: Logits, texts: Sequence[str], names: list[str], probable: bool) -> list[Any]:
        told = []
        for text, given in zip(texts, tags(self.answers(logits), names), strict=True):
            words = text.split()
            given = given[: len(words)]  # a text without words has one tag all the same
            found = _entities(given) if is_bio(names) else []
            told.append(Tagged(words, given, [(kind, " ".join(words[a : b + 1])) for kind, a, b in found]))
        return told

    def cells(self, answer: Tagged | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if answer is None:
            return ("",), ("",)
        return (" ".join(answer.tags),), ("; ".join(f"{kind}: {words}" for kind, words in answer.entities),)


def ragged(rows: Sequence[NDArray[Any]]) -> Labels:
    """Return (n,) of n arrays, which may have one length: NumPy itself would make them a matrix."""
    result = np.empty(len(rows), object)
    for index, row in enumerate(rows):
        result[index] = row
    return result


def tags(numbers: Iterable[Iterable[int]], names: Sequence[str]) -> list[list[str]]:
    """Return the words' tags by name, text by text."""
    return [[OUTSIDE if number == UNREAD else names[number] for number in row] for row in numbers]


def is_bio(names: Iterable[str]) -> bool:
    """Return whether the tags mark entities, which can be counted; E- (end) and S- (single word) are known too."""
    return all(name == OUTSIDE or name[:2] in ("B-", "I-", "E-", "S-") for name in names)


def _whole_bio(found: set[str]) -> list[str]:
    kinds = sorted({name[2:] for name in found if name != OUTSIDE})
    more = sorted(name for name in found if name[:2] in ("E-", "S-"))
    return [OUTSIDE, *(f"{start}-{kind}" for kind in kinds for start in "BI"), *more]


def _tags_of(value: Any, where: Place) -> list[str | None]:
    value = listed(value) if isinstance(value, str) else value
    if value is None:
        return []
    if not isinstance(value, list) or None in (found := [class_of(part, where) for part in value]):
        raise SourceError(
            Code.INVALID_LABEL,
            f"dataset.label: {where} has {value!r} where a list of tags should be, one for each word of dataset.text.",
        )
    return found


def _entities(row: Sequence[str]) -> list[tuple[str, int, int]]:
    from seqeval.metrics.sequence_labeling import get_entities

    found: list[tuple[str, int, int]] = get_entities(list(row))
    return found
