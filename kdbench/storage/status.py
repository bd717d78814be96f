"""A run's `status.json`: the progress of the run, for observers outside it.

The run replaces the file as it goes, and removes it once `results.json` marks the run as done. kdbench makes no
decision by it. So it is not synced, and a refused write is ignored; the run itself reports such faults.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdbench.storage.files import StoreError, remove, write_bytes

STATUS = "status.json"
SCHEMA = 1  # raised if a key changes its meaning or goes
EVERY = 1.0  # seconds between two writes, except at the ends of an epoch, a stage and the run
SILENT = 15 * 60.0  # seconds without a write after which a run on another machine counts as killed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Status:
    """What `status.json` holds; docs/results.md explains each key."""

    state: str = "running"  # or stopped, failed
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    epoch: int | None = None
    losses: dict[str, float] = field(default_factory=dict)
    dev_score: float | None = None
    seconds_left: float | None = None
    waits_for: str | None = None
    reason: str | None = None
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)
    written: str = field(default_factory=_now)


class StatusFile:
    """The `status.json` of the run in `folder`; only the main process of a run `writes` it."""

    def __init__(self, folder: Path, writes: bool) -> None:
        self.path, self.writes, self.status, self.last = folder / STATUS, writes, Status(), -EVERY

    def tell(self, now: bool = False, **changes: Any) -> None:
        """Change keys, and write all of them if the last write was a second ago, or if `now`."""
        self.status = replace(self.status, **changes)
        if self.writes and (now or time.monotonic() - self.last >= EVERY):
            self.last = time.monotonic()
            self._write()

    def begin_stage(self, stage: str, steps: int, step: int, epoch: int) -> None:
        self.status = Status()
        self.tell(now=True, stage=stage, steps=steps, step=step, epoch=epoch)

    @contextmanager
    def waiting(self, folder: Path) -> Iterator[None]:
        """Record that the run waits for the run in `folder`, which it needs."""
        self.tell(now=True, waits_for=Path(os.path.relpath(folder, self.path.parent)).as_posix())
        yield
        self.tell(now=True, waits_for=None)

    def end(self, state: str, reason: str) -> None:
        self.tell(now=True, state=state, reason=reason.partition("\n")[0], seconds_left=None, waits_for=None)

    def remove(self) -> None:
        if self.writes:
            with suppress(OSError, StoreError):
                remove(self.path)

    def _write(self) -> None:
        if not self.path.parent.is_dir():
            return  # somebody removed the running run: do not make its folder again
        self.status = replace(self.status, written=_now())
        text = json.dumps({"schema": SCHEMA} | asdict(self.status), indent=2, ensure_ascii=False)
        with suppress(OSError, StoreError):
            write_bytes(self.path, f"{text}\n".encode(), synced=False)


def read_status(folder: Path) -> Status | None:
    """Return the status of the run in `folder`, None if it has none. Raises ValueError if it cannot be read."""
    try:
        value = json.loads((folder / STATUS).read_bytes())
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']}")
        return Status(**{one.name: value[one.name] for one in fields(Status)})
    except FileNotFoundError:
        return None
    except (LookupError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def is_alive(folder: Path, status: Status) -> bool:
    """Return whether the process that wrote the `status` of the run in `folder` seems to be running.

    On this machine the pid decides, on another the age of the last write. A run that waits for another run writes
    nothing, so it is alive as long as that run is.
    """
    written = datetime.fromisoformat(status.written).timestamp()
    if status.host == platform.node():
        return _has_process(status.pid, written)
    if time.time() - written < SILENT:
        return True
    needed = None if status.waits_for is None else Path(os.path.normpath(folder / status.waits_for))
    found = None if needed is None or needed == folder else read_status(needed)
    return needed is not None and found is not None and found.state == "running" and is_alive(needed, found)


def _has_process(pid: int, written: float) -> bool:
    """Return whether process `pid` exists and began before `written`; after a reboot, another may have this number."""
    import psutil

    try:
        process = psutil.Process(pid)
        began = process.create_time() - 60  # tolerance for clocks that are set
        return bool(process.status() != psutil.STATUS_ZOMBIE and began < written)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
