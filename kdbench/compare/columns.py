"""A table for people: its columns and what they mean, the same in every format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.compare.collect import ANY
from kdbench.compare.statistics import LEAST_GAP, Summary
from kdbench.compare.table import Row, Table, Times
from kdbench.schema import METRICS as KNOWN

if TYPE_CHECKING:
    from kdbench.compare.table import RowTests

NOTHING = "–"
UNITS = {"precision": "{}", "device": "{}", "threads": "{} threads", "length": "length {}"}
CONDITIONS = (*UNITS, "machine")  # too long a name for a column
METRICS = {name: metric.shown for name, metric in KNOWN.items()}  # for people
LEGEND = (
    "± sample s.d. over n seeds. vs direct: points gained over fine-tuning the same model directly, paired by "
    "seed, (k) where only k seeds have a pair; longer: directly with the same total of updates. gap %: share "
    f"of the way from direct to the teacher, – where that is below {LEAST_GAP:g} point or a test cannot tell it from "
    "zero. ms: median ± half the interquartile range, ? where the machine was not quiet. times faster: than the "
    "teacher, at batch 1, measured in turns with it. rank: of all rows but the teacher and those of one seed, "
    "simultaneous 95 %. *: a test of all differences of the table together finds it (p < 0.05). Bold: tested, and not "
    "told from the best; where no row has a rank, the highest."
)


def unit(metric: str) -> str:
    """Return the unit of a metric's points."""
    return KNOWN[metric].unit


@dataclass
class Column:
    header: str  # may have two lines
    cells: list[str]
    drop: int = 0  # in a narrow terminal the highest goes first; 0 never goes
    styles: Sequence[str] = ()  # of the cells, in a terminal
    left: bool = False  # words; figures stand to the right

    @property
    def width(self) -> int:
        return max(map(len, [*self.header.split("\n"), *self.cells]))


@dataclass
class Sheet:
    """What the terminal, Markdown and LaTeX print: a heading, columns, and words below them."""

    heading: str
    columns: list[Column]
    notes: Sequence[str] = ()
    missing: Sequence[tuple[str, list[str]]] = ()  # a sentence, and commands for it
    legend: str = ""


def columns(table: Table, metric: str) -> list[Column]:
    """The columns of a table that say something, from left to right; the first may be wrapped."""
    rows = table.rows
    runs = [row.runs[0] for row in rows]
    direct = [_difference(row, 0) + _star(table, row, 0) for row in rows]
    longer = [_difference(row, 1) + _star(table, row, 1) for row in rows]
    if all(run.baselines[0] == run.baselines[1] for run in runs):
        longer = [NOTHING for _ in rows]
    marked = bold(table)
    found = [
        Column("method", [f"{row.label} {row.settings}".strip() for row in rows], left=True),
        Column(
            "student", [run.student or NOTHING for run in runs], drop=6 if len(_students(rows)) < 2 else 1, left=True
        ),
        Column("id", [row.id + "†" * row.selected_on_reported + "‡" * row.dirty for row in rows], left=True),
        Column("n", [str(row.score.n) for row in rows]),
        Column(
            f"{METRICS[metric]}\n{unit(metric)}",
            [_summary(row.score) for row in rows],
            styles=["bold" * (row.id in marked) for row in rows],
        ),
        Column("95 %\ninterval", [_interval(table, row) for row in rows], drop=5),
        Column("rank", [_rank(table, row) for row in rows], drop=1),
        Column("vs direct\npoints", direct, styles=_signs(table, 0)),
        Column("vs longer\ndirect", longer, styles=_signs(table, 1)),
        Column("gap\n%", [NOTHING if row.gap_closed is None else f"{100 * row.gap_closed:.0f}" for row in rows]),
        Column("params\nM", [number(run.parameters, 1e-6) for run in runs], drop=3),
        Column("MB", [number(run.bytes, 1e-6) for run in runs], drop=4),
        Column("batch 1\nms", [time(row.times, 1) for row in rows], drop=4),
        Column("batch 32\nms", [time(row.times, 32) for row in rows], drop=7),
        Column("times\nfaster", [number(row.speedup) for row in rows], drop=2),
        Column("train\ns", [number(row.seconds) for row in rows], drop=5),
        Column("teacher\ntrain s", [number(row.teacher_seconds) for row in rows], drop=8),
        Column("general\nstages s", [number(row.general_seconds) for row in rows], drop=7),
        Column("best of\non dev", [str(row.tried) if row.tried > 1 else NOTHING for row in rows]),
        Column("ran on", _conditions(rows), drop=2, left=True),
    ]
    return [column for column in found if set(column.cells) != {NOTHING}]


