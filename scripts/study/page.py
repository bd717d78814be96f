"""What the pages of the first study have between their markers, from its tables.

<!-- table direct / newsgroups20 / direct.* --> ... <!-- end -->   the rows of a question, on this data, that match
<!-- headline newsgroups20 --> ... <!-- end -->   the rows of question 9 on this data that HEADLINE names, in short
<!-- claims --> ... <!-- end -->, <!-- rules --> ... <!-- end -->   the verdicts; what was measured and each rule
<!-- plan --> ... <!-- end -->, <!-- not run --> ... <!-- end -->   runs and costs; the commands of what is not run
<!-- figure theseus / theseus / difference / reuters_r52 -->...<!-- end -->   one figure in a sentence: question, row,
    which, and the data if they are not the tweets: score, difference and total_difference with their intervals; gap:
    the share of the way to the ceiling; faster: times as fast as the teacher, with the interval of repeated
    measurements; else a column of the CSV
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from scripts.study.claims import judge
from scripts.study.intervals import TEACHER, ceiling, share_of_gap, times_faster
from scripts.study.plan import Plan
from scripts.study.tables import Evidence, Record

MARKED = re.compile(r"(<!-- ((?:table|headline) [^>]+?|claims|rules|plan|not run) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"(<!-- figure (.+?) -->).*?(<!-- end -->)")
TWEETS = "tweet_sentiment, 8,000 train texts"  # the data of the headline table and picture
HEADLINE = {  # rows of question 9 as a regular expression -> their short names; rows of one seed are not here
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


def fill(text: str, evidence: Evidence, plan: Plan) -> str:
    """Return a page with everything between its markers made anew. Raises LookupError where a row is gone."""

    def block(found: re.Match[str]) -> str:
        kind, _, rest = found[2].partition(" ")
        words = rest.split(" / ")
        makers = {
            "table": lambda: table(evidence, *words),
            "headline": lambda: headline(evidence, rest),
            "claims": lambda: verdicts(evidence),
            "rules": lambda: rules(evidence),
            "plan": lambda: summary(evidence, plan),
            "not": lambda: not_run(evidence, plan),
        }
        return f"{found[1]}{makers[kind]()}\n{found[3]}"

    text = MARKED.sub(block, text)
    return FIGURE.sub(lambda found: f"{found[1]}{figure(evidence, *found[2].split(' / '))}{found[3]}", text)


def figure(evidence: Evidence, question: str, name: str, what: str, data: str = TWEETS) -> str:
    """Return one figure of a row. Raises LookupError where there is no such row or column."""
    row = evidence.row(question, name, data)
    if what in ("score", "difference", "total_difference"):
        return interval(row, what)
    if what == "gap":
        share = share_of_gap(row, ceiling(evidence, question, row))
        return "" if share is None else f"{100 * share:.0f}"
    if what == "faster":
        times = times_faster(row, TEACHER, evidence.times)
        return f"{times.mean:.2f} ({times.low:.2f} to {times.high:.2f})"
    return number(row[what], ".4g")


def table(evidence: Evidence, question: str, data: str, form: str = ".*") -> str:
    """Return the rows of a question that match `form`. A column without a figure is left out."""
    rows = [row for row in evidence.rows(question, data) if re.fullmatch(form, row["row"])]
    if not rows:
        raise LookupError(f"{question}.csv has no row {form} of {data}")
    shares = [share_of_gap(row, ceiling(evidence, question, row)) for row in rows]
    longer = [row for row in rows if row["total_difference_low_points"] is not None]  # trained longer than its baseline
    columns = {
        "row": [row["row"] + best_of(row) for row in rows],
        "n": [str(row["score_n"]) for row in rows],
        "test accuracy, %": [interval(row, "score") for row in rows],
        "vs direct, points": [interval(row, "difference") for row in rows],
        "p": [number(row["difference_p"], ".3f") for row in rows],
        "vs same total, points": [interval(row, "total_difference") if row in longer else "" for row in rows],
        "p, same total": [number(row["total_difference_p"], ".3f") for row in rows],
        "gap closed, %": ["" if share is None else f"{100 * share:.0f}" for share in shares],
        "ms": [number(row["latency_batch_1_ms"], ".1f") for row in rows],
    }
    told = {head: cells for head, cells in columns.items() if any(cells)}
    return markdown(list(told), zip(*told.values(), strict=True))


def headline_rows(evidence: Evidence, data: str, names: Mapping[str, str] = HEADLINE) -> list[tuple[str, Record]]:
    """Return the name and the row of each row of question 9 that `names` has, in its order. Raises LookupError."""
    rows = evidence.rows("together", data)
    found = [(name + best_of(row), row) for form, name in names.items() for row in rows
             if re.fullmatch(form, row["row"])]  # fmt: skip
    if not found:
        raise LookupError(f"together.csv has no rows of {data}")
    return found


def headline(evidence: Evidence, data: str) -> str:
    """Return the headline rows of `data` as a table."""
    lines = [
        [name, str(row["score_n"]), interval(row, "score"), interval(row, "difference"),
         number(row["parameters"], ".1f", 1e-6), number(row["latency_batch_1_ms"], ".1f")]
        for name, row in headline_rows(evidence, data)
    ]  # fmt: skip
    return markdown(SHORT, lines)


def shown(named: Iterable[tuple[str, Record]], columns: Sequence[str]) -> str:
    """Return what a picture shows of its rows as a table: times as numbers, else figures with their intervals."""
    return markdown(
        ("row", "n", *columns),
        [(name, str(row["score_n"]), *(number(row[one], ".4g") if one.endswith("ms") else interval(row, one)
                                       for one in columns)) for name, row in named],
    )  # fmt: skip


def best_of(row: Record) -> str:
    tried = row["best_on_dev_of"]
    return f" (best of {tried} on dev)" if tried > 1 else ""


def interval(row: Record, name: str) -> str:
    """Return mean (low to high), or the mean alone; differences have a sign."""
    form = ".2f" if name == "score" else "+.2f"
    points, low, high = (number(row[f"{name}{part}_points"], form) for part in ("", "_low", "_high"))
    return f"{points} ({low} to {high})" if low else points


def number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else format(scale * value, form)


def verdicts(evidence: Evidence) -> str:
    """Return the verdict on each claim and data set, with its figures."""
    lines = []
    for at, claim in enumerate(judge(evidence), 1):
        first = f"{claim['claim']} ({claim['source']})"
        for data, (verdict, figures) in claim["judged"].items() or [("", ("not run yet", ""))]:
            lines.append((str(at), first, "the tweets" if data == TWEETS else data, verdict, figures))
            first = "the same"
    return markdown(("claim", "what it says (source)", "data", "verdict", "figures"), lines)


def rules(evidence: Evidence) -> str:
    """Return what was measured for each claim, and what each verdict needs."""
    lines = [(str(at), claim["tested"], claim["rule"]) for at, claim in enumerate(judge(evidence), 1)]
    return markdown(("claim", "what was measured", "rule"), lines)


def summary(evidence: Evidence, plan: Plan) -> str:
    """Return for each question the planned runs, those that are done, and the estimated cost."""
    planned, done, hours = Counter[str](), Counter[str](), dict.fromkeys(plan.questions, 0.0)
    for step, runs, missing in zip(plan.steps, plan.new_runs, evidence.not_run(plan), strict=True):
        planned[step.question] += len(runs)
        done[step.question] += len(runs) - missing
        hours[step.question] += len(runs) * step.seconds / 3600
    lines = [
        (f"{about['number']}. {about['title']}", str(planned[name]), str(done[name]), f"{hours[name]:.1f}")
        for name, about in plan.questions.items()
    ]
    total = ("all", str(planned.total()), str(done.total()), f"{sum(hours.values()):.1f}")
    return markdown(("question", "planned runs", "done", "core hours of all"), [*lines, total])


def not_run(evidence: Evidence, plan: Plan) -> str:
    """Return the commands of the runs that no table has, with their cost."""
    lines = [
        (str(at), f"{missing} of {len(runs)}", f"{missing * step.seconds / 3600:.2f}", f"`{step.command}`")
        for at, (step, runs, missing) in enumerate(
            zip(plan.steps, plan.new_runs, evidence.not_run(plan), strict=True), 1
        )
        if missing
    ]
    return markdown(("step", "runs", "core hours", "command"), lines) if lines else "Everything has been run."


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])
