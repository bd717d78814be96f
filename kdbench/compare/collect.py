"""Find the `results.json` files below some folders and take from each what a comparison needs.

Nothing is computed here. A file that cannot be used becomes a warning that names it and says why; the
others are still compared.
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdbench.compare.keys import Source, Wanted
from kdbench.schema import DEFAULT_TASK, METRICS
from kdbench.storage.files import Damaged
from kdbench.storage.results import EXPORT, RESULTS, SCHEMA, read_result

T = TypeVar("T")
NULL = "null"  # a setting that is not set
ANY = "any"  # length of a model that reads whole texts


class UnusableError(Exception):
    """A results.json that cannot be compared; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds for one batch (the median), how far they were spread, and on how quiet a machine."""

    batch_1: float | None
    batch_32: float | None
    spread_1: float | None  # the interquartile range
    spread_32: float | None
    quiet: bool
    others: float | None  # processors that other work took
    teacher_1: float | None  # the teacher's batch_1, measured in turns with this one
    teacher_quiet: bool


@dataclass(frozen=True, slots=True)
class Teacher:
    id: str
    seed: int | None
    score: float


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run. Scores are in points (0-100), of `metric` on the split that was asked for."""

    path: Path
    id: str
    seed: int
    dataset: str
    data_id: str
    data_split: str  # a sentence: which rows are train, dev and test
    examples: int  # that the score is of
    task: str
    metric: str  # the one that was asked for, or that chose on dev
    method: str
    student: str | None
    tag: str | None
    settings: dict[str, str]  # what may tell two configurations of one method apart
    training: dict[str, str]  # the schedule's values, of a stage (successor.lr) where stages differ
    selected_on: str | None
    conditions: dict[str, str]  # precision, device, threads, machine, length: see CONDITIONS
    dirty: bool
    score: float
    dev_score: float
    baselines: tuple[tuple[str, str] | None, ...]  # (id, command): same schedule, same total of updates
    tfidf_command: str | None  # makes the row to beat
    teacher: Teacher | None
    parameters: int | None
    bytes: int | None  # of the file with the weights
    flops: float | None
    latency: Latency
    seconds: float | None
    teacher_seconds: float | None
    general_seconds: float | None
    has_model: bool  # a network of its own, that can be loaded and measured again
    chosen: str | None  # what the method chose on dev itself
    values: Mapping[str, Any]  # of the keys that were asked for


def read_runs(roots: list[Path], metric: str | None, split: str, wanted: Wanted) -> tuple[list[Run], list[str]]:
    """Every usable run below `roots`, each once, and a warning for every file that is left out.

    `metric`: None is each run's own, by which it was chosen on dev.
    """
    runs: dict[tuple[str, str, str, int], Run] = {}
    warnings: list[str] = []
    for path in _find(roots, warnings):
        try:
            raw = read_result(path.parent)
            if isinstance(raw, dict) and raw.get("phase") == "general":
                continue  # stages before a task: their cost is in the rows that need them
            run = _read(path, raw, metric, split, wanted)
        except (OSError, ValueError, RecursionError) as error:
            warnings.append(f"{path}: left out, it cannot be read: {error}")
        except UnusableError as error:
            warnings.append(f"{path}: left out, {error}")
        except Damaged as error:
            warnings.append(f"{path}: left out, {str(error).removeprefix(f'{path} ')}")
        else:
            known = runs.setdefault((run.data_id, run.data_split, run.id, run.seed), run)
            if known is not run:
                warnings.append(f"{path}: left out, it is the same run (id and seed) as {known.path}")
    return list(runs.values()), warnings


def _find(roots: list[Path], warnings: list[str]) -> Iterator[Path]:
    seen = set()
    for root in roots:
        real = os.path.realpath(root)  # roots may overlap; a run is still one run
        for folder, below, files in os.walk(root, onerror=lambda error: warnings.append(str(error))):
            below.sort()
            if RESULTS in files:
                below[:] = {EXPORT} & set(below)  # stages, checkpoints and the model hold no runs
                if (place := real + folder[len(str(root)) :]) not in seen:
                    seen.add(place)
                    yield Path(folder, RESULTS)


