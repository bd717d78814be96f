"""The tests of a table: each row against its direct baselines, and every row against every other for the ranks.

Reads the predictions of the rows shown, of their baselines and teachers, no others.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from kdbench.compare import inference
from kdbench.compare.collect import NULL, Run
from kdbench.compare.inference import LEVEL, Points, Scores
from kdbench.compare.table import Estimate, Row, RowTests, Share, Table, Test, Tests
from kdbench.storage.predictions import NoPredictionsError, Predictions, read
from kdbench.tasks import kind


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

    def scores(self, runs: Sequence[Run]) -> dict[int, Points]:
        """(N,) points by seed."""
        found = {run.seed: self.get(run) for run in runs}
        return {seed: self.score(one) for seed, one in found.items() if one is not None}

    def score(self, one: Predictions) -> Points:
        return kind(one.task).points(self.metric, one.labels, one.predicted, one.names)


def tests(table: Table, metric: str, split: str) -> Tests:
    """All tests of the shown rows."""
    reader = _Reader(metric, split)
    every = {row.id: row for row in table.every}
    bases = {base[0] for row in table.rows for base in row.runs[0].baselines if base}
    read = {row.id: reader.scores(row.runs) for row in table.rows}
    read |= {id_: reader.scores(every[id_].runs) for id_ in bases if id_ in every and id_ not in read}
    known = {id_: _scores(every[id_], scores) for id_, scores in read.items() if scores}
    rows = [row for row in table.rows if row.id in known]
    against = _against(rows, every, known, reader)
    found = {
        row.id: RowTests(
            _own(known[row.id], metric),
            (against.get((row.id, 0)), against.get((row.id, 1))),
            _share(row, every, reader),
        )
        for row in rows
    }
    count = sum(test.estimate.p is not None for test in against.values())
    return Tests(_ranked(found, rows, known), count, list(dict.fromkeys(reader.warnings)))


def _scores(row: Row, by_seed: dict[int, Points]) -> Scores:
    export = row.runs[0].settings["form"] != NULL
    return Scores(by_seed, seedless=row.role == "tfidf", trained=row.role in ("baseline", "method") and not export)


def _own(row: Scores, metric: str) -> Estimate:
    values = np.stack(list(row.by_seed.values()))
    if metric in ("pearson", "spearman") and values.std() > 0:
        return inference.crossed(values)
    return inference.score(values, lowest=-100.0 if metric in ("matthews", "pearson", "spearman") else 0.0)


def _against(
    rows: list[Row], every: dict[str, Row], known: dict[str, Scores], reader: _Reader
) -> dict[tuple[str, int], Test]:
    """The tests of rows against their baselines, by the row's id and the baseline's place, all tested together.

    A second baseline that is the first is left out, and so is an export: its difference is that of the row that it was
    made from.
    """
    pairs = {}
    for row in rows:
        bases = row.runs[0].baselines
        for at, base in enumerate(bases):
            if base and base[0] in known and not (at == 1 and bases[0] == base) and known[row.id].trained:
                pairs[row.id, at] = (row.id, base[0])
    estimates = inference.differences(known, list(pairs.values()))
    return {
        place: _test(estimate, every[a], every[b], reader)
        for (place, (a, b)), estimate in zip(pairs.items(), estimates, strict=True)
        if estimate is not None
    }


def _test(estimate: Estimate, row: Row, base: Row, reader: _Reader) -> Test:
    seeds = {run.seed: run for run in base.runs}
    both = {run.seed: (reader.get(run), reader.get(seeds[run.seed])) for run in row.runs if run.seed in seeds}
    whole = {seed: (a, b) for seed, (a, b) in both.items() if a is not None and b is not None}
    mcnemar = {}
    if reader.metric == "accuracy":  # it counts examples that are right: of another metric it says nothing
        right = {seed: (a.labels == a.predicted, b.labels == b.predicted) for seed, (a, b) in whole.items()}
        mcnemar = {seed: inference.exact_mcnemar(*two) for seed, two in right.items()}
    means = np.array([(reader.score(a) - reader.score(b)).mean() for a, b in whole.values()])
    return Test(estimate, mcnemar, inference.seed_permutation(means) if len(means) > 1 else None)


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


def _ranked(found: dict[str, RowTests], rows: list[Row], known: dict[str, Scores]) -> dict[str, RowTests]:
    """Rank intervals: a row is behind those that are better, tested together over all pairs, and before those worse.

    All that these decisions claim holds together with 95 % confidence (Mogstad et al. 2024, simultaneous ranks).
    A row of one seed has no rank: it could be told from no other. TF-IDF has no seeds.
    """
    ranked = [row for row in rows if row.role == "tfidf" or (row.role != "teacher" and len(known[row.id].by_seed) > 1)]
    if len(ranked) < 2:
        return found
    best = max(ranked, key=lambda row: row.score.mean).id
    pairs = [(a.id, b.id) for a, b in combinations(ranked, 2)]
    decided, tested = set(), {best}  # (better, worse); against the best
    for (a, b), estimate in zip(pairs, inference.differences(known, pairs), strict=True):
        if estimate is None or estimate.p is None:
            continue
        if best in (a, b):
            tested |= {a, b}
        if estimate.p < LEVEL:
            decided.add((a, b) if estimate.mean > 0 else (b, a))
    changed = dict(found)
    for row in ranked:
        better = frozenset(better_id for better_id, worse_id in decided if worse_id == row.id)
        worse = sum(better_id == row.id for better_id, _ in decided)
        rank = (1 + len(better), len(ranked) - worse)
        tied = best not in better if row.id in tested else None
        changed[row.id] = replace(found[row.id], rank=rank, tied_with_best=tied, behind=better)
    return changed
