"""Times of a table's rows that were measured in turns, not each when its run ended: compare-runs --latency.

What was measured is kept in the first ROOT, latency-<data id>.json, and shown again while it covers the rows shown.
"""

import sys
from dataclasses import replace
from pathlib import Path

from kdbench.compare.columns import Column, Sheet, number, time
from kdbench.compare.rows import ratio
from kdbench.compare.table import Row, Session, Table, Times
from kdbench.storage.files import Damaged, read_record, write_record

SCHEMA = 2  # of the kept file
LEGEND = (
    "Median ± half the interquartile range; the models took turns; ? where the machine was not quiet. Real test texts, "
    "the same for all, and random texts of a fixed length, both without the tokenizer. Of models of one shape "
    "(configuration, tokenizer, form) the first was measured for all. memory: by how much a fresh process grows that "
    "loads the model and answers 32 texts of the fixed length."
)


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
    if again and not quiet and not all(one["real"]["quiet"] for one in session.rows.values()):
        print("compare-runs: the machine was not quiet; --latency measures again when it is", file=sys.stderr)
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
    slow, fast = (session.times(one, "real") if one else None for one in (teacher, row))
    return replace(row, times=fast or row.times, speedup=ratio(slow, fast) if slow and fast else None)


def sheet(table: Table) -> Sheet:
    """A line a row that was measured; `table.session` must be there."""
    session = table.session
    assert session is not None
    rows = [row for row in table.rows if row.id in session.rows]
    fixed = f"{session.fixed_length} tokens"
    columns = [
        Column("method", [f"{row.label} {row.settings}".strip() for row in rows], left=True),
        Column("id", [row.id for row in rows], left=True),
        Column("real texts\nbatch 1, ms", _cells(session, rows, "real", 1)),
        Column("\nbatch 32, ms", _cells(session, rows, "real", 32)),
        Column("times\nfaster", [number(row.speedup) for row in rows]),
        Column(f"{fixed}\nbatch 1, ms", _cells(session, rows, "fixed", 1), drop=2),
        Column("\nbatch 32, ms", _cells(session, rows, "fixed", 32), drop=2),
        Column("file\nMB", [number(row.runs[0].bytes, 1e-6) for row in rows], drop=1),
        Column("memory\nMB", [number(session.rows[row.id]["memory_mb"]) for row in rows], drop=1),
    ]
    heading = f"{table.dataset}: speed on the CPU, {session.threads} thread{'s' * (session.threads > 1)}"
    others = max((session.rows[row.id]["real"]["load"]["others"] for row in rows), default=0.0)
    load = f"other work took {others:.2f} processors meanwhile"
    about = f"Measured together, {session.when}, on {session.machine}; {load}."
    left = ", ".join(f"{row.label} ({row.id})" for row in table.rows if row.id not in session.rows)
    notes = [about] + ([f"Not measured again, their runs keep no network: {left}."] if left else [])
    return Sheet(heading, columns, notes=notes, legend=LEGEND)


def _cells(session: Session, rows: list[Row], kind: str, size: int) -> list[str]:
    return [time(session.times(row, kind) or Times(), size) for row in rows]
