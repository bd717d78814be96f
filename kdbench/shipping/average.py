"""Export several finished runs as one model: a graph whose logits are the mean of theirs.

AVERAGE/export/     onnx/model.onnx and the other graphs, with config.json, the tokenizer, the settings of the first run
                    and a model card; there are no weights for PyTorch
AVERAGE/forms/      what was measured of each graph: rows of compare-runs

AVERAGE is beside the first run, and its name is a digest of the members.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench.compare.columns import unit
from kdbench.console import quiet_libraries
from kdbench.data.tokenize import tokenizer_files
from kdbench.errors import Code, UserError
from kdbench.inference.average import Average
from kdbench.inference.calibration import CALIBRATION, Calibration, calibrate, calibration_of, in_words
from kdbench.inference.classifier import label_names
from kdbench.inference.finished_run import FinishedRun, open_run
from kdbench.inference.forms import FORMS
from kdbench.models import students
from kdbench.models.network import view
from kdbench.schema import ExportConfig
from kdbench.shipping.card import Forms, origin, rendered
from kdbench.shipping.export import copy_reader, require_forms, write_forms
from kdbench.storage.cache import locked_hidden
from kdbench.storage.files import explained, filling, remove_leftovers, write_bytes, write_text
from kdbench.storage.predictions import read_logits
from kdbench.storage.provenance import machine, versions
from kdbench.storage.results import EXPORT, MEASURED, RESULTS, metric_of
from kdbench.tasks import traits
from kdbench.tasks.arrays import Logits
from kdbench.validation.load import digest

log = logging.getLogger("kdbench")


def export_average(folders: Sequence[Path], wanted: ExportConfig) -> Path:
    """Export the mean of the logits of finished runs, and return the new folder, which replaces an earlier one.

    Raises UserError if they cannot be averaged or exported, Damaged, StoreError. Then an earlier export stays.
    """
    quiet_libraries()
    runs = [open_run(folder) for folder in folders]
    require_alike(runs)
    for run in runs:
        require_forms(run, wanted)
    first, members = runs[0], _members(runs)
    home = first.folder.parent / f"average-{digest(members)}"
    target, measured = home / EXPORT, home / MEASURED
    torch.set_num_threads(first.result["threads"])
    home.mkdir(exist_ok=True)
    with explained(target), locked_hidden(home):
        remove_leftovers(home)
        with filling(measured) as records, filling(target) as staged:
            copy_reader(first, staged)
            (staged / CALIBRATION).unlink(missing_ok=True)  # of the first run
            average, entry = _calibrated(runs, staged)
            changes = _record(runs, members, entry)
            forms = write_forms(first, average, staged, records, wanted, prefix="average_", changes=changes)
            write_text(staged / "README.md", _card(runs, wanted.forms, forms, entry))
    return target


def require_alike(runs: Sequence[FinishedRun]) -> None:
    """Raise UserError if the runs do not read the same texts and tokens, or do not give the same labels."""
    if len(runs) < 2:
        raise UserError(Code.CONFLICTING_OPTIONS, "--average needs two or more RUNs, such as the seeds of one method")
    first = runs[0]
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise UserError(Code.CONFLICTING_OPTIONS, "--average needs different RUNs: one is named twice")
    for run in runs:
        own = students.folder_traits(run.model)
        if own.early_exit or not own.probabilities:
            what = "a FastBERT exits early" if own.early_exit else "TF-IDF is the same with every seed"
            raise UserError(Code.UNSUPPORTED_EXPORT, f"--average: {run.folder} cannot be averaged, because {what}")
        for what, one, other in (
            ("task", run.dataset.task, first.dataset.task),
            ("labels", label_names(run.model), label_names(first.model)),
            ("tokenizer", tokenizer_files(run.model), tokenizer_files(first.model)),
            ("dataset.max_length", run.max_length, first.max_length),
            ("test texts", run.result["identity"]["test_id"], first.result["identity"]["test_id"]),
            ("dev texts", run.result["identity"]["dev_id"], first.result["identity"]["dev_id"]),
        ):
            if one != other:
                raise UserError(
                    Code.MISMATCHED_INPUT, f"--average: {run.folder} and {first.folder} must have the same {what}"
                )


def _record(runs: Sequence[FinishedRun], members: list[dict[str, Any]], entry: dict[str, Any] | None) -> dict[str, Any]:
    """Return the keys of results.json in which an average differs from its first run."""
    results = [run.result for run in runs]
    sizes = {key: sum(one["parameters"][key] for one in results) for key in results[0]["parameters"]}
    flops = [one["flops_per_example"] for one in results]
    seconds = sum(one["cost"]["seconds"] for one in results)
    nothing = [f"{key}_{part}" for key in ("baseline", "total_baseline") for part in ("id", "command")]
    return {
        "exported_from": members,
        "seed": min(one["seed"] for one in results),
        # 0: compare-runs --latency does not measure it again
        "parameters": sizes | {"embeddings": 0, "without_embeddings": sizes["total"]},
        "flops_per_example": sum(flops),
        "cost": results[0]["cost"] | {"seconds": seconds},
        "reported": {"average": {"members": members, "calibration": entry}},
        **dict.fromkeys(nothing),
    }


def _card(runs: Sequence[FinishedRun], names: Sequence[str], forms: Forms, entry: Mapping[str, Any] | None) -> str:
    """Return the README.md of an average."""
    first, task = runs[0], traits(runs[0].dataset.task)
    return rendered(
        "average.md.j2",
        **origin(runs),
        runs=[run.result for run in runs],
        identity=first.result["identity"],
        task=task,
        metric=metric_of(first.result),
        unit=unit(metric_of(first.result)),
        metrics=[name for name in task.metrics if name in first.result["metrics"]["test"]],
        labels=label_names(first.model),
        probable=entry,
        forms=[{**form, **FORMS[name]._asdict()} for name, form in zip(names, forms.results, strict=True)],
        latency=forms.pytorch,
        difference=forms.difference,
        machine=machine(),
        versions=versions(),
    )


def _divided(logits: Logits, temperature: float) -> Logits:
    return [one / temperature for one in logits] if isinstance(logits, list) else np.asarray(logits) / temperature


def _members(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    return [{"id": run.result["id"], "seed": run.result["seed"]} for run in runs]


def _calibrated(runs: Sequence[FinishedRun], staged: Path) -> tuple[Average, dict[str, Any] | None]:
    """Return the average, calibrated on dev, and the entry of its temperature; thresholds are written to `staged`.

    Each member's logits are divided by its own temperature first, so that a member that is too sure has no more say.
    """
    first = runs[0]
    models, each = [], []
    for run in runs:
        temperature = calibration_of(run.model).temperature
        models.append(students.load(run.model))
        view(models[-1]).divide_logits(temperature)
        found = {split: read_logits(run.folder / RESULTS, split) for split in ("dev", "test")}
        each.append({split: (labels, _divided(logits, temperature)) for split, (labels, logits) in found.items()})
    average = Average(models)
    if traits(first.dataset.task).words:  # one array a text
        return average, None
    splits = {
        split: (each[0][split][0], np.mean([np.asarray(one[split][1]) for one in each], axis=0))
        for split in ("dev", "test")
    }
    names, metric = label_names(first.model), metric_of(first.result)
    entry, kept = calibrate(first.dataset.task, names, metric, splits)
    for line in in_words(entry) if entry else ():
        log.info("%s", line)
    average.divide_logits(kept.temperature)
    if kept.thresholds:
        write_bytes(staged / CALIBRATION, Calibration(1.0, kept.thresholds).content)
    return average, entry
