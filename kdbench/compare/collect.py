"""Find the `results.json` files below some folders and take from each what a comparison needs.

Nothing is computed here. A file that cannot be used becomes a warning with its path and the reason. The others are
still compared.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from kdbench.compare.index import Index, Signature
from kdbench.compare.keys import CONFIG, Source, Wanted, flat, inner
from kdbench.schema import METRICS
from kdbench.storage.files import Damaged
from kdbench.storage.results import RESULTS, SCHEMA, read_result
from kdbench.storage.status import STATUS
from kdbench.tasks import PROBABILITIES

T = TypeVar("T")
NULL = "null"  # a setting that is not set
TEACHER_SEED = "teacher.seed"  # a setting of runs with a teacher
ANY = "any"  # length of a model that reads whole texts


class UnusableError(Exception):
    """A results.json that cannot be compared; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds for a batch of 1 and of 32: the median and the interquartile range, None if not measured."""

    batch_1: float | None = None
    batch_32: float | None = None
    spread_1: float | None = None
    spread_32: float | None = None
    quiet: bool = False  # False: shown with a mark, and no ratio or advice is derived from it
    others: float | None = None  # processors that other work took meanwhile


@dataclass(frozen=True, slots=True)
class Teacher:
    id: str
    seed: int
    score: float  # on the examples of its own run
    labelled: int | None  # train texts of its own run; None: an older run
    same_examples: bool  # as the run's, all in the shown split; only then the scores may be compared
    other_test: bool  # its run had another test split, so it may have been trained on the run's test texts


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run. Scores are in points (0-100), of `metric` on `split`."""

    path: Path
    id: str
    row_id: str  # of its row: its id, or that of several teachers' runs, see `_in_rows`
    without_teacher_seed: str  # the id that it shares with runs that differ in their teacher's seed alone
    seed: int
    dataset: str
    data_id: str  # of all splits and limits
    test_id: str  # of the rows of test, and the next of dev: see `identity.test_id` in docs/results.md
    dev_id: str
    examples: int  # in `split`
    judged: int  # of these; fewer if it is a teacher's file that lacks some
    labelled: int  # train texts with a label
    raw: int  # train texts without a label
    task: str
    metric: str  # --metric, else the one that chose on dev
    split: str  # test or dev
    method: str
    student: str | None
    tag: str | None
    settings: dict[str, str]  # in which two configurations of one method may differ
    training: dict[str, str]  # the schedule's values; with the stage's name (successor.lr) if stages differ
    selected_on: str | None
    conditions: dict[str, str]  # precision, device, threads, machine, length: see CONDITIONS
    dirty: bool
    score: float
    dev_score: float
    baselines: tuple[tuple[str, str] | None, ...]  # (id, command): same schedule, same total of updates
    tfidf_command: str | None  # makes the TF-IDF row
    teacher: Teacher | None
    parameters: int | None
    bytes: int | None  # of the file with the weights
    flops: float | None
    times: Times
    teacher_times: Times  # measured in turns with `times`
    seconds: float | None
    teacher_seconds: float | None
    general_seconds: float | None
    has_model: bool  # the run kept a network that can be measured again
    chosen: str | None  # what the method itself chose on dev
    values: Mapping[str, Any]  # of the keys in `Wanted`
    figures: Mapping[str, float]  # all of `split`: the task's metrics and PROBABILITIES, as results.json has them
    temperature: float | None  # that the stored logits are divided by; None: they stand for no probabilities

    @property
    def examples_id(self) -> str:
        return self.test_id if self.split == "test" else self.dev_id


def read_runs(
    roots: list[Path], metric: str | None, split: str, wanted: Wanted, unfinished: list[Path] | None = None,
    datasets: Collection[str] = (),
) -> tuple[list[Run], list[str]]:  # fmt: skip
    """Return every usable run below `roots` once, and a warning for each file that is left out.

    `metric`: None means each run's own, by which it was chosen on dev. `unfinished` gets the folders of runs that have
    no results.json yet. `datasets`: only runs on these, if there are any, else all.
    """
    runs: dict[tuple[str, str, int], Run] = {}
    warnings: list[str] = []
    seen: set[str] = set()
    for root in roots:
        real = os.path.realpath(root)  # roots may overlap; a run is still one run
        index = Index(root, [metric, split, wanted.keys], (RESULTS, CONFIG) if wanted.keys else (RESULTS,))
        reader = _Reader(index, metric, split, wanted, datasets)
        for folder, has in _find(index, warnings):
            if (place := f"{real}/{folder}".rstrip("/")) in seen:
                continue
            seen.add(place)
            if has == STATUS:
                if unfinished is not None:
                    unfinished.append(Path(index.path(folder)))
                continue
            try:
                run = reader.run(folder)
            except (OSError, ValueError, RecursionError, UnusableError, Damaged) as error:
                warnings.append(_left_out(Path(index.path(folder), RESULTS), error))
                continue
            if run is not None and (known := runs.setdefault((run.examples_id, run.id, run.seed), run)) is not run:
                warnings.append(f"{run.path}: left out, it is the same run (id and seed) as {known.path}")
        if wanted.found.issuperset(wanted.keys):
            index.write()
    if datasets and not runs:
        return read_runs(roots, metric, split, wanted)
    return _in_rows(list(runs.values())), warnings


