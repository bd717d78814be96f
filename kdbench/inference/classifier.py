"""Answer texts with a finished model. The file of its task in `kdbench.tasks` defines an answer."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from kdbench.console import quiet_libraries
from kdbench.data.batches import Examples
from kdbench.data.datasets import Split
from kdbench.data.teacher_cache import compute_outputs
from kdbench.data.tokenize import load_tokenizer, pad_id, tokenize_here, tokenizer_files
from kdbench.errors import Code, UserError
from kdbench.inference.calibration import CALIBRATION, Calibration, calibration_of
from kdbench.inference.finished_run import open_run, read_length
from kdbench.inference.forms import FORMS, graph_file, is_export, weights_file
from kdbench.inference.onnx import Graph
from kdbench.inference.openvino import OpenVinoGraph
from kdbench.models import students
from kdbench.schema import DatasetConfig
from kdbench.sources.foreign import WEIGHTS
from kdbench.stage import Predict
from kdbench.storage import files as store
from kdbench.storage.results import RESULTS
from kdbench.tasks import kind
from kdbench.tasks.arrays import Logits
from kdbench.validation.load import recorded_dataset

UNSURE = "unsure"  # the label of an answer below `min_confidence`


@dataclass(frozen=True)
class Classifier:
    """A model with its tokenizer and its labels. It cuts texts to the length that it was trained with."""

    dataset: DatasetConfig  # how the training data were read
    labels: list[str]  # in the order of the logits
    max_length: int  # tokens
    tokenizer: Any  # loaded once, because loading takes longer than an answer of a small model
    pad_id: int
    predict: Predict
    probable: bool = True  # whether its logits give probabilities
    calibration: Calibration = field(default_factory=Calibration)
    min_confidence: float = 0.0  # answers with a lower probability are UNSURE

    @property
    def task(self) -> str:
        """Return the name of the task's file in kdbench.tasks."""
        return self.dataset.task

    @property
    def answer(self) -> Any:
        """Return the NamedTuple class of an answer."""
        return kind(self.task).answer(self.probable)

    @property
    def pairs(self) -> bool:
        """Return whether the model reads pairs of texts."""
        return self.dataset.text_pair is not None

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Any]:
        """Return an answer for each text. If the task labels words, white space separates the words.

        Raises UserError if `texts` is a string, or if the number of second texts is not what the model reads.
        """
        if isinstance(texts, str):
            raise UserError(Code.MISMATCHED_INPUT, "texts must be a list of texts: [text]")
        if not len(texts):
            return []
        told = kind(self.task).tell(self._logits(texts, pairs), texts, self.labels, self.probable)
        return [self._judged(one) for one in told]

    def surer_than(self, min_confidence: float) -> "Classifier":
        """Return a classifier whose answer is UNSURE if the probability is lower. Raises UserError if it has none."""
        if not (kind(self.task).one_class and self.probable):
            what = "gives scores" if kind(self.task).one_class else f"has task={self.task}"
            raise UserError(
                Code.UNSUPPORTED_TASK,
                f"--min-confidence needs a model that gives one class with a probability, and this one {what}",
            )
        if UNSURE in self.labels:
            problem = f"a class of this model is named {UNSURE!r}, too: compare the probabilities of --json"
            raise UserError(Code.CONFLICTING_OPTIONS, f"--min-confidence cannot be used, because {problem}")
        return replace(self, min_confidence=min_confidence)

    def _judged(self, answer: Any) -> Any:
        """Return an answer by `min_confidence` or by the model's own thresholds."""
        if self.min_confidence and answer.probabilities[answer.label] < self.min_confidence:
            return answer._replace(label=UNSURE)
        return self.calibration.judged(answer)

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """Return the logits (n, C) of n >= 1 texts. Not for tasks that label words."""
        return torch.from_numpy(np.asarray(self._logits(texts, pairs)))

    def _logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Logits:
        """Return the logits of n >= 1 texts in the form of the task (see kdbench.tasks). Raises UserError."""
        if self.pairs != (pairs is not None) or (pairs is not None and len(pairs) != len(texts)):
            needed = f"{len(texts)} second texts" if self.pairs else "single texts"
            raise UserError(
                Code.MISMATCHED_INPUT,
                f"this model reads {needed}, given were {'none' if pairs is None else len(pairs)}",
            )
        if kind(self.task).words:
            texts = [" ".join(text.split()) for text in texts]
        labels = kind(self.task).unknown(texts)
        split = Split(np.arange(len(texts)), list(texts), labels, None if pairs is None else list(pairs))
        tokens = tokenize_here(split, self.tokenizer, self.max_length)
        examples = Examples(tokens, split.ids, split.labels, self.pad_id)
        return examples.by_example(compute_outputs(examples, self.predict, 32) / self.calibration.temperature)


