"""Write the record of a run: its config, its environment, and results.json with all its figures."""

import hashlib
import json
import logging
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from kdbench.data.datasets import Split
from kdbench.data.teacher_cache import compute_outputs
from kdbench.inference import calibration, measure
from kdbench.models import students
from kdbench.models.network import view
from kdbench.runs.identity import data_id, id_without_teacher_seed, run_id, teacher_identity
from kdbench.runs.look import label_of
from kdbench.runs.related import baseline, row_to_beat, total_baseline, uses_teacher
from kdbench.schema import GROUPS, RunConfig
from kdbench.storage.files import add_file, filling, write_bytes, write_json, write_text
from kdbench.storage.predictions import predictions_file
from kdbench.storage.provenance import machine, source_state, versions
from kdbench.storage.results import PREDICTIONS, SCHEMA, Runs, metric_of
from kdbench.tasks.arrays import Labels, Logits
from kdbench.training.interrupts import Watch
from kdbench.training.processes import wait
from kdbench.validation.load import digest
from kdbench.validation.own_method import sources

if TYPE_CHECKING:
    from kdbench.runs.context import Predictions, Run

log = logging.getLogger("kdbench")


@dataclass(frozen=True)
class About:
    """Where a run comes from: the chosen option of each group, the command, and how to write other runs' commands."""

    choices: dict[str, Any]
    command: str
    baseline_command: Callable[[RunConfig], str]
    watch: Watch | None = None  # of a search
    runs: Runs = field(default_factory=dict)  # gets each finished run that this one is or needs

    def of_needed(self, config: RunConfig) -> "About":
        """Return the About of a run that this one needs: its teacher, or what comes before its task."""
        choices = self.choices | {"method": config.method.name, "student": config.student.name, "experiment": None}
        return About(choices, f"needed by: {self.command}", self.baseline_command, runs=self.runs)


def write_start(run: "Run", about: About) -> None:
    """Write config.yaml (resolved) and env.json, before anything is computed."""
    write_text(run.folder / "config.yaml", OmegaConf.to_yaml(asdict(run.config)))
    environment = {
        "command": about.command,
        "versions": versions(),
        **source_state(),
        **asdict(run.hardware),
        "machine": machine(),
        "system": platform.platform(),
        "processes": run.accelerator.num_processes,
    }
    write_json(run.folder / "env.json", environment)


def finish(run: "Run", about: About, stages: list[dict[str, Any]], student: Any) -> dict[str, Any]:
    """Save the student, evaluate the saved model, and return the results."""
    if run.config.phase == "general":
        return _finish_general(run, about, stages, student)
    data = run.data
    log.info("evaluating dev and test")
    splits = {"dev": data.dev, "test": data.test}
    if run.predictions is None:
        measured, logits = _network(run, student)
    else:
        splits = {**splits, **(run.predictions.judged or {})}
        measured, logits = _handed_in(run, run.predictions, splits)
    if run.accelerator.is_main_process:
        write_bytes(
            run.folder / PREDICTIONS,
            predictions_file(
                run.task,
                data.label_names,
                {name: (split.ids, split.labels, logits[name]) for name, split in splits.items()},
            ),
        )
    judged = {name: (split.labels, logits[name]) for name, split in splits.items()}
    metrics = {name: run.metrics(*one) for name, one in judged.items()}
    entry = _calibrated(run, judged) if _probable(run) else None
    updates = sum(stage["steps"] for stage in stages)
    return {
        "schema": SCHEMA,
        "id": run_id(run.config, run.hardware),
        "id_without_teacher_seed": id_without_teacher_seed(run.config, run.hardware),
        "seed": run.config.seed,
        "tag": run.config.tag,
        "identity": _identity(run, about),
        "data": run.read,
        "precision": run.hardware.precision if run.predictions is None else run.predictions.precision,
        "device": run.hardware.device,
        "threads": run.hardware.threads,
        "machine": machine(),
        **_baselines(run, about, updates),
        "metrics": {name: one | _as_answered(run, judged[name], name, entry) for name, one in metrics.items()},
        "calibration": entry,
        **measured,
        "cost": _cost(run, stages, updates),
        "stages": stages,
        "teacher": _teacher(run),
        "teacher_identity": teacher_identity(run.config, run.hardware) if uses_teacher(run.config) else None,
        "reported": run.reported,
        "versions": versions(),
        **source_state(),
    }


def _probable(run: "Run") -> bool:
    """Return whether the logits stand for probabilities."""
    return run.predictions is None or run.predictions.probable


