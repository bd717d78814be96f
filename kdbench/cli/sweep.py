"""The folder in which a command and its jobs exchange messages, whatever process or machine a job runs on.

A launcher's processes import kdbench anew. They share only this folder with the command; Hydra passes its path to each
job in the environment variable `ENVIRONMENT`. A job in the command's own process uses it too. If jobs may run on other
machines, the folder is below `outputs`, which they share.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from kdbench.storage.files import explained, read_json, write_json

ENVIRONMENT = "KDBENCH_SWEEP"
TRIAL = "KDBENCH_TRIAL"  # for a job of a search: the trial's number, the rules and the study's file
LOST = (
    "its process ended without a message: it was killed (out of memory?), or its machine is gone. The same command"
    " resumes it"
)


class Told(NamedTuple):
    """The state of a job: begun, done, pruned, stopped or failed. `reason` says why, or what may come next."""

    label: str
    state: str = "begun"
    reason: str = ""
    exit_code: int = 0
    runs: Sequence[tuple[str, str | None]] = ()  # finished runs that it made or used, each with its teacher's


@dataclass(frozen=True)
class Sweep:
    """A command that is running."""

    argv: list[str]
    swept: list[str]  # keys
    jobs: int
    process: str  # the one that waits for the jobs, or does them
    max_failures: int | None = None  # the number of failed jobs after which none starts

    @property
    def elsewhere(self) -> bool:
        """Return whether this process does a job for another one."""
        return here() != self.process


def here() -> str:
    """Return a name for this process that is unique among all machines."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def shared(sweep: Sweep, outputs: Path | None) -> Iterator[Path]:
    """Yield the folder in which the jobs find the sweep: below `outputs`, or a temporary one if that is None.

    After an exception a folder below `outputs` stays, because jobs in a queue may still need it.
    """
    with explained(outputs or Path(tempfile.gettempdir())):
        if outputs is not None:
            (outputs / ".sweeps").mkdir(parents=True, exist_ok=True)
        place = None if outputs is None else outputs.absolute() / ".sweeps"
        folder = Path(tempfile.mkdtemp(prefix="kdbench-", dir=place))
        write_json(folder / "sweep.json", asdict(sweep))
    try:
        yield folder
    except BaseException:
        if outputs is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


class Job:
    """One job of the command, in the process that does it."""

    def __init__(self, number: int, label: str) -> None:
        self.folder, self.number, self.label = Path(os.environ[ENVIRONMENT]), number, label
        self.runs: dict[Path, Path | None] = {}
        self.sweep = Sweep(**read_json(self.folder / "sweep.json"))

    def begin(self) -> bool:
        """Return whether the job may start, which it may not after too many failures."""
        if enough_failed(self.folder):
            return False
        self.tell("begun")
        return True

    def tell(self, state: str, reason: str = "", exit_code: int = 0) -> None:
        """Save the state of the job for the end of the sweep, if the command still waits for it."""
        if self.folder.is_dir():
            runs = [(str(folder), None if teacher is None else str(teacher)) for folder, teacher in self.runs.items()]
            write_json(_place(self.folder, self.number), Told(self.label, state, reason, exit_code, runs))


def enough_failed(folder: Path) -> bool:
    """Return whether as many jobs have failed as the command allows."""
    limit = Sweep(**read_json(folder / "sweep.json")).max_failures
    if limit is None:
        return False
    states = [Told(*read_json(path)).state for path in folder.glob("job-*.json")]
    return states.count("failed") >= limit


def told(folder: Path, jobs: int) -> list[Told]:
    """Return the states of the jobs that have begun, by number.

    Each file is opened by name, because a network file system may list a folder with a delay.
    """
    places = [_place(folder, number) for number in range(jobs)]
    return [Told(*read_json(place)) for place in places if place.is_file()]


def failures(told: list[Told], stopped: bool) -> list[tuple[str, str]]:
    """Return (overrides, reason) of each failed job. If the command was `stopped`, unfinished jobs did not fail."""
    shown = {"failed"} if stopped else {"failed", "begun"}
    return [(one.label, one.reason or LOST) for one in told if one.state in shown]


def _place(folder: Path, number: int) -> Path:
    return folder / f"job-{number:06d}.json"
