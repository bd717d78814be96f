"""`--format html`: one page that needs nothing but itself. Every text is escaped by jinja2; the script is ours."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from kdbench.compare import certainty, diff, speed
from kdbench.compare.columns import Sheet, bold, row_tests, unit
from kdbench.compare.confusions import Mistakes, mistakes
from kdbench.compare.curves import detail
from kdbench.compare.draw import name_of
from kdbench.compare.notes import sheet
from kdbench.compare.pictures import front, learning, pictures
from kdbench.compare.table import Row, Table
from kdbench.compare.texts import Texts, texts
from kdbench.data.report import ReadReport, data_lines, pieces_lines, warnings
from kdbench.storage.files import read_json


@dataclass(frozen=True)
class Picture:
    name: str
    title: str
    width: float  # rem: an inch of the figure is 6.4
    svg: Markup  # matplotlib's own, whose texts it has escaped
    base64: str


def print_page(tables: Sequence[Table], split: str) -> None:
    """The whole document on stdout."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    title = f"compare-runs: {', '.join(dict.fromkeys(table.dataset for table in tables))}"
    found = [_table(table, table.metric, split) for table in tables]
    print(environment.get_template("page.html.j2").render(title=title, tables=found))


def _table(table: Table, metric: str, split: str) -> dict[str, Any]:
    drawn = [_picture(name, figure) for name, figure in pictures(table, metric, split)]
    drawn.sort(key=lambda picture: picture.name != "pareto")
    return {
        "sheet": sheet(table, metric, split),
        "ids": [row.id for row in table.rows],
        "bold": bold(table),
        "summary": summary(table),
        "pictures": drawn,
        "tests": certainty.sheet(table) if table.tests and table.tests.count else None,
        "speed": speed.sheet(table) if table.session else None,
        "runs": [_run(table, row, metric, split) for row in table.rows] if table.tests else [],
        "texts": texts(table, split) if table.tests else Texts(),
        "data": _data(table),
    }


def _data(table: Table) -> dict[str, list[str]]:
    """What the runs read: each sentence once, as rows may differ in length or tokenizer."""
    found = [read_json(row.runs[0].path).get("data") for row in table.rows]
    reports: list[ReadReport] = [report for report in found if report is not None]  # null: of before it was recorded
    lines = [line for report in reports for line in (*data_lines(report), *pieces_lines(report["pieces"]))]
    warned = [warning for report in reports for warning in warnings(report["pieces"])]
    return {"lines": [*dict.fromkeys(lines)], "warnings": [*dict.fromkeys(warned)]}


def _picture(name: str, figure: Figure) -> Picture:
    held = io.StringIO()
    figure.savefig(held, format="svg", metadata={"Date": None})
    text = held.getvalue()
    inline = text[text.index("<svg") :]  # without the XML head
    title = figure.axes[0].get_title(loc="left").replace("\n", ", ")
    encoded = base64.b64encode(text.encode()).decode()
    return Picture(name, title, round(6.4 * figure.get_figwidth(), 1), Markup(inline), encoded)


def summary(table: Table) -> list[str]:
    """Which one to ship, for which latency, and how sure that is."""
    rows = [row for row in table.rows if row.role != "teacher"]
    if not rows:
        return ["Only the teacher is shown."]
    best = max(rows, key=lambda row: row.score.mean)
    said = [f"Highest: {_words(best, table)}."]
    if table.tests:
        said += _tested(best, rows, table)
    else:
        said.append("No tests were made (--tests): nothing here says that it is better than the next.")
    networks = [row for row in rows if row.role != "tfidf"]
    quiet = [(row.times.batch_1, row) for row in networks if row.times.quiet and row.times.batch_1 is not None]
    budget = {(ms, row.score.mean): row for ms, row in quiet}
    steps = [
        f"from {point[0]:#.3g} ms {name_of(budget[point], table.rows)} ({point[1]:.2f})"
        for point in front(list(budget))
    ]
    if len(steps) > 1:
        said.append(f"Of the networks, by latency at batch 1, the highest mean for a budget: {'; '.join(steps)}.")
    if len(quiet) < len(networks):
        said.append("Not all were timed on a quiet machine; compare-runs --latency measures all of them together.")
    elif steps and table.session is None:
        said.append("Times are those of each run's command; compare-runs --latency measures all of them together.")
    return said


