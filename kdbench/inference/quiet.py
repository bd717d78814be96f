"""Measure whether times were taken on a quiet machine.

Three conditions must hold. Other programs used little of the processors. This process got a processor whenever it
needed one; a limit that a container sets breaks this condition. Two timings of the same input were about equal.
"""

import os
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import psutil

OTHERS = 0.1  # share of the processors that other programs may use
OWN = 0.9  # processors that this process must get, whatever its number of threads
REPEAT = 0.1  # relative difference of two timings of the same input, the median over all inputs
_IDLE = {"idle", "iowait", "guest", "guest_nice"}  # user time includes guest time


class Load(NamedTuple):
    """The use of the processors during a measurement."""

    others: float  # processors that other programs used, on average
    own: float  # processors that this process used, on average
    processors: int  # number that this process may use

    def record(self) -> dict[str, float]:
        """Return the entry of results.json."""
        return {"others": round(self.others, 3), "own": round(self.own, 3), "processors": self.processors}


class Stopwatch:
    """Measures the load since it was created."""

    def __init__(self) -> None:
        self._processors = processors()
        self._start = self._clocks()

    def load(self) -> Load:
        """Return the load since the start."""
        wall, own, busy = (now - then for now, then in zip(self._clocks(), self._start, strict=True))
        return Load(max(0.0, busy - own) / wall, own / wall, len(self._processors))

    def _clocks(self) -> tuple[float, float, float]:
        """Return seconds: wall clock, this process, and all work on the processors that this process may use."""
        every = psutil.cpu_times(percpu=True)
        busy = sum(
            seconds
            for index in self._processors
            for name, seconds in every[index]._asdict().items()
            if name not in _IDLE
        )
        return time.perf_counter(), time.process_time(), busy


def processors() -> list[int]:
    """Return the processors that this process may use."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count() or 1))


def is_quiet(load: Load, figures: Iterable[dict[str, Any]]) -> bool:
    """Return whether the load, and `repeat` of each of the `figures`, show a quiet machine."""
    calm = load.others <= OTHERS * load.processors and load.own >= OWN
    return calm and all(one["repeat"] <= REPEAT for one in figures)


def noise(load: dict[str, float]) -> str:
    """Return why a machine was not quiet, from its `Load.record`."""
    if load["others"] > OTHERS * load["processors"]:
        return f"other programs used {load['others']:.2f} of {load['processors']} processors"
    if load["own"] < OWN:
        return f"this process got {load['own']:.2f} of one processor"
    return f"timings of the same text differed by more than {100 * REPEAT:.0f} %"
