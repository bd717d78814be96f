"""What a method may ask of its run."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from kdbench import evaluate
from kdbench.config import RunConfig, cache_folder, teacher_run
from kdbench.data.batches import Examples, TrainBatches
from kdbench.data.datasets import Split, TextData, load_dataset
from kdbench.data.sources import resolve_model
from kdbench.data.teacher_cache import cached_logits, compute_logits
from kdbench.data.tokenize import tokenize
from kdbench.errors import UserError
from kdbench.hardware import Hardware
from kdbench.models import bert
from kdbench.results import read_json
from kdbench.seeds import derive
from kdbench.stage import Predict, Schedule

log = logging.getLogger("kdbench")


@dataclass(frozen=True)
class Predictions:
    """Handed in by a method that trains no network."""

    logits: Callable[[list[str]], NDArray[np.float32]]  # (n, C) for n texts
    parameters: int
    seconds: float


@functools.cache
def _say_once(note: str) -> None:
    """A sweep's runs and their teacher read the same data: once is enough."""
    log.info("data: %s", note)


Ensure = Callable[[RunConfig], tuple[dict[str, Any], Path]]  # a finished run: results.json, folder


class Run:
    """What a method may ask for; everything is made when first asked for."""

    def __init__(
        self, config: RunConfig, hardware: Hardware, accelerator: Accelerator, folder: Path, ensure: Ensure
    ) -> None:
        self.config, self.hardware, self.accelerator, self.folder = config, hardware, accelerator, folder
        self.cache = cache_folder(config)
        self._ensure = ensure
        self.reported: dict[str, Any] = {}
        self.predictions: Predictions | None = None
        self.teacher_result: dict[str, Any] | None = None

    @cached_property
    def data(self) -> TextData:
        data = load_dataset(self.config.dataset, self.cache)
        for note in data.notes:
            _say_once(f"{data.name}: {note}")
        return data

    @cached_property
    def encoder_folder(self) -> Path:
        return resolve_model(self.config.teacher, self.cache)

    @cached_property
    def teacher(self) -> Any:
        """The encoder fine-tuned on the task, frozen, in evaluation mode; trained first where it is missing."""
        self.teacher_result, folder = self._ensure(teacher_run(self.config))
        teacher = bert.load(folder / "model", self.hardware.attention)
        names = [teacher.config.id2label[index] for index in range(teacher.config.num_labels)]
        if names != self.data.label_names:
            raise UserError(f"{folder}: the teacher's labels {names} are not the data's {self.data.label_names}")
        return teacher.to(self.accelerator.device).requires_grad_(False)

    @cached_property
    def student(self) -> Any:
        """Freshly built and initialised as `method.init` says; a function of the seed."""
        config, init = self.config, self.config.method.init
        encoder = read_json(self.encoder_folder / "config.json")
        shape = {key: getattr(config.student, key) for key in ("layers", "hidden", "heads", "ffn")}
        shape |= {"vocab_size": config.teacher.vocab_size, "max_positions": config.teacher.max_positions}
        shape["pad_token_id"] = encoder.get("pad_token_id", 0)
        seed = derive(config.seed, "student")
        student = bert.build(shape, self.data.label_names, self.hardware.attention, seed)
        if init.weights != "random":
            pretrained = init.weights == "pretrained"
            source = bert.load_pretrained(self.encoder_folder, seed) if pretrained else self.teacher.bert
            layers = bert.choose_layers(init.layers, len(source.encoder.layer), config.student.layers)
            bert.copy_encoder(source, student.bert, layers)
        return student.to(self.accelerator.device)

    def examples(self, split: Split) -> Examples:
        tokens = tokenize(split, self.encoder_folder, self.config.dataset.max_length, self.cache)
        pad_id = read_json(self.encoder_folder / "config.json").get("pad_token_id", 0)
        return Examples(tokens, split.ids, split.labels, pad_id)

    def batches(self, stage: str, teacher_logits: bool = False) -> TrainBatches:
        """The training data of `method.stages.<stage>`, with the teacher's cached logits where asked for."""
        schedule, examples = self.config.method.stages[stage], self.examples(self.data.train)
        if teacher_logits:
            examples = replace(examples, teacher_logits=self.teacher_logits(examples))
        size = schedule.batch_size * schedule.accumulation
        return TrainBatches(examples, size, derive(self.config.seed, "order", stage))

    def teacher_logits(self, examples: Examples) -> torch.Tensor:
        teacher = self.teacher
        assert self.teacher_result is not None
        weights = Path(self.teacher_result["folder"]) / "model" / "model.safetensors"
        predict = self._autocast(lambda batch, step: bert.logits(teacher, batch))
        compute = f"{self.hardware.precision} {self.hardware.attention}"
        return cached_logits(examples, predict, weights, compute, self.cache)

    def schedule(self, stage: str) -> Schedule:
        """`method.stages.<stage>` with its number of steps settled."""
        given = self.config.method.stages[stage]
        per_epoch = -(-len(self.data.train.ids) // (given.batch_size * given.accumulation))
        keys = ("lr", "accumulation", "warmup", "decay", "weight_decay", "clip", "patience")
        return Schedule(steps=given.steps or given.epochs * per_epoch, **{key: getattr(given, key) for key in keys})

    def step_seed(self, stage: str, step: int) -> int:
        """For a method's own draws: equal on all processes and after a resume."""
        return derive(self.config.seed, "draw", stage, step)

    def score(self, predict: Predict, step: int = 0) -> dict[str, float]:
        """Metrics of `predict` on dev, in the run's precision."""
        examples = self.dev_examples
        logits = compute_logits(examples, self._autocast(lambda batch, _: predict(batch, step)))
        return evaluate.metrics(examples.labels, logits.argmax(-1).numpy())

    @cached_property
    def dev_examples(self) -> Examples:
        return self.examples(self.data.dev)

    def report(self, name: str, value: Any) -> None:
        """A figure of the method's own, under `reported` in results.json."""
        self.reported[name] = value

    def hand_in(self, predictions: Predictions) -> None:
        """For a method that trains no network."""
        self.predictions = predictions

    def _autocast(self, predict: Predict) -> Predict:
        def on_device(batch: Any, step: int) -> torch.Tensor:
            moved = {name: value.to(self.accelerator.device) for name, value in batch.items()}
            with self.accelerator.autocast():
                return predict(moved, step)  # type: ignore[arg-type]

        return on_device
