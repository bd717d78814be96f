"""What pictures and the page show of a run beyond its row; read for the rows shown only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.compare.collect import Run
from kdbench.compare.keys import inner
from kdbench.compare.table import Row
from kdbench.storage.files import read_json


@dataclass(frozen=True)
class Learning:
    """Dev scores of one seed after each epoch, in points; steps are counted through all stages."""

    seed: int
    steps: list[int]
    scores: list[float]
    stages: list[tuple[str, int]]  # name, and the step at which it begins


@dataclass(frozen=True)
class Curve:
    """What a model reports at each of its speeds, of one split (FastBERT, cascade)."""

    seed: int
    speeds: list[float]
    scores: list[float]  # points
    flops: list[float]  # mean of an example
    latencies: list[float | None]  # ms at batch 1; None where it was not measured
    exits: list[list[float]]  # share of the rows that leave at each exit


@dataclass(frozen=True)
class Detail:
    learning: list[Learning]
    curves: list[Curve]


def detail(row: Row, metric: str, split: str) -> Detail:
    """Of all seeds of a row."""
    found = [(run, read_json(run.path)) for run in row.runs]
    learning = [one for run, raw in found if (one := _learning(run, raw, metric)).steps]
    curves = [_curve(run, raw, split) for run, raw in found] if metric == "accuracy" else []
    return Detail(learning, [curve for curve in curves if curve is not None])


def _learning(run: Run, raw: Any, metric: str) -> Learning:
    steps: list[int] = []
    scores: list[float] = []
    stages: list[tuple[str, int]] = []
    before = 0
    for stage in raw.get("stages", []):
        stages.append((stage["name"], before))
        for epoch in stage["epochs"]:
            if epoch["dev"]:  # the first is what selects; a stage may predict nothing
                steps.append(before + epoch["step"])
                scores.append(100 * next(iter(epoch["dev"].values()))[metric])
        before += stage["steps"]
    return Learning(run.seed, steps, scores, stages)


def _curve(run: Run, raw: Any, split: str) -> Curve | None:
    points: Sequence[dict[str, Any]] | None = inner(raw, f"reported.curve_{split}")[0]
    if not points:
        return None
    timed = inner(raw, "latency.by_speed")[0] or {}
    latency = {float(speed): one["batch_1"]["median_ms"] for speed, one in timed.items()}
    return Curve(
        run.seed,
        [point["speed"] for point in points],
        [100 * point["accuracy"] for point in points],
        [point["mean_flops"] for point in points],
        [latency.get(point["speed"]) for point in points],
        [point["exit_shares"] for point in points],
    )
