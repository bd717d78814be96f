"""Provide the texts of a run: splits, tokenizers, the corpus, batches."""

import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from kdbench.data.batches import Examples, TrainBatches
from kdbench.data.corpus import MaskedBatches, Masking, corpus_examples, smoothed_weights
from kdbench.data.datasets import Split, TextData
from kdbench.data.pieces import bare_tokenizer, vocabulary_size
from kdbench.data.report import PiecesReport, ReadReport, SplitReport
from kdbench.data.stored import stored_dataset
from kdbench.data.teacher_answers import Answers, read_answers
from kdbench.data.tokenize import pad_id, tokenize
from kdbench.data.unlabelled import Unlabelled, stored_unlabelled
from kdbench.data.vocabulary import word_tokenizer
from kdbench.declared import Architecture, architecture_traits
from kdbench.errors import Code, SettingError, UserError, nearest, shown
from kdbench.options import NO_WEIGHTS, choose_layers
from kdbench.runs.identity import corpus_identity
from kdbench.runs.related import uses_teacher, uses_unlabelled
from kdbench.schema import RunConfig, ScheduleConfig, StudentConfig
from kdbench.sources.sources import resolve_model
from kdbench.sources.word_table import TableFiles, resolve_table
from kdbench.storage.files import read_json
from kdbench.storage.seeds import derive
from kdbench.tasks import chosen_metric, kind
from kdbench.tasks.weights import Given, Weights
from kdbench.training.hardware import Hardware
from kdbench.validation.load import cache_folder


class Inputs:
    """What a run reads; each part is read when it is first used."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.cache = config, cache_folder(config)

    @property
    def task(self) -> str:
        """The kind of the data set's task, see kdbench.tasks."""
        return self.config.dataset.task

    @property
    def metric(self) -> str:
        """The metric that selects on dev."""
        return chosen_metric(self.task, self.config.dataset.metric)

    @cached_property
    def data(self) -> TextData:
        return stored_dataset(self.config.dataset, self.cache)

    @cached_property
    def unlabelled(self) -> Unlabelled | None:
        """The texts without labels that the run learns from, or None."""
        if not uses_unlabelled(self.config):
            return None
        return stored_unlabelled(self.config.dataset, self.data, self.cache)

    def with_unlabelled(self, split: Split) -> Split:
        """Return a split, followed by the texts without labels if the run learns from them."""
        return split if self.unlabelled is None else split.followed_by(self.unlabelled.split)

    @cached_property
    def answers(self) -> Answers:
        """The answers of a teacher that is a file."""
        return read_answers(self.config.teacher, self.data.label_names, self.config.dataset.text_pair is not None)

    def require_answers(self) -> None:
        """Raise SettingError if the teacher's file cannot be used, or does not answer what the method asks it."""
        asked = self.config.method.asks
        if "train" in asked:
            self.answers.required(self.with_unlabelled(self.data.train))
        elif "unlabelled" in asked:
            assert self.unlabelled is not None  # crosscheck
            self.answers.required(self.unlabelled.split)
        else:
            for split in (self.data.dev, self.data.test):
                self.answers.required(split, partly=True)

    def class_weights(self, given: Given) -> Weights | None:
        """Return the weights of the classes by `schedule.class_weights` and the labels of train; None: all have 1."""
        if given == NO_WEIGHTS:
            return None
        return kind(self.task).class_weights(given, self.data.train.labels, self.data.label_names)

    def require_classes(self) -> None:
        """Raise SettingError if a schedule has the weight of a class that is not in the data."""
        schedules = {"schedule": self.config.schedule, "teacher.schedule": self.config.teacher.schedule}
        schedules |= {f"method.stages.{name}": stage for name, stage in self.config.method.stages.items()}
        for key, schedule in schedules.items():
            if isinstance(given := schedule.class_weights, str):
                continue
            names = self.data.label_names
            if unknown := [name for name in given if name not in names]:
                close = nearest(unknown[0], names)
                problem = f"{unknown[0]} is no class of {self.config.dataset.name}" + f"; did you mean {close}?" * bool(
                    close
                )
                raise SettingError(
                    Code.MISMATCHED_CLASSES, f"{key}.class_weights", shown(given), f"{problem}. Classes: {shown(names)}"
                )


