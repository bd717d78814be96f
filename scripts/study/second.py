"""The second study: run its plan (second.yaml), keep what each run answered, and write its page.

    python -m scripts.study.second run [--outputs outputs] [--cores 0,1] [--minutes 600] [--dry]
    python -m scripts.study.second keep [--outputs outputs]
    python -m scripts.study.second measure [--outputs outputs]
    python -m scripts.study.second write

`run` leaves out the runs that docs/study/second.csv has, so another machine goes on where one stopped. `keep` adds a
line for each finished run, with its answer to every test text. So intervals can be computed without the runs, and runs
of several machines make one row. `measure` times the models together, on a quiet machine. `write` fills
PAGES between their markers, from the CSV files alone, and draws second.png.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.compare.collect import NULL, Run
from kdbench.compare.pictures import COLOURS, LEAST_NUMBERS, MARKERS, log_axis
from kdbench.compare.statistics import LEVEL, Points, Scores, difference, paired, score, share_interval
from kdbench.console import guarded
from scripts.study.claims import judged
from scripts.study.intervals import Interval
from scripts.study.page import markdown
from scripts.study.plan import ROOT, Step
from scripts.study.run import execute, say
from scripts.study.tables import read_csv, write_csv

if TYPE_CHECKING:
    from scripts.study.finished import Kind  # its module loads torch

DATASET = "tweet_sentiment"
DOCS = ROOT / "docs/study"
PAGES = (DOCS / "second.md", ROOT / "README.md", ROOT / "docs/choosing.md")
LABELS = "labels"  # the row of the right answers
COLUMNS = (
    "question", "row", "seed", "score_points", "dev_points", "examples", "parameters", "training_seconds", "id",
    "precision", "machine", "commit", "answers",
)  # fmt: skip
TIMES = (
    "measurement", "when", "machine", "threads", "question", "row", "batch_1_ms", "batch_32_ms", "quiet",
)  # fmt: skip
Record = dict[str, Any]
INT8 = " int8"  # behind the name of a row
ENOUGH = 3  # seeds that a verdict needs


@dataclass(frozen=True)
class Study:
    """What second.yaml says."""

    questions: dict[str, dict[str, Any]]
    order: list[tuple[float, str, str, list[int]]]  # minutes, question, row, seeds
    claims: list[dict[str, Any]]

    def words(self, question: str, row: str) -> tuple[str, ...]:
        """Return what stands behind `kdbench` for one row, without its seed."""
        about = self.questions[question]
        return (*about["words"].split(), *about["rows"][row].split())

    def steps(self, kept: "Kept") -> list[Step]:
        """Return the commands of the runs that are not kept, in the order of the plan."""
        found = []
        for minutes, question, row, seeds in self.order:
            forms = self.forms(question, row)
            missing = [seed for seed in seeds if any((question, row + form, seed) not in kept.lines for form in forms)]
            if missing:
                words = (*self.words(question, row), *["export.int8=true"] * (INT8 in forms))
                seed = "seed=" + ",".join(map(str, missing))
                found.append(Step(question, DATASET, (*words, seed), 60 * minutes))
        return found

    def forms(self, question: str, row: str) -> tuple[str, ...]:
        """Return what follows the name of a row in the names of its forms."""
        return ("", INT8) if row in self.questions[question].get("int8", ()) else ("",)

    def names(self, question: str) -> list[str]:
        """Return the names of a question's rows in all their forms."""
        return [row + form for row in self.questions[question]["rows"] for form in self.forms(question, row)]


def load() -> Study:
    raw = yaml.safe_load(Path(__file__).with_name("second.yaml").read_text(encoding="utf8"))
    lines = (line.split() for line in raw["order"].splitlines())
    order = [(float(minutes), question, row, [*map(int, seeds.split(","))]) for minutes, question, row, seeds in lines]
    return Study(raw["questions"], order, raw["claims"])


