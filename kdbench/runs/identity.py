"""Compute a run's id, from everything that decides its result and nothing else."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdbench.data.datasets import dev_follows
from kdbench.options import NO_WEIGHTS
from kdbench.runs.related import (
    general_run,
    member_runs,
    teacher_run,
    uses_general,
    uses_teacher,
    uses_unlabelled,
)
from kdbench.schema import CorpusConfig, DatasetConfig, RunConfig
from kdbench.sources.sources import dataset_identity, model_identity, text_identity, unlabelled_identity
from kdbench.sources.teacher_source import files_identity
from kdbench.sources.word_table import table_identity
from kdbench.storage.results import read_result
from kdbench.tasks import chosen_metric
from kdbench.training.hardware import Hardware
from kdbench.validation.load import cache_folder, digest
from kdbench.validation.own_method import sources

SCHEMA = 1  # raised when the same keys come to mean another computation
# Of a data set: its identity, the schedule or the run has them.
_NOT_CONTENT = (
    *("name", "source", "sha256", "parts", "unpacked_bytes", "epochs", "metric", "language"),
    *("unlabelled", "max_unlabelled_samples"),  # of the methods that read them
)


def data_identity(config: RunConfig) -> dict[str, Any]:
    """Return what decides the examples, labels and splits of a data set."""
    return _dataset(config.dataset, cache_folder(config))


def _dataset(dataset: DatasetConfig, cache: Path) -> dict[str, Any]:
    choices = {key: value for key, value in asdict(dataset).items() if key not in _NOT_CONTENT}
    del choices["max_length"]
    if not choices["stratified"]:
        del choices["stratified"]
    follows = {"dev": "follows train"} if dev_follows(dataset) else {}
    return choices | follows | {"content": dataset_identity(dataset, cache)}


def corpus_identity(corpus: CorpusConfig, cache: Path) -> dict[str, Any]:
    """Return what decides the texts of a corpus, their pieces, and the teacher's masked-LM head trained on them."""
    content = [
        _dataset(one, cache) | ({"unlabelled": unlabelled_identity(one, cache)} if one.unlabelled else {})
        for one in corpus.datasets.values()
    ]
    running = None
    if corpus.running is not None:
        running = {"files": corpus.running.files, "content": text_identity(corpus.running, cache)}
    choices = asdict(corpus)
    schedule = _stage(choices["schedule"])
    for key in ("name", "datasets", "running", "schedule"):
        del choices[key]
    return {"texts": {"datasets": content, "running": running}, "schedule": schedule} | choices


def _stage(given: dict[str, Any], labels: bool = False) -> dict[str, Any]:
    """Return a stage's schedule without what has no effect: epochs beside steps, and weights of classes if all are 1.

    `labels`: whether the stage may learn from labels.
    """
    idle = {"epochs"} if given["steps"] is not None else set()
    idle |= {"class_weights"} if not labels or given["class_weights"] == NO_WEIGHTS else set()
    return {key: value for key, value in given.items() if key not in idle}


def _method(config: RunConfig) -> dict[str, Any]:
    """Return the method's keys that this phase uses."""
    method = asdict(config.method)
    if not uses_unlabelled(config):
        method.pop("unlabelled_share", None)
    own_source = {"source": sources(method.pop("module"))} if config.method.module else {}
    before = config.method.general_stages
    if config.phase == "general":
        own = {"name", "init", "stages", *config.method.general_keys}
        method = {key: value for key, value in method.items() if key in own}
    stages = {
        name: stage
        for name, stage in method["stages"].items()
        if (name in before) == (config.phase == "general") and name in config.method.used_stages
    }
    labels = config.phase == "task"
    weights = config.schedule.class_weights
    alone = (
        {"class_weights": weights}
        if labels and not stages and config.method.reads_labels and weights != NO_WEIGHTS
        else {}
    )
    return method | own_source | alone | {"stages": {name: _stage(stage, labels) for name, stage in stages.items()}}


def identity(config: RunConfig, hardware: Hardware) -> dict[str, Any]:
    """Return all that decides the run's result except its seed; only keys that its method uses."""
    what: dict[str, Any] = {"schema": SCHEMA, "method": _method(config)}
    cache = cache_folder(config)
    if config.phase == "task":
        what["data"] = data_identity(config)
        metric = chosen_metric(config.dataset.task, config.dataset.metric)
        if metric != chosen_metric(config.dataset.task, None):
            what["metric"] = metric
        if uses_unlabelled(config):
            what["unlabelled"] = unlabelled_identity(config.dataset, cache)
    elif config.corpus is not None:
        what["corpus"] = corpus_identity(config.corpus, cache)
    if uses_teacher(config):
        what["teacher"] = teacher_identity(config, hardware)
    if "encoder" not in config.method.needs:
        return what | (_reading(config, hardware) if uses_teacher(config) else {})
    student = {
        key: value
        for key, value in asdict(config.student).items()
        if value is not None and key not in ("name", "encoder", "table")
    }
    table = config.student.table
    if table is not None:
        student["table"] = table_identity(table, cache)
    what |= {
        "encoder": None if config.origin.is_file or table is not None else model_identity(config.origin, cache),
        "student": student,
        "precision": hardware.precision,
        "attention": hardware.attention,
        "compile": hardware.compile,
    }
    if config.phase == "task":
        what["max_length"] = config.dataset.max_length
    if uses_general(config):
        what["general"] = run_id(general_run(config), hardware)
    return what


def _reading(config: RunConfig, hardware: Hardware) -> dict[str, Any]:
    """Return what decides, beside the teacher, the answers that a run without a student of its own reads from it."""
    if config.teacher.is_file:
        return {}
    return {
        "precision": hardware.precision,
        "attention": hardware.attention,
        "max_length": config.dataset.max_length,
    }


def teacher_identity(config: RunConfig, hardware: Hardware) -> dict[str, Any]:
    """Return what decides the teacher's answers: the runs that gave them, or the files that hold them."""
    teacher = config.teacher
    if teacher.is_file:
        return files_identity(teacher)
    if teacher.members is not None:
        return {"members": [_finished(path) for path in teacher.members], "average": teacher.average}
    if teacher.seeds is not None:
        members = [{"id": run_id(run, hardware), "seed": run.seed} for run in member_runs(config)]
        return {"members": members, "average": teacher.average}
    if teacher.path is not None:
        return _finished(teacher.path)
    # Whether a head is used follows from the source and the data, which are in the id.
    told = {} if config.teacher.finetune is None else {"finetune": config.teacher.finetune}
    return {"id": run_id(teacher_run(config), hardware), "seed": config.teacher.seed} | told


def _finished(path: str) -> dict[str, Any]:
    result = read_result(Path(path))
    assert result is not None  # kdbench.validation.load looks for it
    return {"id": result["id"], "seed": result["seed"]}


def run_id(config: RunConfig, hardware: Hardware) -> str:
    return digest(identity(config, hardware))


def id_without_teacher_seed(config: RunConfig, hardware: Hardware) -> str:
    """Return the digest that all runs share which differ in nothing but their own seed and those of their teachers."""
    what = identity(config, hardware)
    if "teacher" in what:
        what["teacher"] = {key: value for key, value in what["teacher"].items() if key != "seed"}
    if "members" in what.get("teacher", {}):
        what["teacher"]["members"] = [member["id"] for member in what["teacher"]["members"]]
    return digest(what)


def data_id(config: RunConfig) -> str:
    """Return the digest of the data; runs with equal data ids may be compared example by example."""
    return digest(data_identity(config))
