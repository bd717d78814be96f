"""Rows and tables: which runs are one configuration, and which configurations share a table.

A difference is paired by seed, because student and baseline of one seed share the order of the data. What the seed
does to both is no merit of the method.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median

from kdbench.compare.collect import NULL, Run, Times
from kdbench.compare.table import LEAST_GAP, ROLES, Row, Summary, Table


def build_tables(runs: list[Run], shown: Callable[[Run], bool]) -> list[Table]:
    """Return the tables of the `shown` runs. The other runs make no rows but still are baselines."""
    of_one: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        of_one.setdefault((run.examples_id, run.metric), []).append(run)
    # The files of a test may be in several data sets, each with train texts of its own.
    named = {key: " and ".join(sorted({run.dataset for run in members})) for key, members in of_one.items()}
    tables = []
    for (examples_id, metric), members in sorted(of_one.items(), key=lambda one: (named[one[0]], one[0])):
        dataset = named[examples_id, metric]
        others = [key for key in of_one if named[key] == dataset]
        differs_in = [name for at, name in enumerate(("examples", "metric")) if len({key[at] for key in others}) > 1]
        every = _rows(members, members)
        chosen = [run for run in members if shown(run)]
        rows = every if len(chosen) == len(members) else _rows(members, chosen)
        if rows:
            first = members[0]
            tables.append(Table(dataset, examples_id, metric, first.split, first.examples, differs_in, rows, every))
    return tables


def _rows(runs: list[Run], chosen: list[Run]) -> list[Row]:
    """Return the rows of the `chosen` runs; what they are compared with is taken from all `runs`."""
    by_id: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        by_id.setdefault(run.row_id, []).append(run)
    teachers = {run.teacher.id for run in runs if run.teacher}
    scores = {id_: {run.seed: run.score for run in members} for id_, members in by_id.items()}
    roles = {id_: _role(members, teachers) for id_, members in by_id.items()}
    settings = {}
    for kind in {(roles[id_], members[0].method) for id_, members in by_id.items()}:
        settings.update(
            distinguishing([group[0] for id_, group in by_id.items() if (roles[id_], group[0].method) == kind])
        )
    kept = {id(run) for run in chosen}
    rows = {id_: [run for run in members if id(run) in kept] for id_, members in by_id.items()}
    return [_row(roles[id_], settings[id_], members, scores) for id_, members in rows.items() if members]


def _role(runs: list[Run], teachers: set[str]) -> str:
    run = runs[0]
    if any(run.id in teachers for run in runs):
        return "teacher"
    if run.method == "tfidf" and run.raw:  # it learned a teacher's answers
        return "method"
    return {"answers": "teacher", "tfidf": "tfidf", "finetune": "baseline"}.get(run.method, "method")


def _row(role: str, settings: str, runs: list[Run], scores: Mapping[str, Mapping[int, float]]) -> Row:
    """`scores`: id -> seed -> score of all runs."""
    own = {run.seed: run.score for run in runs}
    against = [scores.get(baseline[0], {}) if baseline else {} for baseline in runs[0].baselines]
    taught = [
        (run, run.teacher) for run in runs if run.teacher and run.teacher.same_examples and run.seed in against[0]
    ]
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
        times=_times([run.times for run in runs]),
        speedup=_known(median, [ratio(run.teacher_times, run.times) for run in runs]),
        seconds=_known(fmean, [run.seconds for run in runs]),
        teacher_seconds=_known(fmean, [run.teacher_seconds for run in runs]),
        general_seconds=_known(fmean, [run.general_seconds for run in runs]),
    )


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, sample s.d. and n of at least one value."""
    mean, n = fmean(values), len(values)
    # not statistics.stdev: its exact fractions take a third of the time for 10,000 runs
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Summary(mean, sd, n)


def paired_difference(run: Mapping[int, float], baseline: Mapping[int, float]) -> Summary | None:
    """Summarize run - baseline over the seeds that both have; None if they share none."""
    seeds = sorted(run.keys() & baseline.keys())
    return summarize([run[seed] - baseline[seed] for seed in seeds]) if seeds else None