class Kept:
    """The lines of second.csv: each run's answer to every test text, as one digit or letter."""

    def __init__(self, lines: list[Record]) -> None:
        self.lines = {(line["question"], line["row"], line["seed"]): line for line in lines}

    def of(self, question: str, row: str) -> list[Record]:
        """Return the lines of a row, by seed."""
        return [line for key, line in sorted(self.lines.items()) if key[:2] == (question, row)]

    def scores(self, question: str, row: str) -> Scores:
        """Return the points of a row, 0 or 100 for each text, by seed. Raises LookupError if no run is kept."""
        if not self.of(question, row):
            raise LookupError(f"{question}: no run of {row} is kept")
        right = answers(self.lines[question, LABELS, 0])
        points = {line["seed"]: 100.0 * (answers(line) == right) for line in self.of(question, row)}
        return Scores(points, seedless=row == "tfidf")

    def score(self, question: str, row: str) -> Interval:
        found = score(np.stack([*self.scores(question, row).by_seed.values()]))
        return Interval(found.mean, found.low, found.high)

    def differences(self, question: str, row: str, base: str) -> Points:
        """Return the paired differences in points, (S, N). Raises LookupError if the rows share no seed."""
        found = difference(self.scores(question, row), self.scores(question, base))
        if found is None:
            raise LookupError(f"{question}: {row} and {base} share no seed")
        return found

    def aligned(self, question: str, rows: Sequence[str]) -> list[Points]:
        """Return the points of each row for the seeds that all have, (S, N). Raises LookupError if there is none."""
        found = [self.scores(question, row).by_seed for row in rows]
        seeds = sorted(set.intersection(*map(set, found)))
        if not seeds:
            raise LookupError(f"{question}: {', '.join(rows)} share no seed")
        return [np.stack([one[seed] for seed in seeds]) for one in found]


def answers(line: Record) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(line["answers"].encode(), np.uint8)


def read(folder: Path = DOCS) -> Kept:
    return Kept(read_csv(folder / "second.csv"))


def keep(study: Study, outputs: Path, folder: Path = DOCS) -> list[str]:
    """Add a line for each finished run that is not kept yet. Returns what was added."""
    kept, added = read(folder), []
    for (question, row, seed), run in finished(study, outputs).items():
        if (question, row, seed) in kept.lines:
            continue
        right, line = _line(question, row, run)
        known = kept.lines.setdefault((question, LABELS, 0), right)
        if known["answers"] != right["answers"]:
            raise ValueError(f"{run.path.parent} was tested on other texts than the runs that are kept")
        kept.lines[question, row, seed] = line
        added.append(f"{question} {row} seed {seed}: {run.score:.2f}")
    write_csv(folder / "second.csv", COLUMNS, [kept.lines[key] for key in sorted(kept.lines)])
    return added


def finished(study: Study, outputs: Path) -> dict[tuple[str, str, int], Run]:
    """Return the planned runs and exports that are finished, by question, row and seed."""
    from kdbench.compare.collect import read_runs
    from kdbench.compare.keys import Wanted
    from scripts.study.finished import EXPORTED, environment, kind_of, trained_id

    every = read_runs([outputs], "accuracy", "test", Wanted([EXPORTED]))[0]
    kinds = {kind for run in every if (kind := kind_of(environment(run.path)))}
    row_of = {(run.id, run.seed): run.without_teacher_seed for run in every if run.settings["form"] == NULL}
    runs = {
        (
            row_of[trained_id(run), run.seed],
            "" if run.settings["form"] == NULL else f" {run.settings['form']}",
            run.seed,
        ): run
        for run in every
        if run.teacher is None or run.teacher.seed == run.seed  # each seed of this study has a teacher of its own
    }
    found = {}
    for _, question, row, seeds in study.order:
        for id_, form, seed in product(row_ids(study.words(question, row), kinds), study.forms(question, row), seeds):
            if (id_, form, seed) in runs:
                found[question, row + form, seed] = runs[id_, form, seed]
    return found


def measure(study: Study, outputs: Path, folder: Path = DOCS) -> None:
    """Time the finished rows together, one run of each, and add a line for each to second_times.csv."""
    from kdbench.inference.latency import measure_folders

    first = {key[:2]: run for key, run in sorted(finished(study, outputs).items(), reverse=True)}
    found = measure_folders({" ".join(key): run.path.parent for key, run in first.items() if run.has_model})
    before = read_csv(folder / "second_times.csv")
    about = {"measurement": 1 + max((line["measurement"] for line in before), default=0)}
    about |= {key: found[key] for key in ("when", "machine", "threads")}
    for (question, row), run in sorted(first.items()):
        real = found["rows"].get(f"{question} {row}", {}).get("real")
        ms = (
            [real[size]["median_ms"] for size in ("batch_1", "batch_32")]
            if real
            else [run.times.batch_1, run.times.batch_32]
        )
        times = dict(zip(TIMES[-3:], (*ms, real["quiet"] if real else run.times.quiet), strict=True))
        before.append(about | {"question": question, "row": row} | times)
    write_csv(folder / "second_times.csv", TIMES, before)


