"""The tables of compare-runs as data: rows, their times, their tests. The other modules fill, judge and show them."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from kdbench.compare.collect import Run
from kdbench.compare.statistics import Summary

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
class Estimate:
    """A mean with its 95 % interval, in the unit of the values."""

    mean: float
    low: float
    high: float
    error: float  # standard error
    seeds: int
    p: float | None = None  # two-sided, that it is zero, over all pairs tested together


AGAINST = ("difference", "total_difference")  # to direct fine-tuning: same schedule, same total of updates


@dataclass(frozen=True)
class Test:
    """One row against one of its baselines."""

    estimate: Estimate
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
            figures[f"{name}_permutation_p"] = test.permutation if test else None
            figures[f"{name}_mcnemar_p"] = (
                " ".join(f"{p:.4g}" for p in test.mcnemar.values()) if test and test.mcnemar else None
            )
        return figures


@dataclass(frozen=True)
class Tests:
    """All tests of a table, by the row's id; a row without predictions is not there."""

    rows: dict[str, RowTests]
    count: int  # of the differences to baselines that are tested together
    warnings: list[str]


@dataclass(frozen=True)
class Session:
    """What one measurement found."""

    when: str
    machine: str
    threads: int
    fixed_length: int
    rows: dict[str, Any]  # by id: real, fixed -> as a run's `latency` in results.json; memory_mb

    def times(self, row: Row, kind: str) -> Times | None:
        """Of one kind of texts; None where the row was not measured with them."""
        found = self.rows.get(row.id, {}).get(kind)
        if not found:
            return None
        (first, batch), load = (found[f"batch_{size}"] for size in (1, 32)), found["load"]
        return Times(
            first["median_ms"], batch["median_ms"], first["iqr_ms"], batch["iqr_ms"], found["quiet"], load["others"]
        )


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
    tests: Tests | None = None  # made where the predictions are read
    session: Session | None = None  # times that were measured together

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.every for run in row.runs]

    @property
    def missing(self) -> list[str]:
        """The commands that make the baselines which rows of this table lack, one a run."""
        done = {(run.id, run.seed) for run in self.runs}
        wanted = [(run.seed, base) for row in self.rows for run in row.runs for base in run.baselines if base]
        return [command for seed, (id_, command) in wanted if (id_, seed) not in done]
