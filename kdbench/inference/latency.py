"""How fast finished models are, measured in turns in one process: when a command ends, and for compare-runs --latency.

In one number of threads, without the tokenizer.
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
from kdbench.inference.classifier import GRAPH, graph_predict, model_predict, speed_of
from kdbench.inference.finished_run import FinishedRun, open_run
from kdbench.models import students
from kdbench.stage import Batch, Predict
from kdbench.storage.files import MANIFEST, read_json
from kdbench.storage.provenance import machine, versions
from kdbench.storage.results import Runs, read_result

log = logging.getLogger("kdbench")
Shape = tuple[object, ...]

LENGTH = 128  # tokens of the fixed texts


def together(runs: Runs) -> dict[Path, dict[str, Any]]:
    """The times of the networks among `runs`, as `latency` of results.json has them, each beside its teacher's.

    All are measured on the device and in the threads of the first. Models of one shape differ by noise alone: the first
    is measured and stands for all. Raises UserError, Damaged.
    """
    quiet_libraries()
    folders = dict.fromkeys([*runs, *(teacher for teacher in runs.values() if teacher is not None)])
    found = {folder: read_result(folder) for folder in folders if (folder / "model").is_dir()}
    results = {folder: result for folder, result in found.items() if result is not None}
    if not results:
        return {}
    first: dict[Shape, Path] = {}
    like = {folder: first.setdefault(_shape(folder / "model", result["latency"]["length"]), folder)
            for folder, result in results.items()}  # fmt: skip
    conditions = {key: next(iter(results.values()))["latency"][key] for key in ("device", "threads")}
    torch.set_num_threads(conditions["threads"])
    log.info("measuring the latency of the models in turns (%d models, %d different shapes)", len(results), len(first))
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
    """What is timed of a run: its model, under None, and a FastBERT at each of its `timed_speeds`."""
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
    """The times of a run's `teacher`, which took turns with it, as the run's `latency` has them."""
    return {key: teacher[key] for key in ("id", "seed")} | {key: times[key] for key in ("batch_1", "batch_32", "quiet")}


def own_call(run: FinishedRun, predict: Predict) -> measure.Call:
    """`predict` over random texts as long as the run's; where their words matter (FastBERT, TF-IDF) over test texts."""
    if _by_words(run.model):
        return _real(run, predict)
    vocabulary = read_json(run.model / "config.json")["vocab_size"]
    return measure.model_call(lambda batch: predict(batch, 0), run.dataset.max_length, vocabulary, run.pairs)


def measure_folders(folders: dict[str, Path]) -> dict[str, Any]:
    """Times (ms) and memory (MB) of the runs or exported forms in `folders`, by the same names, and the conditions.

    `real`: texts of the test split, the same for all; `fixed`: LENGTH random tokens, null for a FastBERT, whose rows
    would not leave as real ones do. `memory_mb`: by how much a fresh process grows that loads the model and answers
    32 fixed texts; null where the system does not tell. Models of one shape differ by noise alone: the first is
    measured and stands for all. Raises UserError, Damaged.
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
    """What a model's time depends on: its form, the length of its texts, its configuration and tokenizer; of a FastBERT
    the weights too, by which rows leave (the manifest has their digest)."""
    files = [path for path in sorted(model.glob("*.json")) if _by_words(model) or path.name != MANIFEST]
    return form, length, *(path.read_bytes() for path in files)


def _by_words(model: Path) -> bool:
    """Return whether the model's time depends on the words of a text, not on their number alone."""
    own = students.folder_traits(model)
    return own.early_exit or own.whole_texts


def _shape_of(folder: Path) -> Shape:
    """Of a run or of an exported form, all of whose files are read and found whole."""
    run, graph = _run(folder)
    return _shape(run.model, run.dataset.max_length, folder.name if graph else None)


def _run(folder: Path) -> tuple[FinishedRun, bool]:
    """That `folder` is of, and whether it is the graph of an exported form (RUN/export/<form>)."""
    graph = (folder / GRAPH).is_file()
    return open_run(folder.parents[1] if graph else folder), graph


def _model(folder: Path) -> tuple[FinishedRun, Predict]:
    run, graph = _run(folder)
    return run, graph_predict(folder / GRAPH, speed_of(run.model)) if graph else model_predict(run.model)


def _real(run: FinishedRun, predict: Predict) -> measure.Call:
    return measure.examples_call(lambda batch: predict(batch, 0), run.examples(run.data.test))


def _fixed(run: FinishedRun, predict: Predict) -> measure.Call | None:
    config = read_json(run.model / "config.json")
    if students.folder_traits(run.model).early_exit:
        return None
    length = min(LENGTH, config.get("max_position_embeddings", LENGTH))
    return measure.model_call(lambda batch: predict(batch, 0), length, config["vocab_size"], run.pairs)


def _fresh_memory(folder: Path) -> float:
    """`_memory` in a process that has done nothing else."""
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
