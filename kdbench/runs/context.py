"""Define what a method may use of its run: `Run` adds training data, schedules and reports to data and models."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from kdbench.data.batches import Examples, TrainBatches
from kdbench.data.datasets import Split
from kdbench.data.teacher_cache import averaged, cached_outputs, compute_outputs
from kdbench.errors import Code, UserError
from kdbench.models import students
from kdbench.models.network import view
from kdbench.runs.models import Ensure, MaskedLm, RunModels
from kdbench.runs.related import answers_run, finetune
from kdbench.schema import RunConfig, StudentConfig
from kdbench.stage import Batch, Data, Predict, Schedule
from kdbench.storage.results import verify_run
from kdbench.tasks import kind
from kdbench.tasks.arrays import Labels, Logits
from kdbench.training.hardware import Hardware

log = logging.getLogger("kdbench")
SIMILARITY_TEXTS = 1000  # of train, enough for a mean of a cosine

__all__ = ["Finished", "MaskedLm", "Predictions", "Run"]


@dataclass(frozen=True)
class Predictions:
    """What a method that trains no network hands in."""

    logits: Callable[[Split], NDArray[np.float32]]  # (n, C) for n examples
    parameters: int | None
    seconds: float
    precision: str
    save: Callable[[Path], None] | None = None  # fills the run's model folder; None: there is nothing to load
    probable: bool = True  # whether the logits stand for probabilities
    timed: bool = True  # False: the answers were there already, so the time to look them up means nothing
    judged: Mapping[str, Split] | None = None  # the examples of dev and test that have logits; None: all


class Finished(NamedTuple):
    """A finished model of the task, ready to predict."""

    logits: Callable[[Split], Tensor]  # (n, C)
    parameters: int
    flops: float  # of one example
    seconds: float  # of its training


class Run(RunModels):
    """A method's view of its run; each part is made when it is first used."""

    def __init__(
        self, config: RunConfig, hardware: Hardware, accelerator: Accelerator, folder: Path, ensure: Ensure
    ) -> None:
        super().__init__(config, hardware, accelerator, ensure)
        self.folder = folder
        self.reported: dict[str, Any] = {}
        self.seconds = 0.0  # of training outside the stages
        self.predictions: Predictions | None = None

    def batches(self, stage: str, *teacher: str, split: Split | None = None, hard: bool = False) -> TrainBatches:
        """Return train (or another split) in batches for stage `stage`, with the teacher's cached `logits` or `cls`.

        `hard`: the labels are learned, too. So an example that a file does not answer stays in if it has a label; its
        batch has `answered`.
        """
        given = self.stage(stage)  # before the teacher is trained for it
        split, answered = split or self.data.train, None
        if teacher and self.config.teacher.is_file:
            split, answered = self._learned(split, hard)
        outputs = {f"teacher_{what}": self.teacher_outputs(what, split, answered is not None) for what in teacher}
        weights = self.class_weights(given.class_weights)
        weighed = None if weights is None else kind(self.task).weigh(weights, split.labels)
        examples = replace(self.examples(split), teacher=outputs, weights=weighed, answered=answered)
        return self._in_batches(examples, stage)

    def _learned(self, split: Split, hard: bool) -> tuple[Split, NDArray[np.bool_] | None]:
        """Return the examples that have an answer in a file, or a label if these are learned, and which have answers.

        The second is None if all have. Raises UserError if the file lacks some that it must have.
        """
        known = kept = self.answers.known(split)
        if hard:
            kept = known | (True if split.labelled is None else split.labelled)
        if self.config.teacher.missing != "drop" or not kept.any():
            self.answers.required(split)
        if lost := int((~known).sum()):
            alone, out = int((kept & ~known).sum()), int((~kept).sum())
            log.info("teacher: %d of %d texts have no answer: %s", lost, len(split), _of_these(alone, out))
        if not kept.all():
            split, known = split.take(np.flatnonzero(kept)), known[kept]
        return split, None if known.all() else known

    def teacher_outputs(self, what: str, split: Split, partly: bool = False) -> Tensor:
        """Return the teacher's `logits` (n, C), or `cls` (n, L, H): [CLS] after each layer, before the pooler.

        Every teacher has logits, but only a network has `cls`. If an example has no answer in a file, it has NaN if
        `partly`; else this raises UserError.
        """
        if self.config.teacher.is_network:
            return self._outputs_of(what, split, self.teacher, self.members[0][1], self.encoder_folder)
        if self.teacher_result is None and self._can_be_judged():
            self.teacher_result, _ = self.ensure(answers_run(self.config))
        return self.teacher_logits(split, partly)

    def teacher_logits(self, split: Split, partly: bool = False) -> Tensor:
        """Return the `logits` of `teacher_outputs`, without a row of the teacher's own in tables."""
        teacher = self.config.teacher
        if teacher.is_file:
            return self.answers.of(split, partly)
        each = []
        for _, folder in self.members:  # one model at a time is in memory
            reader = self.encoder_folder if teacher.members is None else folder / "model"
            each.append(self._outputs_of("logits", split, self.classifier(folder), folder, reader))
        return averaged(each, teacher.average)

    def _outputs_of(self, what: str, split: Split, teacher: Any, folder: Path, tokenizer_folder: Path) -> Tensor:
        """Return the cached outputs of a finished run's model, which reads the texts with this tokenizer."""
        weights = folder / "model" / "model.safetensors"
        function = {"logits": students.logits, "cls": _first_tokens}[what]
        predict = self._autocast(lambda batch, step: function(teacher, batch))
        compute = f"{self.hardware.precision} {self.hardware.attention}"
        return cached_outputs(what, self.examples(split, tokenizer_folder), predict, weights, compute, self.cache)

    def answered(self, split: Split) -> Split:
        """Return the examples that the teacher answers. Raises UserError if a file lacks some that it must have."""
        return self._learned(split, hard=False)[0] if self.config.teacher.is_file else split

    def judged(self) -> dict[str, Split]:
        """Return the examples of dev and test that the teacher answers. Raises UserError if a file answers none."""
        splits = {"dev": self.data.dev, "test": self.data.test}
        if not self.config.teacher.is_file:
            return splits
        known = {name: self.answers.required(split, partly=True) for name, split in splits.items()}
        if not all(one.all() for one in known.values()):
            self.report("answered", {name: {"rows": int(one.sum()), "of": len(one)} for name, one in known.items()})
        return {
            name: split if known[name].all() else split.take(np.flatnonzero(known[name]))
            for name, split in splits.items()
        }

    def _can_be_judged(self) -> bool:
        """Return whether a teacher that is no network answers some of dev and of test. Log how many, if not all."""
        if not self.config.teacher.is_file:
            return True
        splits = {"dev": self.data.dev, "test": self.data.test}
        known = {name: int(self.answers.known(split).sum()) for name, split in splits.items()}
        found = " and ".join(f"{known[name]} of {len(split)} {name} texts" for name, split in splits.items())
        if not all(known.values()):
            log.info("teacher: has no row in tables, because its file answers %s", found)
        elif any(known[name] < len(split) for name, split in splits.items()):
            log.info("teacher: is judged by the texts that its file answers: %s", found)
        return all(known.values())

    def finished(self, path: str | None, stage: str) -> Finished:
        """Return the finished run at `path`.

        If `path` is None, return the direct fine-tune of the student by `method.stages.<stage>`; it is trained if
        missing.
        """
        config = self.config
        if path is None:
            result, folder = self.ensure(finetune(config, config.student, config.method.stages[stage], config.seed))
        else:
            result, folder = verify_run(Path(path)) or {}, Path(path)
        if result["identity"]["method"] == "tfidf":
            raise UserError(
                Code.NOT_A_RUN, f"{folder} is a run of TF-IDF, which is sure of nothing: name a run of a network"
            )
        model = students.load(folder / "model", self.hardware.attention).to(self.accelerator.device)
        return self._finished(model, result, self.tokenizer_folder)

    @property
    def finished_teacher(self) -> Finished:
        model = self.teacher
        assert self.teacher_result is not None
        return self._finished(model, self.teacher_result, self.encoder_folder)

    def _finished(self, model: Any, result: dict[str, Any], tokenizer_folder: Path) -> Finished:
        predict = self._autocast(lambda batch, step: students.logits(model, batch))
        return Finished(
            logits=lambda split: compute_outputs(self.examples(split, tokenizer_folder), predict),
            parameters=result["parameters"]["total"],
            flops=result["flops_per_example"],
            seconds=result["cost"]["seconds"],
        )

    def outputs(self, split: Split, predict: Predict) -> Tensor:
        """Return the outputs of `predict` for a split, (n, ...) in float32."""
        return compute_outputs(self.examples(split), self._autocast(predict))

    def chosen_layers(self, student: StudentConfig) -> list[int]:
        """Return the encoder's layers (from 0) that the student starts from, also where they must be measured."""
        init = self.config.method.init
        if init.weights == "random" or init.layers != "contribution":
            return super().chosen_layers(student)
        order = sorted(range(len(self.similarities)), key=lambda layer: self.similarities[layer])
        return sorted(order[: student.layers])

    @cached_property
    def similarities(self) -> list[float]:
        """The cosine of [CLS] before and after each layer, mean over texts of train (Sajjad et al. 2020, section 3).

        Of the encoder whose layers the student starts from. A layer that changes [CLS] little can be dropped. The paper
        takes the dev set, by which the weights are selected here.
        """
        pretrained = self.config.method.init.weights == "pretrained"
        source = view(self.origin if pretrained else students.base(self.teacher))
        total, rows = torch.zeros((), dtype=torch.float64), 0
        with torch.inference_mode():
            for batch in self.sample(self.data.train, SIMILARITY_TEXTS, 64, "similarity"):
                below, last = source.first_tokens(batch)
                states = torch.cat([source.embed(batch)[:, :1], *below, last[:, :1]], 1).double()  # (B, L + 1, H)
                total = total + F.cosine_similarity(states[:, :-1], states[:, 1:], dim=-1).sum(0).cpu()
                rows += len(states)
        found: list[float] = (total / rows).tolist()
        self.report("layer_similarities", found)
        return found

    def sample(self, split: Split, count: int | None, batch_size: int, *names: object) -> Iterator[Batch]:
        """Yield `count` examples of a split (None: all) on the device, drawn by `seed(*names)`, of similar length.

        The longest come first: shorter batches fit into the memory that they leave.
        """
        examples = self.examples(split)
        rows = np.random.default_rng(self.seed(*names)).permutation(len(examples))[:count]
        rows = rows[np.argsort(-examples.tokens.lengths[rows], kind="stable")]
        for start in range(0, len(rows), batch_size):
            batch: Any = examples.batch(rows[start : start + batch_size])
            moved: Any = {name: value.to(self.accelerator.device) for name, value in batch.items()}
            yield moved

    def schedule(self, stage: str, data: Data | None = None, share: int = 1) -> Schedule:
        """Return `method.stages.<stage>` with its number of steps settled.

        `data` is what the stage runs over, train by default. `share` is the number of stages that share its steps.
        """
        given = self.stage(stage)
        per_epoch = -(-len(self.data.train) // (given.batch_size * given.accumulation)) if data is None else len(data)
        keys = ("lr", "accumulation", "warmup", "decay", "weight_decay", "clip", "patience", "optimizer")
        steps = max(1, (given.steps or given.epochs * per_epoch) // share)
        return Schedule(steps=steps, **{key: getattr(given, key) for key in keys})

    def score(self, predict: Predict, step: int = 0) -> dict[str, float]:
        """Return the metrics of `predict` on dev, in the run's precision."""
        examples = self.dev_examples
        outputs = compute_outputs(examples, self._autocast(lambda batch, _: predict(batch, step)))
        return self.metrics(examples.labels, examples.by_example(outputs))

    def metrics(self, labels: Labels, logits: Logits) -> dict[str, float]:
        """Return the metrics of the task, given labels and logits of n examples."""
        return kind(self.task).judge(labels, logits, self.data.label_names)

    @cached_property
    def dev_examples(self) -> Examples:
        return self.examples(self.data.dev)

    def report(self, name: str, value: Any) -> None:
        """Record a figure of the method's own, under `reported` in results.json."""
        self.reported[name] = value

    def spend(self, seconds: float) -> None:
        """Add the time of training outside the stages to the run's cost."""
        self.seconds += seconds

    def hand_in(self, predictions: Predictions) -> None:
        """Hand in the predictions of a method that trains no network."""
        self.predictions = predictions

    def _autocast(self, predict: Predict) -> Predict:
        def on_device(batch: Any, step: int) -> torch.Tensor:
            moved = {name: value.to(self.accelerator.device) for name, value in batch.items()}
            with self.accelerator.autocast():
                return predict(moved, step)  # type: ignore[arg-type]

        return on_device


def _of_these(alone: int, out: int) -> str:
    """Say what becomes of texts without an answer."""
    told = [f"{alone} are learned by their label alone"] if alone else []
    return " and ".join([*told, *([f"{out} are left out"] if out else [])])


def _first_tokens(teacher: Any, batch: Any) -> Tensor:
    """Return [CLS] after each layer, (B, L, H)."""
    below, last = view(teacher).first_tokens(batch)
    return torch.cat([*below, last[:, :1]], 1)
