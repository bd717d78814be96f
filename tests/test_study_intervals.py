"""Intervals made of the rows of tables: against independent formulas, and by simulation."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from kdbench.compare import statistics
from scripts.study import intervals, tables
from scripts.study.intervals import Interval
from scripts.study.tables import Evidence, Record
from tests.test_study import evidence, scored


def at(name: str, points: float, half: float = 1.0, **more: Any) -> dict[str, Any]:
    return scored(name, points, score_low_points=points - half, score_high_points=points + half, **more)


def test_a_difference_of_two_rows_is_newcombes_interval() -> None:
    """Of two runs, whose intervals are Wilson's."""
    runs = [Interval(right / 400, *proportion_confint(right, 400, method="wilson")) for right in (372, 350)]
    expected = confint_proportions_2indep(372, 400, 350, 400, method="newcomb")
    assert runs[0].minus(runs[1])[1:] == pytest.approx(expected)


@pytest.mark.parametrize("gain", [(0.8, 0.3, 1.3), (-0.75, -1.8, 0.3), (-1.5, -2.0, -1.0)])
def test_a_share_is_as_wide_as_any_covariance_allows(gain: tuple[float, float, float]) -> None:
    """Fieller's quadratic, at correlations from -1 to 1: the union of its intervals."""
    gap = (2.5, 0.9, 4.1)
    (a, se_a), (b, se_b) = ((one[0], (one[2] - one[1]) / 2) for one in (gain, gap))  # half widths: the quantile is in
    ends = []
    for correlation in np.linspace(-1, 1, 41):
        cov = correlation * se_a * se_b
        roots = np.roots([b**2 - se_b**2, -2 * (a * b - cov), a**2 - se_a**2])
        ends += list(np.real(roots))
    found = Interval(*gain).over(Interval(*gap))
    assert found and found[1:] == pytest.approx((min(ends), max(ends)), rel=1e-3)
    assert found.mean == pytest.approx(a / b)
    assert Interval(*gain).over(Interval(0.5, -0.1, 1.1)) is None


def test_intervals_from_rows_hold_the_truth() -> None:
    """Three seeds each of a student, a direct fine-tune and a ceiling, on the same 300 texts; 200 repeats."""
    rng, held = np.random.default_rng(3), np.zeros(2)
    abilities = {"student": 1.5, "direct": 1.2, "ceiling": 1.9}  # a text is right where ability exceeds difficulty
    shares = {name: 100 * stats.norm.cdf(ability / np.sqrt(2 + 0.05**2)) for name, ability in abilities.items()}
    gap = shares["ceiling"] - shares["direct"]
    share = (shares["student"] - shares["direct"]) / gap
    for _ in range(200):
        difficulty = rng.standard_normal(300)
        noise = {name: rng.standard_normal((3, 300)) + 0.05 * rng.standard_normal((3, 1)) for name in abilities}
        points = {name: np.where(difficulty + noise[name] < at, 100.0, 0.0) for name, at in abilities.items()}
        direct, ceiling = (statistics.crossed(points[name]) for name in ("direct", "ceiling"))
        paired = statistics.crossed(points["student"] - points["direct"])
        gain = Interval(paired.mean, paired.low, paired.high)
        found = Interval(ceiling.mean, ceiling.low, ceiling.high).minus(Interval(direct.mean, direct.low, direct.high))
        held[0] += found.low <= gap <= found.high
        closed = gain.over(found)
        held[1] += closed is None or closed.low <= share <= closed.high
    assert (held / 200 > 0.95).all()  # wider than they need be, never narrower


