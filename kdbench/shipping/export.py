"""Export a finished run into `export/` in its folder, completely or not at all.

export/             a plain Hugging Face folder: config.json, model.safetensors, the tokenizer, README.md (the model
                    card); and config.yaml, the settings of the run
export/onnx/        model.onnx and model_quantized.onnx
export/openvino/    openvino_model.xml and .bin
forms/<form>/       what was measured of each graph, as a run has it: a row of compare-runs

export/ can be uploaded: it has no texts, no predictions, and no paths or names of this machine. Those are in forms/.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from kdbench.compare.columns import number
from kdbench.console import quiet_libraries
from kdbench.data.teacher_cache import compute_outputs
from kdbench.data.tokenize import load_tokenizer
from kdbench.errors import Code, UserError
from kdbench.inference import measure
from kdbench.inference.calibration import CALIBRATION, calibration_of, probability_figures
from kdbench.inference.classifier import graph_predict, model_predict, speed_of
from kdbench.inference.finished_run import FinishedRun, open_run
from kdbench.inference.forms import FORMS, graph_bytes
from kdbench.inference.int8 import AWARE, DEFAULT
from kdbench.inference.latency import beside, own_call
from kdbench.inference.onnx import to_fp16, to_onnx
from kdbench.inference.openvino import require_openvino, to_openvino
from kdbench.models import students
from kdbench.models.network import Network, view
from kdbench.schema import ExportConfig
from kdbench.shipping.best_int8 import best_int8, write_int8
from kdbench.shipping.card import Forms, model_card
from kdbench.shipping.portable import portable_settings
from kdbench.sources.foreign import WEIGHTS
from kdbench.stage import Predict
from kdbench.storage import files as store
from kdbench.storage.cache import locked_hidden
from kdbench.storage.files import (
    explained,
    filling,
    read_json,
    remove,
    remove_leftovers,
    write_bytes,
    write_json,
    write_text,
)
from kdbench.storage.predictions import predictions_file
from kdbench.storage.provenance import instructions, machine, source_state, versions
from kdbench.storage.results import EXPORT, MEASURED, PREDICTIONS, RESULTS, metric_of, write_result
from kdbench.tasks import kind
from kdbench.validation.load import digest

log = logging.getLogger("kdbench")


def export_run(folder: Path, wanted: ExportConfig, max_loss: float | None = None) -> Path:
    """Export the finished run in `folder` and return the new folder, which replaces an earlier export.

    `max_loss`: the int8 graph is the fastest that loses at most so many points on dev. None: only one is made.

    Each graph that is `wanted` is measured on dev and test, and the first is compared with the PyTorch model. Raises
    UserError if the run cannot be exported, Damaged, StoreError. Then an earlier export stays as it was.
    """
    quiet_libraries()
    run = open_run(folder)
    require_forms(run, wanted, max_loss is not None)
    target, measured = run.folder / EXPORT, run.folder / MEASURED
    torch.set_num_threads(run.result["threads"])  # so that its times are comparable with the run's
    with explained(target), locked_hidden(run.folder):
        remove_leftovers(run.folder)
        with filling(measured) as records, filling(target) as staged:
            copy_reader(run, staged)
            shutil.copy(run.model / WEIGHTS, staged)
            into_weights(staged)
            network = view(students.load(staged)) if wanted.forms else None
            forms = write_forms(run, network, staged, records, wanted, max_loss) if network else None
            write_text(staged / "README.md", model_card(run, forms))
        if not wanted.forms:
            remove(measured)
    return target


def into_weights(folder: Path) -> None:
    """Put the temperature of the model in a folder into its weights, so that its logits are calibrated without kdbench.

    Thresholds stay in calibration.json.
    """
    found = calibration_of(folder)
    if found.temperature == 1:
        return
    model = students.load(folder)
    view(model).divide_logits(found.temperature)
    view(model).save(folder)
    (folder / CALIBRATION).unlink()
    if found.thresholds:
        (folder / CALIBRATION).write_bytes(replace(found, temperature=1.0).content)


def has_export(folder: Path, wanted: ExportConfig) -> bool:
    """Return whether the run has an undamaged export with all graphs that are `wanted`."""
    try:
        for name in (EXPORT, MEASURED):
            store.verify(folder / name / store.MANIFEST)
    except store.Damaged:
        return False
    places = ((folder / EXPORT / FORMS[name].file, folder / MEASURED / name / RESULTS) for name in wanted.forms)
    if not all(path.is_file() for pair in places for path in pair):
        return False
    return not wanted.qat or read_json(folder / MEASURED / "int8" / RESULTS)["quantisation"]["way"] == AWARE


def require_forms(run: FinishedRun, wanted: ExportConfig, best: bool = False) -> None:
    """Raise UserError if the architecture does not have a form, or a package is missing.

    `best`: whether several ways to quantise are tried.
    """
    own = students.folder_traits(run.model)
    branches = "needs a graph without branches" if own.early_exit else ""
    problems = {
        "--int8": "int8" in wanted.forms and own.no_int8,
        "--best-int8": best and branches,
        "--qat": wanted.qat and branches,
        "--fp16": wanted.fp16 and (own.no_int8 or branches),
        "--openvino": wanted.openvino and own.no_openvino,
    }
    for option, problem in problems.items():
        if problem:
            raise UserError(Code.UNSUPPORTED_EXPORT, f"{option} {problem}: use --onnx")
    if wanted.openvino:
        require_openvino()


def copy_reader(run: FinishedRun, staged: Path) -> None:
    """Copy the model's folder, all but its weights, and the settings. The tokenizer gets the length of training."""
    for path in run.model.iterdir():  # copytree hides why the system refuses a file
        if path.name not in (store.MANIFEST, WEIGHTS):
            shutil.copy(path, staged)
    write_text(staged / "config.yaml", OmegaConf.to_yaml(portable_settings(run.config)))
    tokenizer = load_tokenizer(staged)
    tokenizer.model_max_length = run.max_length
    tokenizer.save_pretrained(staged)
    write_json(staged / "special_tokens_map.json", tokenizer.special_tokens_map)  # which older programs ask for


