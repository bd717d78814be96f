"""The tests of a table: each row against its direct baselines, and every row against every other for the ranks.

Reads the predictions of the rows shown, of their baselines and teachers, no others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdbench.compare import inference
from kdbench.compare.collect import Run
from kdbench.compare.inference import LEVEL, Estimate
from kdbench.compare.rows import Row, Table
from kdbench.compare.scores import scores
from kdbench.storage.predictions import NoPredictionsError, Predictions, read

AGAINST = ("difference", "total_difference")  # to direct fine-tuning: same schedule, same total of updates


@dataclass(frozen=True)
class Test:
    """One row against one of its baselines."""

    estimate: Estimate
    p_holm: float | None
    mcnemar: dict[int, float]  # exact p by seed, of accuracy alone
    permutation: float | None  # over seeds


class Share(NamedTuple):
    """95 % interval of the share of the gap to the teacher; None where the gap may be zero: it has no end."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class RowTests:
    score: Estimate
    against: tuple[Test | None, Test | None]
    gap: Share | None = None  # None where there is no gap, or no predictions of the teacher
    rank: tuple[int, int] | None = None  # of all shown rows but the teacher and those of one seed
    tied_with_best: bool | None = None  # with the best that has a rank; None where it was not tested against it
    behind: frozenset[str] = frozenset()  # the rows that are better, by a test

    @property
    def gap_may_be_zero(self) -> bool:
        """Whether the gap to the teacher is too small to divide by."""
        return self.gap is not None and self.gap.low is None

    @property
    def untested(self) -> bool:
        return self.rank is not None and self.tied_with_best is None

    def record(self) -> dict[str, float | int | bool | str | None]:
        """Flat, as CSV and JSON have it."""
        figures: dict[str, Any] = {"score_low_points": self.score.low, "score_high_points": self.score.high}
        figures |= {"rank_low": self.rank and self.rank[0], "rank_high": self.rank and self.rank[1]}
        figures["tied_with_best"] = self.tied_with_best
        figures |= {"gap_closed_low": self.gap and self.gap.low, "gap_closed_high": self.gap and self.gap.high}
        for name, test in zip(AGAINST, self.against, strict=True):
            one = test.estimate if test else None
            figures[f"{name}_low_points"] = one.low if one else None
            figures[f"{name}_high_points"] = one.high if one else None
            figures[f"{name}_p"] = one.p if one else None
            figures[f"{name}_p_holm"] = test.p_holm if test else None
            figures[f"{name}_detectable_points"] = one.detectable if one else None
            figures[f"{name}_permutation_p"] = test.permutation if test else None
            figures[f"{name}_mcnemar_p"] = (
                " ".join(f"{p:.4g}" for p in test.mcnemar.values()) if test and test.mcnemar else None
            )
        return figures


@dataclass(frozen=True)
class Tests:
    """All tests of a table, by the row's id; a row without predictions is not there."""

    rows: dict[str, RowTests]
    count: int  # of the tests that Holm's p values are adjusted for
    warnings: list[str]


class _Reader:
    """Scores and predictions of the runs of one table, each file read once."""

    def __init__(self, metric: str, split: str) -> None:
        self.metric, self.split = metric, split
        self.first: Predictions | None = None
        self.read: dict[tuple[str, int], Predictions] = {}
        self.warnings: list[str] = []

    def get(self, run: Run) -> Predictions | None:
        key = (run.id, run.seed)
        if key not in self.read:
            try:
                found = read(run.path, self.split)
            except NoPredictionsError as error:
                self.warnings.append(f"{error}: left out of the tests")
                return None
            self.first = self.first or found
            if not found.same_examples(self.first):
                self.warnings.append(f"{run.path.parent} has predictions of other examples: left out of the tests")
                return None
            self.read[key] = found
        return self.read[key]

    def scores(self, runs: Sequence[Run]) -> dict[int, NDArray[np.float64]]:
        """(N,) points by seed."""
        found = {run.seed: self.get(run) for run in runs}
        return {seed: self.score(one) for seed, one in found.items() if one is not None}

    def score(self, one: Predictions) -> NDArray[np.float64]:
        return scores(self.metric, one)


def tests(table: Table, metric: str, split: str) -> Tests:
    """All tests of the shown rows."""
    reader = _Reader(metric, split)
    found_scores = {row.id: reader.scores(row.runs) for row in table.rows}
    every = {row.id: row for row in table.every}
    found = {
        row.id: RowTests(
            _own(row, found_scores[row.id], metric),
            (_against(row, every, 0, reader), _against(row, every, 1, reader)),
            _share(row, every, reader),
        )
        for row in table.rows
        if found_scores[row.id]
    }
    adjusted, count = _adjusted(found, table.rows)
    return Tests(_ranked(adjusted, table.rows, found_scores), count, list(dict.fromkeys(reader.warnings)))


def _own(row: Row, scores: dict[int, NDArray[np.float64]], metric: str) -> Estimate:
    estimate = inference.crossed(np.stack(list(scores.values())), seedless=row.role == "tfidf")
    if len(scores) == 1 and metric == "accuracy":
        (values,) = scores.values()
        low, high = inference.wilson(int((values > 0).sum()), len(values))
        return replace(estimate, low=low, high=high)
    return estimate


