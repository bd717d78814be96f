"""A table for people: its columns and what they mean, the same in every format."""

from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.compare.collect import ANY, NULL, Run, Times
from kdbench.compare.rows import summarize
from kdbench.compare.table import LEAST_GAP, Row, Summary, Table, varying
from kdbench.errors import shown
from kdbench.schema import METRICS as KNOWN
from kdbench.tasks import PROBABILITIES

NOTHING = "–"
TRADED = ("accuracy", "macro_f1")  # class weights may raise one and lower the other
UNITS = {"precision": "{}", "device": "{}", "threads": "{} threads", "length": "length {}"}
CONDITIONS = (*UNITS, "machine")  # too long a name for a column
METRICS = {name: metric.shown for name, metric in KNOWN.items()}  # for people
LEGEND = (
    "±: sample s.d. over n seeds. labelled, raw: train texts with and without a label. vs direct: points gained over "
    "fine-tuning the same model directly, paired by seed; (k): only k seeds have a pair. vs longer direct: the same, "
    "with as many updates in total. gap %: share of the way from direct fine-tuning to the teacher; – if that is "
    f"less than {LEAST_GAP:g} point better, or not significantly better. ms: median ± half the interquartile range; ?: "
    "the machine was not quiet. times faster: than the teacher, at batch 1, measured in turns with it. rank: "
    "simultaneous 95 % interval; the teacher and rows with one seed have none. *: significant (p < 0.05), adjusted for "
    "all differences of the table. Bold: does not differ significantly from the best row; if no row has a rank, the "
    "highest mean."
)


def unit(metric: str) -> str:
    """Return the unit of a metric's points."""
    return KNOWN[metric].unit


def metric_in_words(table: Table) -> str:
    """Return `test accuracy, %`."""
    return f"{table.split} {METRICS[table.metric]}, {unit(table.metric)}"


@dataclass
class Column:
    header: str  # one or two lines
    cells: list[str]
    drop: int = 0  # the highest is dropped first in a narrow terminal; 0: never
    styles: Sequence[str] = ()  # of the cells, in a terminal
    left: bool = False  # words are aligned left, figures right

    @property
    def width(self) -> int:
        return max(map(len, [*self.header.split("\n"), *self.cells]))

    @property
    def title(self) -> str:
        return self.header.strip().replace("\n", " ")

    @property
    def bold(self) -> list[bool]:
        return ["bold" in style for style in self.styles] or [False] * len(self.cells)


@dataclass
class Sheet:
    """What terminal, Markdown, LaTeX and the page show: a heading, columns, and words below them."""

    heading: str
    columns: list[Column]
    notes: Sequence[str] = ()
    missing: Sequence[tuple[str, list[str]]] = ()  # a sentence, and its commands
    legend: str = ""


def columns(table: Table) -> list[Column]:
    """Return the columns from left to right, without empty ones. The first may be wrapped."""
    rows = table.rows
    runs = [row.runs[0] for row in rows]
    direct = [_difference(row, 0) for row in rows]
    longer = [_difference(row, 1) for row in rows]
    if all(run.baselines[0] == run.baselines[1] for run in runs):
        longer = [NOTHING for _ in rows]
    marked = bold(table)
    several = any(row.teachers > 1 for row in rows)
    found = [
        Column("method", [row.labelled_settings for row in rows], left=True),
        Column(
            "student", [run.student or NOTHING for run in runs], drop=6 if len(_students(rows)) < 2 else 1, left=True
        ),
        *(Column(name, [str(getattr(run, name)) for run in runs]) for name in varying(rows)),
        Column("teachers", [str(row.teachers or NOTHING) if several else NOTHING for row in rows]),
        Column("id", [row.id + "†" * row.selected_on_reported + "‡" * row.dirty for row in rows], left=True),
        Column("n", [str(row.score.n) for row in rows]),
        Column(
            f"{METRICS[table.metric]}\n{unit(table.metric)}",
            [_summary(row.score) for row in rows],
            styles=["bold" * (row.id in marked) for row in rows],
        ),
        *(_further(key, rows) for key in _keys(table)),
        Column("95 %\ninterval", [_interval(row) for row in rows], drop=5),
        Column("rank", [_rank(row) for row in rows], drop=1),
        Column("vs direct\npoints", direct, styles=_signs(rows, 0)),
        Column("vs longer\ndirect", longer, styles=_signs(rows, 1)),
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


def _keys(table: Table) -> list[str]:
    """Return the keys of further columns: those that were asked for, or what class weights trade for one another."""
    if table.shown:
        return list(table.shown)
    weighed = any(_weighed(row.runs[0]) for row in table.rows)
    return [name for name in TRADED if name != table.metric and weighed and table.metric in TRADED]


def _weighed(run: Run) -> bool:
    """Return whether the classes had weights in training."""
    found = {**run.training, **run.settings}
    return any("class_weights" in key.split(".") and value not in ("none", NULL) for key, value in found.items())


def _further(key: str, rows: list[Row]) -> Column:
    """Return the column of a key. A figure is a mean ± s.d. over seeds."""
    name = (METRICS | PROBABILITIES).get(key, key)
    cells = []
    for row in rows:
        figures = [run.figures[key] for run in row.runs if key in run.figures]
        if key not in {**METRICS, **PROBABILITIES}:
            value = row.mean(key)
            cells.append(NOTHING if value is None else number(value) if isinstance(value, float) else shown(value))
        elif len(figures) < len(row.runs):
            cells.append(NOTHING)
        else:
            cells.append(_summary(summarize([100 * one for one in figures])) if key in METRICS else _small(figures))
    header = f"{name}\n{unit(key)}" if key in METRICS else name
    return Column(header, cells, drop=0 if key not in TRADED else 6, left=not any(_is_number(one) for one in cells))


def _small(figures: list[float]) -> str:
    """Return `0.412 ± 0.003`."""
    summary = summarize(figures)
    return f"{summary.mean:.3f}" + ("" if summary.sd is None else f" ± {summary.sd:.3f}")


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] == "-"


