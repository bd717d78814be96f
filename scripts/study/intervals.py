"""Intervals of differences, of shares of the gap and of ratios of times, from the rows of the tables alone.

A row has its own 95 % interval and that of its paired difference to its direct fine-tune. How two other rows vary
together is in no table. So their difference is taken as if they were independent, which is wider than pairing. A share
of the gap is as wide as any covariance allows; where compare-runs has read the predictions, its interval is used. The
ratio of two times moves from one measurement to the next: times.csv has all measurements.
"""

from collections.abc import Iterable
from math import exp, hypot, log, sqrt
from statistics import fmean
from typing import NamedTuple

from kdbench.compare.statistics import LEVEL
from kdbench.compare.table import LEAST_GAP
from scripts.study.plan import data_of
from scripts.study.tables import Evidence, Record, place_of

TEACHER, ALL_LAYERS = "teacher", "direct layers 6"  # the ceilings: by the teacher's schedule, by the students'


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    mean: float
    low: float
    high: float

    def above(self, bound: float) -> bool | None:
        """Return whether all of it is above `bound` (True) or below (False); None where it holds the bound."""
        return True if self.low > bound else False if self.high < bound else None

    def scaled(self, factor: float) -> "Interval":
        return Interval(factor * self.mean, factor * self.low, factor * self.high)

    def minus(self, other: "Interval") -> "Interval":
        """Subtract an independent estimate: MOVER (Zou and Donner 2008), of two shares Newcombe 1998, method 10."""
        mean = self.mean - other.mean
        down = hypot(self.mean - self.low, other.high - other.mean)
        up = hypot(self.high - self.mean, other.mean - other.low)
        return Interval(mean, mean - down, mean + up)

    def over(self, other: "Interval") -> "Interval | None":
        """Divide by an estimate, whatever their covariance; None where `other` may be zero.

        These are the shares s at which self - s * other cannot be told from zero (Fieller 1954) where the covariance is
        the least favourable one, a correlation of 1 in size: the half widths of both parts add up.
        """
        if other.low <= 0:
            return None
        ends = (other.low, other.high)
        return Interval(
            self.mean / other.mean, min(self.low / end for end in ends), max(self.high / end for end in ends)
        )


def interval(row: Record, name: str) -> Interval | None:
    """Return a figure of a row, in points; None where there is no interval."""
    figures = [row[f"{name}{part}_points"] for part in ("", "_low", "_high")]
    return None if None in figures else Interval(*figures)


def score(row: Record) -> Interval:
    """Return the score of a row. Raises LookupError where its predictions were not read."""
    found = interval(row, "score")
    if found is None:
        raise LookupError(f"{row['row']} has no interval")
    return found


def ceiling(evidence: Evidence, question: str, row: Record) -> Record | None:
    """Return the better one on dev of the question's teacher and the direct fine-tune of all its layers (question 1).

    The teacher has a schedule of its own. Returns None where the row's data have neither.
    """
    taught = [one for one in evidence.rows(question, data_of(row)) if one["row"] == TEACHER]
    same = ("machine", "data_id")
    full = [one for one in evidence.documents["direct"]["rows"]
            if one["row"] == ALL_LAYERS and all(one[key] == row[key] for key in same)]  # fmt: skip
    return max(taught + full, key=lambda one: one["dev_score_points"], default=None)


def gap_closed(row: Record, base: Record, top: Record) -> Interval | None:
    """Return the share of the way from `base` to the ceiling `top` that a row has closed; None where it may be zero.

    Raises LookupError where one of them has no interval.
    """
    if top["row"] == TEACHER and row["gap_closed_low"] is not None:
        return Interval(row["gap_closed"], row["gap_closed_low"], row["gap_closed_high"])
    gain, gap = interval(row, "difference"), score(top).minus(score(base))
    if gain is None:
        raise LookupError(f"{row['row']} is not paired with its direct fine-tune")
    return gain.over(gap)


def share_of_gap(row: Record, top: Record | None) -> float | None:
    """Return the share without its interval, by the means of the row's own pairs; None where the gap may be zero."""
    gain = row["difference_points"]
    if top is None or gain is None or row["gap_closed"] is None:
        return None
    gap = top["score_points"] - (row["score_points"] - gain)
    return float(gain / gap) if gap >= LEAST_GAP else None


def times_faster(row: Record, than: str, times: Iterable[Record]) -> Interval:
    """Return how many times as fast as the row called `than` a row is, with the spread of repeated measurements.

    Each measurement gives a ratio. Their spread is pooled over data sets and machines, on the logarithm, and the
    interval is of the mean of those on the row's data and machine. Raises LookupError where nothing was measured twice.
    """
    from scipy import stats

    measured: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for one in times:
        session = measured.setdefault((one["data"], one["machine"]), {}).setdefault(one["measurement"], {})
        session[one["row"]] = one["latency_batch_1_ms"]
    ratios = {
        where: [log(one[than] / one[row["row"]]) for one in sessions.values() if {than, row["row"]} <= one.keys()]
        for where, sessions in measured.items()
    }
    squares = sum((ratio - fmean(found)) ** 2 for found in ratios.values() for ratio in found)
    degrees = sum(len(found) - 1 for found in ratios.values() if found)
    own = ratios.get((place_of(row), row["machine"]), [])
    if not own or not degrees:
        raise LookupError(f"{row['row']} was not timed twice beside {than}")
    half = float(stats.t.ppf(1 - LEVEL / 2, degrees)) * sqrt(squares / degrees / len(own))
    return Interval(exp(fmean(own)), exp(fmean(own) - half), exp(fmean(own) + half))
