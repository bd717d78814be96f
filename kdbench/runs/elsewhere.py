"""Find finished runs in other outputs folders, so that a teacher is trained only once.

`outputs` is relative to the working directory, so the same command elsewhere would train the same teacher again. The
cache keeps a note for each run, by its id, with its folder. If a run needs another run that is not in its `outputs`,
it is copied from there.
"""

import logging
import os
import shutil
from pathlib import Path

from kdbench.storage.files import Damaged, explained, read_record, remove, write_record
from kdbench.storage.results import EXPORT, read_result, verify_run

log = logging.getLogger("kdbench")
NOTES = "runs"  # below the cache


def remember(cache: Path, folder: Path) -> None:
    """Note in the cache where a finished run is."""
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
        shutil.copytree(source, staged, ignore=shutil.ignore_patterns(EXPORT))
        remove(folder)  # what an earlier attempt left
        os.replace(staged, folder)
    return source


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
