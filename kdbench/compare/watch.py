"""`--watch`: a sweep as its files tell it. Reads run folders; asks no process and holds nothing up."""

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from kdbench.compare.columns import NOTHING, Column
from kdbench.storage.files import Damaged
from kdbench.storage.results import RESULTS, metric_of, read_result

if TYPE_CHECKING:
    from rich.console import Console, Group

SHOWN = 5  # failed runs, one by one
EVERY = 2.0  # seconds
PAUSE = 60.0  # seconds without a running run after which a sweep is over: between two jobs none is running
STAMP = r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+"
RUN = re.compile(r"INFO run: (.*)")  # a run's log has those too that it needed
STARTED = re.compile(STAMP + r" INFO stage (\S+): (?:resumes at step (\d+)|(\d+) steps)")
TOTAL = re.compile(r"step \d+/(\d+)")
FAILED = re.compile(STAMP + r" ERROR (.*)")
STOPPED = re.compile(
    STAMP + r" (?:INFO (?=stopped)|ERROR failed: (?:Stopped|KeyboardInterrupt): ?)(.*)"
)  # older: Stopped
INTERRUPTED = "killed or interrupted: the same command goes on"  # where no line says more
NO_PROGRESS = {"stage": None, "step": None, "steps": None, "loss": None, "seconds_left": None}
ORDER = ("failed", "running", "stopped", "done")


@dataclass(frozen=True)
class State:
    """What is known of one run."""

    folder: str
    state: str  # one of ORDER
    stage: str | None = None
    step: int | None = None
    steps: int | None = None  # of the stage; None until the log tells
    loss: float | None = None  # sum of the named losses, mean over the last few steps
    seconds_left: float | None = None  # of the stage, by its pace so far
    waits_for: str | None = None  # folder of the run that it needs first and is training
    reason: str | None = None  # of a failure or a stop
    test_score: float | None = None  # points, of the run's own metric


def states(roots: Sequence[Path]) -> list[State]:
    """Every run below `roots`, failed ones first."""
    found = [_state(folder) for root in roots for folder in _folders(root)]
    return sorted(found, key=lambda one: (ORDER.index(one.state), one.folder))


def unfinished(roots: Sequence[Path]) -> list[str]:
    """Say which runs have no row: failed ones with their reason, how many were stopped or are running."""
    folders = (folder for root in roots for folder in _folders(root) if not (folder / RESULTS).is_file())
    found = [_state(folder) for folder in folders]
    failed = [one for one in found if one.state == "failed"]
    lines = [f"{one.folder} {one.reason}" for one in failed[:SHOWN]]
    lines += [f"and {len(failed) - SHOWN} more failed"] if len(failed) > SHOWN else []
    for state, more in (("stopped", "the same command goes on"), ("running", "see compare-runs --watch")):
        if count := sum(one.state == state for one in found):
            lines.append(f"{count} {'run' if count == 1 else 'runs'} without a row: {state}, {more}")
    return lines


def _folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        below.sort()
        if "config.yaml" in files or RESULTS in files:
            below.clear()  # stages and checkpoints hold no runs
            yield Path(folder)


def _state(folder: Path) -> State:
    try:
        result = read_result(folder)
    except (ValueError, Damaged):
        return State(str(folder), "failed", reason=f"{RESULTS} cannot be read")
    if result is not None:
        metrics = result.get("metrics", {}).get("test")  # stages before a task have none
        return State(str(folder), "done", test_score=100 * metrics[metric_of(result)] if metrics else None)
    log = _text(folder / "run.log")
    last = log[log.rfind("INFO run: ") :]  # a resumed run's log has the earlier tries too
    progress = _progress(folder, last)
    if _held(folder):
        return State(str(folder), "running", **progress)
    progress = progress | {"seconds_left": None, "waits_for": None}
    stops, failures = STOPPED.findall(last), FAILED.findall(last)
    if failures and not stops:
        return State(str(folder), "failed", **progress, reason=failures[-1][1])
    return State(str(folder), "stopped", **progress, reason=stops[-1][1] if stops and stops[-1][1] else INTERRUPTED)


