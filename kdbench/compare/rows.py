"""Rows and tables: which runs are one configuration, and which configurations may stand in one table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from kdbench.compare.collect import Latency, Run, Teacher
from kdbench.compare.settings import telling
from kdbench.compare.statistics import Summary, gap_share, paired_difference, summarize

if TYPE_CHECKING:
    from kdbench.compare.speed import Session
    from kdbench.compare.tested import Tests

_Scores = Mapping[str, Mapping[int, float]]  # by id and seed
ROLES = ("teacher", "tfidf", "baseline", "method")  # in the order of a table's rows


@dataclass(frozen=True)
class Times:
    """Milliseconds of a batch of 1 and of 32, each with its interquartile range."""

    batch_1: float | None = None
    batch_32: float | None = None
    spread_1: float | None = None
    spread_32: float | None = None
    quiet: bool = False  # a time that is not is shown with a mark, and nothing is concluded from it
    others: float | None = None  # processors that other work took meanwhile


@dataclass(frozen=True)
class Row:
    """One configuration: all seeds of one id."""

    role: str  # one of ROLES
    settings: str  # the parameters that tell it from the rows beside it
    runs: list[Run]  # one a seed, in their order
    score: Summary
    differences: list[Summary | None]  # to the direct fine-tunes: same schedule, same total of updates
    gap_closed: float | None  # also None where a test cannot tell the gap from zero
    gap_too_small: bool  # the teacher is hardly better than the baseline: there is no gap to close
    times: Times
    speedup: float | None  # over the teacher, measured in turns with it on a quiet machine
    seconds: float | None
    teacher_seconds: float | None
    general_seconds: float | None
    tried: int = 1  # configurations of the grid that this one was the best of, on dev

    @property
    def id(self) -> str:
        return self.runs[0].id

    @property
    def dirty(self) -> bool:
        return any(run.dirty for run in self.runs)

    @property
    def selected_on_reported(self) -> bool:
        """Not on dev, so on the split that is reported; where nothing was selected it is null."""
        return any(run.selected_on not in ("dev", None) for run in self.runs)

    @property
    def label(self) -> str:
        method = self.runs[0].method
        if chosen := " or ".join(sorted({run.chosen for run in self.runs if run.chosen})):
            method = f"{method} ({chosen})"
        return f"teacher ({method})" if self.role == "teacher" else method

    @property
    def dev_score(self) -> float:
        return fmean([run.dev_score for run in self.runs])

    @property
    def conditions(self) -> dict[str, str]:
        """Precision, device, threads, machine and length; both values where the seeds ran on different ones."""
        names = self.runs[0].conditions
        return {name: "/".join(sorted({run.conditions[name] for run in self.runs})) for name in names}

    @property
    def values(self) -> dict[str, Any]:
        """Of the keys that were asked for, where all seeds have one value; null where they differ."""
        first = self.runs[0].values
        return {
            key: value if all(run.values[key] == value for run in self.runs) else None for key, value in first.items()
        }

    def record(self) -> dict[str, str | float | bool | None]:
        """The row flat and in full precision, as CSV and JSON have it; a unit is in the name."""
        run = self.runs[0]
        figures: dict[str, str | float | bool | None] = {
            "role": self.role,
            "method": run.method,
            "student": run.student,
            "id": run.id,
            "settings": self.settings,
        }
        names = ("score", "difference", "total_difference")
        for name, summary in zip(names, (self.score, *self.differences), strict=True):
            figures[f"{name}_points"] = summary.mean if summary else None
            figures[f"{name}_sd_points"] = summary.sd if summary else None
            figures[f"{name}_n"] = summary.n if summary else 0
        return figures | {
            "gap_closed": self.gap_closed,
            "form": run.settings["form"],
            "parameters": run.parameters,
            "bytes": run.bytes,
            "flops_per_example": run.flops,
            "latency_batch_1_ms": self.times.batch_1,
            "latency_batch_32_ms": self.times.batch_32,
            "latency_quiet": None if self.times.batch_1 is None else self.times.quiet,
            "speedup": self.speedup,
            "training_seconds": self.seconds,
            "teacher_seconds": self.teacher_seconds,
            "general_seconds": self.general_seconds,
            **self.conditions,
            "selected_on": run.selected_on,
            "tag": run.tag,
            "dev_score_points": self.dev_score,
            "best_on_dev_of": self.tried,
            "dirty": self.dirty,
        }


@dataclass(frozen=True)
class Table:
    """The rows that can be compared: one data set, the same rows of it, the same split and metric."""

    dataset: str
    data_id: str
    data_split: str
    metric: str
    examples: int
    differs_in: list[str]  # what keeps it apart from another table of the same data set
    rows: list[Row]  # those to show
    every: list[Row]  # hidden ones too
    tests: "Tests | None" = None  # made where the predictions are read
    session: "Session | None" = None  # times that were measured together

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.every for run in row.runs]

    @property
    def missing(self) -> list[str]:
        """The commands that make the baselines which rows of this table lack, one a run."""
        done = {(run.id, run.seed) for run in self.runs}
        wanted = [(run.seed, base) for row in self.rows for run in row.runs for base in run.baselines if base]
        return [command for seed, (id_, command) in wanted if (id_, seed) not in done]


def build_tables(runs: list[Run], shown: Callable[[Run], bool]) -> list[Table]:
    """Runs as tables of rows. Only runs that are `shown` make rows; the others still are baselines."""
    apart: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        apart.setdefault((run.dataset, run.data_id, run.data_split, run.metric), []).append(run)
    tables = []
    for (dataset, data_id, split, metric), members in sorted(apart.items()):
        others = [key for key in apart if key[0] == dataset]
        names = ((1, "data"), (2, "split"), (3, "metric"))
        differs_in = [name for at, name in names if len({key[at] for key in others}) > 1]
        every = _rows(members, members)
        chosen = [run for run in members if shown(run)]
        rows = every if len(chosen) == len(members) else _rows(members, chosen)
        if rows:
            tables.append(Table(dataset, data_id, split, metric, members[0].examples, differs_in, rows, every))
    return tables


def _rows(runs: list[Run], chosen: list[Run]) -> list[Row]:
    """The rows that `chosen` make; what they are compared with is taken from all `runs`."""
    by_id: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        by_id.setdefault(run.id, []).append(run)
    teachers = {run.teacher.id: run.teacher for run in runs if run.teacher}
    scores = {id_: {run.seed: run.score for run in members} for id_, members in by_id.items()}
    roles = {id_: _role(members[0], teachers) for id_, members in by_id.items()}
    settings = {}
    for kind in {(roles[id_], members[0].method) for id_, members in by_id.items()}:
        alike = [group for id_, group in by_id.items() if (roles[id_], group[0].method) == kind]
        settings.update(telling(alike))
    kept = {id(run) for run in chosen}
    rows = {id_: [run for run in members if id(run) in kept] for id_, members in by_id.items()}
    return [_row(roles[id_], settings[id_], members, scores, teachers) for id_, members in rows.items() if members]


def _role(run: Run, teachers: Mapping[str, Teacher]) -> str:
    if run.id in teachers:
        return "teacher"
    return {"tfidf": "tfidf", "finetune": "baseline"}.get(run.method, "method")


def _row(role: str, settings: str, runs: list[Run], scores: _Scores, teachers: Mapping[str, Teacher]) -> Row:
    own = {run.seed: run.score for run in runs}
    against = [scores.get(baseline[0], {}) if baseline else {} for baseline in runs[0].baselines]
    taught = [(run, run.teacher) for run in runs if run.teacher and run.seed in against[0]]
    gap = None
    if taught:
        gap = gap_share(
            [run.score for run, _ in taught],
            [against[0][run.seed] for run, _ in taught],
            [teacher.score for _, teacher in taught],
        )
    return Row(
        role=role,
        settings=settings,
        runs=runs,
        score=summarize(list(own.values())),
        differences=[paired_difference(own, baseline) for baseline in against],
        gap_closed=gap,
        gap_too_small=bool(taught) and gap is None,
        times=_times([run.latency for run in runs]),
        speedup=_known(median, [_speedup(run.latency) for run in runs]),
        seconds=_known(fmean, [run.seconds for run in runs]),
        teacher_seconds=_known(fmean, [run.teacher_seconds for run in runs]),
        general_seconds=_known(fmean, [run.general_seconds for run in runs]),
    )


def _times(found: list[Latency]) -> Times:
    """Those of the seeds that were timed on a quiet machine; where none was, of all."""
    chosen = [one for one in found if one.quiet] or found

    def middle(name: str) -> float | None:
        return _known(median, [getattr(one, name) for one in chosen])

    figures = {name: middle(name) for name in ("batch_1", "batch_32", "spread_1", "spread_32", "others")}
    return Times(quiet=all(one.quiet for one in chosen), **figures)


def ratio(slow: Times, fast: Times) -> float | None:
    """How many times faster; None where one of them is not known, or was not timed on a quiet machine."""
    if not (slow.quiet and fast.quiet and slow.batch_1 and fast.batch_1):
        return None
    return slow.batch_1 / fast.batch_1


def _speedup(latency: Latency) -> float | None:
    """Over the teacher that took turns with it; what ran at another time says nothing of the ratio."""
    return ratio(Times(latency.teacher_1, quiet=latency.teacher_quiet), _times([latency]))


def _known(summary: Callable[[Sequence[float]], float], values: Sequence[float | None]) -> float | None:
    """The summary of the values there are; None where there is none."""
    known = [value for value in values if value is not None]
    return summary(known) if known else None
