"""How fast finished models are, measured in turns in one process: for compare-runs --latency.

On the CPU, in torch's number of threads (OMP_NUM_THREADS), without the tokenizer.
"""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kdbench.console import quiet_libraries
from kdbench.inference import measure as evaluate
from kdbench.inference.classifier import GRAPH, graph_predict, model_predict, speed_of
from kdbench.inference.finished_run import FinishedRun, open_run
from kdbench.models import students
from kdbench.stage import Predict
from kdbench.storage.files import MANIFEST, read_json
from kdbench.storage.provenance import machine, versions

Shape = tuple[object, ...]

LENGTH = 128  # tokens of the fixed texts
ROUNDS, SECONDS = 10, 0.05  # of each model, at each batch size


def measure(folders: dict[str, Path]) -> dict[str, Any]:
    """Times (ms) and memory (MB) of the runs or exported forms in `folders`, by the same names, and the conditions.

    `real`: texts of the test split, the same for all; `fixed`: LENGTH random tokens, null for a FastBERT, whose rows
    would not leave as real ones do. `memory_mb`: by how much a fresh process grows that loads the model and answers
    32 fixed texts; null where the system does not tell. Models of one shape differ by noise alone: the first is
    measured and stands for all. Raises UserError, Damaged.
    """
    quiet_libraries()
    first: dict[Shape, str] = {}
    like = {name: first.setdefault(_shape(folder), name) for name, folder in folders.items()}
    opened = {name: _open(folders[name]) for name in first.values()}
    real = {name: call for name, (call, _) in opened.items()}
    fixed = {name: call for name, (_, call) in opened.items() if call is not None}
    times = {"real": evaluate.latency(real, rounds=ROUNDS, seconds=SECONDS)}
    times["fixed"] = evaluate.latency(fixed, rounds=ROUNDS, seconds=SECONDS)
    measured: dict[str, Any] = {
        name: {kind: of.get(name) for kind, of in times.items()} | {"memory_mb": _fresh_memory(folders[name])}
        for name in first.values()
    }
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "rounds": ROUNDS,
        "fixed_length": LENGTH,
        "versions": versions(),
        "rows": {name: measured[like[name]] for name in folders},
    }


def _shape(folder: Path) -> Shape:
    """What a model's time depends on: its form, the length of its texts, its configuration and tokenizer; of a FastBERT
    the weights too, by which rows leave (the manifest has their digest)."""
    run, graph = _run(folder)
    whole = students.model_type(run.model) == "kdbench_fastbert"
    files = [path for path in sorted(run.model.glob("*.json")) if whole or path.name != MANIFEST]
    return folder.name if graph else None, run.dataset.max_length, *(path.read_bytes() for path in files)


def _open(folder: Path) -> tuple[evaluate.Call, evaluate.Call | None]:
    """Over real texts and over fixed ones."""
    run, predict = _model(folder)
    return _real(run, predict), _fixed(run, predict)


def _run(folder: Path) -> tuple[FinishedRun, bool]:
    """That `folder` is of, and whether it is the graph of an exported form (RUN/export/<form>)."""
    graph = (folder / GRAPH).is_file()
    return open_run(folder.parents[1] if graph else folder), graph


def _model(folder: Path) -> tuple[FinishedRun, Predict]:
    run, graph = _run(folder)
    return run, graph_predict(folder / GRAPH, speed_of(run.model)) if graph else model_predict(run.model)


def _real(run: FinishedRun, predict: Predict) -> evaluate.Call:
    return evaluate.examples_call(lambda batch: predict(batch, 0), run.examples(run.data.test))


def _fixed(run: FinishedRun, predict: Predict) -> evaluate.Call | None:
    config = read_json(run.model / "config.json")
    if students.model_type(run.model) == "kdbench_fastbert":
        return None
    length = min(LENGTH, config.get("max_position_embeddings", LENGTH))
    return evaluate.model_call(lambda batch: predict(batch, 0), length, config["vocab_size"], run.pairs)


def _fresh_memory(folder: Path) -> float | None:
    """`_memory` in a process that has done nothing else."""
    command = [sys.executable, "-m", "kdbench.inference.latency", str(folder)]
    found: float | None = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def _memory(folder: Path) -> float | None:
    before = _peak_mb()
    run, predict = _model(folder)
    call = _fixed(run, predict) or _real(run, predict)
    call(32, 0)
    after = _peak_mb()
    return None if before is None or after is None else after - before


def _peak_mb() -> float | None:
    """The most memory that this process has had. Not ru_maxrss, which counts what its parent had, too."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf8").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


if __name__ == "__main__":
    print(json.dumps(_memory(Path(sys.argv[1]))))
