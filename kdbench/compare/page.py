"""`--format html`: one page that needs nothing but itself. Every text is escaped by jinja2; the script is ours."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from kdbench.compare import certainty, diff, speed
from kdbench.compare.columns import Sheet, sheet
from kdbench.compare.draw import name_of
from kdbench.compare.mistakes import Mistakes, mistakes
from kdbench.compare.pictures import front, pictures
from kdbench.compare.rows import Row, Table


@dataclass(frozen=True)
class Picture:
    name: str
    svg: Markup  # matplotlib's own, whose texts it has escaped
    base64: str


def print_page(tables: Sequence[Table], metric: str, split: str) -> None:
    """The whole document on stdout."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    title = f"compare-runs: {', '.join(dict.fromkeys(table.dataset for table in tables))}"
    found = [_table(table, metric, split) for table in tables]
    print(environment.get_template("page.html.j2").render(title=title, tables=found))


def _table(table: Table, metric: str, split: str) -> dict[str, Any]:
    drawn = [_picture(name, figure) for name, figure in pictures(table, metric, split)]
    drawn.sort(key=lambda picture: picture.name != "pareto")
    tied = [
        row.id for row in table.rows if table.tests and (one := table.tests.rows.get(row.id)) and one.tied_with_best
    ]
    return {
        "sheet": sheet(table, metric, split),
        "ids": [row.id for row in table.rows],
        "tied": tied,
        "summary": summary(table),
        "pictures": drawn,
        "tests": certainty.sheet(table) if table.tests and table.tests.count else None,
        "speed": speed.sheet(table) if table.session else None,
        "runs": [_run(table, row, split) for row in table.rows] if table.tests else [],
    }


def _picture(name: str, figure: Figure) -> Picture:
    held = io.StringIO()
    figure.savefig(held, format="svg", metadata={"Date": None})
    text = held.getvalue()
    inline = text[text.index("<svg") :]  # without the XML head
    return Picture(name, Markup(inline), base64.b64encode(text.encode()).decode())


def summary(table: Table) -> list[str]:
    """Which one to ship, for which latency, and how sure that is."""
    rows = [row for row in table.rows if row.role != "teacher"]
    if not rows:
        return ["Only the teacher is shown."]
    best = max(rows, key=lambda row: row.score.mean)
    said = [f"Highest: {_words(best, table)}."]
    tied = [row for row in rows if table.tests and (one := table.tests.rows.get(row.id)) and one.tied_with_best]
    timed = [row for row in tied if row.latency_1 is not None]
    if len(tied) > 1 and timed:
        first = min(timed, key=lambda row: row.latency_1 or 0.0)
        said.append(f"{len(tied) - 1} of the {len(rows) - 1} others cannot be told from it.")
        fastest = f"The fastest of them all is {_words(first, table)}"
        said.append(f"{fastest}: ship it, unless more seeds or examples tell them apart.")
    elif len(tied) == 1:
        said.append("It is better than every other row shown, after Holm's correction over all pairs.")
    else:
        said.append("No tests were made (--tests): nothing here says that it is better than the next.")
    budget = {(row.latency_1 or 0.0, row.score.mean): row for row in rows if row.latency_1 is not None}
    steps = [
        f"from {point[0]:#.3g} ms {name_of(budget[point], table.rows)} ({point[1]:.2f})"
        for point in front(list(budget))
    ]
    if len(steps) > 1:
        said.append(f"By latency at batch 1, the highest mean for a budget: {'; '.join(steps)}.")
    return said


def _words(row: Row, table: Table) -> str:
    """`theseus (7e30e6eb) with 94.20 %, interval 93.3 to 95.1, 6.41 ms, 3 seeds`."""
    test = table.tests.rows.get(row.id) if table.tests else None
    parts = [f"{name_of(row, table.rows)} ({row.id}) with {row.score.mean:.2f} %"]
    parts += [f"95 % interval {test.score.low:.1f} to {test.score.high:.1f}"] if test else []
    parts += [f"{row.latency_1:#.3g} ms"] if row.latency_1 is not None else []
    return ", ".join([*parts, f"{row.score.n} seed{'s' * (row.score.n > 1)}"])


def _run(table: Table, row: Row, split: str) -> dict[str, Any]:
    base = row.runs[0].baselines[0]
    against = next((other for other in table.every if base and other.id == base[0]), None)
    found: Mistakes | None = mistakes(row, against, split)
    differing: Sheet | None = None
    if against:
        paths = row.runs[0].path, against.runs[0].path
        differing = diff.sheet(*paths, diff.differences(*paths))
    return {
        "id": row.id,
        "name": f"{name_of(row, table.rows)} ({row.id}), {row.score.mean:.2f} %",
        "against": f"{against.label} ({against.id})" if against else "",
        "diff": differing,
        "seeds": row.score.n,
        "matrix": found.matrix if found else [],
        "classes": found.classes if found else [],
        "classes_left": found.classes_left if found else 0,
        "examples": found.examples if found else [],
    }
