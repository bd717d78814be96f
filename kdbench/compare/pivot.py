"""Groups of runs by any keys, as a list or as a grid: mean and s.d. over all runs of a group.

Runs of different data never share a group, and a group of several configurations says how many it mixes.
And of each grid the best row on dev.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdbench.compare.collect import Run
from kdbench.compare.columns import METRICS, NOTHING, Column, Sheet, heading, unit
from kdbench.compare.keys import SHORT
from kdbench.compare.statistics import Summary, summarize
from kdbench.compare.table import Row, Table

LEGEND = "mean ± sample s.d. over all n runs of a group; ×k: of k configurations, whose spread is part of it."


@dataclass(frozen=True)
class Group:
    """All shown runs of one data set that have these values."""

    table: Table
    values: tuple[Any, ...]  # of the keys, in their order
    across: Any  # of the key whose values are columns; null where there is none
    score: Summary
    configurations: int

    @property
    def cell(self) -> str:
        spread = "" if self.score.sd is None else f" ± {self.score.sd:.2f}"
        mixed = f" ×{self.configurations}" if self.configurations > 1 else ""
        return f"{self.score.mean:.2f}{spread} ({self.score.n}){mixed}"


def best_on_dev(rows: list[Row], keys: Sequence[str]) -> list[Row]:
    """Of the rows that have the same values of `keys` the one with the best mean on dev, and of how many it is.

    The teacher is one row, no grid. Equal means go to the row with fewer settings, then by id.
    """
    grids: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        own = row.id if row.role == "teacher" else None
        grids.setdefault((own, *(str(row.runs[0].values[key]) for key in keys)), []).append(row)
    best = []
    for members in grids.values():
        first = min(members, key=lambda row: (-row.dev_score, len(row.settings), row.id))
        best.append(replace(first, tried=len(members)))
    return best


def groups(tables: Sequence[Table], keys: Sequence[str], across: str | None) -> list[Group]:
    """The groups, in the order in which their first rows come."""
    found: dict[tuple[int, tuple[Any, ...], Any], list[Run]] = {}
    for at, table in enumerate(tables):
        for row in table.rows:
            for run in row.runs:
                values = tuple(_value(row, run, key) for key in keys)
                found.setdefault((at, values, _value(row, run, across) if across else None), []).append(run)
    return [
        Group(tables[at], values, column, summarize([run.score for run in runs]), len({run.id for run in runs}))
        for (at, values, column), runs in found.items()
    ]


def _value(row: Row, run: Run, key: str) -> Any:
    if SHORT.get(key, key) == SHORT["method"]:
        return row.label  # the teacher is no direct fine-tune of a student, though its method is the same
    value = run.values[key]
    return str(value) if isinstance(value, (list, dict)) else value


def records(found: Iterable[Group], keys: Sequence[str], across: str | None, split: str) -> list[dict[str, Any]]:
    """One flat record a group, in full precision."""
    return [
        {"dataset": group.table.dataset, "data_id": group.table.data_id, "data_split": group.table.data_split}
        | {"split": split, "metric": group.table.metric}
        | {f"by.{key}": value for key, value in zip(keys, group.values, strict=True)}
        | ({f"by.{across}": group.across} if across else {})
        | {"mean_points": group.score.mean, "sd_points": group.score.sd, "n": group.score.n}
        | {"configurations": group.configurations}
        for group in found
    ]


def sheets(found: list[Group], keys: Sequence[str], across: str | None, split: str) -> list[Sheet]:
    """A sheet a table; one sheet for all where data sets are the columns (two of one name get their digest)."""
    if across == "dataset":
        names = {id(group.table): group.table.dataset for group in found}
        twice = {name for name in names.values() if list(names.values()).count(name) > 1}
        label = {
            id(group.table): f"{group.table.dataset}{f' {group.table.data_id}' if group.table.dataset in twice else ''}"
            for group in found
        }
        apart = "; ".join(dict.fromkeys(f"{group.table.dataset}: data {group.table.data_id}" for group in found))
        metrics = list({group.table.metric for group in found})
        title = f"{split} {METRICS[metrics[0]]}, {unit(metrics[0])} ({apart})"
        if len(metrics) > 1:
            label = {id(g.table): f"{label[id(g.table)]}\n{METRICS[g.table.metric]}" for g in found}
            title = f"{split}, each data set by its own metric, points ({apart})"
        return [_grid(title, [(group, label[id(group.table)]) for group in found], keys)]
    tables = dict.fromkeys(id(group.table) for group in found)
    made = []
    for one in tables:
        members = [group for group in found if id(group.table) == one]
        metric = members[0].table.metric
        title = heading(members[0].table, metric, split)
        if across:
            made.append(_grid(title, [(group, f"{across}={_text(group.across)}") for group in members], keys))
        else:
            made.append(_grid(title, [(group, f"{METRICS[metric]}\n{unit(metric)} (n)") for group in members], keys))
    return made


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
