"""A table for people: its columns and what is said in words below its rows, the same in every format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.compare.collect import ANY
from kdbench.compare.commands import join_seeds, tfidf_command
from kdbench.compare.rows import Row, Table
from kdbench.compare.statistics import LEAST_GAP, Summary

if TYPE_CHECKING:
    from kdbench.compare.tested import RowTests

NOTHING = "–"
UNITS = {"precision": "{}", "device": "{}", "threads": "{} threads", "length": "length {}"}
CONDITIONS = (*UNITS, "machine")  # too long a name for a column
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
LEGEND = (
    "± sample s.d. over n seeds. vs direct: points gained over fine-tuning the same model directly, paired by "
    "seed, (k) where only k seeds have a pair; longer: directly with the same total of updates. gap %: share "
    f"of the way from direct to the teacher, – where that is below {LEAST_GAP:g} point or a test cannot tell it from zero. "
    "times faster: than the teacher, at batch 1."
)


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


def sheet(table: Table, metric: str, split: str) -> Sheet:
    """One row a configuration."""
    found = columns(table, metric)
    return Sheet(heading(table, metric, split), found, notes(table, split), missing(table), LEGEND)


def columns(table: Table, metric: str) -> list[Column]:
    """The columns of a table that say something, from left to right; the first may be wrapped."""
    rows = table.rows
    runs = [row.runs[0] for row in rows]
    direct = [_difference(row, 0) + _star(table, row, 0) for row in rows]
    longer = [_difference(row, 1) + _star(table, row, 1) for row in rows]
    if all(run.baselines[0] == run.baselines[1] for run in runs):
        longer = [NOTHING for _ in rows]
    found = [
        Column("method", [f"{row.label} {row.settings}".strip() for row in rows], left=True),
        Column(
            "student", [run.student or NOTHING for run in runs], drop=6 if len(_students(rows)) < 2 else 1, left=True
        ),
        Column("id", [row.id + "†" * row.selected_on_reported + "‡" * row.dirty for row in rows], left=True),
        Column("n", [str(row.score.n) for row in rows]),
        Column(f"{METRICS[metric]}\n%", [_summary(row.score) for row in rows], styles=_bold(table)),
        Column("95 %\ninterval", [_interval(table, row) for row in rows], drop=5),
        Column("rank", [_rank(table, row) for row in rows], drop=1),
        Column("vs direct\npoints", direct, styles=_signs(table, 0)),
        Column("vs longer\ndirect", longer, styles=_signs(table, 1)),
        Column("gap\n%", [NOTHING if row.gap_closed is None else f"{100 * row.gap_closed:.0f}" for row in rows]),
        Column("params\nM", [number(run.parameters, 1e-6) for run in runs], drop=3),
        Column("MB", [number(run.bytes, 1e-6) for run in runs], drop=4),
        Column("batch 1\nms", [number(row.latency_1) for row in rows], drop=4),
        Column("batch 32\nms", [number(row.latency_32) for row in rows], drop=7),
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


def _bold(table: Table) -> list[str]:
    """All rows that cannot be told from the best, not one winner; without tests none."""
    return ["bold" if (found := _tests(table, row)) and found.tied_with_best else "" for row in table.rows]


def _tests(table: Table, row: Row) -> "RowTests | None":
    return table.tests.rows.get(row.id) if table.tests else None


def _interval(table: Table, row: Row) -> str:
    found = _tests(table, row)
    return f"{found.score.low:.1f}–{found.score.high:.1f}" if found else NOTHING


def _rank(table: Table, row: Row) -> str:
    found = _tests(table, row)
    if found is None or found.rank is None:
        return NOTHING
    low, high = found.rank
    return f"{low}" if low == high else f"{low}–{high}"


def _star(table: Table, row: Row, at: int) -> str:
    """* behind a difference that is there after Holm over all tests shown."""
    found = _tests(table, row)
    test = found.against[at] if found else None
    return "*" if test and test.p_holm is not None and test.p_holm < 0.05 else ""


def _signs(table: Table, at: int) -> list[str]:
    """Green and red where a test finds a difference; without tests where the mean is further from 0 than one s.d."""
    styles = []
    for row in table.rows:
        summary = row.differences[at]
        clear = summary is not None and summary.sd is not None and abs(summary.mean) > summary.sd
        found = bool(_star(table, row, at)) if _tests(table, row) else clear
        styles.append("" if not found or summary is None else "green" if summary.mean > 0 else "red")
    return styles


def number(value: float | None, scale: float = 1) -> str:
    """Three digits: 17.3, 3.00, 0.0521, but 1840 and not 1.84e+03."""
    if value is None:
        return NOTHING
    value *= scale
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def _conditions(rows: list[Row]) -> list[str]:
    """Of UNITS those that are not the same in all rows."""
    names = [name for name in UNITS if len(_values(rows, name)) > 1]
    return [" ".join(UNITS[name].format(row.conditions[name]) for name in names) or NOTHING for row in rows]


def _values(rows: list[Row], name: str) -> set[str]:
    """The values of a condition; TF-IDF has neither precision nor length."""
    asked = [row for row in rows if name not in ("precision", "length") or row.role != "tfidf"]
    return {run.conditions[name] for row in asked for run in row.runs} - {ANY}


def heading(table: Table, metric: str, split: str) -> str:
    """What all figures of the table are about, and what keeps it apart from one of the same data set."""
    facts = {"data": f"data {table.data_id}", "split": f"split: {table.data_split}"}
    apart = "; ".join(facts[name] for name in table.differs_in)
    title = f"{table.dataset}, {split} {METRICS[metric]}, {table.examples:,} examples"
    if len(students := _students(table.rows)) == 1:
        title += f", student {students.pop()}"
    return f"{title} (a table of its own: {apart})" if apart else title


def notes(table: Table, split: str) -> list[str]:
    """What the figures mean, in sentences; only those that apply."""
    rows = table.rows
    tfidf = max((row.score.mean for row in table.every if row.role == "tfidf"), default=0.0)
    neural = [row for row in rows if row.role in ("baseline", "method")]
    one_pair = [row for row in neural if any(pair and pair.n == 1 for pair in (row.score, *row.differences))]
    found = [
        ([row for row in rows if row.score.mean < tfidf], f"TF-IDF + linear SVM ({tfidf:.2f}) beats: {{}}."),
        (one_pair, "A difference from one seed cannot be told from seed noise (add -m seed=0,1,2): {}."),
        (
            [row for row in rows if row.gap_too_small],
            f"The teacher is not {LEAST_GAP:g} point above direct fine-tuning, so no share of that gap is shown: {{}}.",
        ),
        (
            [row for row in rows if (tests := _tests(table, row)) and tests.gap_may_be_zero],
            "The gap to the teacher may be zero, its share anything: {}.",
        ),
        ([row for row in rows if row.selected_on_reported], "† selected on the reported split, so too good: {}."),
        ([row for row in rows if row.dirty], "‡ ran from a checkout with uncommitted changes: {}."),
    ]
    sentences = certainty(table) if table.tests else []
    sentences += [text.format(_names(which, rows)) for which, text in found if which]
    if machines := {"device", "threads", "machine"} & {name for name in CONDITIONS if len(_values(rows, name)) > 1}:
        times = "training times" if table.session else "times (--latency measures them anew, together)"
        sentences.append(f"Not all rows ran alike (other {_listed(machines)}): compare no {times} across them.")
    if trained := {name for name in ("precision", "length") if len(_values(rows, name)) > 1}:
        sentences.append(
            f"Rows differ in {_listed(trained)} (ran on): part of a difference between such rows may be that."
        )
    if grids := [row for row in rows if row.tried > 1]:
        tried = ", ".join(f"{row.label} ({row.id}) of {row.tried}" for row in grids)
        sentences.append(f"Chosen on dev, reported on {split}: {tried}; a larger grid flatters what it chose.")
    if split == "dev":
        sentences.append("Checkpoints and hyperparameters were chosen on dev: report --split test.")
    return sentences


def certainty(table: Table) -> list[str]:
    """What the tests say and what they leave out."""
    tied = [row for row in table.rows if (found := _tests(table, row)) and found.tied_with_best]
    taught = {(run.teacher.id, run.teacher.seed) for row in table.rows for run in row.runs if run.teacher}
    best = max(tied, key=lambda row: row.score.mean, default=None)
    said = []
    if best and len(tied) > 1:
        others = _names([row for row in tied if row is not best], [])
        said.append(f"Cannot be told from the best, {best.label} ({best.id}): {others}.")
    if any((found := _tests(table, row)) and found.untested for row in table.rows):
        said.append("Rows of one seed could not be tested against it: they may be better or worse.")
    if len(taught) == 1:
        said.append("All students had one teacher: what another teacher's seed would change is in no interval.")
    return said


def _listed(words: set[str]) -> str:
    return " and ".join(sorted(words))


def _names(which: list[Row], rows: list[Row]) -> str:
    return "all rows" if len(which) == len(rows) > 2 else ", ".join(f"{row.label} ({row.id})" for row in which)


def missing(table: Table) -> list[tuple[str, list[str]]]:
    """What a fair table still lacks, and the commands that make it."""
    found = []
    if table.missing:
        found.append(("No finished run of these baselines was found; they are made by", join_seeds(table.missing)))
    if command := tfidf_command(table.runs):
        found.append(("TF-IDF, the floor for every student, is missing; it takes seconds", [command]))
    return found
