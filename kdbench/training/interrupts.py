"""Stop between two steps: after Ctrl-C or SIGTERM, when the time is up, or at a simulated preemption.

Signals belong to the process, so their state is module-wide. Outside the training loop there is nothing to save,
because every file is either complete or absent. So a signal there stops the command at once.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

TIME_IS_UP = 75  # EX_TEMPFAIL: repeat the command
_STARTED = time.monotonic()
Watch = Callable[[int, float], None]  # told each epoch of a run, from 0, and its dev score; raises Pruned


class Stopped(KeyboardInterrupt):
    """The command was asked to stop: the message says what was saved, `exit_code` says why it stopped."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message, exit_code)  # both, so that it comes whole out of another process
        self.message, self.exit_code = message, exit_code

    def __str__(self) -> str:
        return self.message


class Pruned(Exception):
    """A search stops this run early; the message gives the reason."""


class Limits(NamedTuple):
    """When to save and when to stop; none of these changes the result."""

    checkpoint_every: int  # optimiser steps
    stop_after: float | None = None  # see after_step
    preempt_at: int | None = None
    watch: Watch | None = None


class _Process:
    asked: int | None = None  # exit code that the first signal means
    training = False
    steps = 0  # optimiser steps taken by this process, over all stages and runs


@contextmanager
def listening() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM raise Stopped within the block, or let the training loop stop between two steps."""
    _Process.asked, _Process.steps = None, 0
    before = {number: signal.signal(number, _on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _Process.asked = None  # answered: what runs later in this process was not asked to stop
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_signal(number: int, frame: FrameType | None) -> None:
    first, _Process.asked = _Process.asked is None, 128 + number
    if not first or not _Process.training:
        raise Stopped("stopped; the same command resumes from what is saved", 128 + number)
    print("stopping after this step; a second signal stops at once", file=sys.stderr, flush=True)


@contextmanager
def training() -> Iterator[None]:
    """Delay the first signal within the block until the loop asks for it."""
    _Process.training = True
    try:
        yield
    finally:
        _Process.training = False


def refuse_late(stop_after: float | None) -> None:
    """Raise Stopped if the process's time was up before its next run began."""
    if stop_after is not None and time.monotonic() - _STARTED >= 60 * stop_after:
        raise Stopped("not started, because stop_after was reached; the same command starts it", TIME_IS_UP)


def after_step(stop_after: float | None, preempt_at: int | None) -> int:
    """Return the exit code with which to stop now, or 0 to continue; called once after every optimiser step.

    `stop_after` is in minutes since the command began. `preempt_at` is a step of this command, counted over all its
    stages and runs. After it, the run acts as if SIGTERM had come.
    """
    _Process.steps += 1
    if _Process.asked is not None:
        return _Process.asked
    if preempt_at is not None and _Process.steps >= preempt_at:
        return 128 + signal.SIGTERM
    if stop_after is not None and time.monotonic() - _STARTED >= 60 * stop_after:
        return TIME_IS_UP
    return 0
