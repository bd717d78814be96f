"""The rows of a question: what its finished runs say, and which of its runs are missing. Read as compare-runs reads."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from kdbench.compare.collect import NULL, Run, read_runs
from kdbench.compare.frame import records
from kdbench.compare.keys import Wanted
from kdbench.compare.load import with_tests
from kdbench.compare.options import ordered
from kdbench.compare.rows import Row, Table, build_tables
from kdbench.compare.speed import with_speed
from kdbench.store import read_json
from scripts.study.plan import Plan, Step

CUT = "dataset.max_train_samples"
FIGURES = (  # of a row, from compare-runs
    "dataset", "data_id", "examples", "role", "method", "student", "form", "score_n", "score_points", "score_sd_points",
    "score_low_points", "score_high_points", "rank_low", "rank_high", "tied_with_best",
    "difference_n", "difference_points", "difference_low_points", "difference_high_points", "difference_p",
    "difference_p_holm", "total_difference_n", "total_difference_points", "total_difference_low_points",
    "total_difference_high_points", "total_difference_p", "total_difference_p_holm", "gap_closed", "dev_score_points",
    "parameters", "bytes", "flops_per_example", "latency_batch_1_ms", "latency_batch_32_ms", "speedup",
    "training_seconds", "teacher_seconds", "general_seconds", "precision", "device", "threads", "machine", "dirty",
)  # fmt: skip
COLUMNS = ("question", "row", *FIGURES, "max_train_samples", "config_digest", "seeds", "runs", "commits")


def runs_below(plan: Plan, outputs: Path) -> list[Run]:
    """All finished runs, with the values of every key that the plan sets."""
    return _runs(outputs, tuple(sorted({key for step in plan.steps for one in step.configurations for key in one})))


@cache
def _runs(outputs: Path, keys: tuple[str, ...]) -> list[Run]:
    return read_runs([outputs], "accuracy", "test", Wanted([*keys, CUT]))[0]


def same(a: Any, b: Any) -> bool:
    """0.5 is "0.5", and a list its own text: a value as typed and as recorded."""
    return str(a) == str(b) or (isinstance(a, (int, float)) and isinstance(b, (int, float)) and a == b)


def has(run: Run, settings: Mapping[str, Any], teachers: Iterable[str]) -> bool:
    """Whether the run is of this configuration. A teacher may have been made by whichever run needed it first."""
    if settings["identity.choices.experiment"] == "study_teacher":
        return run.id in teachers and run.dataset == settings["dataset"]
    return all(same(value, run.values[key]) for key, value in settings.items())


def configuration_of(plan: Plan, run: Run, teachers: Iterable[str]) -> tuple[Step, dict[str, Any]] | None:
    """The step and settings that a run is of: of those that it has, the most, as a preset's own row sets the fewest."""
    found = [(step, one) for step in plan.steps for one in step.configurations if has(run, one, teachers)]
    return max(found, key=lambda pair: len(pair[1]), default=None)


def teachers_of(runs: Iterable[Run]) -> set[str]:
    return {run.teacher.id for run in runs if run.teacher}


def folder_of(word: str, dataset: str, outputs: Path) -> Path:
    """The run of seed 0 that {key=value,..} in `word` asks for. Raises LookupError where it is not done."""
    asked = word[word.index("{") + 1 : word.index("}")].split(",")
    step = Step("", dataset, (*asked, "seed=0"), 0)
    runs, _ = read_runs([outputs], "accuracy", "test", Wanted(step.configurations[0]))
    for run in runs:
        if run.seed == 0 and has(run, step.configurations[0], set()):
            return run.path.parent.resolve()
    raise LookupError(f"no finished run of {', '.join(asked)} on {dataset} below {outputs}")


