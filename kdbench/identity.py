"""A run's content id: what was computed, and nothing of where, when or how often."""

from dataclasses import asdict
from typing import Any

from kdbench.config import RunConfig, cache_folder, digest, teacher_run, uses_teacher
from kdbench.data.sources import dataset_identity, model_identity
from kdbench.hardware import Hardware

SCHEMA = 1  # raised when the same keys come to mean another computation
_NOT_CONTENT = ("name", "source", "sha256", "epochs")  # of a data set: its identity or the schedule has them


def data_identity(config: RunConfig) -> dict[str, Any]:
    """Which examples with which labels in which split."""
    choices = {key: value for key, value in asdict(config.dataset).items() if key not in _NOT_CONTENT}
    del choices["max_length"]
    return choices | {"content": dataset_identity(config.dataset, cache_folder(config))}


def identity(config: RunConfig, hardware: Hardware) -> dict[str, Any]:
    """All that decides the run's result, apart from its seed; only the keys that its method uses."""
    method = asdict(config.method)
    what: dict[str, Any] = {"schema": SCHEMA, "data": data_identity(config), "method": method}
    if "encoder" not in config.method.needs:
        return what
    student = asdict(config.student)
    del student["name"]
    what |= {
        "encoder": model_identity(config.teacher, cache_folder(config)),
        "student": student,
        "max_length": config.dataset.max_length,
        "precision": hardware.precision,
        "attention": hardware.attention,
    }
    for stage in method["stages"].values():
        if stage["steps"] is not None:
            del stage["epochs"]  # steps win: the epochs given beside them change nothing
    if uses_teacher(config):
        what["teacher"] = {"id": run_id(teacher_run(config), hardware), "seed": config.teacher.seed}
    return what


def run_id(config: RunConfig, hardware: Hardware) -> str:
    return digest(identity(config, hardware))


def data_id(config: RunConfig) -> str:
    """Runs with equal data ids may be compared example by example."""
    return digest(data_identity(config))