def _students(rows: list[Row]) -> set[str | None]:
    return {row.runs[0].student for row in rows if row.role in ("baseline", "method")}


def _summary(summary: Summary) -> str:
    return f"{summary.mean:.2f}" + ("" if summary.sd is None else f" ± {summary.sd:.2f}")


def _difference(row: Row, at: int) -> str:
    """Return the difference to a baseline, with the pairs if a seed has none, and * if it is significant."""
    summary = row.differences[at]
    if row.runs[0].baselines[at] is None:
        return NOTHING
    if summary is None:
        return "no baseline"
    pairs = f" ({summary.n})" if summary.n < row.score.n else ""
    return ("+" if summary.mean >= 0 else "") + _summary(summary) + pairs + "*" * _significant(row, at)


def _significant(row: Row, at: int) -> bool:
    test = row.tests.against[at] if row.tests else None
    return test is not None and test.significant


def bold(table: Table) -> set[str]:
    """Return the ids of all rows that do not differ significantly from the best; without tests none.

    If no row has a rank, because none has several seeds, it is the highest mean.
    """
    if table.tests is None:
        return set()
    means = {row.id: row.score.mean for row in table.rows if row.role != "teacher"}
    tied = {row.id for row in table.rows if row.tests and row.tests.tied_with_best}
    highest = max(means.values(), default=None)
    return tied or {id_ for id_, mean in means.items() if mean == highest}


def _interval(row: Row) -> str:
    return f"{row.tests.score.low:.1f}–{row.tests.score.high:.1f}" if row.tests else NOTHING


def _rank(row: Row) -> str:
    if row.tests is None or row.tests.rank is None:
        return NOTHING
    return "–".join(str(rank) for rank in dict.fromkeys(row.tests.rank))


def _signs(rows: list[Row], at: int) -> list[str]:
    """Return green and red for significant differences; without tests for means further from 0 than one s.d."""
    styles = []
    for row in rows:
        summary = row.differences[at]
        clear = summary is not None and summary.sd is not None and abs(summary.mean) > summary.sd
        found = _significant(row, at) if row.tests else clear
        styles.append("" if not found or summary is None else "green" if summary.mean > 0 else "red")
    return styles


def number(value: float | None, scale: float = 1) -> str:
    """Return three digits: 17.3, 3.00, 0.0521, but 1840 and not 1.84e+03."""
    if value is None:
        return NOTHING
    value *= scale
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def time(times: Times, size: int) -> str:
    """Return the median and half the interquartile range, `9.20 ± 0.15`; with ? if the machine was not quiet."""
    ms, spread = (times.batch_1, times.spread_1) if size == 1 else (times.batch_32, times.spread_32)
    if ms is None:
        return NOTHING
    return number(ms) + ("" if spread is None else f" ± {number(spread / 2)}") + "?" * (not times.quiet)


def _conditions(rows: list[Row]) -> list[str]:
    """Return those of UNITS that differ between the rows."""
    names = [name for name in UNITS if len(values(rows, name)) > 1]
    return [" ".join(UNITS[name].format(row.conditions[name]) for name in names) or NOTHING for row in rows]


def values(rows: list[Row], name: str) -> set[str]:
    """Return the values of a condition. TF-IDF has neither precision nor length."""
    counted = [row for row in rows if name not in ("precision", "length") or row.role != "tfidf"]
    return {run.conditions[name] for row in counted for run in row.runs} - {ANY}


def heading(table: Table) -> str:
    """Return what all figures of the table are about, and what distinguishes it from others of its data set."""
    facts = {"examples": f"{table.split} {table.examples_id}", "metric": f"by {METRICS[table.metric]}"}
    apart = "; ".join(facts[name] for name in table.differs_in)
    title = f"{table.dataset}, {table.split} {METRICS[table.metric]}, {table.examples:,} examples"
    if len(students := _students(table.rows)) == 1:
        title += f", student {students.pop()}"
    title += f" (a table of its own: {apart})" if apart else ""
    trained = ", and ".join(_trained_on(table.rows, name) for name in varying(table.rows))
    return f"{title}, trained on {trained}" if trained else title


def _trained_on(rows: list[Row], name: str) -> str:
    """Return `1,000 or 8,000 labelled texts`."""
    *before, last = (f"{count:,}" for count in sorted({getattr(row.runs[0], name) for row in rows}))
    return f"{', '.join(before)} or {last} {name} texts"