def _students(rows: list[Row]) -> set[str | None]:
    return {row.runs[0].student for row in rows if row.role in ("baseline", "method")}


def _summary(summary: Summary) -> str:
    return f"{summary.mean:.2f}" + ("" if summary.sd is None else f" ± {summary.sd:.2f}")


def _difference(row: Row, at: int) -> str:
    summary = row.differences[at]
    if row.runs[0].baselines[at] is None:
        return NOTHING
    if summary is None:
        return "no baseline"
    pairs = f" ({summary.n})" if summary.n < row.score.n else ""
    return ("+" if summary.mean >= 0 else "") + _summary(summary) + pairs


def bold(table: Table) -> set[str]:
    """The ids of all rows that cannot be told from the best, not one winner; without tests none.

    Where no row has a rank, for want of seeds, it is the highest mean.
    """
    if table.tests is None:
        return set()
    tied = {row.id for row in table.rows if (found := row_tests(table, row)) and found.tied_with_best}
    means = {row.id: row.score.mean for row in table.rows if row.role != "teacher"}
    return tied or {id_ for id_, mean in means.items() if mean == max(means.values())}


def row_tests(table: Table, row: Row) -> "RowTests | None":
    return table.tests.rows.get(row.id) if table.tests else None


def _interval(table: Table, row: Row) -> str:
    found = row_tests(table, row)
    return f"{found.score.low:.1f}–{found.score.high:.1f}" if found else NOTHING


def _rank(table: Table, row: Row) -> str:
    found = row_tests(table, row)
    if found is None or found.rank is None:
        return NOTHING
    low, high = found.rank
    return f"{low}" if low == high else f"{low}–{high}"


def _star(table: Table, row: Row, at: int) -> str:
    """Return * for a difference that the tests of the table find, all of them taken together."""
    found = row_tests(table, row)
    test = found.against[at] if found else None
    return "*" if test and test.estimate.p is not None and test.estimate.p < 0.05 else ""


def _signs(table: Table, at: int) -> list[str]:
    """Green and red where a test finds a difference; without tests where the mean is further from 0 than one s.d."""
    styles = []
    for row in table.rows:
        summary = row.differences[at]
        clear = summary is not None and summary.sd is not None and abs(summary.mean) > summary.sd
        found = bool(_star(table, row, at)) if row_tests(table, row) else clear
        styles.append("" if not found or summary is None else "green" if summary.mean > 0 else "red")
    return styles


def number(value: float | None, scale: float = 1) -> str:
    """Three digits: 17.3, 3.00, 0.0521, but 1840 and not 1.84e+03."""
    if value is None:
        return NOTHING
    value *= scale
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def time(times: Times, size: int) -> str:
    """`9.20 ± 0.15`: the median, and half the interquartile range; `9.20 ± 0.15?` where the machine was not quiet."""
    ms, spread = (times.batch_1, times.spread_1) if size == 1 else (times.batch_32, times.spread_32)
    if ms is None:
        return NOTHING
    return number(ms) + ("" if spread is None else f" ± {number(spread / 2)}") + "?" * (not times.quiet)


def _conditions(rows: list[Row]) -> list[str]:
    """Of UNITS those that are not the same in all rows."""
    names = [name for name in UNITS if len(values(rows, name)) > 1]
    return [" ".join(UNITS[name].format(row.conditions[name]) for name in names) or NOTHING for row in rows]


def values(rows: list[Row], name: str) -> set[str]:
    """The values of a condition; TF-IDF has neither precision nor length."""
    asked = [row for row in rows if name not in ("precision", "length") or row.role != "tfidf"]
    return {run.conditions[name] for row in asked for run in row.runs} - {ANY}


def heading(table: Table, metric: str, split: str) -> str:
    """What all figures of the table are about, and what keeps it apart from one of the same data set."""
    facts = {"data": f"data {table.data_id}", "split": f"split: {table.data_split}", "metric": f"by {METRICS[metric]}"}
    apart = "; ".join(facts[name] for name in table.differs_in)
    title = f"{table.dataset}, {split} {METRICS[metric]}, {table.examples:,} examples"
    if len(students := _students(table.rows)) == 1:
        title += f", student {students.pop()}"
    return f"{title} (a table of its own: {apart})" if apart else title
