"""What the tables can say: intervals of differences, of shares of the gap, of ratios of times, from their rows alone.

A row has its own 95 % interval and that of its paired difference to its direct fine-tune. How two other rows vary
together is in no table. So their difference is taken as if they were independent, which is wider than pairing, and a
share of the gap is as wide as any covariance allows; where compare-runs has read the predictions, its own interval is
used. The ratio of two times moves from one measurement to the next: times.csv has all that the tables ever had.
"""

import csv
from collections.abc import Iterable, Mapping
from math import exp, hypot, log, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from kdbench.compare.inference import LEVEL
from kdbench.compare.statistics import LEAST_GAP
from scripts.study.keep import place_of, tables
from scripts.study.plan import data_of, place

Record = Mapping[str, Any]
TEACHER, ALL_LAYERS = "teacher", "direct layers 6"  # the ceilings: by the teacher's schedule, by the students'
TIMES = ("data", "machine", "measurement", "row", "latency_batch_1_ms")  # of times.csv


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


def p_in_table(row: Record) -> float:
    """Return the p of the difference to the direct fine-tune, corrected for all tests of the row's table.

    Tables of before have Holm's in a column of its own; later ones have the corrected p alone.
    """
    corrected = row["difference_p_holm"]
    return float(row["difference_p"] if corrected is None else corrected)


def score(row: Record) -> Interval:
    """Return the score of a row. Raises LookupError where its predictions were not read."""
    found = interval(row, "score")
    if found is None:
        raise LookupError(f"{row['row']} has no interval")
    return found


def ceiling(documents: Mapping[str, Any], question: str, row: Record) -> Record | None:
    """Return the better one on dev of the question's teacher and the direct fine-tune of all its layers, of question 1.

    The teacher has a schedule of its own. None where the row's data have neither.
    """
    taught = [one for one in documents[question]["rows"] if one["row"] == TEACHER and data_of(one) == data_of(row)]
    direct = documents["direct"]["rows"] if "direct" in documents else []
    full = [one for one in direct if one["row"] == ALL_LAYERS and one["machine"] == row["machine"]]
    found = taught + [one for one in full if one["data_id"] == row["data_id"]]
    return max(found, key=lambda one: one["dev_score_points"]) if found else None


def gap_closed(row: Record, base: Record, top: Record) -> Interval | None:
    """Return the share of the way from `base` to the ceiling `top` that a row has closed; None where it may be no way.

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


def times_faster(row: Record, than: str, times: Iterable[Mapping[str, str]]) -> Interval:
    """Return how many times as fast as the row called `than` a row is, with the spread of repeated measurements.

    Each measurement gives a ratio. Their spread is pooled over data sets and machines, on the logarithm, and the
    interval is of the mean of those on the row's data and machine. Raises LookupError where nothing was measured twice.
    """
    from scipy import stats

    measured: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for one in times:
        session = measured.setdefault((one["data"], one["machine"]), {}).setdefault(one["measurement"], {})
        session[one["row"]] = float(one["latency_batch_1_ms"])
    ratios = {
        where: [log(one[than] / one[row["row"]]) for one in sessions.values() if {than, row["row"]} <= one.keys()]
        for where, sessions in measured.items()
    }
    squares = sum((ratio - fmean(found)) ** 2 for found in ratios.values() for ratio in found)
    degrees = sum(len(found) - 1 for found in ratios.values() if found)
    own = ratios.get((place(row["dataset"], row["max_train_samples"]), row["machine"]), [])
    if not own or not degrees:
        raise LookupError(f"{row['row']} was not timed twice beside {than}")
    half = float(stats.t.ppf(1 - LEVEL / 2, degrees)) * sqrt(squares / degrees / len(own))
    return Interval(exp(fmean(own)), exp(fmean(own) - half), exp(fmean(own) + half))


def read_times(folder: Path) -> list[dict[str, str]]:
    """Return the times that the tables have had, a line a row and measurement; none before the first was written."""
    if not (folder / "times.csv").is_file():
        return []
    with (folder / "times.csv").open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def remember_times(folder: Path, documents: Mapping[str, Any]) -> None:
    """Add the times of the tables to times.csv: to their measurement if it is known, else as another one."""
    known = read_times(folder)
    now: dict[tuple[str, str], dict[str, str]] = {}
    for table in (table for document in documents.values() for table in tables(document).values()):
        machines = [row["machine"] for row in table["rows"] if row["machine"] != "unknown"]  # of long ago: not told
        own = now.setdefault((place_of(table), machines[0] if machines else "unknown"), {})
        for row in table["rows"]:
            if row["latency_batch_1_ms"] is not None and not row["form"] and row["row"] != "tfidf":
                own[row["row"]] = f"{row['latency_batch_1_ms']:.3f}"
    for (data, machine), found in now.items():
        sessions: dict[str, dict[str, str]] = {}
        for one in known:
            if (one["data"], one["machine"]) == (data, machine):
                sessions.setdefault(one["measurement"], {})[one["row"]] = one["latency_batch_1_ms"]
        same = [at for at, session in sessions.items() if all(session.get(row, ms) == ms for row, ms in found.items())]
        at = same[-1] if same else str(len(sessions) + 1)
        new = [row for row in found if row not in sessions.get(at, {})]
        known += [dict(zip(TIMES, (data, machine, at, row, found[row]), strict=True)) for row in new]
    with (folder / "times.csv").open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, TIMES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(known, key=lambda one: (one["data"], one["machine"], int(one["measurement"]))))