def _calibrated(run: "Run", judged: calibration.Splits) -> dict[str, Any] | None:
    """Calibrate the saved model on dev; return the entry of results.json, None if there is no model to calibrate."""
    if run.predictions is not None:
        return None
    entry, kept = calibration.calibrate(run.task, run.data.label_names, run.metric, judged)
    if entry is not None:
        for line in calibration.in_words(entry):
            log.info("%s", line)
    if kept != calibration.Calibration() and run.accelerator.is_main_process:
        add_file(run.folder / "model", calibration.CALIBRATION, kept.content)
    wait(run.accelerator)
    return entry


def _as_answered(
    run: "Run", judged: tuple[Labels, Logits], split: str, entry: dict[str, Any] | None
) -> dict[str, float]:
    """Return the figures of the probabilities that kdbench-predict gives."""
    if not _probable(run):
        return {}
    if entry is None:
        return calibration.probability_figures(run.task, *judged)
    return dict(entry["after" if entry["kept"] else "before"][split])


def _finish_general(run: "Run", about: About, stages: list[dict[str, Any]], student: Any) -> dict[str, Any]:
    """Return the results of stages before the task: an encoder, its size and its cost; it is no row of a table."""
    encoder = students.base(student)
    if run.accelerator.is_main_process:
        _export(run, lambda folder: students.save(encoder, folder, run.encoder_folder, pairs=True))
    wait(run.accelerator)
    return {
        "schema": SCHEMA,
        "phase": "general",
        "id": run_id(run.config, run.hardware),
        "seed": run.config.seed,
        "identity": {"corpus": asdict(run.config)["corpus"]["name"], "method": run.config.method.name}
        | {"teacher": run.config.teacher.name, "student": run.config.student.name},
        "precision": run.hardware.precision,
        "device": run.hardware.device,
        "threads": run.hardware.threads,
        "parameters": measure.parameters(encoder),
        "cost": _cost(run, stages, sum(stage["steps"] for stage in stages)),
        "stages": stages,
        "reported": run.reported,
        "versions": versions(),
        **source_state(),
    }


def _export(run: "Run", save: Callable[[Path], None]) -> None:
    """Fill the run's `model` folder; it is either complete or absent."""
    with filling(run.folder / "model") as staged:
        save(staged)


def _network(run: "Run", student: Any) -> tuple[dict[str, Any], dict[str, Logits]]:
    """Save the student as a Hugging Face folder, load it again, and evaluate what was loaded, in fp32."""
    if run.accelerator.is_main_process:
        pairs = run.config.dataset.text_pair is not None
        _export(run, lambda folder: students.save(student, folder, run.tokenizer_folder, pairs))
    wait(run.accelerator)
    model = students.load(run.folder / "model", run.hardware.attention).to(run.accelerator.device)
    device = run.accelerator.device

    def forward(batch: Any, step: int = 0) -> Any:
        return students.logits(model, {name: value.to(device) for name, value in batch.items()})  # type: ignore[arg-type]

    examples = {name: run.examples(getattr(run.data, name)) for name in ("dev", "test")}
    logits: dict[str, Logits] = {n: one.by_example(compute_outputs(one, forward)) for n, one in examples.items()}
    shape, length = run.shape(run.config.student) | view(model).found_shape, run.config.dataset.max_length
    return {
        "parameters": measure.parameters(model),
        "flops_per_example": students.flops(shape, length, len(run.data.label_names), run.task),
        "bytes": (run.folder / "model" / "model.safetensors").stat().st_size,
        "latency": _unmeasured(run, length),
    }, logits


def _handed_in(run: "Run", given: "Predictions", splits: dict[str, Split]) -> tuple[dict[str, Any], dict[str, Logits]]:
    """Return the same figures for a method that trained no network, with the logits of `splits`.

    If it saves no model, its latency is measured here, by itself.
    """
    test, measured, size = run.data.test, {}, None

    def call(size: int, turn: int) -> object:
        return given.logits(test.take(np.arange(size) % len(test)))

    if given.save is None:
        measured = measure.measured({"run": call})["run"] if given.timed and not run.config.dry_run else {}
    else:
        if run.accelerator.is_main_process:
            _export(run, given.save)
        wait(run.accelerator)
        size = (run.folder / "model" / "model.safetensors").stat().st_size
    return {
        "parameters": {"total": given.parameters, "embeddings": 0, "without_embeddings": given.parameters},
        "flops_per_example": None,
        "bytes": size,
        "latency": _unmeasured(run, None) | measured,
    }, {name: given.logits(split) for name, split in splits.items()}


def _unmeasured(run: "Run", length: int | None) -> dict[str, Any]:
    """Return the latency keys, which `kdbench.runs.times.at_the_end` fills in at the command's end."""
    where = {"device": run.hardware.device, "threads": run.hardware.threads, "length": length, "precision": "fp32"}
    return where | dict.fromkeys(("batch_1", "batch_32", "when", "load", "quiet", "teacher"))