def row_ids(words: tuple[str, ...], kinds: Iterable["Kind"]) -> list[str]:
    """Return the ids that a row's runs share whatever their teachers' seeds, one for each kind of hardware."""
    from kdbench.runs.identity import id_without_teacher_seed
    from kdbench.training.hardware import Hardware
    from scripts.study.finished import composed

    config = composed((*words, f"dataset={DATASET}"))
    return [
        id_without_teacher_seed(config, Hardware("cpu", kind.precision, kind.attention, 1, kind.compile))
        for kind in kinds
    ]


def _line(question: str, row: str, run: Run) -> tuple[Record, Record]:
    """Return the line of the right answers, and that of a run."""
    from kdbench.storage.predictions import read as read_predictions
    from scripts.study.finished import environment

    found = read_predictions(run.path, "test")
    about = environment(run.path)
    right = dict.fromkeys(COLUMNS) | {"question": question, "row": LABELS, "seed": 0, "examples": run.examples}
    own = {
        "question": question, "row": row, "seed": run.seed, "score_points": run.score, "dev_points": run.dev_score,
        "examples": run.examples, "parameters": run.parameters, "training_seconds": run.seconds, "id": run.id,
        "precision": about["precision"], "machine": about["machine"], "commit": about["commit"][:12],
    }  # fmt: skip
    return right | {"answers": _digits(found.labels)}, own | {"answers": _digits(found.predicted)}


def _digits(classes: Any) -> str:
    return "".join(np.base_repr(one, 36).lower() for one in classes)


HEADS = ("row", "n", "test accuracy, %", "against", "difference, points", "share of the gap, %", "dev, %", "minutes")


def table(study: Study, kept: Kept, question: str) -> str:
    """Return the rows of a question with their differences to each of its baselines, single tests."""
    about, lines = study.questions[question], []
    for row in study.names(question):
        of_row = kept.of(question, row)
        if not of_row:  # not run yet
            continue
        dev = np.mean([line["dev_points"] for line in of_row])
        minutes = np.mean([line["training_seconds"] or 0 for line in of_row]) / 60
        bases = about["against"].get(row.removesuffix(INT8), about["against"]["others"])
        first, *more = [_against(kept, question, row, base) for base in bases if base != row] or [("", "")]
        closed = "" if row in (*bases, "tfidf", about["top"]) else _closed(kept, question, row, bases[0], about["top"])
        score_ = shown(kept.score(question, row))
        lines.append((f"`{row}`", str(len(of_row)), score_, *first, closed, f"{dev:.2f}", f"{minutes:.1f}"))
        lines += [("", "", "", *one, "", "", "") for one in more]
    return markdown(HEADS, lines)


def _against(kept: Kept, question: str, row: str, base: str) -> tuple[str, str]:
    try:
        return f"`{base}`", shown(between(kept.differences(question, row, base)), "+")
    except LookupError:  # not run yet, or with other seeds
        return f"`{base}`", ""


def _closed(kept: Kept, question: str, row: str, base: str, top: str) -> str:
    try:
        found = share(*kept.aligned(question, (row, base, top)))
    except LookupError:  # not run yet, or with other seeds
        return ""
    return "" if found is None else shown(found.scaled(100), digits=0)


def between(found: Points) -> Interval:
    """Return the mean of paired differences with its interval for other seeds and texts, of one test."""
    return Interval(float(found.mean()), *paired(found).interval(LEVEL))


def share(row: Points, base: Points, top: Points) -> Interval | None:
    """Return the share of the gap from `base` to `top` that `row` closes, (S, N) each; None if the gap may be zero."""
    ends = share_interval(row - base, top - base)
    return None if ends is None else Interval(float((row - base).mean() / (top - base).mean()), *ends)


def shown(found: Interval, sign: str = "", digits: int = 2) -> str:
    mean, low, high = (f"{one:{sign}.{digits}f}" for one in found)
    return f"{mean} ({low} to {high})"


