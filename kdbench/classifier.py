"""Ask a finished model: texts in, labels and probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf
from torch import Tensor

from kdbench import store
from kdbench.console import quiet_libraries
from kdbench.context_data import pad_id
from kdbench.data.batches import Examples
from kdbench.data.datasets import Split
from kdbench.data.teacher_cache import compute_outputs
from kdbench.data.tokenize import tokenize_here
from kdbench.errors import UserError
from kdbench.finished import open_run
from kdbench.models import students
from kdbench.models.graph import Graph
from kdbench.results import RESULTS
from kdbench.stage import Predict

GRAPH = "model.onnx"  # in an exported form's folder, below the exported model's


class Answer(NamedTuple):
    label: str
    probabilities: dict[str, float]  # of all labels, in the model's order; they sum to 1


@dataclass(frozen=True)
class Classifier:
    """A model with its tokenizer and its labels; texts are cut as they were in training."""

    labels: list[str]
    pairs: bool  # whether it reads two texts
    max_length: int  # tokens
    tokenizer: Path
    predict: Predict

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Answer]:
        """An answer a text. Raises UserError where second texts are missing, too many or not asked for."""
        if isinstance(texts, str):
            raise UserError("texts must be a list of texts: [text]")
        probabilities = self.logits(texts, pairs).softmax(-1).tolist() if len(texts) else []
        named = [dict(zip(self.labels, row, strict=True)) for row in probabilities]
        return [Answer(max(one, key=one.__getitem__), one) for one in named]

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """(n, C) of n >= 1 texts."""
        if self.pairs != (pairs is not None) or (pairs is not None and len(pairs) != len(texts)):
            needed = f"{len(texts)} second texts" if self.pairs else "single texts"
            raise UserError(f"this model reads {needed}, given were {'none' if pairs is None else len(pairs)}")
        rows = np.arange(len(texts))
        split = Split(rows, list(texts), np.zeros_like(rows), None if pairs is None else list(pairs))
        tokens = tokenize_here(split, self.tokenizer, self.max_length)
        return compute_outputs(Examples(tokens, split.ids, split.labels, pad_id(self.tokenizer)), self.predict, 32)


def load_classifier(folder: Path) -> Classifier:
    """Of a finished run (its seed's folder), or of an exported folder, or of a form below that (onnx, int8).

    Raises UserError where the folder is none of these, Damaged where a file is not what was written.
    """
    quiet_libraries()
    folder = folder.expanduser()
    if (folder / GRAPH).is_file():
        store.verify(folder.parent / store.MANIFEST)
        return _classifier(folder.parent, folder.parent, graph_predict(folder / GRAPH, speed_of(folder.parent)))
    if (folder / "config.json").is_file() and (folder / "config.yaml").is_file():
        return _classifier(folder, folder, model_predict(folder))
    if not (folder / RESULTS).is_file():
        raise UserError(f"{folder} is no model: name a finished run (outputs/<...>/seed0) or what was exported of one")
    model = open_run(folder).model
    return _classifier(folder, model, model_predict(model))


def _classifier(recipe: Path, model: Path, predict: Predict) -> Classifier:
    dataset: Any = OmegaConf.load(recipe / "config.yaml").dataset
    return Classifier(label_names(model), dataset.get("text_pair") is not None, dataset.max_length, model, predict)


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