def _left_out(path: Path, error: Exception) -> str:
    match error:
        case UnusableError():
            reason = str(error)
        case Damaged():
            reason = str(error).removeprefix(f"{path} ")
        case _:
            reason = f"it cannot be read: {error}"
    return f"{path}: left out, {reason}"


def _find(index: Index, warnings: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each folder of a run below the index's root, and the name of the file that makes it one."""
    left = [""]
    while left:
        folder = left.pop()
        try:
            found = index.look(folder)
        except OSError as error:
            warnings.append(str(error))
            continue
        if found.has:
            yield folder, found.has
        if found.below:
            start = f"{folder}/" if folder else ""
            left += [start + name for name in reversed(found.below.split("/"))]


_OF_ONE_SEED = (
    "seed", "score", "dev_score", "baselines", "tfidf_command", "teacher", "times", "teacher_times", "seconds",
    "teacher_seconds", "general_seconds", "figures", "temperature", "values",
)  # fmt: skip


@dataclass
class _Reader:
    """Reads a run, or takes it from the index, where it is JSON: what it shares with its other seeds, and its own."""

    index: Index
    metric: str | None
    split: str
    wanted: Wanted
    datasets: Collection[str]
    shared: dict[str, dict[str, Any]] = field(default_factory=dict)  # what was made of a text in the index, once

    def run(self, folder: str) -> Run | None:
        """Return the run; None for one that is not to be shown. Raises OSError, ValueError, UnusableError, Damaged."""
        try:
            seen = self.index.signature_of(folder)
        except FileNotFoundError:  # removed since it was listed
            seen = None
        if seen and (known := self.index.known(folder, seen)):
            self.wanted.found.update(self.wanted.keys)  # an index is written only if all were found
            return self._restored(folder) if self._named(known.dataset) else None
        path = Path(self.index.path(folder), RESULTS)
        raw = read_result(path.parent) or {}  # {}: removed since it was listed
        # Stages before a task make no row: their cost is in the rows that need them.
        run = None if raw.get("phase") == "general" else _read(path, raw, self.metric, self.split, self.wanted)
        if seen:
            self._keep(folder, seen, run)
        return run if run and self._named(run.dataset) else None

    def _named(self, dataset: str | None) -> bool:
        return dataset is not None and (not self.datasets or dataset in self.datasets)

    def _keep(self, folder: str, seen: Signature, run: Run | None) -> None:
        if run is None:
            self.index.keep(folder, seen, None, "", "")
            return
        every = {one.name: getattr(run, one.name) for one in fields(run) if one.name != "path"}
        every |= {name: astuple(every[name]) for name in ("times", "teacher_times", "teacher") if every[name]}
        own = {name: every.pop(name) for name in _OF_ONE_SEED}
        with suppress(TypeError):  # a date in config.yaml
            text = json.dumps(own)
            if json.loads(text)["values"] == own["values"]:  # config.yaml may have keys that are no text
                self.index.keep(folder, seen, run.dataset, json.dumps(every), text)

    def _restored(self, folder: str) -> Run:
        shared, text = self.index.text_of(folder)
        if (every := self.shared.get(shared)) is None:
            every = self.shared[shared] = json.loads(shared)
        own = json.loads(text)
        own["times"], own["teacher_times"] = Times(*own["times"]), Times(*own["teacher_times"])
        own["teacher"] = Teacher(*own["teacher"]) if own["teacher"] else None
        own["baselines"] = tuple(base and tuple(base) for base in own["baselines"])
        return Run(Path(self.index.path(folder), RESULTS), **every, **own)


def _in_rows(runs: list[Run]) -> list[Run]:
    """Let runs share a row that differ in nothing but their own seed and that of their teacher.

    Each of these runs has a teacher of its own, so the spread between them contains that between teachers. A setting
    with several seeds under one teacher stays a row. So does each run if two have the same seed, under two teachers.
    """
    seeds = Counter((run.examples_id, run.id) for run in runs)
    alike: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if seeds[run.examples_id, run.id] == 1:
            alike.setdefault((run.examples_id, run.without_teacher_seed), []).append(run)
    shared = [one for one in alike.values() if len(one) > 1 and len({run.seed for run in one}) == len(one)]
    joined = {id(run): _joined(run, one) for one in shared for run in one}
    return [joined.get(id(run), run) for run in runs]


def _joined(run: Run, row: list[Run]) -> Run:
    """Return `run` without what differs between the runs of its row: the teacher's seed, perhaps the longer baseline.

    The teachers decide which pseudo-labels are kept, and so the number of updates.
    """
    ids = [{base and base[0] for base in every} for every in zip(*(one.baselines for one in row), strict=True)]
    baselines = tuple(base if len(its) == 1 else None for base, its in zip(run.baselines, ids, strict=True))
    settings = run.settings | {TEACHER_SEED: NULL}
    return replace(run, row_id=run.without_teacher_seed, settings=settings, baselines=baselines)


def _read(path: Path, raw: dict[str, Any], asked: str | None, split: str, wanted: Wanted) -> Run:
    if (schema := _maybe(raw, "schema", int)) != SCHEMA:
        raise UnusableError(f"its schema is {schema}, this compare-runs reads {SCHEMA}")
    id_, metric = _get(raw, "id", str), asked or _get(raw, "identity.metric", str)
    if metric not in METRICS:
        raise UnusableError(f"its metric is {metric}, which this compare-runs does not know")
    if any(_maybe(raw, f"identity.{name}_id", str) is None for name in ("test", "dev")):
        raise UnusableError(
            "an older kdbench wrote it, without identity.test_id: run its command again with rerun=true"
        )
    parameters = _get(raw, "identity.parameters", dict)
    stages = {name: _texts(stage) for name, stage in (_maybe(parameters, "stages", dict) or {}).items()}
    settings = _texts({key: value for key, value in parameters.items() if key != "stages"})
    teacher = _teacher(raw, metric, split)
    chosen = {"schedule": "identity.choices.schedule", "teacher": "identity.teacher"}
    return Run(
        path=path,
        id=id_,
        row_id=id_,
        without_teacher_seed=_maybe(raw, "id_without_teacher_seed", str) or id_,
        seed=_get(raw, "seed", int),
        dataset=_get(raw, "identity.dataset", str),
        data_id=_get(raw, "identity.data_id", str),
        test_id=_get(raw, "identity.test_id", str),
        dev_id=_get(raw, "identity.dev_id", str),
        examples=_maybe(raw, f"reported.answered.{split}.of", int) or _get(raw, f"metrics.{split}.n", int),
        judged=_get(raw, f"metrics.{split}.n", int),
        labelled=_get(raw, "data.splits.train.rows", int),
        raw=_maybe(raw, "data.splits.unlabelled.rows", int) or 0,
        task=_get(raw, "identity.task", str),
        metric=metric,
        split=split,
        method=_get(raw, "identity.method", str),
        student=_maybe(raw, "identity.student", str),
        tag=_maybe(raw, "tag", str),
        settings={"form": _maybe(raw, "form", str) or NULL}
        | settings
        | {key: _maybe(raw, place, str) or NULL for key, place in chosen.items()}
        | ({} if teacher is None else {TEACHER_SEED: str(teacher.seed)}),
        training=_training(stages),
        selected_on=_maybe(raw, "identity.selected_on", str),
        conditions={
            "precision": _maybe(raw, "precision", str) or "unknown",  # TF-IDF has none
            "device": _get(raw, "device", str),
            "threads": str(_get(raw, "threads", int)),
            "machine": _get(raw, "machine", str),
            "length": str(_maybe(raw, "latency.length", int) or ANY),
        },
        dirty=bool(_maybe(raw, "dirty", bool)),
        score=100 * _get(raw, f"metrics.{split}.{metric}", float),
        dev_score=100 * _get(raw, f"metrics.dev.{metric}", float),
        baselines=(_baseline(raw, "baseline"), _baseline(raw, "total_baseline")),
        tfidf_command=_maybe(raw, "tfidf_command", str),
        teacher=teacher,
        parameters=_maybe(raw, "parameters.total", int),
        bytes=_maybe(raw, "bytes", int),
        flops=_maybe(raw, "flops_per_example", float),
        times=read_times(_maybe(raw, "latency", dict) or {}),
        teacher_times=read_times(_maybe(raw, "latency.teacher", dict) or {}),
        seconds=_maybe(raw, "cost.seconds", float),
        teacher_seconds=_maybe(raw, "cost.teacher_seconds", float),
        general_seconds=_maybe(raw, "cost.general_seconds", float),
        has_model=_maybe(raw, "parameters.embeddings", int) not in (None, 0),
        chosen=_maybe(raw, "reported.chosen", str),
        values=wanted.of(Source(path, raw)),
        figures=_figures(raw, split),
        temperature=_temperature(raw, split),
    )


def _figures(raw: dict[str, Any], split: str) -> dict[str, float]:
    """Return those figures of a split that can be shown. Raises UnusableError for one that is no number."""
    found = {name: _maybe(raw, f"metrics.{split}.{name}", float) for name in (*METRICS, *PROBABILITIES)}
    return {name: value for name, value in found.items() if value is not None}


def _temperature(raw: dict[str, Any], split: str) -> float | None:
    """Return the temperature that the logits in predictions.parquet are to be divided by; None: no probabilities."""
    if _maybe(raw, f"metrics.{split}.nll", float) is None:
        return None
    kept = _maybe(raw, "calibration.kept", bool)
    return _get(raw, "calibration.temperature", float) if kept else 1.0


def _teacher(raw: dict[str, Any], metric: str, split: str) -> Teacher | None:
    if _maybe(raw, "teacher", dict) is None:
        return None
    of_test, of_shown = (_maybe(raw, f"teacher.{name}_id", str) for name in ("test", split))
    all_of_it = _get(raw, f"teacher.metrics.{split}.n", int) == _get(raw, f"metrics.{split}.n", int)
    return Teacher(
        id=_get(raw, "teacher.id", str),
        seed=_get(raw, "teacher.seed", int),
        score=100 * _get(raw, f"teacher.metrics.{split}.{metric}", float),
        labelled=_maybe(raw, "teacher.labelled", int),
        same_examples=all_of_it and of_shown == _get(raw, f"identity.{split}_id", str),
        other_test=of_test not in (None, _get(raw, "identity.test_id", str)),
    )


def _baseline(raw: dict[str, Any], name: str) -> tuple[str, str] | None:
    """Return the baseline's id and the command that makes it; None if the run is its own or has none."""
    found = _maybe(raw, f"{name}_id", str)
    return None if found in (None, raw["id"]) else (found, _get(raw, f"{name}_command", str))


def read_times(raw: dict[str, Any]) -> Times:
    """Return the times in a run's `latency`, or in a part of a latency file. Raises UnusableError."""
    return Times(
        batch_1=_maybe(raw, "batch_1.median_ms", float),
        batch_32=_maybe(raw, "batch_32.median_ms", float),
        spread_1=_maybe(raw, "batch_1.iqr_ms", float),
        spread_32=_maybe(raw, "batch_32.iqr_ms", float),
        quiet=bool(_maybe(raw, "quiet", bool)),
        others=_maybe(raw, "load.others", float),
    )


def _get(raw: dict[str, Any], key: str, kind: type[T]) -> T:
    value = _maybe(raw, key, kind)
    if value is None:
        raise UnusableError(f"it has no {key}")
    return value


def _maybe(raw: dict[str, Any], key: str, kind: type[T]) -> T | None:
    """Return the value at the dotted `key`, None if there is none. Raises UnusableError for another type."""
    value, _ = inner(raw, key)
    if kind is float and type(value) is int:
        value = float(value)
    if value is None:
        return None
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise UnusableError(f"its {key} is {str(value)[:40]!r}, which is no {kind.__name__}")
    return value


def _training(stages: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return {"lr": "2e-05"} if all stages have it alike, else {"replacing.lr": ..., "successor.lr": ...}."""
    found = {}
    for name, stage in stages.items():
        for key, value in stage.items():
            alike = all(other.get(key) == value for other in stages.values())
            found[key if alike else f"{name}.{key}"] = value
    return found


def _texts(nested: dict[str, Any]) -> dict[str, str]:
    """Return nested parameters as dotted keys and short strings: {"a": {"b": true}} is {"a.b": "true"}."""
    return {key: _short(value) for key, value in flat(nested) if value != {}}


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return NULL if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
