"""The standing: which runs were done, what they reached, and which model leads."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.best.plan import Board, Candidate, Plan
from kdbench.best.wish import Wish
from kdbench.storage import predictions
from kdbench.storage.files import read_json, write_json
from kdbench.storage.results import metric_of
from kdbench.tasks.arrays import Points


@dataclass(frozen=True)
class Form:
    """One model that may be shipped: a run, or another form of it."""

    run: Path
    name: str  # pytorch, onnx, int8
    record: Path  # its results.json
    result: dict[str, Any]

    @property
    def dev(self) -> float:
        """Return the score that chooses, in points."""
        return 100 * float(self.result["metrics"]["dev"][metric_of(self.result)])

    @property
    def test(self) -> float:
        return 100 * float(self.result["metrics"]["test"][metric_of(self.result)])

    @property
    def ms(self) -> float | None:
        timed = self.result["latency"]["batch_1"]
        return None if timed is None else float(timed["median_ms"])

    @property
    def megabytes(self) -> float | None:
        return None if self.result["bytes"] is None else self.result["bytes"] / 1e6


@dataclass
class Entry:
    """A candidate and what became of it."""

    candidate: Candidate
    state: str = "running"  # done, failed, stopped, no time
    why: str = ""
    seconds: float = 0.0
    forms: list[Form] = field(default_factory=list)

    @property
    def dev(self) -> float | None:
        return max((form.dev for form in self.forms), default=None)


class Clock:
    """What the commands of one wish have in common: the same command goes on where it was killed.

    They share the time, what was decided in it (`Board.decided`), and what was done. Its file is kept after the end.
    """

    def __init__(self, wish: Wish) -> None:
        self.path = wish.out.with_name(f".{wish.out.name}.json")
        what = {key: str(value) for key, value in vars(wish).items() if key not in ("seconds", "out")}
        self.what = json.dumps(what, sort_keys=True)
        before = read_json(self.path) if self.path.is_file() else {}
        if before.get("wish") != self.what:
            before = {}
        self.used: float = before.get("used", 0.0)
        if before.get("seconds") != wish.seconds:
            before = {}
        self.decided: dict[str, int] = before.get("decided", {})
        self.done: list[str] = before.get("done", [])  # names of candidates: they will take no time again
        self.seconds, self.began, self.saved = wish.seconds, time.monotonic(), 0.0

    @property
    def left(self) -> float:
        return self.seconds - self.spent

    @property
    def spent(self) -> float:
        return self.used + time.monotonic() - self.began

    def save(self, every: float = 2.0) -> None:
        """Keep the time on disk, at most once in `every` seconds."""
        if time.monotonic() - self.saved >= every:
            self.saved = time.monotonic()
            self._write(self.spent)

    def close(self) -> None:
        """Forget the time that was used: the wish was granted."""
        self._write(0.0)

    def _write(self, used: float) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"wish": self.what, "seconds": self.seconds, "decided": self.decided, "done": self.done}
        write_json(self.path, kept | {"used": used})


class Standing(Board):
    """The runs of one command."""

    def __init__(self, plan: Plan, clock: Clock, log: Path) -> None:
        self.plan, self.wish, self.clock, self.log, self.decided = plan, plan.wish, clock, log, clock.decided
        self.entries: list[Entry] = []

    @property
    def left(self) -> float:
        return self.clock.left

    def score(self, candidate: Candidate) -> float | None:
        return next((entry.dev for entry in self.entries if entry.candidate == candidate), None)

    def entry_of(self, form: Form) -> Entry:
        return next(entry for entry in self.entries if form in entry.forms)

    @property
    def forms(self) -> list[Form]:
        """The models that keep the limits."""
        return [
            form
            for entry in self.entries
            for form in entry.forms
            if entry.candidate.ships and self.wish.fits(form.ms, form.megabytes)
        ]

    @property
    def leading(self) -> Form | None:
        """The model to ship: the best on dev of those that keep the limits, of equal ones the fastest."""
        return min(self.forms, key=lambda form: (-form.dev, form.ms is None, form.ms), default=None)

    @property
    def nearest(self) -> Form | None:
        """The model that misses the limits by the least factor, for the case that none keeps them."""
        wish = self.wish

        def excess(form: Form) -> float:
            of = ((form.ms, wish.latency), (form.megabytes, wish.size))
            return max(
                (float("inf") if had is None else had / limit for had, limit in of if limit is not None), default=1.0
            )

        every = [form for entry in self.entries for form in entry.forms]
        return min(every, key=lambda form: (excess(form), -form.dev), default=None)


def standard_error(a: Form, b: Form) -> float:
    """Return the standard error of the difference of two scores, in points, over the texts of dev."""
    difference = points(a, "dev") - points(b, "dev")
    return float(difference.std(ddof=1) / len(difference) ** 0.5) if len(difference) > 1 else 0.0


def points(form: Form, split: str) -> Points:
    """Return the points of each text of a split."""
    return predictions.read(form.record, split).points(metric_of(form.result))
