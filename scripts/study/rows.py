"""The rows of a question: what its finished runs say, and which of its runs are missing. Read as compare-runs reads."""

from dataclasses import replace
from typing import Any

from kdbench.compare.collect import NULL
from kdbench.compare.frame import records
from kdbench.compare.load import with_tests
from kdbench.compare.options import ordered
from kdbench.compare.rows import build_tables
from kdbench.compare.speed import with_speed
from kdbench.compare.table import Row, Table
from scripts.study.finished import CUT, Finished, environment, trained_id
from scripts.study.plan import Plan, Words

FIGURES = (  # of a row, from compare-runs
    "dataset", "data_id", "examples", "role", "method", "student", "form", "best_on_dev_of",
    "score_n", "score_points", "score_sd_points", "score_low_points", "score_high_points",
    "rank_low", "rank_high", "tied_with_best",
    "difference_n", "difference_points", "difference_low_points", "difference_high_points", "difference_p",
    "difference_p_holm", "total_difference_n", "total_difference_points", "total_difference_low_points",
    "total_difference_high_points", "total_difference_p", "total_difference_p_holm", "gap_closed", "gap_closed_low",
    "gap_closed_high", "dev_score_points",
    "parameters", "bytes", "flops_per_example", "latency_batch_1_ms", "latency_batch_32_ms", "speedup",
    "training_seconds", "teacher_seconds", "general_seconds", "precision", "device", "threads", "machine", "dirty",
)  # fmt: skip
COLUMNS = ("question", "row", *FIGURES, "max_train_samples", "kept", "config_digest", "seeds", "runs", "commits")


def tables(plan: Plan, question: str, finished: Finished) -> list[Table]:
    """The question's rows with their tests, a table each data set, beside teacher, TF-IDF and baselines.

    Where all is put together, a row a preset.
    """
    wanted = {id_ for step in plan.of(question) for words in step.configurations for id_ in finished.ids(words)}
    own = [run for run in finished.runs if trained_id(run) in wanted]
    beside = {base[0] for run in own for base in run.baselines if base} | {run.teacher.id for run in own if run.teacher}
    beside |= {id_ for words in plan.teachers for id_ in finished.ids(words)}  # not every method has it as its own
    places = {(run.data_id, run.data_split) for run in own}
    shown = {id(run) for run in own} | {
        id(run) for run in finished.runs
        if (run.data_id, run.data_split) in places and (run.id in beside or run.method == "tfidf")
    }  # fmt: skip
    found = build_tables(finished.runs, lambda run: id(run) in shown)
    if question == "together":
        found = [replace(table, rows=best_of_presets(plan, table.rows, finished)) for table in found]
    found = [
        with_speed(replace(table, rows=ordered(table.rows, None)), finished.outputs / table.dataset, False, True)
        for table in found
    ]
    return [with_tests(table, "accuracy", "test", True) for table in found]


def best_of_presets(plan: Plan, rows: list[Row], finished: Finished) -> list[Row]:
    """Of each preset's rows of one method, student and form the best on dev, whatever their numbers of seeds."""
    grids: dict[tuple[str | None, ...], list[Row]] = {}
    for row in rows:
        run = row.runs[0]
        preset = label(plan, row, finished).split()[0]
        grids.setdefault((preset, run.method, run.student, run.settings["form"]), []).append(row)
    return [replace(max(own, key=lambda row: row.dev_score), tried=len(own)) for own in grids.values()]


def rows_of(plan: Plan, question: str, found: list[Table], finished: Finished) -> list[dict[str, Any]]:
    """A flat record a row: what it is, its figures, and where they come from."""
    made = []
    for table in found:
        for row, figures in zip(table.rows, records([table], "test"), strict=True):
            made.append(
                {"question": question, "row": label(plan, row, finished)}
                | {name: figures.get(name) for name in FIGURES}
                | {"form": None if figures["form"] == NULL else figures["form"]}
                | {"max_train_samples": row.runs[0].values[CUT], "kept": None}
                | {"config_digest": row.id, **origin(row, finished)}
            )
    return made


def label(plan: Plan, row: Row, finished: Finished) -> str:
    """The name of a row: its preset and what the sweep sets, as the first step says that has it."""
    run = row.runs[0]
    form = run.settings["form"]
    suffix = "" if form == NULL else f" {form}"
    every = (words for step in plan.steps for words in step.configurations)
    words = next((words for words in every if trained_id(run) in finished.ids(words)), None)
    if words or row.role in ("teacher", "tfidf"):  # one student may be another one's teacher
        return (name_of(words) if words else row.role) + suffix
    return f"{row.label} {run.student or ''} {row.settings}".strip() + suffix


def name_of(words: Words) -> str:
    """Of a configuration of a preset, or a method, but for its data: `theseus_bernoulli replace_rate 0.3`."""
    settings = dict(word.split("=", 1) for word in words if not word.startswith("schedule="))
    preset = settings.pop("experiment", "").removeprefix("study/") or settings.pop("method")
    told = [(key, value) for key, value in settings.items() if not key.startswith("dataset") and key != "teacher.path"]
    return " ".join([preset, *(f"{key.rpartition('.')[2]} {value}" for key, value in told)])


def origin(row: Row, finished: Finished) -> dict[str, str]:
    """The folders of a row's runs, their seeds, and the commits that they ran from."""
    commits = {str(environment(run.path).get("commit")) for run in row.runs}
    folders = [finished.folder(run) for run in row.runs]
    return {
        "seeds": " ".join(str(run.seed) for run in row.runs),
        "runs": " ".join(folders),
        "commits": " ".join(sorted(commits)),
    }


def missing(plan: Plan, question: str, finished: Finished) -> list[dict[str, Any]]:
    """The steps of a question with runs that are not done: how many, the command that does them, what it costs."""
    found = []
    for step, wanted in zip(plan.steps, plan.new_runs, strict=True):
        lacking = sum(not finished.has(words, seed) for words, seed in wanted) if step.question == question else 0
        if lacking:
            hours = lacking * step.seconds / 3600
            found.append({"runs": lacking, "of": len(wanted), "command": step.command, "core_hours": round(hours, 2)})
    return found
