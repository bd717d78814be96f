"""Learning curves and the curves of models with several speeds. They are read only for rows that are shown."""

from dataclasses import dataclass
from typing import Any

from kdbench.compare.collect import Run
from kdbench.compare.keys import inner
from kdbench.compare.table import Row
from kdbench.storage.files import read_json


@dataclass(frozen=True)
class Learning:
    """Dev scores of one seed after each epoch, in points; steps are counted over all stages."""

    seed: int
    steps: list[int]
    scores: list[float]
    stages: list[tuple[str, int]]  # name and first step


@dataclass(frozen=True)
class Curve:
    """What a model with several speeds (FastBERT, cascade) reports for each, on one split."""

    seed: int
    speeds: list[float]
    scores: list[float]  # points
    flops: list[float]  # mean over examples
    latencies: list[float | None]  # ms at batch 1; None if not measured
    exits: list[list[float]]  # share of the examples that leave at each exit


@dataclass(frozen=True)
class Detail:
    learning: list[Learning]
    curves: list[Curve]


def detail(row: Row) -> Detail:
    """Return the curves of all seeds of a row."""
    found = [(run, read_json(run.path)) for run in row.runs]
    learning = [one for run, raw in found if (one := _learning(run, raw)).steps]
    return Detail(learning, [curve for run, raw in found if (curve := _curve(run, raw)) is not None])


def _learning(run: Run, raw: Any) -> Learning:
    steps: list[int] = []
    scores: list[float] = []
    stages: list[tuple[str, int]] = []
    before = 0
    for stage in raw["stages"]:
        stages.append((stage["name"], before))
        for epoch in stage["epochs"]:
            if epoch["dev"]:  # empty if a stage predicts nothing; the first entry selects the checkpoint
                steps.append(before + epoch["step"])
                scores.append(100 * next(iter(epoch["dev"].values()))[run.metric])
        before += stage["steps"]
    return Learning(run.seed, steps, scores, stages)


def _curve(run: Run, raw: Any) -> Curve | None:
    points = raw["reported"].get(f"curve_{run.split}")
    if not points or run.metric != "accuracy":  # the only metric that is reported for each speed
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
