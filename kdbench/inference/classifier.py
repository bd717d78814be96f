"""Ask a finished model: texts in, labels and probabilities out; of other tasks numbers, or tags of words."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from kdbench.console import quiet_libraries
from kdbench.data.batches import Examples
from kdbench.data.datasets import Split
from kdbench.data.teacher_cache import compute_outputs
from kdbench.data.tokenize import load_tokenizer, pad_id, tokenize_here
from kdbench.errors import UserError
from kdbench.inference.finished_run import open_run, read_length
from kdbench.inference.onnx import Graph
from kdbench.metrics import Logits, answers, ragged
from kdbench.models import students
from kdbench.schema import DatasetConfig
from kdbench.stage import Predict
from kdbench.storage import files as store
from kdbench.storage.results import RESULTS
from kdbench.tasks import is_bio, tags
from kdbench.validation.load import recorded_dataset

GRAPH = "model.onnx"  # in an exported form's folder, below the exported model's


class Answer(NamedTuple):
    """Of one class a text."""

    label: str
    probabilities: dict[str, float]  # of all labels, in the model's order; they sum to 1


class Labels(NamedTuple):
    """Of several labels: those whose probability is above one half."""

    labels: list[str]
    probabilities: dict[str, float]  # of all labels, each on its own


class Scored(NamedTuple):
    """Of one class a text, by a model that knows no probabilities (TF-IDF)."""

    label: str
    scores: dict[str, float]  # of all labels: distances from planes, comparable with one another only


class ScoredLabels(NamedTuple):
    """Of several labels, likewise: those whose score is above 0."""

    labels: list[str]
    scores: dict[str, float]


class Value(NamedTuple):
    """Of a number."""

    value: float


class Tagged(NamedTuple):
    """Of labels of words."""

    words: list[str]
    tags: list[str]  # O where a word was behind the model's length
    entities: list[tuple[str, str]]  # (kind, its words), where the tags are BIO


AnyAnswer = Answer | Labels | Scored | ScoredLabels | Value | Tagged
ANSWERS: dict[str, type[AnyAnswer]] = {
    "classification": Answer, "multi_label": Labels, "regression": Value, "token_classification": Tagged,
}  # fmt: skip
SCORED: dict[str, type[AnyAnswer]] = {"classification": Scored, "multi_label": ScoredLabels, "regression": Value}


@dataclass(frozen=True)
class Classifier:
    """A model with its tokenizer and its labels; texts are cut as they were in training."""

    dataset: DatasetConfig  # how its training data were read
    labels: list[str]
    max_length: int  # tokens
    tokenizer: Any  # loaded once: that takes longer than a small model's answer
    pad_id: int
    predict: Predict
    probable: bool = True  # whether its logits are of probabilities

    @property
    def task(self) -> str:
        """See kdbench.tasks."""
        return self.dataset.task

    @property
    def columns(self) -> list[str]:
        """What its texts were called in training: one name, or two."""
        return [name for name in (self.dataset.text, self.dataset.text_pair) if name is not None]

    @property
    def answer(self) -> type[AnyAnswer]:
        """What its answers are."""
        return (ANSWERS if self.probable else SCORED)[self.task]

    @property
    def pairs(self) -> bool:
        """Whether it reads two texts."""
        return len(self.columns) > 1

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[AnyAnswer]:
        """An answer a text. Raises UserError where second texts are missing, too many or not asked for.

        Words that are to be labelled are what has spaces between.
        """
        if isinstance(texts, str):
            raise UserError("texts must be a list of texts: [text]")
        if not len(texts):
            return []
        match self.task:
            case "multi_label":
                logits = self.logits(texts, pairs)
                if not self.probable:
                    return [ScoredLabels([k for k, v in one.items() if v > 0], one) for one in self._named(logits)]
                shares = self._named(logits.sigmoid())
                return [Labels([label for label, share in one.items() if share > 0.5], one) for one in shares]
            case "regression":
                return [Value(value) for (value,) in self.logits(texts, pairs).tolist()]
            case "token_classification":
                return self._tagged([text.split() for text in texts])
            case _:
                logits = self.logits(texts, pairs)
                if not self.probable:
                    return [Scored(max(one, key=one.__getitem__), one) for one in self._named(logits)]
                shares = self._named(logits.softmax(-1))
                return [Answer(max(one, key=one.__getitem__), one) for one in shares]

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """(n, C) of n >= 1 texts whose words have no labels of their own."""
        return torch.from_numpy(np.asarray(self._logits(texts, pairs)))

    def _named(self, rows: Tensor) -> list[dict[str, float]]:
        return [dict(zip(self.labels, row, strict=True)) for row in rows.tolist()]

    def _tagged(self, sentences: list[list[str]]) -> list[AnyAnswer]:
        found = tags(answers(self.task, self._logits([" ".join(words) for words in sentences])), self.labels)
        # A text without words has one tag all the same.
        pairs = [(words, given[: len(words)]) for words, given in zip(sentences, found, strict=True)]
        if not is_bio(self.labels):
            return [Tagged(words, given, []) for words, given in pairs]
        from seqeval.metrics.sequence_labeling import get_entities

        return [
            Tagged(words, given, [(kind, " ".join(words[a : b + 1])) for kind, a, b in get_entities(given)])
            for words, given in pairs
        ]

    def _logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Logits:
        """Of n >= 1 texts, as `kdbench.tasks` says."""
        if self.pairs != (pairs is not None) or (pairs is not None and len(pairs) != len(texts)):
            needed = f"{len(texts)} second texts" if self.pairs else "single texts"
            raise UserError(f"this model reads {needed}, given were {'none' if pairs is None else len(pairs)}")
        rows = np.arange(len(texts))
        nothing = np.zeros_like(rows)
        if self.task == "token_classification":
            nothing = ragged([np.zeros(len(text.split(" ")), np.int64) for text in texts])
        split = Split(rows, list(texts), nothing, None if pairs is None else list(pairs))
        tokens = tokenize_here(split, self.tokenizer, self.max_length)
        examples = Examples(tokens, split.ids, split.labels, self.pad_id)
        return examples.by_example(compute_outputs(examples, self.predict, 32))


def load_classifier(folder: Path) -> Classifier:
    """Of a finished run (its seed's folder), or of an exported folder, or of a form below that (onnx, int8).

    Raises UserError where the folder is none of these, Damaged where a file is not what was written.
    """
    quiet_libraries()
    folder = Path(os.path.expanduser(folder))
    if (folder / GRAPH).is_file():
        store.verify(folder.parent / store.MANIFEST)
        return classifier_of(folder.parent, folder.parent, graph_predict(folder / GRAPH, speed_of(folder.parent)))
    if (folder / "config.json").is_file() and (folder / "config.yaml").is_file():
        return classifier_of(folder, folder, model_predict(folder))
    if not (folder / RESULTS).is_file():
        raise UserError(f"{folder} is no model: name a finished run (outputs/<...>/seed0) or what was exported of one")
    model = open_run(folder).model
    return classifier_of(folder, model, model_predict(model))


def classifier_of(recipe: Path, model: Path, predict: Predict) -> Classifier:
    dataset = recorded_dataset(OmegaConf.load(recipe / "config.yaml"))  # type: ignore[arg-type]
    probable = students.model_type(model) != "kdbench_tfidf"
    length, tokenizer = read_length(model, dataset.max_length), load_tokenizer(model)
    return Classifier(dataset, label_names(model), length, tokenizer, pad_id(model), predict, probable)


def label_names(model: Path) -> list[str]:
    """Of a model's folder, in the order of its logits."""
    names = store.read_json(model / "config.json")["id2label"]
    return [names[str(index)] for index in range(len(names))]


def model_predict(folder: Path) -> Predict:
    model = students.load(folder)
    return lambda batch, step: students.forward(model, batch)


def graph_predict(path: Path, speed: float, threads: int | None = None) -> Predict:
    graph = Graph(path, threads)
    graph.speed = speed
    return lambda batch, step: graph.logits(batch)


def speed_of(folder: Path) -> float:
    """Of a FastBERT; other models have none and ignore it."""
    return float(store.read_json(folder / "config.json").get("speed", 0.0))
