"""What the jobs of a command know of it, and tell it back, in whichever process a launcher runs them.

A parallel launcher's processes (hydra/launcher=joblib) import kdbench anew. All they share with the command that
started them is a folder, named in the environment; a job in the command's own process uses the same.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_FOLDER = "KDBENCH_SWEEP"  # environment variable


@dataclass(frozen=True)
class Sweep:
    """A command that is running."""

    argv: list[str]
    swept: list[str]  # keys
    jobs: int
    process: int  # which waits for the jobs, or does them

    @property
    def elsewhere(self) -> bool:
        """Whether this process does one job of several that run at the same time."""
        return os.getpid() != self.process


@contextmanager
def shared(sweep: Sweep) -> Iterator[list[tuple[str, str]]]:
    """Within, `current` finds the sweep; at the end the list has the failures that jobs told, by number."""
    failures: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        Path(folder, "sweep.json").write_text(json.dumps(vars(sweep)), encoding="utf8")
        os.environ[_FOLDER] = folder
        try:
            yield failures
        finally:
            del os.environ[_FOLDER]
            for told in sorted(Path(folder).glob("failure-*.json")):
                label, reason = json.loads(told.read_text(encoding="utf8"))
                failures.append((label, reason))


def current() -> Sweep:
    """The command that this job is of."""
    return Sweep(**json.loads(Path(os.environ[_FOLDER], "sweep.json").read_text(encoding="utf8")))


def tell(job: int, label: str, reason: str) -> None:
    """Keep a job's failure for the end of the sweep."""
    told = Path(os.environ[_FOLDER], f"failure-{job:06d}.json")
    told.write_text(json.dumps([label, reason]), encoding="utf8")