def _tested(highest: Row, rows: list[Row], table: Table) -> list[str]:
    """What the tests say of the highest, or of the highest that has several seeds: the others were not tested."""
    ranked = [row for row in rows if (found := row_tests(table, row)) and found.rank]
    best = max(ranked, key=lambda row: row.score.mean, default=highest)
    others = [row for row in rows if row is not best]
    if not ranked:
        return [f"None of the {len(others)} others could be tested against it, for want of seeds."] * bool(others)
    words = f"It was not tested, for want of seeds. Of those that were, the highest: {_words(best, table)}."
    return [words] * (best is not highest) + _certainty(best, others, table)


def _certainty(best: Row, others: list[Row], table: Table) -> list[str]:
    """How many of the others may be as good, and which of these is fastest."""
    found = {row.id: one.tied_with_best if (one := row_tests(table, row)) else None for row in others}
    tied = [row for row in others if found[row.id]]
    untested = [row for row in others if found[row.id] is None]
    worse = len(others) - len(tied) - len(untested)
    parts = [(worse, "worse, with all pairs tested together"), (len(tied), "not to be told from it")]
    parts += [(len(untested), "not tested against it, for want of seeds")]
    said = [f"Of the {len(others)} others: {', '.join(f'{count} {words}' for count, words in parts if count)}."]
    timed = [(row.times.batch_1, row) for row in (best, *tied) if row.times.quiet and row.times.batch_1 is not None]
    if tied and len(timed) == 1 + len(tied):
        _, first = min(timed, key=lambda one: one[0])
        fastest = (
            "It is the fastest of those too" if first is best else f"The fastest of those is {_words(first, table)}"
        )
        said.append(f"{fastest}: ship it, unless more seeds or examples tell them apart.")
    elif tied:
        said.append("Which of those is fastest is not known: not all were timed on a quiet machine.")
    return said


def _words(row: Row, table: Table) -> str:
    """`theseus (7e30e6eb) with 94.20 %, interval 93.3 to 95.1, 6.41 ms, 3 seeds`."""
    test = table.tests.rows.get(row.id) if table.tests else None
    parts = [f"{row.label} ({row.id}) with {row.score.mean:.2f} {unit(table.metric)}"]
    parts += [f"95 % interval {test.score.low:.1f} to {test.score.high:.1f}"] if test else []
    parts += [f"{row.times.batch_1:#.3g} ms"] if row.times.quiet and row.times.batch_1 is not None else []
    return ", ".join([*parts, f"{row.score.n} seed{'s' * (row.score.n > 1)}"])


def _run(table: Table, row: Row, metric: str, split: str) -> dict[str, Any]:
    base = row.runs[0].baselines[0]
    against = next((other for other in table.every if base and other.id == base[0]), None)
    found: Mistakes | None = mistakes(row, against, split)
    differing: Sheet | None = None
    if against:
        paths = row.runs[0].path, against.runs[0].path
        differing = diff.sheet(*paths, diff.differences(*paths))
        for column, name in zip(
            differing.columns[1:], ("this row", "baseline", "this came from", "baseline's"), strict=True
        ):
            column.header = name
    pair = [row, against] if against else [row]
    curve = learning(replace(table, rows=pair), metric, split, {one.id: detail(one, metric, split) for one in pair})
    return {
        "id": row.id,
        "name": " ".join(filter(None, [row.label, row.settings, f"({row.id}), {row.score.mean:.2f} {unit(metric)}"])),
        "learning": _picture("learning", curve) if curve else None,
        "against": f"{against.label} ({against.id})" if against else "",
        "diff": differing,
        "seeds": row.score.n,
        "matrix": found.matrix if found else [],
        "classes": found.classes if found else [],
        "classes_left": found.classes_left if found else 0,
        "parted": found.parted if found else [],
    }