def _held(folder: Path) -> bool:
    """Whether a process holds the run's lock. Asks for a shared one, and lets it go at once."""
    if sys.platform == "win32":
        return False  # it has no shared locks: an unfinished run is shown as stopped
    import fcntl

    path = folder.parent / f".{folder.name}.lock"
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _progress(folder: Path, log: str) -> dict[str, Any]:
    """Stage, step, steps, loss and time left, from the log and the newest stage's metrics.jsonl."""
    started = list(STARTED.finditer(log))
    if not started:
        return NO_PROGRESS
    stamp, stage, resumed, whole = started[-1].groups()
    stages = sorted(folder.glob(f"[0-9][0-9]_{stage}"))
    if not stages and Path(needed := RUN.findall(log)[-1]).parts[-3:] != folder.parts[-3:]:
        return NO_PROGRESS | {"waits_for": needed}
    written = TOTAL.findall(log[started[-1].start() :])
    steps = int(whole) if whole else int(written[-1]) if written else None
    step, loss, at = _last_step(stages[-1:], int(resumed or 0))
    since = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S").timestamp()
    done = step - int(resumed or 0)
    left = (steps - step) * (at - since) / done if steps and done > 0 and at > since else None
    return {"stage": stage, "step": step, "steps": steps, "loss": loss, "seconds_left": left}


def _last_step(stages: list[Path], start: int) -> tuple[int, float | None, float]:
    """Step, loss and time of the last whole line with losses."""
    path = stages[0] / "metrics.jsonl" if stages else None
    if path is None or not path.is_file():
        return start, None, 0.0
    for line in reversed(_text(path).splitlines()):
        try:
            values = json.loads(line)
        except ValueError:
            continue  # being written
        if "losses" in values:
            return values["step"], sum(values["losses"].values()), path.stat().st_mtime
    return start, None, 0.0


def _text(path: Path) -> str:
    return path.read_text(encoding="utf8", errors="replace") if path.is_file() else ""


def columns(found: Sequence[State]) -> list[Column]:
    """A line a run."""
    return [
        Column("\nrun", [_name(one) for one in found], left=True),
        Column("\nstate", [one.state for one in found], left=True),
        Column("\nstage", [one.stage or ("waits" if one.waits_for else NOTHING) for one in found], drop=2, left=True),
        Column("\nstep", [NOTHING if one.step is None else f"{one.step}/{one.steps or '?'}" for one in found], drop=3),
        Column("\nloss", [NOTHING if one.loss is None else f"{one.loss:.3f}" for one in found], drop=4),
        Column("stage\nleft", [_clock(one.seconds_left) for one in found], drop=1),
        Column("test\n%", [NOTHING if one.test_score is None else f"{one.test_score:.2f}" for one in found], drop=5),
    ]


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _name(one: State) -> str:
    """The end of its path, in one word: it is not wrapped."""
    return "/".join(Path(one.folder).parts[-3:])


def _drawn(found: Sequence[State], screen: "Console") -> "Group":
    """As many runs as fit on the screen, with the reasons of those that failed."""
    from rich.console import Group
    from rich.text import Text

    from kdbench.compare.terminal import fit, lines

    counts = ", ".join(f"{n} {name}" for name in ORDER if (n := sum(one.state == name for one in found)))
    room = screen.height - 1 if screen.is_terminal else sys.maxsize
    for count in range(min(len(found), room), -1, -1):
        shown, _ = fit(columns(found[:count]), screen.width) if count else ([], [])
        body = [Text(counts or "no runs yet", "bold"), *(lines(shown, screen.width) if shown else ())]
        reasons = [f"{_name(one)} {one.reason}" for one in found[:count] if one.state == "failed"]
        body += [Text(line, "red") for reason in reasons for line in wrap(reason, screen.width)]
        body += [Text(f"and {len(found) - count} more")] if len(found) > count else []
        if len(body) <= room:
            break
    return Group(*body)


def watch(roots: Sequence[Path], as_json: bool) -> int:
    """Show the states every two seconds until none has been running for a minute; once where stdout is no terminal."""
    if as_json:
        from kdbench.compare.frame import print_json

        print_json({"runs": [asdict(one) for one in states(roots)]})
        return 0
    from rich.live import Live

    from kdbench.compare.terminal import console

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