def _read(path: Path, raw: Any, asked: str | None, split: str, wanted: Wanted) -> Run:
    if (schema := _maybe(raw, "schema", int)) != SCHEMA:
        raise UnusableError(f"its schema is {schema}, this compare-runs reads {SCHEMA}")
    metric = asked or _maybe(raw, "identity.metric", str) or "accuracy"  # runs of before there were others
    if metric not in METRICS:
        raise UnusableError(f"its metric is {metric}, which this compare-runs does not know")
    parameters = dict(_maybe(raw, "identity.parameters", dict) or {})
    stages = {name: _flat(stage) for name, stage in (_maybe(parameters, "stages", dict) or {}).items()}
    parameters.pop("stages", None)
    schedule = {"schedule": _maybe(raw, "identity.choices.schedule", str) or NULL}
    teacher = {"teacher": _maybe(raw, "identity.teacher", str) or NULL}
    return Run(
        path=path,
        id=_get(raw, "id", str),
        seed=_get(raw, "seed", int),
        dataset=_get(raw, "identity.dataset", str),
        data_id=_get(raw, "identity.data_id", str),
        data_split=_get(raw, "identity.split", str),
        examples=_get(raw, f"metrics.{split}.n", int),
        task=_maybe(raw, "identity.task", str) or DEFAULT_TASK,
        metric=metric,
        method=_get(raw, "identity.method", str),
        student=_maybe(raw, "identity.student", str),
        tag=_maybe(raw, "tag", str),
        settings={"form": _maybe(raw, "form", str) or NULL} | _flat(parameters) | schedule | teacher,
        training=_training(stages),
        selected_on=_maybe(raw, "identity.selected_on", str),
        conditions=_conditions(raw),
        dirty=bool(_maybe(raw, "dirty", bool)),
        score=100 * _get(raw, f"metrics.{split}.{metric}", float),
        dev_score=100 * _get(raw, f"metrics.dev.{metric}", float),
        baselines=(_baseline(raw, "baseline"), _baseline(raw, "total_baseline")),
        tfidf_command=_maybe(raw, "tfidf_command", str),
        teacher=_teacher(raw, metric, split),
        parameters=_maybe(raw, "parameters.total", int),
        bytes=_maybe(raw, "bytes", int),
        flops=_maybe(raw, "flops_per_example", float),
        latency=_latency(_maybe(raw, "latency", dict)),
        seconds=_maybe(raw, "cost.seconds", float),
        teacher_seconds=_maybe(raw, "cost.teacher_seconds", float),
        general_seconds=_maybe(raw, "cost.general_seconds", float),
        has_model=_maybe(raw, "parameters.embeddings", int) not in (None, 0),
        chosen=_maybe(raw, "reported.chosen", str),
        values=wanted.of(Source(path, raw)),
    )


def _conditions(raw: Any) -> dict[str, str]:
    return {
        "precision": _maybe(raw, "precision", str) or "unknown",
        "device": _maybe(raw, "device", str) or "unknown",
        "threads": str(_maybe(raw, "threads", int) or "unknown"),
        "machine": _maybe(raw, "machine", str) or "unknown",
        "length": str(_maybe(raw, "latency.length", int) or ANY),
    }


def _teacher(raw: Any, metric: str, split: str) -> Teacher | None:
    if _maybe(raw, "teacher", dict) is None:
        return None
    score = 100 * _get(raw, f"teacher.metrics.{split}.{metric}", float)
    return Teacher(_get(raw, "teacher.id", str), _maybe(raw, "teacher.seed", int), score)


def _baseline(raw: Any, name: str) -> tuple[str, str] | None:
    """The baseline's id and the command that makes it; None where the run is its own or has none."""
    found = _maybe(raw, f"{name}_id", str)
    return None if found in (None, raw["id"]) else (found, _get(raw, f"{name}_command", str))


def _latency(raw: dict[str, Any] | None) -> Latency:
    return Latency(
        batch_1=_maybe(raw, "batch_1.median_ms", float),
        batch_32=_maybe(raw, "batch_32.median_ms", float),
        spread_1=_maybe(raw, "batch_1.iqr_ms", float),
        spread_32=_maybe(raw, "batch_32.iqr_ms", float),
        quiet=bool(_maybe(raw, "quiet", bool)),
        others=_maybe(raw, "load.others", float),
        teacher_1=_maybe(raw, "teacher.batch_1.median_ms", float),
        teacher_quiet=bool(_maybe(raw, "teacher.quiet", bool)),
    )


def _get(raw: Any, key: str, kind: type[T]) -> T:
    value = _maybe(raw, key, kind)
    if value is None:
        raise UnusableError(f"it has no {key}")
    return value


def _maybe(raw: Any, key: str, kind: type[T]) -> T | None:
    """The value at the dotted `key`, None where there is none; another type than `kind` is refused."""
    value = raw
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if kind is float and type(value) is int:
        value = float(value)
    if value is None:
        return None
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise UnusableError(f"its {key} is {str(value)[:40]!r}, which is no {kind.__name__}")
    return value


def _training(stages: dict[str, dict[str, str]]) -> dict[str, str]:
    """{"lr": "2e-05"} where all stages have it alike, else {"replacing.lr": ..., "successor.lr": ...}."""
    found = {}
    for name, stage in stages.items():
        for key, value in stage.items():
            alike = all(other.get(key) == value for other in stages.values())
            found[key if alike else f"{name}.{key}"] = value
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted keys and short strings: {"a": {"b": true}} is {"a.b": "true"}."""
    if not isinstance(value, dict):
        words = {None: NULL, True: "true", False: "false"}
        return {prefix: words[value] if value is None or isinstance(value, bool) else _short(value)}
    flat = {}
    for key, inner in value.items():
        flat.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
