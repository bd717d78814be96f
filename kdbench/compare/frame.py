"""The rows for programs: flat records, and from them CSV, JSON, Parquet and a data frame. All in full precision."""

import csv
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdbench.compare.commands import join_seeds, tfidf_command
from kdbench.compare.notes import notes
from kdbench.compare.table import Row, Table

if TYPE_CHECKING:
    import pandas
    import pyarrow

JSON_SCHEMA = 3  # of `--format json`; raised when a key changes its meaning or goes


def about(table: Table) -> dict[str, str | int]:
    return {
        "dataset": table.dataset,
        "data_id": table.data_id,
        "data_split": table.data_split,
        "examples": table.examples,
    }


def records(tables: Sequence[Table], split: str) -> list[dict[str, Any]]:
    """One flat record a row; all have the same keys."""
    return [
        {**about(table), "split": split, "metric": table.metric, **_figures(table, row), "seeds": _seeds(row)}
        | row.values
        for table in tables
        for row in table.rows
    ]


def _figures(table: Table, row: Row) -> dict[str, Any]:
    """Of a row, with its tests where they were made; every row of a table has the same keys."""
    figures = dict(row.record()) | _times(table, row)
    if table.tests is None:
        return figures
    names = next(iter(table.tests.rows.values())).record()
    one = table.tests.rows.get(row.id)
    return figures | (one.record() if one else dict.fromkeys(names))


def _times(table: Table, row: Row) -> dict[str, Any]:
    """Of times measured together: spread and the fixed length too. Null where there are none."""
    found = table.session.rows.get(row.id, {}) if table.session else {}
    figures = {"measured": table.session.when if table.session else None}
    for kind in ("real", "fixed"):
        for size in (1, 32):
            one = (found.get(kind) or {}).get(f"batch_{size}", {})
            figures[f"{kind}_batch_{size}_ms"] = one.get("median_ms")
            figures[f"{kind}_batch_{size}_iqr_ms"] = one.get("iqr_ms")
        figures[f"{kind}_quiet"] = (found.get(kind) or {}).get("quiet")
    return figures | {"memory_mb": found.get("memory_mb")}


def _seeds(row: Row) -> str:
    return " ".join(str(run.seed) for run in row.runs)


def print_csv(lines: list[dict[str, Any]]) -> None:
    """All records below one line of names, which are also the keys of the JSON."""
    writer = csv.DictWriter(sys.stdout, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


def print_json(document: dict[str, Any]) -> None:
    print(json.dumps({"schema": JSON_SCHEMA, **document}, indent=2, ensure_ascii=False))


def document(tables: Sequence[Table], split: str) -> dict[str, Any]:
    """All figures, the notes, and the commands for what is missing; `metric` is null where the tables have others."""
    found = [
        {
            **about(table),
            "metric": table.metric,
            "rows": [
                _figures(table, row) | row.values | {"seeds": {run.seed: run.score for run in row.runs}}
                for row in table.rows
            ],
            "notes": notes(table, split),
            "missing_baselines": join_seeds(table.missing),
            "missing_tfidf": tfidf_command(table.runs),
        }
        for table in tables
    ]
    metrics = {table.metric for table in tables}
    return {"metric": metrics.pop() if len(metrics) == 1 else None, "split": split, "tables": found}


def _arrow(lines: list[dict[str, Any]]) -> "pyarrow.Table":
    import pyarrow

    names = list(lines[0]) if lines else []
    return pyarrow.table({name: pyarrow.array([_plain(line[name]) for line in lines]) for name in names})


def _plain(value: Any) -> Any:
    """A list in a cell, as of layers, as its JSON: a column has one type."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def write_parquet(lines: list[dict[str, Any]]) -> None:
    """The records as one Parquet file on stdout."""
    import pyarrow
    import pyarrow.parquet

    held = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(_arrow(lines), held)
    sys.stdout.buffer.write(held.getvalue().to_pybytes())


def frame(lines: list[dict[str, Any]]) -> "pandas.DataFrame":
    """The records as a data frame; counts that may be missing are pandas' nullable integers."""
    import pandas

    return pandas.DataFrame(lines).convert_dtypes()
