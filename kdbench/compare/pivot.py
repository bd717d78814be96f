"""`--group-by`, `--pivot` and `--best-on-dev`: groups of runs by any keys, and the best row of each grid.

Runs of different examples never share a group, nor do runs of different numbers of train texts. A group of several
configurations shows their number.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdbench.compare.collect import Run
from kdbench.compare.columns import METRICS, NOTHING, Column, Sheet, heading, metric_in_words, unit
from kdbench.compare.keys import SHORT
from kdbench.compare.rows import summarize
from kdbench.compare.table import TRAINED_ON, Row, Summary, Table, varying

LEGEND = (
    "Mean ± sample s.d. over all n runs of a group; ×k: it has k configurations, and the s.d. includes their spread."
)


@dataclass(frozen=True)
class Group:
    """All shown runs of one table with the same values of some keys."""

    table: Table
    values: tuple[Any, ...]  # of the keys of --group-by, in their order
    across: Any  # value of the key of --pivot; None without --pivot
    score: Summary
    configurations: int

    @property
    def cell(self) -> str:
        spread = "" if self.score.sd is None else f" ± {self.score.sd:.2f}"
        mixed = f" ×{self.configurations}" if self.configurations > 1 else ""
        return f"{self.score.mean:.2f}{spread} ({self.score.n}){mixed}"


def best_on_dev(rows: list[Row], keys: Sequence[str]) -> list[Row]:
    """Return the best row by its mean on dev of each group with the same values of `keys`, with the group's size.

    Rows of other train texts are other groups. A teacher always is a group of its own. Ties go to the row with the
    shorter settings, then to the lower id.
    """
    grids: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        own = row.id if row.role == "teacher" else None
        trained_on = (row.runs[0].data_id, row.runs[0].raw)  # the id is of the labelled data
        grids.setdefault((own, *trained_on, *(str(row.runs[0].values[key]) for key in keys)), []).append(row)
    best = []
    for members in grids.values():
        first = min(members, key=lambda row: (-row.dev_score, len(row.settings), row.id))
        best.append(replace(first, tried=len(members)))
    return best


def with_trained_on(tables: Sequence[Table], keys: Sequence[str], across: str | None) -> list[str]:
    """Return `keys` and those of TRAINED_ON in which rows of a table differ."""
    differing = [name for name in TRAINED_ON if any(name in varying(table.rows) for table in tables)]
    return [*keys, *(name for name in differing if name not in (*keys, across))]


def groups(tables: Sequence[Table], keys: Sequence[str], across: str | None) -> list[Group]:
    """Return the groups in the order of their first rows."""
    found: dict[tuple[int, tuple[Any, ...], Any], list[Run]] = {}
    for at, table in enumerate(tables):
        for row in table.rows:
            for run in row.runs:
                values = tuple(_value(row, run, key) for key in keys)
                found.setdefault((at, values, _value(row, run, across) if across else None), []).append(run)
    return [
        Group(tables[at], values, column, summarize([run.score for run in runs]), len({run.row_id for run in runs}))
        for (at, values, column), runs in found.items()
    ]


def _value(row: Row, run: Run, key: str) -> Any:
    if SHORT.get(key, key) == SHORT["method"]:
        return row.label  # distinguishes the teacher from direct fine-tuning, which has the same method
    value = getattr(run, key) if key in TRAINED_ON else run.values[key]
    return str(value) if isinstance(value, (list, dict)) else value


def records(found: Iterable[Group], keys: Sequence[str], across: str | None) -> list[dict[str, Any]]:
    """Return one flat record for each group, in full precision."""
    return [
        {"dataset": group.table.dataset, "examples_id": group.table.examples_id}
        | {"split": group.table.split, "metric": group.table.metric}
        | {f"by.{key}": value for key, value in zip(keys, group.values, strict=True)}
        | ({f"by.{across}": group.across} if across else {})
        | {"mean_points": group.score.mean, "sd_points": group.score.sd, "n": group.score.n}
        | {"configurations": group.configurations}
        for group in found
    ]


def sheets(found: list[Group], keys: Sequence[str], across: str | None) -> list[Sheet]:
    """Return a sheet for each table, or one for all if data sets are the columns."""
    if across == "dataset":
        return [_data_sets(found, keys)]
    made = []
    for one in dict.fromkeys(id(group.table) for group in found):
        members = [group for group in found if id(group.table) == one]
        table = members[0].table
        plain = f"{METRICS[table.metric]}\n{unit(table.metric)} (n)"
        placed = [(group, f"{across}={_text(group.across)}" if across else plain) for group in members]
        made.append(_grid(heading(table), placed, keys))
    return made


def _data_sets(found: list[Group], keys: Sequence[str]) -> Sheet:
    """Return a sheet with a column for each data set. Two data sets with one name also get their digests."""
    tables = list({id(group.table): group.table for group in found}.values())
    names = [table.dataset for table in tables]
    metrics = {table.metric for table in tables}
    heads = {
        id(table): table.dataset
        + (f" {table.examples_id}" if names.count(table.dataset) > 1 else "")
        + (f"\n{METRICS[table.metric]}" if len(metrics) > 1 else "")
        for table in tables
    }
    split = tables[0].split
    apart = "; ".join(dict.fromkeys(f"{table.dataset}: {split} {table.examples_id}" for table in tables))
    what = f"{split}, each data set by its own metric, points"
    title = f"{what if len(metrics) > 1 else metric_in_words(tables[0])} ({apart})"
    return _grid(title, [(group, heads[id(group.table)]) for group in found], keys)


def _text(value: Any) -> str:
    return NOTHING if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _grid(title: str, placed: list[tuple[Group, str]], keys: Sequence[str]) -> Sheet:
    rows = list(dict.fromkeys(group.values for group, _ in placed))
    heads = list(dict.fromkeys(head for _, head in placed))
    cells = {(group.values, head): group.cell for group, head in placed}
    columns = [Column(key, [_text(values[at]) for values in rows], left=True) for at, key in enumerate(keys)]
    columns += [
        Column(head if "\n" in head else f"\n{head}", [cells.get((values, head), NOTHING) for values in rows])
        for head in heads
    ]
    return Sheet(title, columns, legend=LEGEND)
