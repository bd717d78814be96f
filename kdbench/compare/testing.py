"""The tests of a table: each row against its direct baselines, and every row against every other for the ranks.

Only the predictions of the shown rows, of their baselines and of their teachers are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from kdbench.compare import statistics
from kdbench.compare.collect import NULL, Run
from kdbench.compare.columns import NOTHING, Column, Sheet
from kdbench.compare.statistics import LEVEL, Points, Scores
from kdbench.compare.table import FEW, Estimate, Row, RowTests, Share, Table, Test, Tests
from kdbench.storage.predictions import NoPredictionsError, Predictions, read
from kdbench.storage.results import PREDICTIONS

LEGEND = (
    "Differences to direct fine-tuning, for other seeds and other test examples. All are tested together. If no row "
    "differs from its baseline, 95 of 100 tables have no star and every interval contains zero. The p value, the star "
    "and the interval agree: p < 0.05 exactly if the interval excludes zero. The spread between seeds is pooled over "
    "the rows of the table; a row that varies more keeps its own. With one seed, the interval is for other examples "
    "only, and there is no p. Exports are not tested. Three columns test each row alone: the interval of the gap, "
    "permuted seeds (exact, at least 2 / 2^n) and McNemar (exact, one seed, accuracy)."
)


def with_tests(table: Table, wanted: bool | None) -> Table:
    """Add the tests to the table and its rows if `wanted`; None: if it has few rows and some have predictions."""
    if wanted is None:
        paths = (run.path.with_name(PREDICTIONS) for row in table.rows for run in row.runs)
        wanted = len(table.rows) <= FEW and any(path.is_file() for path in paths)
    return _tested(table) if wanted else table


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
            partly = run.judged < run.examples  # it is compared with no other
            self.first = self.first or (None if partly else found)
            if not partly and self.first is not None and len(found.ids) != len(self.first.ids):
                self.warnings.append(f"{run.path.parent} has predictions of other examples: left out of the tests")
                return None
            self.read[key] = found
        return self.read[key]

    def scores(self, runs: Sequence[Run]) -> dict[int, Points]:
        """Return the (N,) points by seed."""
        found = {run.seed: self.get(run) for run in runs}
        return {seed: one.points(self.metric) for seed, one in found.items() if one is not None}


def _tested(table: Table) -> Table:
    reader = _Reader(table.metric, table.split)
    every = {row.id: row for row in table.every}
    bases = {base[0] for row in table.rows for base in row.runs[0].baselines if base}
    points = {row.id: reader.scores(row.runs) for row in table.rows}
    points |= {id_: reader.scores(every[id_].runs) for id_ in bases if id_ in every and id_ not in points}
    known = {id_: _scores(every[id_], by_seed) for id_, by_seed in points.items() if by_seed}
    rows = [row for row in table.rows if row.id in known]
    if not rows:
        return table
    against = _against(rows, known, table.metric)
    found = {
        row.id: RowTests(
            _own(known[row.id], table.metric),
            (against.get((row.id, 0)), against.get((row.id, 1))),
            _share(row, every, reader),
        )
        for row in rows
    }
    found = _ranked(found, rows, known)
    made = Tests(sum(test.estimate.p is not None for test in against.values()), [*dict.fromkeys(reader.warnings)])
    return replace(table, tests=made, rows=[_with_tests(row, found.get(row.id)) for row in table.rows])


def _with_tests(row: Row, tests: RowTests | None) -> Row:
    unsure = tests is not None and tests.gap_may_be_zero
    return replace(row, tests=tests, gap_closed=None if unsure else row.gap_closed)


def _scores(row: Row, by_seed: dict[int, Points]) -> Scores:
    export = row.runs[0].settings["form"] != NULL
    return Scores(by_seed, seedless=row.role == "tfidf", trained=row.role in ("baseline", "method") and not export)


def _own(row: Scores, metric: str) -> Estimate:
    values = np.stack(list(row.by_seed.values()))
    if metric in ("pearson", "spearman") and values.std() > 0:
        return statistics.crossed(values)
    return statistics.score(values, lowest=-100.0 if metric in ("matthews", "pearson", "spearman") else 0.0)


def _against(rows: list[Row], known: dict[str, Scores], metric: str) -> dict[tuple[str, int], Test]:
    """Return the tests of rows against their baselines by the row's id and the baseline's place, tested together.

    A second baseline that equals the first is left out. So is an export, whose difference is that of its own row.
    """
    pairs = {}
    for row in rows:
        bases = row.runs[0].baselines
        for at, base in enumerate(bases):
            if base and base[0] in known and not (at == 1 and bases[0] == base) and known[row.id].trained:
                pairs[row.id, at] = (row.id, base[0])
    estimates = statistics.differences(known, list(pairs.values()))
    return {
        place: _test(estimate, known[a].by_seed, known[b].by_seed, metric)
        for (place, (a, b)), estimate in zip(pairs.items(), estimates, strict=True)
        if estimate is not None
    }


def _test(estimate: Estimate, mine: Mapping[int, Points], theirs: Mapping[int, Points], metric: str) -> Test:
    """`mine`, `theirs`: the (N,) points of a row and of its baseline by seed."""
    seeds = sorted(mine.keys() & theirs.keys())
    mcnemar = {}
    if metric == "accuracy":  # the points are 0 or 100; McNemar counts correct examples, which other metrics do not
        mcnemar = {seed: statistics.exact_mcnemar(mine[seed] > 0, theirs[seed] > 0) for seed in seeds}
    means = np.array([(mine[seed] - theirs[seed]).mean() for seed in seeds])
    return Test(estimate, mcnemar, statistics.seed_permutation(means) if len(means) > 1 else None)


def _share(row: Row, every: dict[str, Row], reader: _Reader) -> Share | None:
    """Return the interval of the share of the gap from direct baseline to teacher, over the seeds that have both."""
    base = row.runs[0].baselines[0]
    if row.gap_closed is None or base is None or base[0] not in every:
        return None
    theirs = reader.scores(every[base[0]].runs)
    taught = reader.scores(row.runs)
    known = {(run.id, run.seed): run for one in every.values() for run in one.runs}
    gains, gaps = [], []
    for run in row.runs:
        teacher = known.get((run.teacher.id, run.teacher.seed)) if run.teacher else None
        best = reader.scores([teacher]) if teacher else {}
        if best and run.seed in taught and run.seed in theirs:
            gains.append(taught[run.seed] - theirs[run.seed])
            gaps.append(next(iter(best.values())) - theirs[run.seed])
    return Share(*(statistics.share_interval(np.stack(gains), np.stack(gaps)) or ())) if gains else None


def _ranked(found: dict[str, RowTests], rows: list[Row], known: dict[str, Scores]) -> dict[str, RowTests]:
    """Add rank intervals, from significant differences of all pairs of rows, tested together.

    All these decisions hold together with 95 % confidence (Mogstad et al. 2024, simultaneous ranks). A row with one
    seed has no rank, as it differs significantly from no other. TF-IDF has no seeds.
    """
    ranked = [row for row in rows if row.role == "tfidf" or (row.role != "teacher" and len(known[row.id].by_seed) > 1)]
    if len(ranked) < 2:
        return found
    best = max(ranked, key=lambda row: row.score.mean).id
    pairs = [(a.id, b.id) for a, b in combinations(ranked, 2)]
    decided, tested = set(), {best}  # (better, worse); against the best
    for (a, b), estimate in zip(pairs, statistics.differences(known, pairs), strict=True):
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


def sheet(table: Table, count: int) -> Sheet:
    """Return a line for each test; `count` are tested together."""
    lines = [
        (row, name, test)
        for row in table.rows
        if row.tests
        for name, test in zip(("direct", "longer"), row.tests.against, strict=True)
        if test
    ]
    columns = [
        Column("method", [row.labelled_settings for row, _, _ in lines], left=True),
        Column("id", [row.id for row, _, _ in lines], left=True),
        Column("against", [name for _, name, _ in lines], left=True),
        Column("n", [str(test.estimate.seeds) for *_, test in lines]),
        Column("points", [f"{test.estimate.mean:+.2f}" for *_, test in lines]),
        Column("95 % interval", [f"{test.estimate.low:+.2f} to {test.estimate.high:+.2f}" for *_, test in lines]),
        Column("p", [_p(test.estimate.p) for *_, test in lines]),
        Column("gap\n%", [_gap(row, name) for row, name, _ in lines], drop=4),
        Column("gap, 95 %\ninterval", [_gap_interval(row, name) for row, name, _ in lines], drop=3),
        Column("permuted\nseeds, p", [_p(test.permutation) for *_, test in lines], drop=5),
        Column(
            "McNemar p\nby seed",
            [" ".join(_p(p) for p in test.mcnemar.values()) or NOTHING for *_, test in lines],
            drop=6,
        ),
    ]
    return Sheet(f"{table.dataset}: differences to direct fine-tuning, {count} tested together", columns, legend=LEGEND)


def _p(p: float | None) -> str:
    return NOTHING if p is None else "<.001" if p < 0.001 else f"{p:.3f}"


def _gap(row: Row, against: str) -> str:
    return f"{100 * row.gap_closed:.0f}" if row.gap_closed is not None and against == "direct" else NOTHING


def _gap_interval(row: Row, against: str) -> str:
    share = row.tests.gap if row.tests and against == "direct" else None
    if share is None or share.low is None or share.high is None:
        return NOTHING
    return f"{100 * share.low:.0f} to {100 * share.high:.0f}"
