"""Fill the cache: each folder (see `kdbench.storage.files`) is made once, by one process, under a lock."""

import logging
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from kdbench.storage import files as store

log = logging.getLogger("kdbench")


def cached(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return `folder`, intact; `fill` makes it if it is missing or damaged, and the log reports damage.

    The operating system releases a killed process's lock.
    """
    with store.explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        lock.acquire()
    try:
        store.verify(folder / store.MANIFEST)
    except store.Damaged as damage:
        if folder.exists():
            log.warning("%s; made again", damage)
        with store.filling(folder) as staged:
            fill(staged)
    finally:
        lock.release()
    return folder
