"""`--latency`: times of a table's rows that were measured together, in turns.

They are stored in the first ROOT as latency-<test id>.json, and shown again as long as they cover the shown rows.
"""

import sys
from dataclasses import replace
from pathlib import Path

from kdbench.compare.columns import Column, Sheet, number, time
from kdbench.compare.rows import ratio
from kdbench.compare.table import Row, Session, Table
from kdbench.storage.files import Damaged, read_record, write_record

SCHEMA = 2  # of the stored file
LEGEND = (
    "Median ± half the interquartile range; the models took turns; ?: the machine was not quiet. Real texts are test "
    "texts, the same for all models; the others are random texts of a fixed length. The tokenizer is not timed. Of "
    "models with one shape (configuration, tokenizer, form), only the first was measured. memory: growth of a new "
    "process that loads the model and answers 32 texts of the fixed length."
)


def with_speed(table: Table, root: Path, again: bool, quiet: bool) -> Table:
    """Add times that were measured together: now if `again`, else those stored in `root` if they cover the rows.

    Raises StoreError, and what `kdbench.inference.latency.measure_folders` raises.
    """
    path = root / f"latency-{table.runs[0].test_id}.json"
    timed = {row.id: row.runs[0].path.parent for row in [*table.rows, *_teachers(table)] if row.runs[0].has_model}
    if again:
        if not quiet:
            print(
                f"compare-runs: measuring {len(timed)} models (only one of each shape): minutes",
                file=sys.stderr,
            )
        from kdbench.inference.latency import measure_folders  # torch: only for a measurement

        write_record(path, {"schema": SCHEMA} | measure_folders(timed))
    session = _stored(path)
    if session is None or not timed.keys() <= session.rows.keys():
        return table
    if again and not quiet and not all(one["real"]["quiet"] for one in session.rows.values()):
        print("compare-runs: the machine was not quiet; measure again with --latency when it is", file=sys.stderr)
    return replace(table, session=session, rows=[_timed(row, table, session) for row in table.rows])


def _stored(path: Path) -> Session | None:
    try:
        found = read_record(path)
    except Damaged:  # or missing: --latency measures again
        return None
    if found.pop("schema") != SCHEMA:
        return None
    del found["versions"]
    return Session(**found)


def _teachers(table: Table) -> list[Row]:
    return [row for row in table.every if row.role == "teacher"]


def _timed(row: Row, table: Table, session: Session) -> Row:
    """Replace the times of the row's runs by those of the session. A row without a network keeps its own."""
    teachers = {run.id: one for one in _teachers(table) for run in one.runs}
    shown = [one for one in table.rows if one.role == "teacher"]  # a run without a teacher is compared with this one
    sole = next((group[0] for group in (shown, _teachers(table)) if len(group) == 1), None)
    own = row.runs[0].teacher
    teacher = teachers.get(own.id if own else row.runs[0].id, sole)
    fast = session.times(row, "real")
    speedup = ratio(session.times(teacher, "real"), fast) if teacher else None
    return replace(row, times=row.times if fast.batch_1 is None else fast, speedup=speedup)


def sheet(table: Table, session: Session) -> Sheet:
    """Return a line for each row that was measured."""
    rows = [row for row in table.rows if row.id in session.rows]
    times = {
        (kind, size): [time(session.times(row, kind), size) for row in rows]
        for kind in ("real", "fixed")
        for size in (1, 32)
    }
    columns = [
        Column("method", [row.labelled_settings for row in rows], left=True),
        Column("id", [row.id for row in rows], left=True),
        Column("real texts\nbatch 1, ms", times["real", 1]),
        Column("\nbatch 32, ms", times["real", 32]),
        Column("times\nfaster", [number(row.speedup) for row in rows]),
        Column(f"{session.fixed_length} tokens\nbatch 1, ms", times["fixed", 1], drop=2),
        Column("\nbatch 32, ms", times["fixed", 32], drop=2),
        Column("file\nMB", [number(row.runs[0].bytes, 1e-6) for row in rows], drop=1),
        Column("memory\nMB", [number(session.rows[row.id]["memory_mb"]) for row in rows], drop=1),
    ]
    heading = f"{table.dataset}: speed on the CPU, {session.threads} thread{'s' * (session.threads > 1)}"
    others = max((session.rows[row.id]["real"]["load"]["others"] for row in rows), default=0.0)
    notes = [
        f"Measured together, {session.when}, on {session.machine}. During timing, other work took {others:.2f} "
        "processors."
    ]
    if left := ", ".join(row.name for row in table.rows if row.id not in session.rows):
        notes.append(f"Not measured again, because their runs keep no network: {left}.")
    return Sheet(heading, columns, notes=notes, legend=LEGEND)
