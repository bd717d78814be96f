"""What the jobs of a command know of it and tell it back, in whichever process or machine a launcher runs them.

A launcher's processes import kdbench anew. All they share with the command that started them is a folder, which
Hydra hands to each job in an environment variable (`ENVIRONMENT`); a job in the command's own process uses the same.
Where jobs may run on other machines it lies below `outputs`, which they share as well.
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
LOST = (
    "its process ended without a message: it was killed (out of memory?), or its machine is gone. The same command"
    " resumes it"
)


class Told(NamedTuple):
    """How a job stands: begun, done, pruned, stopped or failed, and why; of a done one, what may come next."""

    label: str
    state: str = "begun"
    reason: str = ""
    exit_code: int = 0
    runs: Sequence[tuple[str, str | None]] = ()  # finished ones that it did, found or needed, each with its teacher's


@dataclass(frozen=True)
class Sweep:
    """A command that is running."""

    argv: list[str]
    swept: list[str]  # keys
    jobs: int
    process: str  # which waits for the jobs, or does them
    max_failures: int | None = None  # so many failed jobs and no other begins

    @property
    def elsewhere(self) -> bool:
        """Whether this process does a job for another one."""
        return here() != self.process


def here() -> str:
    """This process, among those of all machines."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def shared(sweep: Sweep, outputs: Path | None) -> Iterator[Path]:
    """Within, the folder in which the sweep's jobs find it; below `outputs`, or on this machine where that is None.

    One below `outputs` stays where the block was left by an exception: jobs in a queue go on and still ask for it.
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
        """Whether it may: not where as many jobs have failed as the command allows."""
        if enough_failed(self.folder):
            return False
        self.tell("begun")
        return True

    def tell(self, state: str, reason: str = "", exit_code: int = 0) -> None:
        """Keep how it stands for the end of the sweep; where nobody waits for that any more, say nothing."""
        if self.folder.is_dir():
            runs = [(str(folder), None if teacher is None else str(teacher)) for folder, teacher in self.runs.items()]
            write_json(_place(self.folder, self.number), Told(self.label, state, reason, exit_code, runs))


def enough_failed(folder: Path) -> bool:
    """Whether no other job of the sweep is to begin."""
    limit = Sweep(**read_json(folder / "sweep.json")).max_failures
    if limit is None:
        return False
    states = [Told(*read_json(path)).state for path in folder.glob("job-*.json")]
    return states.count("failed") >= limit


def told(folder: Path, jobs: int) -> list[Told]:
    """What the jobs have told, by number; those that have not begun are left out.

    Each is asked for by name: a network file system may list a folder as it was a minute ago.
    """
    places = [_place(folder, number) for number in range(jobs)]
    return [Told(*read_json(place)) for place in places if place.is_file()]


def failures(told: list[Told], stopped: bool) -> list[tuple[str, str]]:
    """(overrides, reason) of each job that failed; `stopped`: the command was, which has ended the others."""
    shown = {"failed"} if stopped else {"failed", "begun"}
    return [(one.label, one.reason or LOST) for one in told if one.state in shown]


def _place(folder: Path, number: int) -> Path:
    return folder / f"job-{number:06d}.json"