def judge(kept: Kept, claim: Mapping[str, Any]) -> tuple[str, str]:
    """Return the verdict on a claim and its figure. Raises LookupError if a row of it is not run."""
    if "share" in claim:
        points = kept.aligned(claim["question"], (claim["share"], *claim["over"]))
        found, seeds = share(*points), len(points[0])
        if found is None:
            return "not shown", "the gap may be zero"
        figure = f"{shown(found.scaled(100), '+', 0)} %"
    else:
        gains = kept.differences(claim["question"], *claim["difference"])
        found, seeds = between(gains), len(gains)
        figure = f"{shown(found, '+')} points"
    above = found.above(claim["above"] if "above" in claim else claim["below"])
    holds = above if "above" in claim or above is None else not above
    return judged(holds if seeds >= ENOUGH else None, f"{figure}, n {seeds}")


def claims(study: Study, kept: Kept) -> str:
    lines = []
    for at, claim in enumerate(study.claims, 1):
        try:
            verdict, figure = judge(kept, claim)
        except LookupError:
            verdict, figure = "not run", ""
        side = f"above {claim['above']}" if "above" in claim else f"below {claim['below']}"
        if "share" in claim:
            base, top = claim["over"]
            what = f"share of the way from `{base}` to `{top}` that `{claim['share']}` closes"
        else:
            what = " minus ".join(f"`{row}`" for row in claim["difference"])
        rule = f"{what}: {side}"
        lines.append((str(at), f"{claim['claim']} ({claim['source']})", rule, claim["expected"], verdict, figure))
    return markdown(("claim", "what it says (source)", "rule", "expected", "verdict", "figure"), lines)


def progress(study: Study, kept: Kept) -> str:
    """Return the planned runs, those that are kept, and the core hours of the rest, by question."""
    lines = []
    for question, about in study.questions.items():
        planned = [(minutes, row, seed) for minutes, of, row, seeds in study.order if of == question for seed in seeds]
        rest = [minutes for minutes, row, seed in planned if (question, row, seed) not in kept.lines]
        lines.append(
            (about["title"], str(len(planned)), str(len(planned) - len(rest)), f"{sum(rest) / 60:.1f}")
        )  # fmt: skip
    return markdown(("question", "planned runs", "done", "core hours of the rest"), lines)


def fill(text: str, study: Study, kept: Kept, times: Iterable[Record]) -> str:
    """Return a page with everything between its markers made anew."""
    makers = {
        "claims": lambda: claims(study, kept),
        "progress": lambda: progress(study, kept),
        "few labels": lambda: headline(kept, times),
    } | {f"table {question}": lambda question=question: table(study, kept, question) for question in study.questions}
    for name, make in makers.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda found, make=make: f"{found[1]}{make()}\n{found[2]}", text)
    return text


HEADLINE = {  # rows with 1,000 labels -> their names in the README
    "tfidf": "TF-IDF + linear SVM",
    "tfidf_raw": "TF-IDF on the answers of the 6 layers",
    "static_raw": "static vectors taught by the 6 layers",
    "direct": "3 layers, fine-tuned directly",
    "direct_short": "the same, 320 updates",
    "kd_raw": "3 layers taught by the 6 layers",
    "kd": "the same, without raw texts",
    "kd_raw_base": "3 layers taught by 12 layers",
    "kd_raw_base int8": "the same, int8",
    "teacher": "teacher, 6 layers",
    "base_teacher": "teacher, 12 layers",
}


def headline(kept: Kept, times: Iterable[Record]) -> str:
    """Return the rows with 1,000 labels that the README shows."""
    ms, lines = latencies("labels_1000", times), []
    for row, name in HEADLINE.items():
        of_row = kept.of("labels_1000", row)
        if not of_row:
            continue
        gain = "" if row == "direct" else shown(between(kept.differences("labels_1000", row, "direct")), "+")
        size, time = of_row[0]["parameters"], ms.get(row)
        lines.append(
            (name, str(len(of_row)), shown(kept.score("labels_1000", row)), gain,
             "" if size is None else f"{size / 1e6:.1f}", "" if time is None else f"{time:.1f}")
        )  # fmt: skip
    return markdown(("model", "seeds", "test accuracy, %", "vs direct, points", "params, M", "ms, batch 1"), lines)


CURVE = {  # rows of the curve over the number of labels, and their names
    "teacher": "teacher, 6 layers",
    "kd_raw": "logit KD on raw texts",
    "direct": "direct, 3 layers",
    "tfidf": "TF-IDF",
}


