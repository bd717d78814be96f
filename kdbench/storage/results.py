"""Read and write a finished run's `results.json`, which lists every other file of the run with its digest.

It is written last, so a run that has it is finished. If a file does not match it, the run is damaged. Older runs have
neither `files` nor `sha256`, and are read unchecked.
"""

import json
from pathlib import Path
from typing import Any

from kdbench.storage import files as store
from kdbench.storage.status import STATUS

# Of results.json; raised when a key changes its meaning. `task` and `metric` (which chose on dev) came later, under
# `identity`: what has none is of one class a text, chosen by accuracy. `metrics` has what the task is judged by.
SCHEMA = 1
RESULTS = "results.json"
PREDICTIONS = "predictions.parquet"  # beside it
STAGE = "stage.json"  # a stage's record, written last: where it is and fits, the stage is done
EXPORT = "export"  # a folder that a finished run may have: what can be shipped of it
DEMO = "demo.html"  # beside it: the page that runs the exported model in a browser
MEASURED = "forms"  # beside it: a folder for each exported graph, with its results.json and predictions
_UNLISTED = (RESULTS, STATUS, "run.log")  # the log is for people, and still written to when the run is done

# Folders of finished runs, each with that of the teacher it is compared with, where one may be or not.
Runs = dict[Path, Path | None]


def write_result(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Mark the run in `folder` as finished; return what a reader will find."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in _UNLISTED]
    store.write_record(folder / RESULTS, result, files)
    return store.read_record(folder / RESULTS)


def amend_result(folder: Path, changes: dict[str, Any]) -> None:
    """Replace keys of a finished run's result; it stays finished at every moment. Raises Damaged, StoreError."""
    store.amend_record(folder / RESULTS, changes)


def metric_of(result: dict[str, Any]) -> str:
    """Return the metric that selected the run on dev and that tables show."""
    return str(result["identity"].get("metric", "accuracy"))


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of the run in `folder`; None if it is not finished. Raises Damaged."""
    return _verified(folder, only=[])


def verify_run(folder: Path) -> dict[str, Any] | None:
    """Return `read_result` after checking every file of the run. Raises Damaged."""
    return _verified(folder, only=None)


def verify_file(folder: Path, name: str) -> None:
    """Check one file of a finished run. Raises Damaged if it is not what was written."""
    _verified(folder, only=[name])


def _verified(folder: Path, only: list[str] | None) -> dict[str, Any] | None:
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        return store.verify(path, only)
    except store.Damaged:
        before = _before_digests(path)
        if before is None:
            raise
        return before


def _before_digests(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and not value.keys() & {"files", "sha256"} else None
