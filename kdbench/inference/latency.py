"""Measure the latency of finished models: at the end of a command, and for compare-runs --latency.

The models take turns in one process, with the same number of threads. The tokenizer is not timed.
"""

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.console import quiet_libraries
from kdbench.inference import measure
from kdbench.inference.calibration import CALIBRATION
from kdbench.inference.classifier import graph_predict, model_predict, speed_of
from kdbench.inference.finished_run import FinishedRun, open_run
from kdbench.inference.forms import FORMS, graph_file
from kdbench.models import students
from kdbench.stage import Batch, Predict
from kdbench.storage.files import MANIFEST, read_json
from kdbench.storage.provenance import machine, versions
from kdbench.storage.results import EXPORT, MEASURED, Runs, read_result

log = logging.getLogger("kdbench")
Shape = tuple[object, ...]

LENGTH = 128  # tokens of the fixed texts


def together(runs: Runs) -> dict[Path, dict[str, Any]]:
    """Measure the networks among `runs` and their teachers. Return `latency` of results.json by the folder of the run.

    All models are measured on the device and with the number of threads of the first run. Times of models of one shape
    differ by noise only, so only the first one is measured. Raises UserError, Damaged.
    """
    quiet_libraries()
    folders = dict.fromkeys([*runs, *(teacher for teacher in runs.values() if teacher is not None)])
    kept = (folder for folder in folders if (folder / "model").is_dir())
    results = {folder: result for folder in kept if (result := read_result(folder)) is not None}
    if not results:
        return {}
    first: dict[Shape, Path] = {}
    like = {folder: first.setdefault(_shape(folder / "model", result["latency"]["length"]), folder)
            for folder, result in results.items()}  # fmt: skip
    conditions = {key: next(iter(results.values()))["latency"][key] for key in ("device", "threads")}
    torch.set_num_threads(conditions["threads"])
    log.info("measuring the latency of the models in turns (models: %d, shapes: %d)", len(results), len(first))
    calls = {
        (folder, speed): call
        for folder in first.values()
        for speed, call in _at_speeds(open_run(folder), conditions["device"]).items()
    }
    times = measure.measured(calls)

    def latency(folder: Path) -> dict[str, Any]:
        of, teacher = like[folder], runs[folder]
        by_speed = {f"{speed:g}": times[one, speed] for one, speed in calls if one == of and speed is not None}
        taught = None if teacher not in like else beside(times[like[teacher], None], results[teacher])
        return conditions | times[of, None] | {"teacher": taught} | ({"by_speed": by_speed} if by_speed else {})

    return {folder: latency(folder) for folder in runs if folder in like}


def _at_speeds(run: FinishedRun, device: str) -> dict[float | None, measure.Call]:
    """Return the calls to time: under None the model as it is, and a FastBERT also at each of its `timed_speeds`."""
    model = students.load(run.model).to(device)

    def predict(batch: Batch, step: int) -> Tensor:
        return students.forward(model, {name: value.to(device) for name, value in batch.items()})  # type: ignore[arg-type, attr-defined]

    call = own_call(run, predict)
    speeds = run.result["identity"]["parameters"].get("timed_speeds")
    if speeds is None:
        return {None: call}

    def at(speed: float) -> measure.Call:
        def timed(size: int, turn: int) -> object:
            model.speed = speed
            return call(size, turn)

        return timed

    return {None: at(model.speed)} | {speed: at(speed) for speed in speeds}


def beside(times: dict[str, Any], teacher: dict[str, Any]) -> dict[str, Any]:
    """Return `latency.teacher` of results.json, from the teacher's times (ms) and its results."""
    return {key: teacher[key] for key in ("id", "seed")} | {key: times[key] for key in ("batch_1", "batch_32", "quiet")}


def own_call(run: FinishedRun, predict: Predict) -> measure.Call:
    """Return a call of `predict` on random texts of the run's length.

    For FastBERT and TF-IDF, whose time depends on the words, it is on test texts.
    """
    if _by_words(run.model):
        return _real(run, predict)
    return measure.model_call(predict, run.dataset.max_length, _shape_config(run)["vocab_size"], run.pairs)


