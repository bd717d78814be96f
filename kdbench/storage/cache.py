"""Fill the cache: each folder (see `kdbench.storage.files`) is made once, by one process, under a lock."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock

from kdbench.storage import files as store

log = logging.getLogger("kdbench")


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock beside `path` within the block; the operating system releases that of a killed process.

    Raises filelock.Timeout if another process still has it after `timeout` seconds; -1: never.
    """
    with store.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock", timeout)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def locked_hidden(path: Path, timeout: float = -1) -> AbstractContextManager[None]:
    """Hold the lock of what a user sees, such as a run's folder: its name begins with a dot."""
    return locked(path.with_name(f".{path.name}"), timeout)


def cached(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return `folder`, intact; `fill` makes it if it is missing or damaged, and the log reports damage."""
    with locked(folder):
        try:
            store.verify(folder / store.MANIFEST)
        except store.Damaged as damage:
            if folder.exists():
                log.warning("%s; made again", damage)
            with store.filling(folder) as staged:
                fill(staged)
    return folder