def tables(plan: Plan, question: str, outputs: Path) -> list[Table]:
    """The question's rows with their tests, a table each data set, beside teacher, TF-IDF and baselines."""
    runs = runs_below(plan, outputs)
    wanted = [settings for step in plan.of(question) for settings in step.configurations]
    teachers = teachers_of(runs)
    own = [run for run in runs if any(has(run, settings, teachers) for settings in wanted)]
    beside = {base[0] for run in own for base in run.baselines if base} | teachers_of(own)
    places = {(run.data_id, run.data_split) for run in own}
    shown = {id(run) for run in own} | {
        id(run) for run in runs
        if (run.data_id, run.data_split) in places and (run.id in beside or run.method == "tfidf")
    }  # fmt: skip
    found = build_tables(runs, lambda run: id(run) in shown)
    found = [with_speed(replace(table, rows=ordered(table.rows, None)), outputs, False, True) for table in found]
    return [with_tests(table, "accuracy", "test", True) for table in found]


def rows_of(plan: Plan, question: str, outputs: Path) -> list[dict[str, Any]]:
    """A flat record a row: what it is, its figures, and where they come from."""
    found = []
    for table in tables(plan, question, outputs):
        for row, figures in zip(table.rows, records([table], "test"), strict=True):
            found.append(
                {"question": question, "row": label(plan, row)}
                | {name: figures.get(name) for name in FIGURES}
                | {"form": None if figures["form"] == NULL else figures["form"]}
                | {"max_train_samples": row.runs[0].values[CUT], "config_digest": row.id, **origin(row, outputs)}
            )
    return found


def label(plan: Plan, row: Row) -> str:
    """The name of a row: its preset and what the sweep sets."""
    run = row.runs[0]
    form = run.settings["form"]
    suffix = "" if form == NULL else f" {form}"
    if row.role in ("teacher", "tfidf"):
        return row.role + suffix
    step, settings = configuration_of(plan, run, set()) or (None, {})
    if step and step.preset:
        return name_of(step, settings) + suffix
    return f"{row.label} {row.settings}".strip() + suffix


def name_of(step: Step, settings: Mapping[str, Any]) -> str:
    """Of a configuration: `theseus_bernoulli replace_rate 0.3`."""
    keys = [key for key in settings if key not in ("dataset", "identity.choices.experiment")]
    words = [str(settings[key]).lower() if isinstance(settings[key], bool) else str(settings[key]) for key in keys]
    named = [f"{key.rpartition('.')[2]} {word}" for key, word in zip(keys, words, strict=True)]
    return " ".join([(step.preset or "").removeprefix("study_"), *named])


def origin(row: Row, outputs: Path) -> dict[str, str]:
    """The folders of a row's runs, their seeds, and the commits that they ran from."""
    commits = {str(environment(run.path).get("commit")) for run in row.runs}
    folders = [run.path.parent.relative_to(outputs).as_posix() for run in row.runs]
    return {
        "seeds": " ".join(str(run.seed) for run in row.runs),
        "runs": " ".join(folders),
        "commits": " ".join(sorted(commits)),
    }


def environment(results: Path) -> dict[str, Any]:
    """The env.json of a run; an export's is its run's."""
    for folder in list(results.parents)[:3]:
        if (folder / "env.json").is_file():
            return read_json(folder / "env.json")
    return {}


def missing(plan: Plan, question: str, outputs: Path) -> list[dict[str, Any]]:
    """The steps of a question with runs that are not done: how many, the command that does them, what it costs."""
    done = [run for run in runs_below(plan, outputs) if run.settings["form"] == NULL]
    teachers, found = teachers_of(done), []
    of_run = [(run.seed, configuration_of(plan, run, teachers)) for run in done]
    have = {(str(one[1]), seed) for seed, one in of_run if one}
    for step, wanted in zip(plan.steps, plan.new_runs, strict=True):
        if step.question != question:
            continue
        if lacking := sum((str(settings), seed) not in have for settings, seed in wanted):
            hours = lacking * step.seconds / 3600
            found.append({"runs": lacking, "of": len(wanted), "command": step.command, "core_hours": round(hours, 2)})
    return found
