"""What a question needs beyond its rows: figures that methods report themselves, or that their stages logged."""

from collections.abc import Callable
from typing import Any

from kdbench.compare.collect import NULL, Run
from kdbench.compare.table import Row, Table
from kdbench.storage.files import read_json
from scripts.study.finished import CUT, Finished
from scripts.study.plan import Plan, place
from scripts.study.rows import label

Record = dict[str, Any]


def details(plan: Plan, question: str, found: list[Table], finished: Finished) -> dict[str, list[Record]]:
    """Name -> records, one a run, a point of it or a row; empty for most questions."""
    every: dict[str, dict[str, Callable[[Run, Any], list[Record]]]] = {
        "theseus": {"starvation": starvation, "graft": graft, "successor_stage": successor_stage},
        "fastbert": {"speeds": speeds, "layers": layers},
    }
    makers = every.get(question, {})
    rows = [(place(table.dataset, row.runs[0].values[CUT]), row) for table in found for row in table.rows]
    made = {
        name: [
            {"data": data, "row": label(plan, row, finished), "seed": run.seed, **record}
            for data, row in rows
            if is_network(row)
            for run in row.runs
            for record in make(run, read_json(run.path))
        ]
        for name, make in makers.items()
    }
    return made | {"grid": grid(plan, finished, rows)} if question == "pkd" else made


def grid(plan: Plan, finished: Finished, rows: list[tuple[str, Row]]) -> list[Record]:
    """The cells of PKD's grid with the names of their rows: the default one has its name from another step."""
    cells: dict[str, dict[str, float]] = {}
    for words in (words for step in plan.steps if step.preset == "study/pkd_grid" for words in step.configurations):
        given = dict(word.split("=", 1) for word in words)
        cell = {key: float(given[f"method.{key}"]) for key in ("alpha", "temperature", "beta")}
        cells |= dict.fromkeys(finished.ids(words), cell)
    return [{"data": data, "row": label(plan, row, finished), **cells[row.id]} for data, row in rows if row.id in cells]


def is_network(row: Row) -> bool:
    """Whether it is a method's own row, as trained."""
    return row.role == "method" and row.runs[0].settings["form"] == NULL


def starvation(run: Run, raw: Any) -> list[Record]:
    """After each epoch of the replacing stage: how often the module that was drawn least had been drawn, and dev."""
    drawn: dict[str, float] = {}
    before, found = 0, []
    for epoch in _stage(raw, "replacing").get("epochs", []):
        for name, mean in epoch["means"].items():
            if name.startswith("replaced_"):
                drawn[name] = drawn.get(name, 0.0) + mean * (epoch["step"] - before)
        before = epoch["step"]
        dev = {name: 100 * scores["accuracy"] for name, scores in epoch["dev"].items()}
        found.append({"step": before, "least_drawn": min(drawn.values()), "successor_dev_points": dev["successor"],
                      "hybrid_dev_points": dev["hybrid"]})  # fmt: skip
    return found


def graft(run: Run, raw: Any) -> list[Record]:
    """The predecessor's encoder under the successor's trained head, on dev, beside predecessor and successor."""
    if "predecessor_encoder_successor_head" not in raw["reported"]:  # a run from before it was
        return []
    mixed = raw["reported"]["predecessor_encoder_successor_head"]["accuracy"]
    teacher, own = raw["teacher"]["metrics"]["dev"]["accuracy"], raw["metrics"]["dev"]["accuracy"]
    figures = {"graft": mixed, "predecessor": teacher, "successor": own}
    return [{f"{name}_dev_points": 100 * value for name, value in figures.items()}]


def successor_stage(run: Run, raw: Any) -> list[Record]:
    """Whether dev had stopped rising when the second stage ended."""
    stage = _stage(raw, "successor")
    if not stage:
        return []
    before = _stage(raw, "replacing").get("best_dev_accuracy")
    return [{"steps": stage["steps"], "best_step": stage["best_step"],
             "replacing_best_dev_points": None if before is None else 100 * before,
             "best_dev_points": 100 * stage["best_dev_accuracy"]}]  # fmt: skip


def speeds(run: Run, raw: Any) -> list[Record]:
    """FastBERT at each speed, on test; times where they were measured."""
    timed = {float(speed): one for speed, one in raw["latency"]["by_speed"].items()}
    found = []
    for point in raw["reported"]["curve_test"]:
        one = timed.get(point["speed"], {})
        times = {f"latency_batch_{size}_ms": one.get(f"batch_{size}", {}).get("median_ms") for size in (1, 32)}
        found.append({**point, **times})
    return found


def layers(run: Run, raw: Any) -> list[Record]:
    """Each layer's classifier alone, on test, as a share of the last one's; and the break-even share of easy rows."""
    alone = raw["reported"].get("layers_test", [])  # a run from before it was reported has none
    return [
        {"layer": at, "points": 100 * score, "share_of_last": score / alone[-1],
         "break_even_share": raw["reported"]["break_even_share"]}
        for at, score in enumerate(alone, 1)
    ]  # fmt: skip


def _stage(raw: Any, name: str) -> Record:
    return next((stage for stage in raw["stages"] if stage["name"] == name), {})
