"""Provide the models that a method may use: teachers, students, and finished runs."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.data.pieces import ranked_pieces, special_tokens
from kdbench.data.tokenize import load_tokenizer, tokenizer_files
from kdbench.errors import Code, SettingError, UserError
from kdbench.models import bilstm, static, stock, students
from kdbench.models.network import network, view
from kdbench.runs.related import (
    found_teacher_run,
    full_depth,
    general_run,
    member_runs,
    mlm_run,
    teacher_run,
    uses_general,
)
from kdbench.runs.texts import RunData
from kdbench.schema import DEFAULT_TASK, RunConfig, StudentConfig
from kdbench.sources.foreign import WEIGHTS
from kdbench.sources.model_folder import head_misfit
from kdbench.sources.word_table import table_vectors
from kdbench.storage.cache import cached
from kdbench.storage.files import fitting, sha256_of
from kdbench.storage.results import verify_run
from kdbench.training.hardware import Hardware

log = logging.getLogger("kdbench")
Ensure = Callable[[RunConfig], tuple[dict[str, Any], Path]]  # a finished run: results.json, folder


class MaskedLm(NamedTuple):
    """A frozen encoder with its masked-LM head: `head(hidden (N, H), word embeddings) -> (N, V)`."""

    encoder: Any
    head: Any


class RunModels(RunData):
    """The models of a run; each is made when it is first used, by other runs if necessary."""

    def __init__(self, config: RunConfig, hardware: Hardware, accelerator: Accelerator, ensure: Ensure) -> None:
        super().__init__(config, hardware, accelerator)
        self.ensure = ensure
        self.teacher_result: dict[str, Any] | None = None  # of its row in tables
        self.general_results: list[dict[str, Any]] = []

    @cached_property
    def teacher(self) -> Any:
        """The encoder fine-tuned on the task, frozen, in evaluation mode; trained first if it is missing."""
        if not self.config.teacher.is_network:
            raise UserError(
                Code.UNSUITABLE_TEACHER,
                f"teacher={self.config.teacher.name} gives answers only: it has no network for"
                f" method={self.config.method.name}",
            )
        ((self.teacher_result, folder),) = self.members
        return self.classifier(folder)

    @cached_property
    def members(self) -> list[tuple[dict[str, Any], Path]]:
        """The finished runs whose answers are the teacher's: one, or those that an ensemble averages."""
        teacher = self.config.teacher
        if teacher.seeds is not None:
            return [self.ensure(one) for one in member_runs(self.config)]
        if (paths := [teacher.path] if teacher.path is not None else teacher.members) is not None:
            return [((verify_run(Path(path)) or {}) | {"folder": path}, Path(path)) for path in paths]
        return [self.ensure(self._teacher_run())]

    def classifier(self, folder: Path) -> Any:
        """Return the model of a finished run, frozen, in evaluation mode. Its labels must be those of the data."""
        teacher = students.load(folder / "model", self.hardware.attention)
        names = [teacher.config.id2label[index] for index in range(teacher.config.num_labels)]
        if names != self.data.label_names:
            raise UserError(
                Code.UNSUITABLE_TEACHER,
                f"{folder}: the teacher's labels {names} are not the data's {self.data.label_names}",
            )
        return self._still(teacher)

    def _teacher_run(self) -> RunConfig:
        """Return the run that fine-tunes the teacher, or that evaluates one which already fits the task."""
        teacher = self.config.teacher
        misfit = None if teacher.finetune else head_misfit(self.encoder_folder, self.task, self.data.label_names)
        if misfit == "":
            log.info("teacher: %s already classifies these labels, so it is used without training", teacher.source)
            log.info("  (teacher.finetune=true trains it on these data first)")
            return found_teacher_run(self.config)
        if teacher.finetune is False:
            why = misfit or "its config.json names no classifier"
            raise UserError(
                Code.UNSUITABLE_TEACHER, f"teacher.finetune=false: {teacher.source} cannot be used as it is: {why}"
            )
        if misfit:
            log.info("teacher: the head of %s is not used: %s", teacher.source, misfit)
        length = teacher.schedule.length
        log.info("teacher: trained once for all students, for %s (teacher.schedule; schedule is the students')", length)
        return teacher_run(self.config)

    @cached_property
    def pretrained(self) -> Any:
        """The teacher's encoder before the task, frozen; general stages learn from it."""
        return self._still(stock.load_pretrained(self.encoder_folder, self.hardware.attention, self.seed("student")))

    @cached_property
    def origin(self) -> Any:
        """The encoder that the student starts from, frozen."""
        if self.config.student.encoder is None:
            return self.pretrained
        return self._still(stock.load_pretrained(self.origin_folder, self.hardware.attention, self.seed("student")))

    @cached_property
    def mlm(self) -> MaskedLm:
        """The pretrained encoder with a masked-LM head, which is trained on the corpus if the checkpoint has none."""
        head = network(students.model_type(self.encoder_folder)).load_mlm_head(self.encoder_folder)
        if head is not None:
            return MaskedLm(self.pretrained, self._still(head))
        return self.masked_lm(full_depth(self.config), "pretrained")

    def masked_lm(self, shape: StudentConfig, weights: str) -> MaskedLm:
        """Return an encoder trained with its masked-LM head on the corpus, by a run of its own."""
        config = mlm_run(self.config, shape, weights)
        result, folder = self.ensure(config)
        self.general_results.append(result)
        student = students.build(self.shape(shape), ["0", "1"], self.hardware.attention, 0)
        encoder, head = students.base(student), students.mlm_head(student, 0)
        encoder.load_state_dict(load_file(folder / "model" / "model.safetensors"))
        head.load_state_dict(load_file(folder / "00_adaptation" / "extra.safetensors"))
        return MaskedLm(self._still(encoder), self._still(head))

    @cached_property
    def student(self) -> Any:
        """The new student, initialised by the seed and `method.init`, or from the stages before the task."""
        config = self.config
        if config.method.init.weights == "classifier":
            model = students.load_classifier(self.origin_folder, self.data.label_names, self.hardware.attention)
            return model.to(self.accelerator.device)
        names, task = (self.data.label_names, self.task) if config.phase == "task" else (["0", "1"], DEFAULT_TASK)
        shape, seed = self.shape(config.student), self.seed("student")
        folder, source = self.general_folder, self._source  # before the student: they may have to be trained
        student = students.build(shape, names, self.hardware.attention, seed, task)
        if config.student.word_vectors == "teacher":
            self._set_word_vectors(student)
        elif config.student.word_vectors in ("outputs", "table"):
            self._set_table(student)
        elif folder is not None:
            students.load_base(student, load_file(folder / "model" / "model.safetensors"))
        elif source is not None:
            self.copy_layers(source, student)
        return student.to(self.accelerator.device)

    @property
    def _source(self) -> Any:
        """The encoder whose layers the student starts from; None if it starts from no encoder's."""
        weights = self.config.method.init.weights
        if weights == "random" or self.config.student.word_vectors is not None or uses_general(self.config):
            return None
        return self.origin if weights == "pretrained" else students.base(self.teacher)

    def release(self, *names: str) -> None:
        """Give up models that are not needed any more, such as `teacher`. One that is used again is made again."""
        for name in names:
            self.__dict__.pop(name, None)

    def copy_layers(self, source: Any, student: Any) -> None:
        """Copy into the student the layers of the encoder `source` that `method.init.layers` chooses."""
        view(students.base(student)).copy_from(view(source), self.chosen_layers(self.config.student))

    @cached_property
    def general_folder(self) -> Path | None:
        """The finished run of the stages before the task; None if there are none, or while they are trained."""
        if not uses_general(self.config):
            return None
        result, folder = self.ensure(general_run(self.config))
        self.general_results.append(result)
        return folder

    def general_extra(self, stage: str) -> dict[str, Tensor] | None:
        """Return the module that was trained beside the student in a stage before the task."""
        return None if self.general_folder is None else load_file(self.general_folder / stage / "extra.safetensors")

    def fresh(self, layers: int, hidden: int, seed: tuple[object, ...]) -> Any:
        """Return a BERT with random weights, of `layers` layers and width `hidden`.

        It has the student's number of heads, and a feed-forward layer four times its width.
        """
        student = replace(self.config.student, layers=layers, hidden=hidden, ffn=4 * hidden)
        return students.build(self.shape(student), ["0", "1"], self.hardware.attention, self.seed(*seed)).to(
            self.accelerator.device
        )

    def _set_word_vectors(self, student: Any) -> None:
        """Set each word vector to the mean of the teacher's embeddings of its pieces, before the task."""
        words = load_tokenizer(self.tokenizer_folder)
        pieces = load_tokenizer(self.encoder_folder)
        table = students.word_embeddings(self.pretrained)
        vocabulary = [str(words.convert_ids_to_tokens(index)) for index in range(len(words))]
        size = self.config.student.embedding
        assert size is not None  # crosscheck
        vectors = bilstm.word_vectors(
            vocabulary, lambda w: pieces.encode(f" {w}", add_special_tokens=False), table, size
        )
        bilstm.set_word_vectors(student, vectors)

    def _set_table(self, student: Any) -> None:
        """Set the vectors of a static student, before the task: those of a file, or the encoder's of each piece."""
        chosen, ranked = self.config.student, ranked_pieces(self.tokenizer_folder)
        if chosen.table is None:
            vectors = self._piece_outputs(ranked)
        else:
            vectors = table_vectors(chosen.table, self.table.weights, student.config.vocab_size)
            if chosen.hidden > (width := vectors.shape[1]) or (chosen.hidden != width and not chosen.pca):
                least = "or less" if chosen.pca else "because student.pca=false keeps the table's width"
                raise SettingError(
                    Code.MISMATCHED_SHAPE, "student.hidden", str(chosen.hidden), f"must be {width} {least}"
                )
        table = static.start_table(vectors, ranked, chosen.hidden, bool(chosen.pca), chosen.sif)
        with torch.no_grad():
            student.embedding.weight.zero_()[: len(table)] = table[: student.config.vocab_size]

    def _piece_outputs(self, pieces: Tensor) -> Tensor:
        """Return the mean of what the encoder returns for each piece alone, between the special tokens of a text.

        (V, H); zero for other tokens. It is computed once for an encoder, and kept in the cache.
        """
        folder = self.origin_folder
        compute = f"{self.hardware.precision} {self.hardware.attention}"
        digest = hashlib.sha256(f"1|{compute}|".encode() + tokenizer_files(folder))
        digest.update(bytes.fromhex(sha256_of(folder / WEIGHTS)))

        def fill(staged: Path) -> None:
            log.info("computing the vectors of %d pieces, once for this encoder", len(pieces))
            before, after = special_tokens(folder)
            with self.accelerator.autocast():
                vectors = static.piece_outputs(self.origin, pieces, before, after)
            save_file({"vectors": vectors}, staged / "vectors.safetensors")

        kept = cached(self.cache / "piece_vectors" / digest.hexdigest()[:16], fill)
        with fitting(kept):
            return load_file(kept / "vectors.safetensors")["vectors"]

    def _still(self, model: Any) -> Any:
        return model.to(self.accelerator.device).requires_grad_(False).eval()
