"""The rows for programs: flat records in full precision, as CSV, JSON, Parquet or a data frame."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.compare.collect import read_runs
from kdbench.compare.keys import Wanted
from kdbench.compare.notes import join_seeds, notes
from kdbench.compare.rows import build_tables, ordered
from kdbench.compare.table import Row, Table
from kdbench.compare.where import condition

if TYPE_CHECKING:
    import pandas

JSON_SCHEMA = 4  # of --format json; raised if a key changes its meaning or goes


def load_frame(
    roots: list[Path], metric: str | None, split: str, where: str | None, tests: bool | None
) -> "pandas.DataFrame":
    """See `kdbench.load_runs`."""
    import pandas

    from kdbench.compare.testing import with_tests

    if missing := [str(root) for root in roots if not root.is_dir()]:
        raise FileNotFoundError(f"no such folder: {', '.join(missing)}")
    chosen = condition(where) if where else None
    wanted = Wanted(chosen.keys if chosen else ())
    runs, warnings = read_runs(roots, metric, split, wanted)
    wanted.check()
    tables = build_tables(runs, lambda run: chosen is None or chosen.holds(run.values))
    tables = [with_tests(replace(table, rows=ordered(table.rows, None)), tests) for table in tables]
    made = pandas.DataFrame(records(tables)).convert_dtypes()  # counts with gaps become nullable integers
    made.attrs["warnings"] = warnings + [line for table in tables if table.tests for line in table.tests.warnings]
    return made


def records(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Return one flat record for each row, all with the same keys."""
    found = [
        {**about(table), "split": table.split, "metric": table.metric, **figures}
        | {"seeds": " ".join(str(run.seed) for run in row.runs)}
        | row.values
        | {key: row.mean(key) for key in table.shown}
        for table in tables
        for row, figures in zip(table.rows, _figures(table), strict=True)
    ]
    empty = dict.fromkeys(key for one in found for key in one)  # not every table has tests
    return [empty | one for one in found]


def about(table: Table) -> dict[str, str | int]:
    return {"dataset": table.dataset, "examples_id": table.examples_id, "examples": table.examples}


def _figures(table: Table) -> Iterator[dict[str, Any]]:
    """Yield the figures of each row; all rows of a table have the same keys."""
    tested = next((row.tests for row in table.rows if row.tests), None)
    untested = dict.fromkeys(tested.record() if tested else ())
    for row in table.rows:
        yield row.record() | _times(table, row) | (row.tests.record() if row.tests else untested)


def _times(table: Table, row: Row) -> dict[str, Any]:
    """Return the times of the --latency measurement, null if there is none."""
    found = table.session.rows.get(row.id, {}) if table.session else {}
    figures = {"measured": table.session and table.session.when}
    for kind in ("real", "fixed"):
        measured = found.get(kind, {})
        for size in (1, 32):
            one = measured.get(f"batch_{size}", {})
            figures[f"{kind}_batch_{size}_ms"] = one.get("median_ms")
            figures[f"{kind}_batch_{size}_iqr_ms"] = one.get("iqr_ms")
        figures[f"{kind}_quiet"] = measured.get("quiet")
    return figures | {"memory_mb": found.get("memory_mb")}


def document(tables: Sequence[Table]) -> dict[str, Any]:
    """Return all figures, notes, and commands for what is missing; `metric` is null if the tables differ in it."""
    found = [
        {
            **about(table),
            "metric": table.metric,
            "rows": [
                figures
                | row.values
                | {key: row.mean(key) for key in table.shown}
                | {"seeds": {run.seed: run.score for run in row.runs}}
                for row, figures in zip(table.rows, _figures(table), strict=True)
            ],
            "notes": notes(table),
            "missing_baselines": join_seeds(table.missing),
            "missing_tfidf": table.missing_tfidf,
        }
        for table in tables
    ]
    metrics = {table.metric for table in tables}
    return {"metric": metrics.pop() if len(metrics) == 1 else None, "split": tables[0].split, "tables": found}


def print_csv(lines: list[dict[str, Any]]) -> None:
    """Print the records below one line of names, which are also the keys of the JSON."""
    writer = csv.DictWriter(sys.stdout, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


def print_json(content: dict[str, Any]) -> None:
    print(json.dumps({"schema": JSON_SCHEMA, **content}, indent=2, ensure_ascii=False))


def write_parquet(lines: list[dict[str, Any]]) -> None:
    """Write the records to stdout as one Parquet file."""
    import pyarrow
    import pyarrow.parquet

    plain = [{key: _plain(value) for key, value in line.items()} for line in lines]
    content = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), content)
    sys.stdout.buffer.write(content.getvalue().to_pybytes())


def _plain(value: Any) -> Any:
    """Return a list in a cell, as of layers, as its JSON, because a column has one type."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value
