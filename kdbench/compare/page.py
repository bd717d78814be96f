"""`--format html`: one self-contained page. jinja2 escapes every text."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from kdbench.compare import diff
from kdbench.compare.columns import bold, unit
from kdbench.compare.confusions import confusions
from kdbench.compare.curves import detail
from kdbench.compare.notes import sheets
from kdbench.compare.pictures import diagram, front, learning, name_of, pictures
from kdbench.compare.table import Row, Table
from kdbench.compare.texts import Texts, texts
from kdbench.compare.trust import columns as trusted
from kdbench.compare.trust import trust
from kdbench.data.report import data_lines, pieces_lines, warnings
from kdbench.storage.files import read_json


@dataclass(frozen=True)
class Picture:
    name: str
    title: str
    width: float  # rem: an inch of the figure is 6.4
    svg: Markup  # matplotlib has escaped its texts
    base64: str


def print_page(tables: Sequence[Table]) -> None:
    """Print the document."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    title = f"compare-runs: {', '.join(dict.fromkeys(table.dataset for table in tables))}"
    print(environment.get_template("page.html.j2").render(title=title, tables=[_table(table) for table in tables]))


def _table(table: Table) -> dict[str, Any]:
    drawn = [_picture(name, figure) for name, figure in pictures(table)]
    drawn.sort(key=lambda picture: picture.name != "pareto")
    first, *below = sheets(table)
    return {
        "sheet": first,
        "below": below,
        "ids": [row.id for row in table.rows],
        "bold": bold(table),
        "summary": summary(table),
        "pictures": drawn,
        "runs": [_run(table, row) for row in table.rows] if table.tests else [],
        "texts": texts(run for row in table.rows for run in row.runs) if table.tests else Texts(),
        "data": _data(table),
    }


def _data(table: Table) -> dict[str, list[str]]:
    """Return what the runs read, each sentence once, because rows may differ in length or tokenizer."""
    reports = [read_json(row.runs[0].path)["data"] for row in table.rows]
    lines = [line for report in reports for line in (*data_lines(report), *pieces_lines(report["pieces"]))]
    warned = [warning for report in reports for warning in warnings(report["pieces"])]
    return {"lines": [*dict.fromkeys(lines)], "warnings": [*dict.fromkeys(warned)]}


def _picture(name: str, figure: Figure) -> Picture:
    return _drawn(name, figure, figure.axes[0].get_title(loc="left").replace("\n", ", "))


def _drawn(name: str, figure: Figure, title: str) -> Picture:
    held = io.StringIO()
    figure.savefig(held, format="svg", metadata={"Date": None})
    text = held.getvalue()
    inline = text[text.index("<svg") :]  # without the XML head
    encoded = base64.b64encode(text.encode()).decode()
    return Picture(name, title, round(6.4 * figure.get_figwidth(), 1), Markup(inline), encoded)


def summary(table: Table) -> list[str]:
    """Return which model to ship, for which latency, and how certain that is."""
    rows = [row for row in table.rows if row.role != "teacher"]
    if not rows:
        return ["Only the teacher is shown."]
    best = max(rows, key=lambda row: row.score.mean)
    sentences = [f"Highest mean: {_words(best, table)}."]
    if table.tests:
        sentences += _tested(best, rows, table)
    else:
        sentences.append("No tests were made (--tests), so it may not be better than the next row.")
    networks = [row for row in rows if row.role != "tfidf"]
    by_cost = {(row.quiet_ms, row.score.mean): row for row in networks if row.quiet_ms is not None}
    steps = [
        f"from {ms:#.3g} ms {name_of(by_cost[ms, mean], table.rows)} ({mean:.2f})" for ms, mean in front([*by_cost])
    ]
    if len(steps) > 1:
        sentences.append(f"The network with the highest mean for a latency budget (batch 1): {'; '.join(steps)}.")
    if any(row.quiet_ms is None for row in networks):
        sentences.append("Not all were timed on a quiet machine; compare-runs --latency measures all together.")
    elif steps and table.session is None:
        sentences.append("Times are those of each run's command; compare-runs --latency measures all together.")
    return sentences


def _tested(highest: Row, rows: list[Row], table: Table) -> list[str]:
    """Return what the tests found about the highest row, or about the highest one with several seeds."""
    ranked = [row for row in rows if row.tests and row.tests.rank]
    best = max(ranked, key=lambda row: row.score.mean, default=highest)
    others = [row for row in rows if row is not best]
    if not ranked:
        return ["No other row could be tested against it, because rows with one seed are not tested."] * bool(others)
    words = f"It has one seed, so it was not tested. The highest mean of the tested rows: {_words(best, table)}."
    return [words] * (best is not highest) + _certainty(best, others, table)


def _certainty(best: Row, others: list[Row], table: Table) -> list[str]:
    """Return how many of the other rows may be as good, and which of these is the fastest."""
    found = [row.tests.tied_with_best if row.tests else None for row in others]
    tied = [row for row, one in zip(others, found, strict=True) if one]
    counts = {
        "significantly worse": found.count(False),
        "not significantly different": found.count(True),
        "not tested against it": found.count(None),
    }
    words = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    sentences = [f"The other {len(others)} rows: {words}."]
    timed = [(row.quiet_ms, row) for row in (best, *tied) if row.quiet_ms is not None]
    if tied and len(timed) == 1 + len(tied):
        _, first = min(timed, key=lambda one: one[0])
        fastest = (
            "It is also the fastest of these" if first is best else f"The fastest of these is {_words(first, table)}"
        )
        sentences.append(f"{fastest}: ship it, unless more seeds or examples show a difference.")
    elif tied:
        sentences.append("Which of these is the fastest is unknown, because not all were timed on a quiet machine.")
    return sentences


def _words(row: Row, table: Table) -> str:
    """Return `theseus (7e30e6eb) with 94.20 %, 95 % interval 93.3 to 95.1, 6.41 ms, 3 seeds`."""
    parts = [f"{row.name} with {row.score.mean:.2f} {unit(table.metric)}"]
    parts += [f"95 % interval {row.tests.score.low:.1f} to {row.tests.score.high:.1f}"] if row.tests else []
    parts += [f"{row.quiet_ms:#.3g} ms"] if row.quiet_ms is not None else []
    return ", ".join([*parts, f"{row.score.n} seed{'s' * (row.score.n > 1)}"])


def _run(table: Table, row: Row) -> dict[str, Any]:
    base = row.runs[0].baselines[0]
    against = next((other for other in table.every if base and other.id == base[0]), None)
    pair = [row, against] if against else [row]
    curve = learning(replace(table, rows=pair), {one.id: detail(one) for one in pair})
    differing = diff.differences(row.runs[0].path, against.runs[0].path) if against else []
    found = trust(row, table.split)
    title = f"{row.label}: {table.split} accuracy against probability"
    return {
        "id": row.id,
        "diagram": _drawn("reliability", diagram(title, found), title) if found else None,
        "sure": trusted(found) if found else [],
        "name": f"{row.labelled_settings} ({row.id}), {row.score.mean:.2f} {unit(table.metric)}",
        "learning": _picture("learning", curve) if curve else None,
        "against": against.name if against else "",
        "diff": diff.columns(differing, "this row", "baseline") if against else [],
        "seeds": row.score.n,
        "found": confusions(row, against, table.split),
    }
