"""Tables for people, in a terminal or as Markdown, and what they say in words below the rows."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import TYPE_CHECKING

from kdbench.compare.collect import join_seeds, tfidf_command
from kdbench.compare.statistics import Row, Summary, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

NOTHING = "–"
GAP = 2  # blanks between columns
WRAPPED = len("teacher (finetune)")  # the method column is not made narrower than this
LEFT = ("method", "student", "id", "ran on")  # the others are figures, to the right
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
LEGEND = (
    "± sample s.d. over n seeds. vs direct: points gained over fine-tuning the same model directly, paired by "
    "seed, (k) where only k seeds have a pair; longer: directly with the same total of updates. gap %: share "
    "of the way from direct to the teacher. times faster: than the teacher, at batch 1."
)


@dataclass
class Column:
    header: str  # may have two lines
    cells: list[str]
    drop: int = 0  # in a narrow terminal the highest goes first; 0 never goes
    styles: Sequence[str] = ()  # of the cells, in a terminal

    @property
    def width(self) -> int:
        return max(map(len, [*self.header.split("\n"), *self.cells]))


def columns(table: Table, metric: str) -> list[Column]:
    """The columns of a table that say something, from left to right; the first may be wrapped."""
    rows = table.rows
    runs = [row.runs[0] for row in rows]
    longer = any(run.baselines[0] != run.baselines[1] for run in runs)
    best = max((row.score.mean for row in rows if row.role != "teacher"), default=0.0)
    bold = ["bold" if row.score.mean == best else "" for row in rows]
    found = [
        Column("method", [f"{row.label} {row.settings}".strip() for row in rows]),
        Column("student", [run.student or NOTHING for run in runs], drop=6 if len(_students(rows)) < 2 else 1),
        Column("id", [row.id + "†" * row.selected_on_reported + "‡" * row.dirty for row in rows]),
        Column("n", [str(row.score.n) for row in rows]),
        Column(f"{METRICS[metric]}\n%", [_summary(row.score) for row in rows], styles=bold),
        Column("vs direct\npoints", [_difference(row, 0) for row in rows], styles=_signs(rows, 0)),
        Column(
            "vs longer\ndirect", [_difference(row, 1) if longer else NOTHING for row in rows], styles=_signs(rows, 1)
        ),
        Column("gap\n%", [NOTHING if row.gap_closed is None else f"{100 * row.gap_closed:.0f}" for row in rows]),
        Column("params\nM", [_number(run.parameters, 1e-6) for run in runs], drop=3),
        Column("batch 1\nms", [_number(row.latency_1) for row in rows], drop=4),
        Column("batch 32\nms", [_number(row.latency_32) for row in rows], drop=7),
        Column("times\nfaster", [_number(row.speedup) for row in rows], drop=2),
        Column("train\ns", [_number(row.seconds) for row in rows], drop=5),
        Column("teacher\ntrain s", [_number(row.teacher_seconds) for row in rows], drop=8),
        Column("general\nstages s", [_number(row.general_seconds) for row in rows], drop=7),
        Column("ran on", _conditions(rows)),
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


def _signs(rows: list[Row], at: int) -> list[str]:
    """Green and red only where the mean is further from zero than the seeds are from it."""
    return [
        ("green" if summary.mean > 0 else "red")
        if summary and summary.sd is not None and abs(summary.mean) > summary.sd
        else ""
        for summary in (row.differences[at] for row in rows)
    ]


def _number(value: float | None, scale: float = 1) -> str:
    """Three digits: 17.3, 3.00, 0.0521, but 1840 and not 1.84e+03."""
    if value is None:
        return NOTHING
    value *= scale
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def _conditions(rows: list[Row]) -> list[str]:
    """Of precision, device and threads those that are not the same in all rows."""

    def differs(name: str) -> bool:
        neural = [row for row in rows if name != "precision" or row.role != "tfidf"]  # which has none
        return len({run.conditions[name] for row in neural for run in row.runs}) > 1

    names = [name for name in rows[0].conditions if differs(name)]
    units = {"precision": "", "device": "", "threads": " threads"}
    return [" ".join(row.conditions[name] + units[name] for name in names) or NOTHING for row in rows]


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
        ([row for row in rows if row.teacher_behind], "The teacher is not above direct fine-tuning, no gap: {}."),
        ([row for row in rows if row.selected_on_reported], "† selected on the reported split, so too good: {}."),
        ([row for row in rows if row.dirty], "‡ ran from a checkout with uncommitted changes: {}."),
    ]
    sentences = [text.format(_names(which, rows)) for which, text in found if which]
    if set(_conditions(rows)) != {NOTHING}:
        sentences.append("Not all rows ran alike (ran on): compare no times across them.")
    if split == "dev":
        sentences.append("Checkpoints and hyperparameters were chosen on dev: report --split test.")
    return sentences


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


def fit(found: list[Column], width: int) -> tuple[list[Column], list[str]]:
    """The columns that go into `width`, and the headers of those left out; figures are never cut."""
    kept = list(found)
    if _least(kept) > width:
        kept = [replace(column, cells=[cell.replace(" ± ", "±") for cell in column.cells]) for column in kept]
    while _least(kept) > width and (last := max(kept, key=lambda column: column.drop)).drop:
        kept.remove(last)
    left = {column.header for column in kept}
    return kept, [column.header.replace("\n", " ") for column in found if column.header not in left]


def _least(kept: list[Column]) -> int:
    """The width these need: of the first its longest word, and no less than WRAPPED."""
    longest_word = max(len(word) for cell in kept[0].cells for word in cell.split())
    return max(longest_word + GAP, min(kept[0].width, WRAPPED)) + sum(column.width + GAP for column in kept[1:])


def print_terminal(tables: list[Table], metric: str, split: str) -> None:
    """Tables as wide as the terminal allows; plain and in full where the output is not one."""
    from rich.console import Console  # not at the top: only this format pays for it

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 1000  # a pipe: nothing is left out or wrapped
    with console.capture() as text:  # else rich would take a closed pipe for a failure
        for table in tables:
            _print_table(console, table, metric, split)
        console.print(LEGEND, style="dim")
    print(text.get(), end="")


def _print_table(console: "Console", table: Table, metric: str, split: str) -> None:
    shown, left_out = fit(columns(table, metric), console.width)
    console.print(heading(table, metric, split), style="bold", end="\n\n")
    for line in _lines(shown, console.width):
        console.print(line, soft_wrap=True)  # a figure is never cut, however narrow the terminal
    console.print()
    for sentence in notes(table, split):
        console.print(sentence)
    for sentence, commands in missing(table):
        console.print(f"{sentence}:")
        for command in commands:
            console.print(f"  {command}", style="cyan", soft_wrap=True)  # whole, to be copied
    if left_out:
        console.print(f"Left out at this width: {', '.join(left_out)}.", style="dim")
    console.print()


def _lines(shown: list[Column], width: int) -> Iterator["Text"]:
    """Head, rule and rows. Not rich's own table, which takes a millisecond a row."""
    from rich.text import Text

    others = sum(column.width + GAP for column in shown[1:])
    first = max(_least(shown) - others, min(shown[0].width, width - others))
    widths = [first, *(column.width for column in shown[1:])]

    def line(cells: list[str], styles: list[str]) -> Text:
        text = Text()
        for cell, style, column, room in zip(cells, styles, shown, widths, strict=True):
            padded = cell.ljust(room) if column.header in LEFT else cell.rjust(room)
            text.append(padded, style).append(" " * GAP)
        text.rstrip()
        return text

    heads = [["", *column.header.split("\n")][-2:] for column in shown]
    yield from (line([head[at] for head in heads], ["bold"] * len(shown)) for at in (0, 1))
    yield Text("─" * (first + others))
    for at, cell in enumerate(shown[0].cells):
        method, *more = wrap(cell, first, subsequent_indent=" " * GAP, break_on_hyphens=False)
        styles = [column.styles[at] if column.styles else "" for column in shown]
        yield line([method, *(column.cells[at] for column in shown[1:])], styles)
        yield from map(Text, more)


def print_markdown(tables: list[Table], metric: str, split: str) -> None:
    """Tables of GitHub's Markdown with all columns, notes as a list, commands as code."""
    for table in tables:
        found = columns(table, metric)
        head = [column.header.replace("\n", " ") for column in found]
        print(f"### {heading(table, metric, split)}\n")
        rule = ["---" if column.header in LEFT else "---:" for column in found]
        for line in (head, rule, *zip(*(column.cells for column in found), strict=True)):
            print("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |")
        print("".join(f"\n- {sentence}" for sentence in notes(table, split)))
        for sentence, commands in missing(table):
            print(f"\n{sentence}:\n\n```sh", *commands, "```", sep="\n")
        print()
    print(LEGEND)
