"""The record of a run: what was asked, on what machine, and results.json with all its figures."""

import functools
import logging
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray
from omegaconf import OmegaConf

from kdbench import evaluate
from kdbench.config import GROUPS, RunConfig, baseline, total_baseline
from kdbench.data.teacher_cache import compute_logits
from kdbench.identity import data_id, run_id
from kdbench.models import bert
from kdbench.results import SCHEMA, write_json, write_text

if TYPE_CHECKING:
    from kdbench.context import Predictions, Run

log = logging.getLogger("kdbench")


@dataclass(frozen=True)
class About:
    """Where a run comes from: the chosen option of each group, the command, and how to spell other runs."""

    choices: dict[str, Any]
    command: str
    baseline_command: Callable[[RunConfig], str]

    def of_teacher(self, config: RunConfig) -> "About":
        choices = self.choices | {"method": "finetune", "student": config.student.name, "experiment": None}
        return About(choices, f"teacher of: {self.command}", self.baseline_command)


def write_start(run: "Run", about: About) -> None:
    """config.yaml (resolved) and env.json, before anything is computed."""
    write_text(run.folder / "config.yaml", OmegaConf.to_yaml(asdict(run.config)))
    environment = {
        "command": about.command,
        "versions": versions(),
        **source_state(),
        **asdict(run.hardware),
        "machine": f"{platform.platform()} {platform.processor()}".strip(),
        "processes": run.accelerator.num_processes,
    }
    write_json(run.folder / "env.json", environment)


@functools.cache
def versions() -> dict[str, str]:
    packages = ("kdbench", "torch", "transformers", "accelerate", "datasets", "scikit-learn", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


@functools.cache
def source_state() -> dict[str, Any]:
    """Commit of the checkout that kdbench runs from, and whether it has changes; None where it is installed."""

    def git(*words: str) -> str | None:
        call = ["git", "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--", "record.py"):  # installed: a repository around it is not kdbench's own
        return {"commit": None, "dirty": False}
    status = git("status", "--porcelain", "--", "../kdbench", "../conf")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(status)}


def finish(run: "Run", about: About, stages: list[dict[str, Any]], student: Any) -> dict[str, Any]:
    """Export the student, evaluate what was exported, and put the results together."""
    data = run.data
    measured, logits = _network(run, student) if run.predictions is None else _handed_in(run, run.predictions)
    if run.accelerator.is_main_process:
        _write_predictions(run, logits)
    splits = {"dev": data.dev, "test": data.test}
    metrics = {name: evaluate.metrics(split.labels, logits[name].argmax(-1)) for name, split in splits.items()}
    updates = sum(stage["steps"] for stage in stages)
    return {
        "schema": SCHEMA,
        "id": run_id(run.config, run.hardware),
        "seed": run.config.seed,
        "identity": _identity(run, about),
        "precision": run.hardware.precision if run.predictions is None else "fp64",
        "device": run.hardware.device,
        "threads": run.hardware.threads,
        **_baselines(run, about, updates),
        "metrics": metrics,
        **measured,
        "cost": _cost(run, stages, updates),
        "stages": stages,
        "teacher": _teacher(run),
        "reported": run.reported,
        "versions": versions(),
        **source_state(),
    }