def picture(study: Study, kept: Kept, times: Iterable[Record]) -> Figure:
    """Draw the score against the latency with 1,000 labels; beside it the curve, once three numbers are run."""
    counts = {int(one.partition("_")[2]): one for one in study.questions if one.startswith("labels_")}
    counts = {count: of for count, of in sorted(counts.items()) if kept.of(of, "direct")}
    curve = len(counts) >= LEAST_NUMBERS
    figure = Figure(figsize=(11.4 if curve else 7.6, 4.2), layout="constrained")
    widths = (5, 3)[: 1 + curve]  # the first panel needs room for its legend
    axes, *beside = figure.subplots(1, 1 + curve, squeeze=False, width_ratios=widths)[0]
    measured = latencies("labels_1000", times)
    names = [row for row in HEADLINE if row in measured and kept.of("labels_1000", row)]
    styles = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    looks = dict(zip(dict.fromkeys(name.removesuffix(INT8) for name in names), styles, strict=False))
    for name in names:
        colour, marker = looks[name.removesuffix(INT8)]
        fill, label = ("none", None) if name.endswith(INT8) else ("full", HEADLINE[name])
        at = [(measured[name], kept.score("labels_1000", name))]
        _bars(axes, at, color=colour, marker=marker, fillstyle=fill, linestyle="none", label=label)
    axes.set_xlabel("latency, batch 1, ms (median, log scale); hollow: int8")
    axes.set_ylabel("test accuracy, %, 95 % interval")
    for panel in beside:
        for (row, name), colour, marker in zip(CURVE.items(), COLOURS, MARKERS, strict=False):
            known = [(count, kept.score(of, row)) for count, of in counts.items() if kept.of(of, row)]
            if known:
                _bars(panel, known, color=colour, marker=marker, linestyle="-", label=name)
        panel.set_xlabel("labelled texts (log scale)")
    for panel in (axes, *beside):
        log_axis(panel)
        panel.legend(fontsize=7.5)
    return figure


def _bars(axes: Axes, known: Sequence[tuple[float, Interval]], **look: Any) -> None:
    at, scores = zip(*known, strict=True)
    sides = [[one.mean - one.low for one in scores], [one.high - one.mean for one in scores]]
    axes.errorbar(at, [one.mean for one in scores], yerr=sides, capsize=2, elinewidth=0.8, markersize=6, **look)


def latencies(question: str, times: Iterable[Record]) -> dict[str, float]:
    """Return each row's median time at batch 1, in ms, over all measurements."""
    found: dict[str, list[float]] = {}
    for one in times:
        if one["question"] == question and one["batch_1_ms"] is not None:
            found.setdefault(one["row"], []).append(one["batch_1_ms"])
    return {row: float(np.median(every)) for row, every in found.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "keep", "measure", "write"))
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs")
    parser.add_argument("--cores", default="0,1", help="a worker each (default: 0,1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then stop as if asked to")
    parser.add_argument("--dry", action="store_true", help="print the commands and what they cost, and run none")
    options = parser.parse_args(argv)
    study, kept = load(), read()
    if options.what in ("keep", "measure") and not options.outputs.is_dir():
        parser.error(f"no such folder: {options.outputs}")
    if options.what == "keep":
        for line in keep(study, options.outputs) or ["nothing new"]:
            say(line)
        return 0
    if options.what == "measure":
        measure(study, options.outputs)
        say(f"added a measurement to {DOCS / 'second_times.csv'}")
        return 0
    if options.what == "write":
        times = read_csv(DOCS / "second_times.csv")
        for page in PAGES:
            page.write_text(fill(page.read_text(encoding="utf8"), study, kept, times), encoding="utf8")
        about = {"Software": None, "Description": headline(kept, times)}
        picture(study, kept, times).savefig(DOCS / "second.png", dpi=100, metadata=about)
        say(f"wrote {', '.join(str(page) for page in (*PAGES, DOCS / 'second.png'))}")
        return 0
    steps = list(enumerate(study.steps(kept), 1))
    if options.dry:
        for number, step in steps:
            print(f"{number:3d} {len(step.seeds) * step.seconds / 3600:5.1f} h, {len(step.seeds)} runs: {step.command}")
        return 0
    return execute(steps, options.outputs, options.cores, options.minutes)


if __name__ == "__main__":
    sys.exit(guarded("scripts.study.second", main))
