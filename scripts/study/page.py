"""What the pages in docs/study/ and the README have between their markers, from the CSV and JSON files.

<!-- table direct --> ... <!-- end -->      a question's rows, pictures, and what is not run
<!-- details fastbert speeds --> ... <!-- end -->   what its runs report or log themselves, the mean over seeds
<!-- headline newsgroups20 --> ... <!-- end -->   of question 9's rows of this data the HEADLINE, in short
<!-- claims --> ... <!-- end -->            the claims
<!-- plan --> ... <!-- end -->              the plan
<!-- figure theseus / theseus_blog / difference -->...<!-- end -->   a figure in a sentence: question, row, what of it
    (score, difference and total_difference with their intervals, gap: the share of the way to the ceiling, ceiling: its
    score, faster: times as fast as the teacher with the interval of repeated measurements, else a column of the CSV),
    and, if it is not reuters_r52, / the data as the table names them
"""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scripts.study.evidence import TEACHER, ceiling, read_times, share_of_gap, times_faster
from scripts.study.keep import written
from scripts.study.plan import Plan, data_of

MARKED = re.compile(r"(<!-- (table \w+|details \w+ \w+|headline [^>]+|claims|plan) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"(<!-- figure (.+?) -->).*?(<!-- end -->)")
HEADS = (
    "row", "data", "n", "test accuracy, % (95 % interval)", "vs direct, points (interval)", "its p",
    "vs same total, points (interval)", "its p", "gap closed, %", "parameters, M", "ms, batch 1", "times as fast",
    "training, s",
)  # fmt: skip
HEADLINE = {  # rows of question 9 as a regular expression -> their names in the README; rows of one seed are not here
    "tfidf": "TF-IDF + linear SVM",
    "teacher": "teacher, 6 layers",
    "teacher int8": "teacher, 6 layers, int8",
    "direct layers 6": "direct, all 6 layers",
    "direct layers 3": "direct, first 3 layers",
    "direct layers 3 int8": "direct, first 3 layers, int8",
    "direct_longer": "direct, 1.5 times the updates",
    "direct_layers .*": "direct, other 3 layers",
    "logit_kd": "logit KD",
    "logit_kd int8": "logit KD, int8",
    "theseus": "BERT-of-Theseus",
    "theseus int8": "BERT-of-Theseus, int8",
    "two_stage .*": "two-stage",
}
SHORT = ("model", "seeds", "test accuracy, %", "vs direct, points", "params, M", "ms, batch 1")
IN_README = "tweet_sentiment, 8,000 train texts"  # its headline table and picture


def fill(text: str, folder: Path, plan: Plan) -> str:
    """A page with everything between its markers made anew."""

    def block(found: re.Match[str]) -> str:
        kind, _, question = found[2].partition(" ")
        made = {
            "table": lambda: of_question(folder, question),
            "details": lambda: details(folder, *question.split()),
            "headline": lambda: headline(folder, question),
            "claims": lambda: claims(folder),
            "plan": lambda: steps(plan),
        }
        return f"{found[1]}{made[kind]()}\n{found[3]}"

    text = MARKED.sub(block, text)
    return FIGURE.sub(lambda found: f"{found[1]}{figure(folder, *found[2].split(' / '))}{found[3]}", text)


def figure(folder: Path, question: str, name: str, what: str, data: str = "reuters_r52") -> str:
    """One figure of a row. Raises LookupError where there is no such row or column."""
    found = [row for row in csv_rows(folder, question) if (row["row"], data_of(row)) == (name, data)]
    if not found:
        raise LookupError(f"{question}.csv has no row {name} of {data}")
    if what in ("score", "difference", "total_difference"):
        return interval(found[0], what, "" if what == "score" else "+")
    if what in ("gap", "ceiling", "faster"):
        return of_rows(folder, question, name, what, data)
    return number(found[0][what], "{:.4g}")


def of_rows(folder: Path, question: str, name: str, what: str, data: str) -> str:
    """What a row is beside others: its share of the gap, the ceiling of its data, times as fast as the teacher."""
    documents = written(folder)
    row = next(row for row in documents[question]["rows"] if (row["row"], data_of(row)) == (name, data))
    if what == "faster":
        times = times_faster(row, TEACHER, read_times(folder))
        return f"{times.mean:.2f} ({times.low:.2f} to {times.high:.2f})"
    top = ceiling(documents, question, row)
    if what == "gap":
        share = share_of_gap(row, top)
        return "" if share is None else f"{100 * share:.0f}"
    if top is None:
        raise LookupError(f"{question} has no ceiling of {data}")
    return interval({key: "" if value is None else str(value) for key, value in top.items()}, "score", "")


def csv_rows(folder: Path, question: str) -> list[dict[str, str]]:
    with (folder / f"{question}.csv").open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def of_question(folder: Path, question: str) -> str:
    """Rows from the CSV, pictures, details, and the runs that are missing with their commands."""
    rows = csv_rows(folder, question)
    documents = written(folder)
    document = documents[question]
    shares = [share_of_gap(row, ceiling(documents, question, row)) for row in document["rows"]]
    lines = [cells(row, share) for row, share in zip(rows, shares, strict=True)]
    parts = [markdown(HEADS, lines) if rows else "Not run yet."]
    parts += [f"![{path.stem}]({path.name})" for path in pictures(folder, question)]
    if lacking := document["missing"]:
        hours = sum(one["core_hours"] for one in lacking)
        runs = sum(one["runs"] for one in lacking)
        commands = [
            f"- {one['runs']} of {one['of']} runs, {one['core_hours']:.2f} h: `{one['command']}`" for one in lacking
        ]
        parts.append(
            f"Not run: {runs} runs, about {hours:.1f} hours of one core (estimated).\n\n" + "\n".join(commands)
        )
    return "\n\n".join(parts)


def headline_rows(folder: Path, data: str) -> list[tuple[str, dict[str, str]]]:
    """Return the name and the row of each row that HEADLINE names, in its order."""
    rows = [row for row in csv_rows(folder, "together") if data_of(row) == data]
    return [(name + best_of(row), row) for form, name in HEADLINE.items() for row in rows
            if re.fullmatch(form, row["row"])]  # fmt: skip


def headline(folder: Path, data: str) -> str:
    """Return the headline rows of `data` as a table. Raises LookupError where it has none."""
    lines = [
        [name, row["score_n"], interval(row, "score", ""), interval(row, "difference", "+"),
         number(row["parameters"], "{:.1f}", 1e-6), number(row["latency_batch_1_ms"], "{:.1f}")]
        for name, row in headline_rows(folder, data)
    ]  # fmt: skip
    if not lines:
        raise LookupError(f"together.csv has no rows of {data}")
    return markdown(SHORT, lines)


def details(folder: Path, question: str, name: str) -> str:
    """Of each row, and of each speed or layer of it, the mean over seeds."""
    records = json.loads((folder / f"{question}.json").read_text(encoding="utf8"))["details"].get(name)
    if not records:
        return "Not run yet."
    keys = [key for key in ("data", "row", "speed", "layer") if key in records[0]]
    figures = [key for key in records[0] if key not in (*keys, "seed", "n")]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in records:
        groups.setdefault(tuple(str(one[key]) for key in keys), []).append(one)
    lines = [
        (*group, str(len(own)), *(mean([one[key] for one in own]) for key in figures)) for group, own in groups.items()
    ]
    return markdown([*keys, "n", *(key.replace("_", " ") for key in figures)], lines)


def mean(values: list[Any]) -> str:
    """Over seeds; of lists, place by place; of those that are null, nothing."""
    known = [value for value in values if value is not None]
    if known and isinstance(known[0], list):
        return " ".join(f"{fmean(place):.3f}" for place in zip(*known, strict=True))
    if not known:
        return ""
    return f"{fmean(known):,.0f}" if fmean(known) >= 1e4 else f"{fmean(known):.4g}"


def pictures(folder: Path, question: str) -> list[Path]:
    return [path for path in sorted(folder.glob("*.svg")) if path.stem.split("_")[0] == question.split("_")[0]]


def cells(row: dict[str, str], share: float | None = None) -> list[str]:
    """One line of a question's table, from a line of its CSV and its share of the gap to the ceiling."""
    return [
        row["row"] + best_of(row), data_of(row),
        row["score_n"], interval(row, "score", ""),
        interval(row, "difference", "+"), number(adjusted(row, "difference"), "{:.3f}"),
        interval(row, "total_difference", "+"), number(adjusted(row, "total_difference"), "{:.3f}"),
        "" if share is None else f"{100 * share:.0f}", number(row["parameters"], "{:.1f}", 1e-6),
        number(row["latency_batch_1_ms"], "{:.1f}"), number(row["speedup"], "{:.2f}"),
        number(row["training_seconds"], "{:.0f}"),
    ]  # fmt: skip


def adjusted(row: dict[str, str], name: str) -> str:
    """The p for all tests of the table together; in tables of before that was Holm's, in a column of its own."""
    return row[f"{name}_p_holm"] or row[f"{name}_p"]


def best_of(row: dict[str, str]) -> str:
    tried = int(row["best_on_dev_of"])
    return f" (best of {tried} on dev)" if tried > 1 else ""


def interval(row: dict[str, str], name: str, sign: str) -> str:
    """Mean (low to high); without an interval the mean alone."""
    form = f"{{:{sign}.2f}}"
    mean, low, high = (number(row[f"{name}{part}_points"], form) for part in ("", "_low", "_high"))
    return f"{mean} ({low} to {high})" if low else mean


def number(text: str, form: str, scale: float = 1.0) -> str:
    return form.format(scale * float(text)) if text else ""


def claims(folder: Path) -> str:
    """The claims, each with the rule that its verdict follows."""
    rows = csv_rows(folder, "claims")
    return markdown(tuple(rows[0]), [list(row.values()) for row in rows])


def steps(plan: Plan) -> str:
    """The plan in its order, with what it has cost by then."""
    spent, lines = 0.0, []
    for at, (step, runs) in enumerate(zip(plan.steps, plan.new_runs, strict=True), 1):
        hours = len(runs) * step.seconds / 3600
        spent += hours
        number_ = plan.questions[step.question]["number"]
        figures = [f"{len(runs)}", f"{step.seconds:.0f}", f"{hours:.1f}", f"{spent:.1f}"]
        lines.append([f"{at}", f"{number_}", f"`{step.command}`", *figures])
    return markdown(("step", "question", "command", "runs", "s a run", "core hours", "by then"), lines)


def markdown(heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])
