"""Write and read `status.json`, the progress of a run for observers such as `compare-runs --watch`.

A run replaces the file during training, and removes it when `results.json` marks the run as done. No result depends on
the file. So it is not synced, and a failed write is ignored.
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
SCHEMA = 1  # increased if a key is removed or changes its meaning
EVERY = 1.0  # seconds between two writes, except at the ends of an epoch, a stage and the run
SILENT = 15 * 60.0  # seconds without a write after which a run on another machine counts as killed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Status:
    """The content of `status.json`; docs/results.md explains each key."""

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
    """The `status.json` of the run in `folder`. Only the main process of a run writes it (`writes`)."""

    def __init__(self, folder: Path, writes: bool) -> None:
        self.path, self.writes, self.status, self.last = folder / STATUS, writes, Status(), -EVERY

    def tell(self, now: bool = False, **changes: Any) -> None:
        """Change keys. Write the file if the last write was at least EVERY seconds ago, or if `now`."""
        self.status = replace(self.status, **changes)
        if self.writes and (now or time.monotonic() - self.last >= EVERY):
            self.last = time.monotonic()
            self._write()

    def begin_stage(self, stage: str, steps: int, step: int, epoch: int) -> None:
        self.status = Status()
        self.tell(now=True, stage=stage, steps=steps, step=step, epoch=epoch)

    @contextmanager
    def waiting(self, folder: Path) -> Iterator[None]:
        """Record within the context that this run waits for the run in `folder`."""
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
            return  # somebody removed the folder of the running run: do not create it again
        self.status = replace(self.status, written=_now())
        text = json.dumps({"schema": SCHEMA} | asdict(self.status), indent=2, ensure_ascii=False)
        with suppress(OSError, StoreError):
            write_bytes(self.path, f"{text}\n".encode(), synced=False)


def read_status(folder: Path) -> Status | None:
    """Return the status of the run in `folder`, None if there is none. Raises ValueError if it cannot be read."""
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

    On this machine, the process id decides. On another machine, the age of the last write decides, unless the run waits
    for another run. Such a run writes nothing, and counts as alive as long as that other run is alive.
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
    """Return whether process `pid` exists and began before `written` (Unix time); pids are reused."""
    import psutil

    try:
        process = psutil.Process(pid)
        began = process.create_time() - 60  # seconds of tolerance for a clock that was adjusted
        return bool(process.status() != psutil.STATUS_ZOMBIE and began < written)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
