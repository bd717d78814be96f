"""`kdbench.load_runs`: the rows of compare-runs as a data frame; and when tests are made."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.compare.collect import read_runs
from kdbench.compare.frame import frame, records
from kdbench.compare.keys import Wanted
from kdbench.compare.options import TESTED, ordered
from kdbench.compare.rows import build_tables
from kdbench.compare.table import Table
from kdbench.compare.where import condition
from kdbench.storage.results import PREDICTIONS

if TYPE_CHECKING:
    import pandas


def with_tests(table: Table, metric: str, split: str, asked: bool | None) -> Table:
    """With its tests: where they were asked for, or where nothing was said and few rows have predictions."""
    paths = (run.path.with_name(PREDICTIONS) for row in table.rows for run in row.runs)
    few = len(table.rows) <= TESTED and any(path.is_file() for path in paths)
    if not (few if asked is None else asked):
        return table
    from kdbench.compare.testing import tests  # scipy

    made = tests(table, metric, split)
    if not made.rows:
        return table
    unsure = {id_ for id_, one in made.rows.items() if one.gap_may_be_zero}
    rows = [replace(row, gap_closed=None) if row.id in unsure else row for row in table.rows]
    return replace(table, tests=made, rows=rows)


def load_frame(
    roots: list[Path], metric: str | None, split: str, where: str | None, tests: bool | None
) -> "pandas.DataFrame":
    """See `kdbench.load_runs`."""
    if missing := [str(root) for root in roots if not root.is_dir()]:
        raise FileNotFoundError(f"no such folder: {', '.join(missing)}")
    asked = condition(where) if where else None
    wanted = Wanted(asked.keys if asked else ())
    runs, warnings = read_runs(roots, metric, split, wanted)
    wanted.check()
    tables = build_tables(runs, lambda run: asked is None or asked.holds(run.values))
    tables = [replace(table, rows=ordered(table.rows, None)) for table in tables]
    tables = [with_tests(table, table.metric, split, tests) for table in tables]
    made = frame(records(tables, split))
    made.attrs["warnings"] = warnings + [line for table in tables if table.tests for line in table.tests.warnings]
    return made