class RunData(Inputs):
    """The data of a run; each part is made when it is first used."""

    def __init__(self, config: RunConfig, hardware: Hardware, accelerator: Accelerator) -> None:
        super().__init__(config)
        self.hardware, self.accelerator = hardware, accelerator

    @cached_property
    def read(self) -> ReadReport:
        """How the data were read, and how each tokenizer of the run splits the texts."""
        pieces: list[PiecesReport] = []
        if "encoder" in self.config.method.needs:
            own_words, table = self._own.own_words, self.config.student.table
            name = "the words of train" if own_words else self.config.origin.name if table is None else table.name
            name += ", without special tokens" if self._own.bare_pieces else ""
            pieces.append(self._pieces(name, self.tokenizer_folder, not own_words))
            teacher_reads = uses_teacher(self.config) and not self.config.teacher.is_file
            if teacher_reads and self.encoder_folder != self.tokenizer_folder:
                pieces.append(self._pieces(self.config.teacher.name, self.encoder_folder, True))
        if (raw := self.unlabelled) is None:
            return {**self.data.report, "pieces": pieces}
        whole: SplitReport = {"rows": len(raw.split), "cut": None, "empty": 0, "repeated": 0}
        splits = {**self.data.report["splits"], "unlabelled": whole}
        return {**self.data.report, "splits": splits, "unlabelled": raw.report, "pieces": pieces}

    def _pieces(self, name: str, folder: Path, pretrained: bool) -> PiecesReport:
        length, counts = self.config.dataset.max_length, {}
        for split in ("train", "dev", "test"):
            found = tokenize(getattr(self.data, split), folder, length, self.cache).counts
            assert found is not None  # of no corpus
            counts[split] = found
        return {"tokenizer": name, "pretrained": pretrained, "max_length": length, "splits": counts}

    @property
    def _own(self) -> type[Architecture]:
        """The traits of the student's architecture."""
        return architecture_traits(self.config.student.architecture)

    @cached_property
    def tokenizer_folder(self) -> Path:
        """The student's tokenizer: that of the encoder or table it starts from, or one of the train texts' words."""
        if self._own.bare_pieces:
            source = self.origin_folder if self.config.student.table is None else self.table.tokenizer
            return bare_tokenizer(source, self.cache)
        if not self._own.own_words:
            return self.origin_folder
        texts = [*self.data.train.texts, *(self.data.train.pairs or [])]
        return word_tokenizer(texts, self.cache)

    def examples(self, split: Split, tokenizer_folder: Path | None = None) -> Examples:
        """Return a split as the student's tokenizer reads it, or as another one does."""
        folder = tokenizer_folder or self.tokenizer_folder
        tokens = tokenize(split, folder, self.config.dataset.max_length, self.cache)
        return Examples(tokens, split.ids, split.labels, pad_id(folder), labelled=split.labelled)

    def corpus_batches(self, stage: str) -> TrainBatches:
        assert self.config.corpus is not None  # crosscheck
        folder, texts = self.encoder_folder, json.dumps(corpus_identity(self.config.corpus, self.cache)["texts"])
        return self._in_batches(corpus_examples(self.config.corpus, texts, folder, pad_id(folder), self.cache), stage)

    def masked_batches(self, stage: str, smoothing: float = 0.0) -> MaskedBatches:
        """Return the corpus with masked tokens to predict; `smoothing` > 0 masks rare tokens more often."""
        assert self.config.corpus is not None
        batches = self.corpus_batches(stage)
        vocabulary = self.config.teacher.vocab_size
        weights = smoothed_weights(batches.examples, vocabulary, smoothing) if smoothing else None
        return MaskedBatches(batches, Masking(self.encoder_folder, self.config.corpus.mask_probability, weights))

    def stage(self, name: str) -> ScheduleConfig:
        """Return `method.stages.<name>`. Raises UserError if the method's YAML has no such stage."""
        method = self.config.method
        if name not in method.stages:
            there = ", ".join(method.stages)
            raise UserError(
                Code.MISSING_VALUE,
                f"method.stages.{name}: method={method.name} asks for it, and its YAML has only {there}",
            )
        schedule: ScheduleConfig = method.stages[name]
        return schedule

    def _in_batches(self, examples: Examples, stage: str) -> TrainBatches:
        schedule = self.stage(stage)
        share = None if examples.labelled is None else self.config.method.unlabelled_share
        return TrainBatches(examples, schedule.batch_size * schedule.accumulation, self.seed("order", stage), share)

    def seed(self, *names: object) -> int:
        """Derive a seed for a method's own draws from the run's seed and `names`; equal on all processes."""
        return derive(self.config.seed, *names)

    @cached_property
    def encoder_folder(self) -> Path:
        """The folder of the teacher's encoder before the task."""
        return resolve_model(self.config.teacher, self.cache)

    @cached_property
    def origin_folder(self) -> Path:
        """The folder of the encoder that the student starts from."""
        if self.config.student.encoder is None:
            return self.encoder_folder
        return resolve_model(self.config.student.encoder, self.cache, "student.encoder")

    @cached_property
    def table(self) -> TableFiles:
        """The files of the vectors that the student starts from."""
        assert self.config.student.table is not None  # crosscheck
        return resolve_table(self.config.student.table, self.cache)

    def shape(self, student: StudentConfig) -> dict[str, Any]:
        """Return the student's shape, completed from its vocabulary, its texts and the encoder that it starts from."""
        own, origin = architecture_traits(student.architecture), self.config.origin
        own_vocabulary = own.own_words or own.bare_pieces
        folder = self.tokenizer_folder if own_vocabulary else self.origin_folder
        return asdict(student) | {
            "vocab_size": vocabulary_size(folder) if own_vocabulary else origin.vocab_size,
            "max_positions": origin.max_positions,
            "pad_token_id": pad_id(folder),
            "pairs": self.config.dataset.text_pair is not None,
            "config": {} if own_vocabulary else read_json(folder / "config.json"),
            "chosen_layers": self.chosen_layers(student),
        }

    def chosen_layers(self, student: StudentConfig) -> list[int]:
        """Return the encoder's layers (from 0) that `method.init.layers` chooses; with random weights 0, 1, ..."""
        init = self.config.method.init
        choice = "first" if init.weights == "random" else init.layers
        return choose_layers(choice, self.config.origin.layers, student.layers)