def _identity(run: "Run", about: About) -> dict[str, Any]:
    config, network = run.config, "encoder" in run.config.method.needs
    test = run.data.test_is if config.dataset.splits.test else "cut from train"
    method = asdict(config.method)
    name, module = method.pop("name"), method.pop("module")
    if not config.method.used_stages & config.method.stages.keys() and config.method.reads_labels:
        method["class_weights"] = config.schedule.class_weights
    if module is not None:
        method |= {"module": module, "source": digest(sources(module))}
    return {
        "dataset": config.dataset.name,
        "task": run.task,
        "metric": run.metric,
        "teacher": config.teacher.name if network or uses_teacher(config) else None,
        "student": config.student.name if network else None,
        "method": name,
        "choices": {group: about.choices.get(group) for group in GROUPS},
        "parameters": method,
        "layers": config.student.layers if network else None,
        "data_id": data_id(config),
        **{f"{name}_id": examples_id(getattr(run.data, name), run.data.label_names) for name in ("test", "dev")},
        "split": f"test: {test}; dev: {config.dataset.splits.dev or 'cut from train'}",
        "selected_on": "dev",
    }


def examples_id(split: Split, label_names: list[str]) -> str:
    """Return 8 hex digits of the SHA-256 of a split's texts, pairs and labels, row by row.

    Classes count by name. So it depends neither on the numbers of the classes, nor on the file, nor on other splits.
    """
    content = hashlib.sha256()
    for given, label in zip(split.inputs, split.labels, strict=True):
        content.update(json.dumps([*given, label_of(label, split, label_names)]).encode() + b"\n")
    return content.hexdigest()[:8]


def _baselines(run: "Run", about: About, updates: int) -> dict[str, Any]:
    keys, config = ("baseline", "total_baseline"), run.config
    floor = None if config.method.name == "tfidf" else row_to_beat(config)
    tfidf = {"tfidf_command": floor and about.baseline_command(floor)}
    if "encoder" not in config.method.needs:
        return tfidf | {f"{key}_{part}": None for key in keys for part in ("id", "command")}
    per_epoch = -(-len(run.data.train) // (config.schedule.batch_size * config.schedule.accumulation))
    runs = dict(zip(keys, (baseline(config), total_baseline(config, updates, per_epoch)), strict=True))
    ids = {f"{key}_id": run_id(other, run.hardware) for key, other in runs.items()}
    return tfidf | ids | {f"{key}_command": about.baseline_command(other) for key, other in runs.items()}


def _cost(run: "Run", stages: list[dict[str, Any]], updates: int) -> dict[str, Any]:
    given = run.config.method.stages
    in_stages = sum(stage["seconds"] for stage in stages)
    seconds = in_stages + run.seconds if run.predictions is None else run.predictions.seconds
    examples = sum(
        stage["steps"] * given[stage["key"]].batch_size * given[stage["key"]].accumulation for stage in stages
    )
    teacher = run.teacher_result
    return {
        "seconds": seconds,
        "steps": updates,
        "student_updates": updates,
        "examples_per_second": examples / in_stages if stages else None,
        "peak_memory_mb": measure.peak_mb(),
        "teacher_seconds": teacher["cost"]["seconds"] if teacher else None,
        "general_seconds": _general_seconds(run),
    }


def _general_seconds(run: "Run") -> float | None:
    """Return the seconds of the stages before the task and of the runs that these need; None: there are none."""
    if not run.general_results:
        return None
    costs = [one["cost"] for one in run.general_results]
    seconds: float = sum(cost["seconds"] + (cost["general_seconds"] or 0) for cost in costs)
    return seconds


def _teacher(run: "Run") -> dict[str, Any] | None:
    result = run.teacher_result
    if result is None:
        return None
    # A member of an ensemble may have been trained on the test texts of the others.
    members = [] if run.config.teacher.members is None else [member for member, _ in run.members]
    tested = next((one for one in members if one["identity"].get("test_id") != result["identity"]["test_id"]), result)
    ids = {key: tested["identity"].get(key) for key in ("test_id", "dev_id")}  # older runs have none
    labelled = result["data"]["splits"]["train"]["rows"]
    return {key: result[key] for key in ("id", "seed", "metrics", "parameters")} | {"labelled": labelled} | ids


def announce(run: "Run", result: dict[str, Any]) -> None:
    """Log the last lines of a run."""
    if "metrics" not in result:
        steps, seconds = result["cost"]["steps"], result["cost"]["seconds"]
        log.info("done: %s, %d steps on the corpus, trained in %.0f s", run.folder, steps, seconds)
        return
    (dev, test), metric = (result["metrics"][name] for name in ("dev", "test")), metric_of(result)
    log.info(
        "done: %s, test %s %.2f (n %d), dev %.2f, trained in %.0f s",
        run.folder, metric, 100 * test[metric], test["n"], 100 * dev[metric], result["cost"]["seconds"],
    )  # fmt: skip
