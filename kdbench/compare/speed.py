"""Times of a table's rows that were measured in turns, not each when its run ended: compare-runs --latency.

What was measured is kept in the first ROOT, latency-<data id>.json, and shown again while it covers the rows shown.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.compare.columns import NOTHING, Column, Sheet, number
from kdbench.compare.rows import Row, Table
from kdbench.storage.files import Damaged, read_record, write_record

SCHEMA = 1  # of the kept file
LEGEND = (
    "Median ± half the interquartile range of the rounds, in which the models took turns: real test texts, the same "
    "for all, and random texts of a fixed length, both without the tokenizer. Of models of one shape (configuration, "
    "tokenizer, form) the first was measured for all. memory: by how much a fresh process grows that loads the model "
    "and answers 32 texts of the fixed length."
)


@dataclass(frozen=True)
class Session:
    """What one measurement found."""

    when: str
    machine: str
    threads: int
    rounds: int
    fixed_length: int
    rows: dict[str, Any]  # by id: real, fixed -> batch_1, batch_32 -> median_ms, iqr_ms, p95_ms; memory_mb

    def ms(self, row: Row, kind: str, size: int) -> float | None:
        found = self.rows.get(row.id, {}).get(kind)
        return found[f"batch_{size}"]["median_ms"] if found else None


def with_speed(table: Table, root: Path, again: bool, quiet: bool) -> Table:
    """The table with times measured together: now, or as kept in `root` where that covers its rows.

    Raises what `kdbench.inference.latency.measure` does, StoreError.
    """
    path = root / f"latency-{table.data_id}.json"
    timed = {row.id: row.runs[0].path.parent for row in [*table.rows, *_teachers(table)] if row.runs[0].has_model}
    if again and not quiet:
        print(f"compare-runs: measuring {len(timed)} models, of a shape one: this takes minutes", file=sys.stderr)
    session = _measured(path, timed) if again else _kept(path)
    if session is None or not timed.keys() <= session.rows.keys():
        return table
    return replace(table, session=session, rows=[_timed(row, table, session) for row in table.rows])


def _measured(path: Path, timed: dict[str, Path]) -> Session:
    from kdbench.inference.latency import measure  # torch: only for who asks for a measurement

    write_record(path, {"schema": SCHEMA} | measure(timed))
    session = _kept(path)
    assert session is not None
    return session


def _kept(path: Path) -> Session | None:
    try:
        found = read_record(path)
    except Damaged:  # or none there: it is measured again by who wants it
        return None
    if found.pop("schema") != SCHEMA:
        return None
    del found["versions"]
    return Session(**found)


def _teachers(table: Table) -> list[Row]:
    return [row for row in table.every if row.role == "teacher"]


def _timed(row: Row, table: Table, session: Session) -> Row:
    """With the times of the session in place of those of its runs; what keeps no model, as TF-IDF, keeps these."""
    teachers = {one.id: one for one in _teachers(table)}
    shown = [one for one in table.rows if one.role == "teacher"]  # a run without a teacher is held against this one
    sole = next((group[0] for group in (shown, list(teachers.values())) if len(group) == 1), None)
    own = row.runs[0].teacher
    teacher = teachers.get(own.id if own else row.id, sole)
    slow = session.ms(teacher, "real", 1) if teacher else None
    if row.id in session.rows:
        row = replace(row, latency_1=session.ms(row, "real", 1), latency_32=session.ms(row, "real", 32))
    return replace(row, speedup=slow / row.latency_1 if slow and row.latency_1 else None)


def sheet(table: Table) -> Sheet:
    """A line a row that was measured; `table.session` must be there."""
    session = table.session
    assert session is not None
    rows = [row for row in table.rows if row.id in session.rows]
    fixed = f"{session.fixed_length} tokens"
    columns = [
        Column("method", [f"{row.label} {row.settings}".strip() for row in rows], left=True),
        Column("id", [row.id for row in rows], left=True),
        Column("real texts\nbatch 1, ms", [_spread(session, row, "real", 1) for row in rows]),
        Column("\nbatch 32, ms", [_spread(session, row, "real", 32) for row in rows]),
        Column("times\nfaster", [number(row.speedup) for row in rows]),
        Column(f"{fixed}\nbatch 1, ms", [_spread(session, row, "fixed", 1) for row in rows], drop=2),
        Column("\nbatch 32, ms", [_spread(session, row, "fixed", 32) for row in rows], drop=2),
        Column("file\nMB", [number(row.runs[0].bytes, 1e-6) for row in rows], drop=1),
        Column("memory\nMB", [number(session.rows[row.id]["memory_mb"]) for row in rows], drop=1),
    ]
    heading = f"{table.dataset}: speed on the CPU, {session.threads} thread{'s' * (session.threads > 1)}"
    about = f"Measured together, {session.rounds} rounds, {session.when}, on {session.machine}."
    left = ", ".join(f"{row.label} ({row.id})" for row in table.rows if row.id not in session.rows)
    notes = [about] + ([f"Not measured again, their runs keep no network: {left}."] if left else [])
    return Sheet(heading, columns, notes=notes, legend=LEGEND)


def _spread(session: Session, row: Row, kind: str, size: int) -> str:
    found = session.rows[row.id][kind]
    if not found:
        return NOTHING
    one = found[f"batch_{size}"]
    return f"{number(one['median_ms'])} ± {number(one['iqr_ms'] / 2)}"
