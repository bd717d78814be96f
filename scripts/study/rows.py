"""The rows of a question, read from its finished runs as compare-runs reads them, and what the runs report."""

from dataclasses import replace
from typing import Any

from kdbench.compare.collect import NULL
from kdbench.compare.frame import records
from kdbench.compare.rows import build_tables, ordered
from kdbench.compare.speed import with_speed
from kdbench.compare.table import Row, Table
from kdbench.compare.testing import with_tests
from kdbench.storage.files import read_json
from scripts.study.finished import CUT, Finished, environment, trained_id
from scripts.study.plan import Plan, name_of, place
from scripts.study.tables import DETAILS, FIGURES, Record, text_of


def document(plan: Plan, question: str, finished: Finished) -> Record:
    """Return the rows and details of a question, as the tables store them."""
    found = tables(plan, question, finished)
    return {"rows": rows_of(plan, found, finished), "details": details(plan, question, found, finished)}


def tables(plan: Plan, question: str, finished: Finished) -> list[Table]:
    """Return a table for each data set: the question's rows with their tests, the teacher, TF-IDF and the baselines.

    Another limit makes another data set. The last question, which puts all together, has one row for each preset.
    """
    wanted = {id_ for step in plan.of(question) for words in step.configurations for id_ in finished.ids(words)}
    own = [run for run in finished.runs if trained_id(run) in wanted]
    beside = {base[0] for run in own for base in run.baselines if base} | {run.teacher.id for run in own if run.teacher}
    beside |= {id_ for words in plan.teachers for id_ in finished.ids(words)}  # not every method has it as its own
    shown = {id(run) for run in own} | {
        id(run) for run in finished.runs if run.id in beside or run.method == "tfidf"
    }  # fmt: skip
    found = []
    for _, data_id in sorted({(run.dataset, run.data_id) for run in own}):
        found += build_tables([run for run in finished.runs if run.data_id == data_id], lambda run: id(run) in shown)
    if question == "together":
        found = [replace(table, rows=best_of_presets(plan, table.rows, finished)) for table in found]
    found = [
        with_speed(replace(table, rows=ordered(table.rows, None)), finished.outputs / table.dataset, False, True)
        for table in found
    ]
    return [with_tests(table, True) for table in found]


def best_of_presets(plan: Plan, rows: list[Row], finished: Finished) -> list[Row]:
    """Keep for each preset, method, student and form the best row on dev, whatever the numbers of seeds."""
    grids: dict[tuple[str | None, ...], list[Row]] = {}
    for row in rows:
        run = row.runs[0]
        preset = label(plan, row, finished).split()[0]
        grids.setdefault((preset, run.method, run.student, run.settings["form"]), []).append(row)
    return [replace(max(own, key=lambda row: row.dev_score), tried=len(own)) for own in grids.values()]


def rows_of(plan: Plan, found: list[Table], finished: Finished) -> list[Record]:
    """Return a flat record for each row: its name, its figures, and where they come from."""
    made = []
    for table in found:
        for row, figures in zip(table.rows, records([table]), strict=True):
            made.append(
                {name: figures.get(name) for name in FIGURES}
                | {"row": label(plan, row, finished), "form": None if figures["form"] == NULL else figures["form"]}
                | {"correction": None if table.tests is None else "largest statistic"}
                | {"max_train_samples": row.runs[0].values[CUT], "kept": None}
                | {"config_digest": row.id, **origin(row, finished)}
            )
    return made


def label(plan: Plan, row: Row, finished: Finished) -> str:
    """Return the name of a row: its preset and what the sweep sets, from the first step that has it."""
    run = row.runs[0]
    form = run.settings["form"]
    suffix = "" if form == NULL else f" {form}"
    every = (words for step in plan.steps for words in step.configurations)
    words = next((words for words in every if trained_id(run) in finished.ids(words)), None)
    if words or row.role in ("teacher", "tfidf"):  # one student may be another one's teacher
        return (name_of(words) if words else row.role) + suffix
    return f"{row.label} {run.student or ''} {row.settings}".strip() + suffix


