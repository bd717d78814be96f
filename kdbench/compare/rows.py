"""Rows and tables: which runs are one configuration, and which configurations may stand in one table."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from kdbench.compare.collect import Latency, Run, Teacher
from kdbench.compare.settings import telling
from kdbench.compare.statistics import gap_share, paired_difference, summarize
from kdbench.compare.table import Row, Table, Times

if TYPE_CHECKING:
    pass

_Scores = Mapping[str, Mapping[int, float]]  # by id and seed


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
