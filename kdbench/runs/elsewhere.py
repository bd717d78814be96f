"""Find finished runs in other outputs folders, so that a teacher is trained only once.

`outputs` is relative to the working directory, so the same command elsewhere would train the same teacher again. The
cache keeps a note for each run, by its id, with its folder. If a run needs another run that is not in its `outputs`,
it is copied from there.

The cache also keeps a note for each run that has begun and is not finished, by its folder: as long as there is one,
kdbench-clean leaves the tokens and the teacher outputs in the cache.
"""

import hashlib
import logging
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from kdbench.storage.cache import locked
from kdbench.storage.files import Damaged, explained, read_record, remove, write_record
from kdbench.storage.results import DEMO, EXPORT, MEASURED, RESULTS, read_result, verify_run

log = logging.getLogger("kdbench")
NOTES = "runs"  # below the cache
UNFINISHED = "unfinished"


def no_run_begins(cache: Path) -> AbstractContextManager[None]:
    """Hold off, within the block, every run that is about to begin with this cache."""
    return locked(cache / UNFINISHED)


def begin(cache: Path, folder: Path) -> None:
    """Note in the cache that the run in `folder` has begun and may read what is there."""
    with no_run_begins(cache):
        write_record(_begun(cache, folder), {"folder": str(folder.absolute())})


def unfinished(cache: Path) -> list[Path]:
    """Return the folders of the runs that have begun with this cache and are not finished, running or not."""
    noted = [_noted(note) for note in sorted((cache / UNFINISHED).glob("*.json"))]
    folders = [Path(one) for one in noted if one is not None]
    return [folder for folder in folders if folder.is_dir() and not (folder / RESULTS).is_file()]


def remember(cache: Path, folder: Path) -> None:
    """Note in the cache where a finished run is."""
    _begun(cache, folder).unlink(missing_ok=True)
    result = read_result(folder)
    assert result is not None
    note, where = _note(cache, result["id"], result["seed"]), str(folder.absolute())
    if _noted(note) != where:
        write_record(note, {"folder": where})


def bring(cache: Path, id_: str, seed: int, folder: Path) -> Path | None:
    """Copy the finished run `id_` to `folder` and return its source; None if no other intact copy is known."""
    noted = _noted(_note(cache, id_, seed))
    source = None if noted is None else Path(noted)
    if source is None or source == folder.absolute() or not _is_whole(source, id_, seed):
        return None
    staged = folder.with_name(f".{folder.name}.part")
    with explained(folder):
        remove(staged)  # of a killed process
        shutil.copytree(source, staged, ignore=shutil.ignore_patterns(EXPORT, MEASURED, DEMO))
        remove(folder)  # what an earlier attempt left
        os.replace(staged, folder)
    return source


def _begun(cache: Path, folder: Path) -> Path:
    return cache / UNFINISHED / f"{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]}.json"


def _note(cache: Path, id_: str, seed: int) -> Path:
    return cache / NOTES / f"{id_}-seed{seed}.json"


def _noted(note: Path) -> str | None:
    """Return the folder in a note; None if there is no note, or if it is damaged."""
    if not note.is_file():
        return None
    try:
        return str(read_record(note)["folder"])
    except Damaged as damage:
        log.warning("%s; it is written again when the run is finished", damage)
        return None


def _is_whole(folder: Path, id_: str, seed: int) -> bool:
    try:
        result = verify_run(folder)
    except (Damaged, OSError):
        return False
    return result is not None and (result["id"], result["seed"]) == (id_, seed)
