"""Whether times were taken on a quiet machine: the answer is measured, and kept beside the times.

Three things must hold. Other work took little of the processors while the clock ran. This process got a processor
whenever it wanted one, which also shows a limit that a container sets. And the same input took about as long again.
"""

import os
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import psutil

OTHERS = 0.1  # the share of the processors that other work may take
OWN = 0.9  # processors that this process must have had, whatever its number of threads
REPEAT = 0.1  # how far apart two timings of the same input may be, in the median of all inputs
_IDLE = {"idle", "iowait", "guest", "guest_nice"}  # guest's time is in user's as well


class Load(NamedTuple):
    """Who had the processors while the clock ran."""

    others: float  # processors that other work took, on average
    own: float  # processors that this process took
    processors: int  # that this process may use

    def record(self) -> dict[str, float]:
        """As results.json has it."""
        return {"others": round(self.others, 3), "own": round(self.own, 3), "processors": self.processors}


class Stopwatch:
    """Started when it is made."""

    def __init__(self) -> None:
        self._processors = _processors()
        self._start = self._clocks()

    def load(self) -> Load:
        """Who has had the processors since the start."""
        wall, own, busy = (now - then for now, then in zip(self._clocks(), self._start, strict=True))
        return Load(max(0.0, busy - own) / wall, own / wall, len(self._processors))

    def _clocks(self) -> tuple[float, float, float]:
        """Seconds: of the clock, of this process, and of all work on the processors that this process may use."""
        every = psutil.cpu_times(percpu=True)
        busy = sum(
            seconds
            for index in self._processors
            for name, seconds in every[index]._asdict().items()
            if name not in _IDLE
        )
        return time.perf_counter(), time.process_time(), busy


def _processors() -> list[int]:
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count() or 1))


def is_quiet(load: Load, figures: Iterable[dict[str, Any]]) -> bool:
    """Whether the times in `figures`, each of which says how far its repeats were apart, can be believed."""
    calm = load.others <= OTHERS * load.processors and load.own >= OWN
    return calm and all(one["repeat"] <= REPEAT for one in figures)
