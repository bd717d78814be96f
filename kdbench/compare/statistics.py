"""The figures of a comparison: pure functions on scores.

A difference is paired by seed, because student and baseline of one seed share the order of the data: what
the seed does to both is no merit of the method.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

LEAST_GAP = 1.0  # points: a share of less is a ratio of noise, such as -3200 %


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of n values; one value has no deviation."""

    mean: float
    sd: float | None
    n: int


def summarize(values: Sequence[float]) -> Summary:
    """Mean, sample s.d. and n of at least one value."""
    mean, n = fmean(values), len(values)
    # not statistics.stdev: its exact fractions take a third of the time for 10,000 runs
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Summary(mean, sd, n)


def paired_difference(run: Mapping[int, float], baseline: Mapping[int, float]) -> Summary | None:
    """Summary of run - baseline over the seeds that both have; None where they share none."""
    seeds = sorted(run.keys() & baseline.keys())
    return summarize([run[seed] - baseline[seed] for seed in seeds]) if seeds else None


def gap_share(run: Sequence[float], baseline: Sequence[float], teacher: Sequence[float]) -> float | None:
    """Share of the distance from baseline to teacher that run closed: 0 the baseline, 1 the teacher.

    From the means of the three; None where the teacher is less than LEAST_GAP above the baseline.
    """
    gap = fmean(teacher) - fmean(baseline)
    return (fmean(run) - fmean(baseline)) / gap if gap >= LEAST_GAP - 1e-9 else None  # 1e-9: rounding of scores