def origin(row: Row, finished: Finished) -> dict[str, str]:
    """Return the folders, seeds and scores of a row's runs, and the commits that they ran from."""
    commits = {str(environment(run.path).get("commit")) for run in row.runs}
    folders = [finished.folder(run) for run in row.runs]
    return {
        "seeds": " ".join(str(run.seed) for run in row.runs),
        "scores_points": " ".join(text_of(run.score) for run in row.runs),
        "runs": " ".join(folders),
        "commits": " ".join(sorted(commits)),
    }


def details(plan: Plan, question: str, found: list[Table], finished: Finished) -> dict[str, list[Record]]:
    """Return what the networks of a question report or log themselves, by name; nothing for most questions."""
    makers = {"runs": theseus_runs, "epochs": epochs, "speeds": speeds, "layers": layers}
    networks = [
        (place(table.dataset, row.runs[0].values[CUT]), row)
        for table in found
        for row in table.rows
        if row.role == "method" and row.runs[0].settings["form"] == NULL
    ]
    return {
        name: [
            {"data": data, "row": label(plan, row, finished), "seed": run.seed, **record}
            for data, row in networks
            for run in row.runs
            for record in makers[name](read_json(run.path))
        ]
        for name in DETAILS.get(question, ())
    }


def theseus_runs(raw: Any) -> list[Record]:
    """Return dev scores of predecessor and successor, of the successor's head on the predecessor's encoder, and when
    the second stage's dev score was highest."""
    replacing, second = stage(raw, "replacing"), stage(raw, "successor")
    best = replacing.get("best_dev_accuracy") if second else None
    scores = {
        "predecessor": raw["teacher"]["metrics"]["dev"]["accuracy"],
        "graft": raw["reported"]["predecessor_encoder_successor_head"]["accuracy"],
        "successor": raw["metrics"]["dev"]["accuracy"],
        "replacing_best": best,
    }
    points = {f"{name}_dev_points": None if score is None else 100 * score for name, score in scores.items()}
    return [points | {"second_stage_steps": second.get("steps"), "second_stage_best_step": second.get("best_step")}]


def epochs(raw: Any) -> list[Record]:
    """Return for each epoch of the replacing stage the draws of the least drawn module until then, and dev scores."""
    drawn: dict[str, float] = {}
    before, found = 0, []
    for epoch in stage(raw, "replacing").get("epochs", []):
        for name, mean in epoch["means"].items():
            if name.startswith("replaced_"):
                drawn[name] = drawn.get(name, 0.0) + mean * (epoch["step"] - before)
        before = epoch["step"]
        dev = {f"{name}_dev_points": 100 * scores["accuracy"] for name, scores in epoch["dev"].items()}
        found.append({"step": before, "least_drawn": min(drawn.values()), **dev})
    return found


def speeds(raw: Any) -> list[Record]:
    """Return FastBERT's test figures at each speed; times only where they were measured."""
    timed = {float(speed): one for speed, one in raw["latency"]["by_speed"].items()}
    found = []
    for point in raw["reported"]["curve_test"]:
        one = timed.get(point["speed"], {})
        times = {f"latency_batch_{size}_ms": one.get(f"batch_{size}", {}).get("median_ms") for size in (1, 32)}
        shares = " ".join(f"{share:.4g}" for share in point["exit_shares"])
        found.append({**point, **times, "exit_shares": shares})
    return found


def layers(raw: Any) -> list[Record]:
    """Return the test accuracy of each layer's classifier, and the share of easy texts from which early exit pays."""
    alone = raw["reported"]["layers_test"]
    return [
        {"layer": at, "points": 100 * score, "share_of_last": score / alone[-1],
         "break_even_share": raw["reported"]["break_even_share"]}
        for at, score in enumerate(alone, 1)
    ]  # fmt: skip


def stage(raw: Any, name: str) -> Record:
    return next((one for one in raw["stages"] if one["name"] == name), {})