def _against(row: Row, every: dict[str, Row], at: int, reader: _Reader) -> Test | None:
    """The test against the baseline; the second is left out where it is the first."""
    bases = row.runs[0].baselines
    base = bases[at]
    if base is None or base[0] not in every or (at == 1 and bases[0] == base):
        return None
    seeds = {run.seed: run for run in every[base[0]].runs}
    pairs = {run.seed: (reader.get(run), reader.get(seeds[run.seed])) for run in row.runs if run.seed in seeds}
    whole = {seed: (a, b) for seed, (a, b) in pairs.items() if a is not None and b is not None}
    if not whole:
        return None
    values = np.stack([reader.score(a) - reader.score(b) for a, b in whole.values()])
    mcnemar = {}
    if reader.metric == "accuracy":  # it counts examples that are right: of another metric it says nothing
        right = {seed: (a.labels == a.predicted, b.labels == b.predicted) for seed, (a, b) in whole.items()}
        mcnemar = {seed: inference.exact_mcnemar(*both) for seed, both in right.items()}
    permutation = inference.seed_permutation(values.mean(1)) if len(values) > 1 else None
    return Test(inference.crossed(values), None, mcnemar, permutation)


def _share(row: Row, every: dict[str, Row], reader: _Reader) -> Share | None:
    """Of the gap from the direct baseline to the teacher, over the seeds that have both."""
    base = row.runs[0].baselines[0]
    if row.gap_closed is None or base is None or base[0] not in every:
        return None
    theirs = reader.scores(every[base[0]].runs)
    taught = reader.scores(row.runs)
    known = {(run.id, run.seed): run for one in every.values() for run in one.runs}
    gains, gaps = [], []
    for run in row.runs:
        teacher = (
            known.get((run.teacher.id, run.teacher.seed)) if run.teacher and run.teacher.seed is not None else None
        )
        best = reader.scores([teacher]) if teacher else {}
        if best and run.seed in taught and run.seed in theirs:
            gains.append(taught[run.seed] - theirs[run.seed])
            gaps.append(next(iter(best.values())) - theirs[run.seed])
    return Share(*(inference.share_interval(np.stack(gains), np.stack(gaps)) or ())) if gains else None


def _adjusted(found: dict[str, RowTests], rows: list[Row]) -> tuple[dict[str, RowTests], int]:
    """Holm's p values over every test that is shown: all rows, both baselines."""
    places = [(row.id, at) for row in rows if row.id in found for at in (0, 1) if found[row.id].against[at]]
    raw = {place: test.estimate.p_safe for place in places if (test := found[place[0]].against[place[1]])}
    known = [place for place in places if raw[place] is not None]
    ps = dict(zip(known, inference.holm([raw[place] or 0.0 for place in known]), strict=True))
    changed = {}
    for id_, one in found.items():
        both = [test and replace(test, p_holm=ps.get((id_, at))) for at, test in enumerate(one.against)]
        changed[id_] = replace(one, against=(both[0], both[1]))
    return changed, len(known)


def _ranked(
    found: dict[str, RowTests], rows: list[Row], scores: dict[str, dict[int, NDArray[np.float64]]]
) -> dict[str, RowTests]:
    """Rank intervals: a row is behind those that are better after Holm over all pairs, and before those worse.

    All that these decisions claim holds together with 95 % confidence (Mogstad et al. 2024, simultaneous ranks).
    A row of one seed has no rank: it could be told from no other. TF-IDF has no seeds.
    """
    ranked = [row for row in rows if row.role == "tfidf" or (row.role != "teacher" and len(scores[row.id]) > 1)]
    ranked = [row for row in ranked if row.id in found]
    if len(ranked) < 2:
        return found
    best = max(ranked, key=lambda row: row.score.mean).id
    pairs, ps, tested = [], [], {best}  # against the best
    for a, b in combinations(ranked, 2):
        estimate = _between(a, b, scores)
        if estimate is not None and estimate.p_safe is not None:
            pairs.append((a.id, b.id) if estimate.mean > 0 else (b.id, a.id))
            ps.append(estimate.p_safe)
            tested |= {a.id, b.id} if best in (a.id, b.id) else set()
    decided = [pair for pair, p in zip(pairs, inference.holm(ps), strict=True) if p < LEVEL]
    changed = dict(found)
    for row in ranked:
        better = frozenset(better_id for better_id, worse_id in decided if worse_id == row.id)
        worse = sum(better_id == row.id for better_id, _ in decided)
        rank = (1 + len(better), len(ranked) - worse)
        tied = best not in better if row.id in tested else None
        changed[row.id] = replace(found[row.id], rank=rank, tied_with_best=tied, behind=better)
    return changed


def _between(a: Row, b: Row, scores: dict[str, dict[int, NDArray[np.float64]]]) -> Estimate | None:
    """Row a - row b, paired by seed; TF-IDF, which has no seeds, is paired with each."""
    mine, other = scores[a.id], scores[b.id]
    if a.role == b.role == "tfidf":
        values = next(iter(mine.values())) - next(iter(other.values()))
        return inference.crossed(values[None], seedless=True)
    if b.role == "tfidf":
        other = dict.fromkeys(mine, next(iter(other.values())))
    elif a.role == "tfidf":
        mine = dict.fromkeys(other, next(iter(mine.values())))
    shared = sorted(mine.keys() & other.keys())
    return inference.crossed(np.stack([mine[seed] - other[seed] for seed in shared])) if shared else None
