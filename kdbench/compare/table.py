"""The tables of compare-runs as data: rows, their times, their tests. The other modules fill, judge and show them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from kdbench.compare.collect import Run, Times, read_times
from kdbench.tasks import PROBABILITIES

ROLES = ("teacher", "tfidf", "baseline", "method")  # in the order of a table's rows
AGAINST = ("difference", "total_difference")  # to direct fine-tuning: same schedule, same total of updates
TRAINED_ON = ("labelled", "raw")  # numbers of train texts, with and without a label
LEAST_GAP = 1.0  # points between teacher and baseline; a share of less is a ratio of noise, such as -3200 %
FEW = 30  # rows that are tested without --tests; that takes about a second


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of n values; one value has no deviation."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, in the unit of the values."""

    mean: float
    low: float
    high: float
    error: float  # standard error
    seeds: int
    p: float | None = None  # two-sided, that the mean is zero, adjusted for all pairs of the table


@dataclass(frozen=True)
class Test:
    """One row against one of its baselines."""

    estimate: Estimate
    mcnemar: dict[int, float]  # exact p by seed, for accuracy only
    permutation: float | None  # exact p over seeds

    @property
    def significant(self) -> bool:
        return self.estimate.p is not None and self.estimate.p < 0.05


class Share(NamedTuple):
    """95 % interval of the share of the gap to the teacher; None if the gap may be zero: then it is unbounded."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class RowTests:
    score: Estimate
    against: tuple[Test | None, Test | None]
    gap: Share | None = None  # None if there is no gap, or no predictions of the teacher
    rank: tuple[int, int] | None = None  # among all shown rows but the teacher and those with one seed
    tied_with_best: bool | None = None  # does not differ significantly from the best ranked row; None: not tested
    behind: frozenset[str] = frozenset()  # ids of the rows that are significantly better

    @property
    def gap_may_be_zero(self) -> bool:
        """Whether the gap to the teacher is too small to divide by."""
        return self.gap is not None and self.gap.low is None

    def record(self) -> dict[str, float | int | bool | str | None]:
        """Return the tests flat, as CSV and JSON have them."""
        figures: dict[str, Any] = {"score_low_points": self.score.low, "score_high_points": self.score.high}
        figures |= {"rank_low": self.rank and self.rank[0], "rank_high": self.rank and self.rank[1]}
        figures["tied_with_best"] = self.tied_with_best
        figures |= {"gap_closed_low": self.gap and self.gap.low, "gap_closed_high": self.gap and self.gap.high}
        for name, test in zip(AGAINST, self.against, strict=True):
            mcnemar = " ".join(f"{p:.4g}" for p in test.mcnemar.values()) if test else ""
            figures |= {
                f"{name}_low_points": test and test.estimate.low,
                f"{name}_high_points": test and test.estimate.high,
                f"{name}_p": test and test.estimate.p,
                f"{name}_permutation_p": test and test.permutation,
                f"{name}_mcnemar_p": mcnemar or None,
            }
        return figures


@dataclass(frozen=True)
class Row:
    """One configuration: all seeds of one id, or runs that differ in their seed and in their teacher's."""

    role: str  # one of ROLES
    settings: str  # in which it differs from other rows of its method
    runs: list[Run]  # one for each seed, ordered by seed
    score: Summary
    differences: list[Summary | None]  # to the baselines of AGAINST
    gap_closed: float | None  # also None if the gap may be zero according to its test
    gap_too_small: bool  # below LEAST_GAP
    times: Times
    speedup: float | None  # over the teacher, measured in turns with it on a quiet machine
    seconds: float | None
    teacher_seconds: float | None
    general_seconds: float | None
    tried: int = 1  # configurations of the grid from which this one was chosen on dev
    tests: RowTests | None = None  # None if not tested, or without predictions

    @property
    def id(self) -> str:
        return self.runs[0].row_id

    @property
    def teachers(self) -> int:
        """The number of teachers that its runs had."""
        return len({(run.teacher.id, run.teacher.seed) for run in self.runs if run.teacher})

    @property
    def dirty(self) -> bool:
        return any(run.dirty for run in self.runs)

    @property
    def whole(self) -> bool:
        """Whether it is judged by all examples of the table; else its score is compared with no other."""
        return all(run.judged == run.examples for run in self.runs)

    @property
    def selected_on_reported(self) -> bool:
        """Whether a checkpoint was selected on the reported split. `selected_on` is None if none was selected."""
        return any(run.selected_on not in ("dev", None) for run in self.runs)

    @property
    def label(self) -> str:
        method = self.runs[0].method
        if not self.whole:
            method = f"{method} to {self.runs[0].judged:,} of {self.runs[0].examples:,}"
        if chosen := " or ".join(sorted({run.chosen for run in self.runs if run.chosen})):
            method = f"{method} ({chosen})"
        return f"teacher ({method})" if self.role == "teacher" else method

    @property
    def name(self) -> str:
        """`theseus (7e30e6eb)`."""
        return f"{self.label} ({self.id})"

    @property
    def labelled_settings(self) -> str:
        """`logit_kd alpha=0.5`."""
        return f"{self.label} {self.settings}".strip()

    @property
    def quiet_ms(self) -> float | None:
        """Milliseconds at batch 1; None if they were not measured on a quiet machine."""
        return self.times.batch_1 if self.times.quiet else None

    @property
    def dev_score(self) -> float:
        return fmean([run.dev_score for run in self.runs])

    @property
    def conditions(self) -> dict[str, str]:
        """Precision, device, threads, machine and length, joined by / if the seeds ran under different ones."""
        names = self.runs[0].conditions
        return {name: "/".join(sorted({run.conditions[name] for run in self.runs})) for name in names}

    @property
    def values(self) -> dict[str, Any]:
        """The values of the keys in `Wanted`, None if the seeds differ."""
        first = self.runs[0].values
        return {
            key: value if all(run.values[key] == value for run in self.runs) else None for key, value in first.items()
        }

    def mean(self, key: str) -> Any:
        """Return the mean of a figure, or of a key in `Wanted`, over the seeds. If it is no number, its one value."""
        found: list[Any] = [run.figures.get(key, run.values.get(key)) for run in self.runs]
        if all(isinstance(one, int | float) and not isinstance(one, bool) for one in found):
            return fmean(found)
        return found[0] if all(one == found[0] for one in found) else None

    def record(self) -> dict[str, str | float | bool | None]:
        """Return the row flat and in full precision, as CSV and JSON have it; names contain the units."""
        run = self.runs[0]
        figures: dict[str, str | float | bool | None] = {
            "role": self.role,
            "method": run.method,
            "student": run.student,
            "id": self.id,
            "settings": self.settings,
            "data_id": run.data_id,
            **{name: getattr(run, name) for name in TRAINED_ON},
            "teachers": self.teachers,
        }
        for name, summary in zip(("score", *AGAINST), (self.score, *self.differences), strict=True):
            figures[f"{name}_points"] = summary.mean if summary else None
            figures[f"{name}_sd_points"] = summary.sd if summary else None
            figures[f"{name}_n"] = summary.n if summary else 0
        return figures | {
            "gap_closed": self.gap_closed,
            "form": run.settings["form"],
            "parameters": run.parameters,
            "bytes": run.bytes,
            "flops_per_example": run.flops,
            **{name: self.mean(name) for name in PROBABILITIES},
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
class Tests:
    """What the tests of a table have in common."""

    count: int  # differences to baselines that are tested together
    warnings: list[str]


@dataclass(frozen=True)
class Session:
    """What one --latency measurement found."""

    when: str
    machine: str
    threads: int
    fixed_length: int
    rows: dict[str, Any]  # id -> {"real": ..., "fixed": ..., "memory_mb": ...}; the first two like a run's `latency`

    def times(self, row: Row, kind: str) -> Times:
        """Return the times of `row` with `real` or `fixed` texts; they are empty if it was not measured."""
        return read_times(self.rows.get(row.id, {}).get(kind) or {})


@dataclass(frozen=True)
class Table:
    """The rows that can be compared: the same examples in the same split, by one metric."""

    dataset: str
    examples_id: str
    metric: str
    split: str  # test or dev
    examples: int
    differs_in: list[str]  # what distinguishes it from the other tables of its data set
    rows: list[Row]  # the shown ones
    every: list[Row]  # hidden ones too
    tests: Tests | None = None
    session: Session | None = None
    shown: tuple[str, ...] = ()  # keys of further columns

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.every for run in row.runs]

    def tfidf(self, labelled: int) -> Row | None:
        """Return the best TF-IDF row with this number of labelled texts, shown or not."""
        found = [row for row in self.every if row.role == "tfidf" and row.runs[0].labelled == labelled]
        return max(found, key=lambda row: row.score.mean, default=None)

    @property
    def missing(self) -> list[str]:
        """The commands that make the missing baselines of the shown rows, one for each run."""
        done = {(run.id, run.seed) for run in self.runs}
        wanted = [(run.seed, base) for row in self.rows for run in row.runs for base in run.baselines if base]
        return [command for seed, (id_, command) in wanted if (id_, seed) not in done]

    @property
    def missing_tfidf(self) -> list[str]:
        """The commands that make the missing TF-IDF rows, one for each number of labelled texts of the shown rows."""
        runs = [row.runs[0] for row in self.rows if row.role != "teacher"]
        commands = {run.labelled: run.tfidf_command for run in reversed(runs) if run.tfidf_command}
        return [command for labelled, command in sorted(commands.items()) if self.tfidf(labelled) is None]


def varying(rows: Sequence[Row]) -> list[str]:
    """Return those of TRAINED_ON in which the rows differ."""
    return [name for name in TRAINED_ON if len({getattr(row.runs[0], name) for row in rows}) > 1]
