"""`--watch`: the state of a sweep, read from its run folders. It asks no process and delays no run."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from kdbench.compare.columns import NOTHING, Column
from kdbench.storage.files import Damaged
from kdbench.storage.results import RESULTS, metric_of, read_result
from kdbench.storage.status import STATUS, Status, is_alive, read_status

if TYPE_CHECKING:
    from rich.console import Console, Group

SHOWN = 5  # failed runs, one by one
EVERY = 2.0  # seconds between two looks
PAUSE = 60.0  # seconds; without a running run for longer, a sweep is over (none is running between two jobs)
ORDER = ("failed", "running", "stopped", "done")


@dataclass(frozen=True)
class State:
    """The state of one run; docs/comparing.md explains each key."""

    folder: str
    state: str  # one of ORDER
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    epoch: int | None = None
    loss: float | None = None  # sum of `losses`
    losses: dict[str, float] | None = None
    dev_score: float | None = None  # in points, like the test score
    seconds_left: float | None = None
    waits_for: str | None = None  # folder
    reason: str | None = None
    pid: int | None = None
    host: str | None = None
    written: str | None = None
    test_score: float | None = None


def states(roots: Sequence[Path]) -> list[State]:
    """Return the state of every run below `roots`, failed ones first."""
    found = [_state(folder) for root in roots for folder in _folders(root)]
    return sorted(found, key=lambda one: (ORDER.index(one.state), one.folder))


def unfinished(folders: Sequence[Path]) -> list[str]:
    """Return messages on runs without a row: failed ones with their reason, and the counts of stopped and running."""
    found = [_state(folder) for folder in folders]
    failed = [one for one in found if one.state == "failed"]
    lines = [f"{one.folder} failed: {one.reason}" for one in failed[:SHOWN]]
    lines += [f"and {len(failed) - SHOWN} more failed"] if len(failed) > SHOWN else []
    for state, more in (("stopped", "the same command continues"), ("running", "see compare-runs --watch")):
        if count := sum(one.state == state for one in found):
            lines.append(f"{count} {'run' if count == 1 else 'runs'} without a row: {state}, {more}")
    return lines


def _folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        below.sort()
        if STATUS in files or RESULTS in files:
            below.clear()  # stages and checkpoints hold no runs
            yield Path(folder)


def _state(folder: Path) -> State:
    try:
        status = read_status(folder)  # first, because a run that ends writes its result and then removes this
    except ValueError:
        status = Status("stopped", reason=f"{STATUS} cannot be read: the same command continues the run")
    try:
        result = read_result(folder)
    except (ValueError, Damaged):
        return State(str(folder), "failed", reason=f"{RESULTS} cannot be read")
    if result is not None:
        metrics = result.get("metrics", {}).get("test")  # a run of general stages has no metrics
        return State(str(folder), "done", test_score=100 * metrics[metric_of(result)] if metrics else None)
    if status is None:  # removed since it was listed
        return State(str(folder), "stopped")
    if status.state == "running" and not is_alive(folder, status):
        reason = f"probably killed, last write {status.written} on {status.host}: the same command continues the run"
        status = replace(status, state="stopped", reason=reason, seconds_left=None, waits_for=None)
    known = asdict(status) | {
        "loss": sum(status.losses.values()) if status.losses else None,
        "dev_score": None if status.dev_score is None else 100 * status.dev_score,
        "waits_for": None if status.waits_for is None else os.path.normpath(folder / status.waits_for),
    }
    return State(str(folder), **known)


def columns(found: Sequence[State]) -> list[Column]:
    """Return the columns of a table with a line for each run."""
    return [
        Column("\nrun", [_name(one) for one in found], left=True),
        Column("\nstate", [one.state for one in found], left=True),
        Column("\nstage", [one.stage or ("waits" if one.waits_for else NOTHING) for one in found], drop=2, left=True),
        Column("\nstep", [NOTHING if one.step is None else f"{one.step}/{one.steps or '?'}" for one in found], drop=3),
        Column("\nloss", [NOTHING if one.loss is None else f"{one.loss:.3f}" for one in found], drop=4),
        Column("dev\n%", [NOTHING if one.dev_score is None else f"{one.dev_score:.2f}" for one in found], drop=6),
        Column("stage\nleft", [_clock(one.seconds_left) for one in found], drop=1),
        Column("test\n%", [NOTHING if one.test_score is None else f"{one.test_score:.2f}" for one in found], drop=5),
    ]


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _name(one: State) -> str:
    """Return the end of the run's path, as one word, so that it is not wrapped."""
    return "/".join(Path(one.folder).parts[-3:])


def _drawn(found: Sequence[State], screen: "Console") -> "Group":
    """Return as many runs as fit on the screen, with the reasons of failed ones."""
    from rich.console import Group
    from rich.text import Text

    from kdbench.compare.printing import fit, lines

    counts = ", ".join(f"{n} {name}" for name in ORDER if (n := sum(one.state == name for one in found)))
    room = screen.height - 1 if screen.is_terminal else sys.maxsize
    for count in range(min(len(found), room), -1, -1):
        shown, _ = fit(columns(found[:count]), screen.width) if count else ([], [])
        body = [Text(counts or "no runs yet", "bold"), *(lines(shown, screen.width) if shown else ())]
        reasons = [f"{_name(one)} failed: {one.reason}" for one in found[:count] if one.state == "failed"]
        body += [Text(line, "red") for reason in reasons for line in wrap(reason, screen.width)]
        body += [Text(f"and {len(found) - count} more")] if len(found) > count else []
        if len(body) <= room:
            break
    return Group(*body)


def watch(roots: Sequence[Path], as_json: bool) -> int:
    """Show the states every two seconds until no run has been running for a minute; once if stdout is no terminal."""
    if as_json:
        from kdbench.compare.frame import print_json

        print_json({"runs": [asdict(one) for one in states(roots)]})
        return 0
    from rich.live import Live

    from kdbench.compare.printing import console

    screen = console()
    found = states(roots)
    if not screen.is_terminal:
        screen.print(_drawn(found, screen))
        return 0
    last_running = time.monotonic()
    with Live(_drawn(found, screen), console=screen, auto_refresh=False, screen=False) as live:
        while not found or time.monotonic() - last_running < PAUSE:
            time.sleep(EVERY)
            found = states(roots)
            live.update(_drawn(found, screen), refresh=True)
            if any(one.state == "running" for one in found):
                last_running = time.monotonic()
    if failed := sum(one.state == "failed" for one in found):
        print(f"compare-runs: {failed} failed", file=sys.stderr)
    return 0