def test_the_ceiling_is_the_better_one_on_dev() -> None:
    row = scored("theseus", 80.0, machine="a", dev_score_points=70.0)
    teacher = scored("teacher", 90.0, machine="a", dev_score_points=81.0)
    full = scored("direct layers 6", 89.0, machine="a", dev_score_points=82.0)
    mine = {"rows": [teacher, row]}
    said = evidence(theseus=mine, direct={"rows": [full]})
    assert intervals.ceiling(said, "theseus", row) == full  # worse on test: it is not test that chooses
    for other in ({"dev_score_points": 80.0}, {"machine": "b"}, {"data_id": "another"}):
        assert intervals.ceiling(evidence(theseus=mine, direct={"rows": [full | other]}), "theseus", row) == teacher
    assert intervals.ceiling(evidence(theseus={"rows": [row]}), "theseus", row) is None


def test_a_share_to_the_teacher_is_fiellers_where_predictions_were_read() -> None:
    paired = {"difference_points": 2.0, "difference_low_points": 1.0, "difference_high_points": 3.0}
    row = at("theseus", 82.0, gap_closed=0.4, gap_closed_low=0.3, gap_closed_high=0.5, **paired)
    base, teacher, full = at("direct layers 3", 80.0), at("teacher", 85.0), at("direct layers 6", 86.0)
    assert intervals.gap_closed(row, base, teacher) == (0.4, 0.3, 0.5)
    other = intervals.gap_closed(row, base, full)
    assert other and other.mean == pytest.approx(2 / 6) and other.low < 0.25 < 0.45 < other.high
    kept = intervals.gap_closed(row | {"gap_closed_low": None}, base, teacher)
    assert kept and kept.mean == pytest.approx(0.4) and kept.low < 0.3 and kept.high > 0.5
    assert intervals.share_of_gap(row, full) == pytest.approx(2 / 6)
    assert intervals.share_of_gap(row, at("teacher", 80.5)) is None  # hardly a gap
    assert intervals.share_of_gap(row | {"gap_closed": None}, full) is None  # which may be zero, by the tests


def measured(*ratios: float, data: str = "reuters_r52", machine: str = "a") -> list[Record]:
    sessions = ({"theseus": 10.0, "teacher": 10.0 * ratio} for ratio in ratios)
    return [
        {"data": data, "machine": machine, "measurement": number, "row": row, "latency_batch_1_ms": ms}
        for number, session in enumerate(sessions, 1)
        for row, ms in session.items()
    ]


def test_a_ratio_of_times_has_the_spread_of_its_measurements() -> None:
    row = scored("theseus", 90.0, machine="a")
    found = intervals.times_faster(row, "teacher", measured(1.8, 2.0, 2.2))
    logs = np.log([1.8, 2.0, 2.2])
    expected = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    assert found[1:] == pytest.approx(tuple(np.exp(expected)))
    elsewhere = measured(1.8, 2.0, 2.2, machine="b") + measured(1.9)
    once = intervals.times_faster(row, "teacher", elsewhere)  # its own ratio, with the others' spread
    assert once.mean == pytest.approx(1.9) and once.high / once.low > found.high / found.low
    for times in (measured(1.9), [], measured(1.8, 2.0, machine="b")):
        with pytest.raises(LookupError):
            intervals.times_faster(row, "teacher", times)


def test_times_are_remembered_by_measurement() -> None:
    def said(times: list[Record], ms: float, *more: Record) -> Evidence:
        rows = [scored("teacher", 95.0, machine="unknown", latency_batch_1_ms=2 * ms),
                scored("theseus", 94.0, machine="a", latency_batch_1_ms=ms),
                scored("theseus int8", 94.0, form="int8", machine="a"), *more]  # fmt: skip
        return Evidence({"theseus": {"rows": rows, "details": {}}}, times)

    times: list[Record] = []
    for ms, *more in ((5.0,), (5.0, scored("theseus_blog", 94.0, machine="a")), (6.0,)):
        times = tables.with_times(said(times, ms, *more))
    assert tables.with_times(said(times, 5.0)) == times  # known
    found = [(one["measurement"], one["row"], one["latency_batch_1_ms"]) for one in times]
    first = [(1, "teacher", 10.0), (1, "theseus", 5.0), (1, "theseus_blog", 5.0)]
    assert found == [*first, (2, "teacher", 12.0), (2, "theseus", 6.0)]