def _shape_config(run: FinishedRun) -> dict[str, Any]:
    """Return config.json, or that of the encoder that the model is around."""
    config: dict[str, Any] = read_json(run.model / "config.json")
    return config.get("encoder") or config


def measure_folders(folders: dict[str, Path]) -> dict[str, Any]:
    """Measure times (ms) and memory (MiB) of the runs or exported forms in `folders`. Return them with the conditions.

    `rows` has an entry for each name in `folders`:

    - `real`: times on texts of the test split, the same for all models.
    - `fixed`: times on LENGTH random tokens. It is None for a FastBERT, which would exit at other layers than on texts.
    - `memory_mb`: by how much a new process grows that loads the model and answers 32 fixed texts.

    Times of models of one shape differ by noise only, so only the first one is measured. Raises UserError, Damaged.
    """
    quiet_libraries()
    first: dict[Shape, str] = {}
    like = {name: first.setdefault(_shape_of(folder), name) for name, folder in folders.items()}
    models = {name: _model(folders[name]) for name in first.values()}
    real = {name: _real(*model) for name, model in models.items()}
    fixed = {name: call for name, model in models.items() if (call := _fixed(*model)) is not None}
    times = {"real": measure.measured(real), "fixed": measure.measured(fixed)}
    measured: dict[str, Any] = {
        name: {kind: of.get(name) for kind, of in times.items()} | {"memory_mb": _fresh_memory(folders[name])}
        for name in first.values()
    }
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "fixed_length": LENGTH,
        "versions": versions(),
        "rows": {name: measured[like[name]] for name in folders},
    }


def _shape(model: Path, length: int | None, form: str | None = None) -> Shape:
    """Return what a model's time depends on: form, length of the texts, configuration and tokenizer.

    A FastBERT's exits also depend on its weights, whose digest is in the manifest. A temperature takes no time.
    """
    idle = {CALIBRATION} if _by_words(model) else {CALIBRATION, MANIFEST}
    files = [path for path in sorted(model.glob("*.json")) if path.name not in idle]
    return form, length, *(path.read_bytes() for path in files)


def _by_words(model: Path) -> bool:
    """Return whether the model's time depends on the words of a text, not only on their number."""
    own = students.folder_traits(model)
    return own.early_exit or own.whole_texts


def _shape_of(folder: Path) -> Shape:
    """Return the shape of a run or of an exported form, after a check of all its files."""
    run, graph = _run(folder)
    return _shape(run.model, run.dataset.max_length, folder.name if graph else None)


def _run(folder: Path) -> tuple[FinishedRun, Path | None]:
    """Return the run that `folder` belongs to, and its exported graph if `folder` is RUN/forms/<form>.

    Raises UserError if the graph is missing.
    """
    if folder.parent.name != MEASURED:
        return open_run(folder), None
    run = folder.parents[1]
    return open_run(run), graph_file(run / EXPORT / FORMS[folder.name].file)


def _model(folder: Path) -> tuple[FinishedRun, Predict]:
    run, graph = _run(folder)
    return run, model_predict(run.model) if graph is None else graph_predict(graph, speed_of(run.model))


def _real(run: FinishedRun, predict: Predict) -> measure.Call:
    return measure.examples_call(predict, run.examples(run.data.test))


def _fixed(run: FinishedRun, predict: Predict) -> measure.Call | None:
    config = _shape_config(run)
    if students.folder_traits(run.model).early_exit:
        return None
    length = min(LENGTH, config.get("max_position_embeddings", LENGTH))
    return measure.model_call(predict, length, config["vocab_size"], run.pairs)


def _fresh_memory(folder: Path) -> float:
    """Return `_memory` of a new process."""
    command = [sys.executable, "-m", "kdbench.inference.latency", str(folder)]
    found: float = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def _memory(folder: Path) -> float:
    before = measure.peak_mb()
    run, predict = _model(folder)
    call = _fixed(run, predict) or _real(run, predict)
    call(32, 0)
    return measure.peak_mb() - before


if __name__ == "__main__":
    print(json.dumps(_memory(Path(sys.argv[1]))))
