"""`kdbench.load_runs`: the rows of compare-runs as a data frame."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.compare.collect import read_runs
from kdbench.compare.frame import frame, records
from kdbench.compare.keys import Wanted
from kdbench.compare.options import ordered
from kdbench.compare.rows import build_tables
from kdbench.compare.where import condition

if TYPE_CHECKING:
    import pandas


def load_frame(roots: list[Path], metric: str, split: str, where: str | None) -> "pandas.DataFrame":
    """See `kdbench.load_runs`."""
    if missing := [str(root) for root in roots if not root.is_dir()]:
        raise FileNotFoundError(f"no such folder: {', '.join(missing)}")
    asked = condition(where) if where else None
    wanted = Wanted(asked.keys if asked else ())
    runs, warnings = read_runs(roots, metric, split, wanted)
    wanted.check()
    tables = build_tables(runs, lambda run: asked is None or asked.holds(run.values))
    tables = [replace(table, rows=ordered(table.rows, None)) for table in tables]
    made = frame(records(tables, metric, split))
    made.attrs["warnings"] = warnings
    return made