def _network(run: "Run", student: Any) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Save the student as a Hugging Face folder, load that folder, and measure what was loaded, in fp32."""
    folder = run.folder / "model"
    if run.accelerator.is_main_process:
        staged = run.folder / ".model.part"
        shutil.rmtree(staged, ignore_errors=True)
        bert.save(student, staged, run.encoder_folder)
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    run.accelerator.wait_for_everyone()
    model = bert.load(folder, run.hardware.attention).to(run.accelerator.device)
    device, length = run.accelerator.device, run.config.dataset.max_length

    def predict(batch: Any, step: int) -> Any:
        return bert.logits(model, {name: value.to(device) for name, value in batch.items()})  # type: ignore[arg-type]

    logits = {name: compute_logits(run.examples(getattr(run.data, name)), predict).numpy() for name in ("dev", "test")}
    call = evaluate.model_call(model, length, run.config.teacher.vocab_size, device)
    return {
        "parameters": evaluate.parameters(model),
        "flops_per_example": evaluate.bert_flops(run.config.student, length, len(run.data.label_names)),
        "latency": evaluate.latency(call) | _conditions(run, length),
    }, logits


def _handed_in(run: "Run", given: "Predictions") -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """The same figures for a method that trained no network."""
    texts = run.data.test.texts

    def call(size: int) -> object:
        return given.logits((texts * size)[:size])

    return {
        "parameters": {"total": given.parameters, "embeddings": 0, "without_embeddings": given.parameters},
        "flops_per_example": None,
        "latency": evaluate.latency(call) | _conditions(run, None),
    }, {name: given.logits(getattr(run.data, name).texts) for name in ("dev", "test")}


def _conditions(run: "Run", length: int | None) -> dict[str, Any]:
    return {"device": run.hardware.device, "threads": run.hardware.threads, "length": length, "precision": "fp32"}


def _write_predictions(run: "Run", logits: dict[str, NDArray[np.float32]]) -> None:
    columns: dict[str, list[Any]] = {"split": [], "id": [], "label": [], "logits": []}
    for name, rows in logits.items():
        split = getattr(run.data, name)
        columns["split"] += [name] * len(split.ids)
        columns["id"] += split.ids.tolist()
        columns["label"] += split.labels.tolist()
        columns["logits"] += list(rows.astype(np.float32))
    staged = run.folder / ".predictions.part"
    pyarrow.parquet.write_table(pyarrow.table(columns), staged)
    staged.replace(run.folder / "predictions.parquet")


def _identity(run: "Run", about: About) -> dict[str, Any]:
    config, network = run.config, "encoder" in run.config.method.needs
    method = asdict(config.method)
    name = method.pop("name")
    return {
        "dataset": config.dataset.name,
        "teacher": config.teacher.name if network else None,
        "student": config.student.name if network else None,
        "method": name,
        "choices": {group: about.choices.get(group) for group in GROUPS},
        "parameters": method,
        "layers": config.student.layers if network else None,
        "data_id": data_id(config),
        "split": f"test: {run.data.test_is}; dev: {config.dataset.splits.dev or 'cut from train'}",
        "selected_on": "dev",
    }


def _baselines(run: "Run", about: About, updates: int) -> dict[str, Any]:
    keys = ("baseline", "total_baseline")
    if "encoder" not in run.config.method.needs:
        return {f"{key}_{part}": None for key in keys for part in ("id", "command")}
    runs = dict(zip(keys, (baseline(run.config), total_baseline(run.config, updates)), strict=True))
    ids = {f"{key}_id": run_id(config, run.hardware) for key, config in runs.items()}
    return ids | {f"{key}_command": about.baseline_command(config) for key, config in runs.items()}


def _cost(run: "Run", stages: list[dict[str, Any]], updates: int) -> dict[str, Any]:
    given = run.config.method.stages
    seconds = sum(stage["seconds"] for stage in stages) if run.predictions is None else run.predictions.seconds
    examples = sum(
        stage["steps"] * given[stage["name"]].batch_size * given[stage["name"]].accumulation for stage in stages
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    teacher = run.teacher_result
    return {
        "seconds": seconds,
        "steps": updates,
        "student_updates": updates,
        "examples_per_second": examples / seconds if stages else None,
        "peak_memory_mb": peak,
        "teacher_seconds": teacher["cost"]["seconds"] if teacher else None,
    }


def _teacher(run: "Run") -> dict[str, Any] | None:
    result = run.teacher_result
    if result is None:
        return None
    return {key: result[key] for key in ("id", "seed", "metrics", "latency", "parameters")}


def announce(run: "Run", result: dict[str, Any]) -> None:
    """The last lines that a person sees of a run."""
    dev, test = (result["metrics"][name] for name in ("dev", "test"))
    log.info(
        "done: %s, test accuracy %.2f (n %d), dev %.2f, trained in %.0f s",
        run.folder, 100 * test["accuracy"], test["n"], 100 * dev["accuracy"], result["cost"]["seconds"],
    )  # fmt: skip