def write_forms(
    run: FinishedRun,
    network: Network,
    staged: Path,
    records: Path,
    wanted: ExportConfig,
    max_loss: float | None = None,
    prefix: str = "",
    changes: Mapping[str, Any] | None = None,
) -> Forms:
    """Write the graphs of `network` into `staged`, and what was measured of each into a folder of `records`.

    `prefix` begins the names of the forms in tables, and `changes` are keys of the record that are not the run's.
    """
    paths = {name: staged / FORMS[name].file for name in wanted.forms}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
    difference = to_onnx(network, paths["onnx"], run.pairs and network.token_types)
    log.info("onnx: differs from PyTorch by %.1e at most", difference)
    told = {}
    if "int8" in paths and max_loss is not None:
        told["int8"] = {"quantisation": best_int8(run, paths["onnx"], paths["int8"], max_loss, wanted.qat)}
    elif "int8" in paths:
        way = AWARE if wanted.qat else DEFAULT
        write_int8(run, paths["onnx"], paths["int8"], way)
        told["int8"] = {"quantisation": {"way": way}}
    if "fp16" in paths:
        to_fp16(paths["onnx"], paths["fp16"])
    if "openvino" in paths:
        to_openvino(paths["onnx"], paths["openvino"])
    graphs = {name: graph_predict(path, speed_of(run.model)) for name, path in paths.items()}
    log.info("measuring the time of %s and of PyTorch, in turns", ", ".join(paths))
    latency = _latency(run, {"pytorch": lambda batch, step: network.forward(batch)} | graphs)
    log.info("pytorch: %s", _words(run.result, latency["pytorch"]))
    results = []
    for name, predict in graphs.items():
        (records / name).mkdir()
        more = {"latency": latency[name], "bytes": graph_bytes(paths[name])} | told.get(name, {}) | dict(changes or {})
        more["form"] = prefix + name
        result = _write_record(run, records / name, predict, more)
        log.info("%s: %s, %.1f MB", name, _words(result, latency[name]), result["bytes"] / 1e6)
        results.append(result)
    return Forms(results, difference, latency["pytorch"])


def _write_record(run: FinishedRun, folder: Path, predict: Predict, more: dict[str, Any]) -> dict[str, Any]:
    """Evaluate a graph and write its record into `folder`: the run's, with the figures of this form, and `more`."""
    splits = {"dev": run.data.dev, "test": run.data.test}
    examples = {name: run.examples(split) for name, split in splits.items()}
    logits = {name: one.by_example(compute_outputs(one, predict)) for name, one in examples.items()}
    task, names = run.dataset.task, run.data.label_names
    probable = students.folder_traits(run.model).probabilities
    answered = {name: (split.ids, split.labels, logits[name]) for name, split in splits.items()}
    write_bytes(folder / PREDICTIONS, predictions_file(task, names, answered))
    shutil.copy(run.folder / "config.yaml", folder)
    ids: dict[str, Any] = {
        key: digest({"run": more.get("exported_from", run.result[key]), "form": folder.name})
        for key in ("id", "id_without_teacher_seed")
        if key in run.result
    }
    result = run.result | {
        **ids,
        "form": folder.name,
        "exported_from": run.result["id"],
        "metrics": {
            name: kind(task).judge(split.labels, logits[name], names)
            | (probability_figures(task, split.labels, logits[name]) if probable else {})
            for name, split in splits.items()
        },
        "calibration": None,  # that of the run is in the weights
        "stages": [],  # those of the run
        "reported": {},
        **more,
        "latency": run.result["latency"] | {"device": "cpu"} | more["latency"],
        "machine": machine(),
        "instructions": instructions(),
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
    times = ", ".join(f"{number(latency[f'batch_{size}']['median_ms'])} ms at batch {size}" for size in (1, 32))
    metric = metric_of(result)
    noise = "" if latency["quiet"] else ", the machine was not quiet"
    return f"test {metric} {100 * result['metrics']['test'][metric]:.2f}, {times}{noise}"
