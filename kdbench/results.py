"""Read and write a run folder: whole files only, `results.json` last.

A file is written beside its final name and renamed into place, so a reader sees the old content or the
new, never half of it. `results.json` is written last: where it is, the run is done.
"""

import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 1  # of results.json; raised when a key changes its meaning
RESULTS = "results.json"


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically (temporary file, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    with staged.open("w", encoding="utf8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; NaN is refused because JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf8"))


def read_result(folder: Path) -> dict[str, Any] | None:
    """The finished result in `folder`, or None where the run has not finished."""
    path = folder / RESULTS
    return read_json(path) if path.is_file() else None
