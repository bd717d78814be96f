"""Finished runs of other outputs folders: the cache knows where each lies, so that a teacher is trained once.

`outputs` lies in the working directory: the same command typed elsewhere would train the same teacher again. The cache
keeps a note a run, by its id, of where its folder is. A needed run that is not in this `outputs` is copied from there.
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
    """Note in the cache where a finished run lies."""
    result = read_result(folder)
    assert result is not None
    note, where = _note(cache, result["id"], result["seed"]), str(folder.absolute())
    if _noted(note) != where:
        write_record(note, {"folder": where})


def bring(cache: Path, id_: str, seed: int, folder: Path) -> Path | None:
    """Copy the finished run `id_` to `folder` and say from where; None where it lies nowhere else, or not whole."""
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
    """The folder in a note; None where there is no note, or it is not what was written."""
    if not note.is_file():
        return None
    try:
        return str(read_record(note)["folder"])
    except Damaged as damage:
        log.warning("%s; it is written anew when the run is done", damage)
        return None


def _is_whole(folder: Path, id_: str, seed: int) -> bool:
    try:
        result = verify_run(folder)
    except (Damaged, OSError):
        return False
    return result is not None and (result["id"], result["seed"]) == (id_, seed)
