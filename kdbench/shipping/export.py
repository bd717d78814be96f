"""Export a finished run into `export/` in its folder, completely or not at all.

export/          a plain Hugging Face folder: config.json, model.safetensors, the tokenizer, README.md (the model card);
                 and config.yaml, all settings of the run
export/onnx/     model.onnx, with results.json and predictions.parquet like a run: a row of compare-runs
export/int8/     the same, quantised
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from kdbench.console import quiet_libraries
from kdbench.data.teacher_cache import compute_outputs
from kdbench.data.tokenize import load_tokenizer
from kdbench.errors import Code, UserError
from kdbench.inference import measure
from kdbench.inference.classifier import GRAPH, graph_predict, model_predict, speed_of
from kdbench.inference.finished_run import FinishedRun, open_run
from kdbench.inference.latency import beside, own_call
from kdbench.inference.onnx import to_int8, to_onnx
from kdbench.models import students
from kdbench.shipping.card import Forms, model_card
from kdbench.stage import Predict
from kdbench.storage import files as store
from kdbench.storage.files import explained, filling, remove_leftovers, write_bytes, write_text
from kdbench.storage.predictions import predictions_file
from kdbench.storage.provenance import machine, source_state, versions
from kdbench.storage.results import EXPORT, PREDICTIONS, metric_of, write_result
from kdbench.tasks import kind
from kdbench.validation.load import digest

log = logging.getLogger("kdbench")


def export_run(folder: Path, onnx: bool, int8: bool) -> Path:
    """Export the finished run in `folder` and return the new folder, which replaces an earlier export.

    `int8` includes `onnx`, from which it is made. Each graph is measured on dev and test, and the first is compared
    with the PyTorch model. Raises UserError if the run cannot be exported, Damaged, StoreError. Then an earlier export
    stays as it was.
    """
    quiet_libraries()
    run = open_run(folder)
    target = run.folder / EXPORT
    torch.set_num_threads(run.result["threads"])  # so that its times are comparable with the run's
    with explained(target), FileLock(run.folder.parent / f".{run.folder.name}.lock"):
        remove_leftovers(run.folder)
        with filling(target) as staged:
            _copy(run, staged)
            forms = _write_forms(run, staged, int8) if onnx or int8 else None
            write_text(staged / "README.md", model_card(run, forms))
    return target


def has_export(folder: Path, int8: bool) -> bool:
    """Return whether the run has an undamaged export with an ONNX graph, or with a quantised one if `int8`."""
    try:
        store.verify(folder / EXPORT / store.MANIFEST)
    except store.Damaged:
        return False
    return (folder / EXPORT / ("int8" if int8 else "onnx")).is_dir()


def _copy(run: FinishedRun, staged: Path) -> None:
    """Copy the model's folder and the settings. The tokenizer gets the maximum length of training."""
    for path in (*run.model.iterdir(), run.folder / "config.yaml"):  # copytree hides why the system refuses a file
        if path.name != store.MANIFEST:
            shutil.copy(path, staged)
    tokenizer = load_tokenizer(staged)
    tokenizer.model_max_length = run.max_length
    tokenizer.save_pretrained(staged)


def _write_forms(run: FinishedRun, staged: Path, int8: bool) -> Forms:
    """Write the graphs, each into its folder with its results."""
    if int8 and (problem := students.folder_traits(run.model).no_int8):
        raise UserError(Code.UNSUPPORTED_EXPORT, f"--int8 {problem}: use --onnx")
    names = ("onnx", "int8") if int8 else ("onnx",)
    for name in names:
        (staged / name).mkdir()
    model = students.load(run.model)
    difference = to_onnx(model, staged / "onnx" / GRAPH, "token_type_ids" in students.input_names(model, run.pairs))
    log.info("onnx: differs from PyTorch by %.1e at most", difference)
    if int8:
        to_int8(staged / "onnx" / GRAPH, staged / "int8" / GRAPH)
    graphs = {name: graph_predict(staged / name / GRAPH, speed_of(run.model)) for name in names}
    log.info("measuring the time of %s and of PyTorch, in turns", " and ".join(names))
    latency = _latency(run, {"pytorch": model_predict(run.model)} | graphs)
    log.info("pytorch: %s", _words(run.result, latency["pytorch"]))
    results = []
    for name, predict in graphs.items():
        result = _write_form(run, staged / name, predict, latency[name])
        log.info("%s: %s, %.1f MB", name, _words(result, latency[name]), result["bytes"] / 1e6)
        results.append(result)
    return Forms(results, difference, latency["pytorch"])


def _write_form(run: FinishedRun, folder: Path, predict: Predict, latency: dict[str, Any]) -> dict[str, Any]:
    """Measure the graph in `folder` and write its record: the run's, with the figures of this form."""
    splits = {"dev": run.data.dev, "test": run.data.test}
    examples = {name: run.examples(split) for name, split in splits.items()}
    logits = {name: one.by_example(compute_outputs(one, predict)) for name, one in examples.items()}
    task, names = run.dataset.task, run.data.label_names
    answered = {name: (split.ids, split.labels, logits[name]) for name, split in splits.items()}
    write_bytes(folder / PREDICTIONS, predictions_file(task, names, answered))
    shutil.copy(run.folder / "config.yaml", folder)
    result = run.result | {
        "id": digest({"run": run.result["id"], "form": folder.name}),
        "form": folder.name,
        "exported_from": run.result["id"],
        "metrics": {name: kind(task).judge(split.labels, logits[name], names) for name, split in splits.items()},
        "latency": run.result["latency"] | {"device": "cpu"} | latency,
        "bytes": (folder / GRAPH).stat().st_size,
        "machine": machine(),
        "stages": [],  # those of the run
        "reported": {},
        "versions": versions(),
        **source_state(),
    }
    return write_result(folder, result)


def _latency(run: FinishedRun, forms: dict[str, Predict]) -> dict[str, Any]:
    """Measure each form on the run's own input, in turns with the teacher if that still exists."""
    calls = {name: own_call(run, predict) for name, predict in forms.items()}
    teacher = run.teacher
    if teacher is None:
        return {name: times | {"teacher": None} for name, times in measure.measured(calls).items()}
    found = measure.measured(calls | {"teacher": own_call(teacher, model_predict(teacher.model))})
    taught = beside(found.pop("teacher"), teacher.result)
    return {name: times | {"teacher": taught} for name, times in found.items()}


def _words(result: dict[str, Any], latency: dict[str, Any]) -> str:
    times = ", ".join(f"{latency[f'batch_{size}']['median_ms']:.3g} ms at batch {size}" for size in (1, 32))
    metric = metric_of(result)
    noise = "" if latency["quiet"] else ", the machine was not quiet"
    return f"test {metric} {100 * result['metrics']['test'][metric]:.2f}, {times}{noise}"