def gap_share(run: Sequence[float], baseline: Sequence[float], teacher: Sequence[float]) -> float | None:
    """Return the share of the way from baseline to teacher: 0 is the baseline, 1 the teacher.

    It is computed from the three means. None if the teacher is less than LEAST_GAP above the baseline.
    """
    gap = fmean(teacher) - fmean(baseline)
    return (fmean(run) - fmean(baseline)) / gap if gap >= LEAST_GAP - 1e-9 else None  # 1e-9: rounding of scores


def ratio(slow: Times, fast: Times) -> float | None:
    """Return how many times faster `fast` is at batch 1; None if either time is unknown or was not quiet."""
    if not (slow.quiet and fast.quiet and slow.batch_1 and fast.batch_1):
        return None
    return slow.batch_1 / fast.batch_1


def _times(found: list[Times]) -> Times:
    """Return the medians over the seeds with quiet times, or over all seeds if there are none."""
    chosen = [one for one in found if one.quiet] or found
    names = ("batch_1", "batch_32", "spread_1", "spread_32", "others")
    medians = {name: _known(median, [getattr(one, name) for one in chosen]) for name in names}
    return Times(quiet=chosen[0].quiet, **medians)


def _known(summary: Callable[[Sequence[float]], float], values: Sequence[float | None]) -> float | None:
    """Return the summary of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return summary(known) if known else None


def distinguishing(runs: list[Run]) -> dict[str, str]:
    """Return for each id the settings in which these configurations of one method differ, without null ones.

    A key that only some runs have, such as those of an own initialisation, makes no difference by its absence.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    keys = [key for key in keys if len({run.settings[key] for run in runs if key in run.settings}) > 1]
    hand_set = _hand_set(runs)
    texts = {}
    for run in runs:
        values = [(key, run.settings.get(key, NULL)) for key in keys]
        values += [(key, run.training.get(key, NULL)) for key in hand_set]
        texts[run.row_id] = " ".join(f"{key}={value}" for key, value in values if value != NULL)
    return texts


def _hand_set(runs: list[Run]) -> list[str]:
    """Return the keys of the training whose values differ although the schedule's name is the same."""
    known: dict[str, list[Run]] = {}  # by name: lr of successor.lr, which is lr where stages are alike
    for run in runs:
        for name in {key.rpartition(".")[2] for key in run.training}:
            known.setdefault(name, []).append(run)
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.training):
        values = {(run.settings["schedule"], run.training.get(key)) for run in known[key.rpartition(".")[2]]}
        if len(values) > len({schedule for schedule, _ in values}):
            found.append(key)
    return found


def _mean(summary: Summary | None) -> float | None:
    return summary.mean if summary else None


SORT: dict[str, tuple[Callable[[Row], float | None], bool]] = {  # --sort: value, and whether the highest comes first
    "score": (lambda row: row.score.mean, True),
    "difference": (lambda row: _mean(row.differences[0]), True),
    "total-difference": (lambda row: _mean(row.differences[1]), True),
    "gap": (lambda row: row.gap_closed, True),
    "parameters": (lambda row: row.runs[0].parameters, False),
    "latency": (lambda row: row.quiet_ms, False),
    "speedup": (lambda row: row.speedup, True),
    "seconds": (lambda row: row.seconds, False),
}


def ordered(rows: list[Row], key: str | None) -> list[Row]:
    """Sort the best first by `key`, rows without it last; without a key by role, then by score. Names break ties."""
    by_name = sorted(rows, key=lambda row: (row.label, row.settings, row.id))
    if key is None:
        return sorted(by_name, key=lambda row: (ROLES.index(row.role), -row.score.mean))
    value, highest_first = SORT[key]

    def rank(row: Row) -> tuple[bool, float]:
        number = value(row)
        return number is None, (-1 if highest_first else 1) * (number or 0.0)

    return sorted(by_name, key=rank)