def load_classifier(folder: Path) -> Classifier:
    """Load the model of a finished run (the folder of a seed), of an export, or of one of its graphs.

    A graph is named by its file (export/onnx/model_quantized.onnx). Its folder alone means the fp32 graph.

    Raises UserError if `folder` is none of these, Damaged if a file has changed since it was written.
    """
    quiet_libraries()
    folder = Path(os.path.expanduser(folder))
    if (graph := graph_file(folder)) is not None:
        export = graph.parents[1]
        store.verify(export / store.MANIFEST)
        return classifier_of(export, export, graph_predict(graph, speed_of(export)))
    if is_export(folder):
        if not (folder / WEIGHTS).is_file():  # an average has graphs only
            return load_classifier(folder / FORMS["onnx"].file)
        return classifier_of(folder, folder, model_predict(folder))
    if not (folder / RESULTS).is_file():
        raise UserError(
            Code.NOT_A_RUN,
            f"{folder} is no model: name a finished run (outputs/<...>/seed0) or what was exported of one",
        )
    model = open_run(folder).model
    return classifier_of(folder, model, model_predict(model))


def model_digest(folder: Path) -> str:
    """Return the SHA-256 of what `load_classifier(folder)` reads: weights, labels, tokenizer."""
    folder = Path(os.path.expanduser(folder))
    graph = graph_file(folder)
    model = graph.parents[1] if graph else folder / "model" if (folder / "model").is_dir() else folder
    digest = hashlib.sha256(tokenizer_files(model) + (model / "config.json").read_bytes())
    if (calibration := model / CALIBRATION).is_file():
        digest.update(calibration.read_bytes())
    digest.update(bytes.fromhex(store.sha256_of(model / WEIGHTS if graph is None else weights_file(graph))))
    return digest.hexdigest()


def classifier_of(recipe: Path, model: Path, predict: Predict) -> Classifier:
    """Return a classifier with the data set in folder `recipe`, and labels and tokenizer in folder `model`."""
    dataset = recorded_dataset(OmegaConf.load(recipe / "config.yaml"))  # type: ignore[arg-type]
    probable = students.folder_traits(model).probabilities
    length, tokenizer = read_length(model, dataset.max_length), load_tokenizer(model)
    return Classifier(
        dataset, label_names(model), length, tokenizer, pad_id(model), predict, probable, calibration_of(model)
    )


def label_names(model: Path) -> list[str]:
    """Return the labels of the model in a folder, in the order of its logits."""
    names = store.read_json(model / "config.json")["id2label"]
    return [names[str(index)] for index in range(len(names))]


def model_predict(folder: Path) -> Predict:
    """Return a function that computes the logits with the model in a folder."""
    model = students.load(folder)
    return lambda batch, step: students.forward(model, batch)


def graph_predict(path: Path, speed: float) -> Predict:
    """Return a function that computes the logits with a graph of ONNX or OpenVINO. Only FastBERT uses `speed`."""
    if path.suffix == ".xml":
        compiled = OpenVinoGraph(path)
        return lambda batch, step: compiled.logits(batch)
    graph = Graph(path)
    graph.speed = speed
    return lambda batch, step: graph.logits(batch)


def speed_of(folder: Path) -> float:
    """Return the speed of the FastBERT in a folder, 0 for other models."""
    return float(store.read_json(folder / "config.json").get("speed", 0.0))
