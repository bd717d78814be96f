"""Find and delete what finished runs keep and nothing reads again.

In a run, these are the weights and records of its stages, which only an unfinished run reads. In a cache, these are
tokens and teacher outputs, which a run makes again if they are missing. They stay while a run with this cache is
unfinished. A file is deleted only if a record of kdbench lists it and its digest fits. The run's record is written
without it first, so the run is intact at every moment.

This module imports no torch.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kdbench.runs import elsewhere
from kdbench.storage.cache import locked, locked_hidden
from kdbench.storage.files import MANIFEST, Damaged, explained, listed, remove, unlist, verify
from kdbench.storage.results import RESULTS, STAGE, read_result
from kdbench.validation.load import cache_path

CONFIG = "config.yaml"
CACHED = {"teacher": "teacher outputs", "tokens": "tokenised texts"}  # folders of a cache
_EXTRA = "extra.safetensors"
_OF_A_STAGE = re.compile(rf"\d\d_[^/]+/(student\.safetensors|{re.escape(_EXTRA)}|{re.escape(STAGE)})")


@dataclass(frozen=True)
class Spare:
    """Files that may be deleted, all in one run or in one entry of a cache."""

    folder: Path
    what: str
    files: dict[str, int]  # name -> bytes
    cache: Path | None = None  # None: the folder is a run

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


@dataclass
class Found:
    spare: list[Spare] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # what must stay although it may be large, and why


def find(outputs: Path) -> Found:
    """Return what may be deleted of the runs below `outputs`, and of their caches. Nothing is changed."""
    found = Found()
    caches: dict[Path, list[Path]] = {}  # with the unfinished runs below `outputs`
    for folder in _runs(outputs):
        finished = (folder / RESULTS).is_file()
        if (cache := _cache_of(folder)) is not None:
            caches.setdefault(cache, []).extend([] if finished else [folder])
        try:
            if finished:
                found.spare.append(_of_run(folder))
            else:
                found.kept.append(f"{folder}: the run is not finished. The same command resumes it")
        except Damaged as damage:
            found.kept.append(str(damage))
    for cache, unfinished in caches.items():
        entries = list(_entries(cache))
        if entries and (open_runs := unfinished + elsewhere.unfinished(cache)):
            found.kept.append(f"{cache}: the run in {open_runs[0]} is not finished, and may read the cache")
        else:
            found.spare += entries
    found.spare = [one for one in found.spare if one.files]
    return found


def delete(spare: Spare) -> str | None:
    """Delete the files of `spare`; return None, or why they were left. Raises StoreError."""
    try:
        return _delete_of_run(spare) if spare.cache is None else _delete_entry(spare, spare.cache)
    except Timeout:
        return "a command is using this run"
    except Damaged as damage:
        return str(damage)


def _runs(outputs: Path) -> Iterator[Path]:
    """Yield the folders of all runs, finished or not."""
    for place, below, files in os.walk(outputs):
        below.sort()
        if {CONFIG, "env.json"} <= {*files} or RESULTS in files:
            below.clear()
            yield Path(place)


def _cache_of(folder: Path) -> Path | None:
    """Return the cache of the run in `folder`; None if it is not known or does not exist."""
    try:
        cache = cache_path(OmegaConf.load(folder / CONFIG).cache_dir).absolute()
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError, AttributeError):
        return None
    return cache if cache.is_dir() else None


def _of_run(folder: Path) -> Spare:
    """Return what the finished run in `folder` can do without. Raises Damaged.

    Runs of a task start from the modules that a general run trained beside its student. So these stay. Files that only
    a stage's record lists are left from a deletion that was interrupted.
    """
    result = read_result(folder)
    names: dict[str, int] = {}
    if result is not None and _is_sealed(folder):
        names = {name: size for name, size in listed(folder / RESULTS).items() if _OF_A_STAGE.fullmatch(name)}
        for stage in (one["folder"] for one in result["stages"] if _is_ours(folder / one["folder"] / STAGE)):
            own = {f"{stage}/{name}": size for name, size in listed(folder / stage / STAGE).items()}
            own[f"{stage}/{STAGE}"] = (folder / stage / STAGE).stat().st_size
            names |= {name: size for name, size in own.items() if _OF_A_STAGE.fullmatch(name)}
        general = result.get("phase") == "general"
        names = {
            name: size
            for name, size in names.items()
            if (folder / name).is_file() and not (general and name.endswith(f"/{_EXTRA}"))
        }
    return Spare(folder, "weights of finished stages", names)


def _is_sealed(folder: Path) -> bool:
    """Return whether the run's record lists its files; older runs have no such list."""
    try:
        return bool(listed(folder / RESULTS))
    except Damaged:
        return False


def _is_ours(record: Path) -> bool:
    return record.is_file() and not record.is_symlink()


def _delete_of_run(spare: Spare) -> str | None:
    folder = spare.folder
    with locked_hidden(folder, timeout=0):
        if _of_run(folder).files != spare.files:
            return "it has changed since it was listed"
        for name, record in _records(folder, spare.files):
            verify(record, [name])
        unlist(folder / RESULTS, spare.files)
        for name in sorted(spare.files, key=lambda name: name.endswith(f"/{STAGE}")):  # the records last: see _of_run
            remove(folder / name)
    return None


def _records(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield each file of a run under its name in a record that lists it, and that record."""
    of_run = listed(folder / RESULTS)
    for name in names:
        stage, _, own = name.partition("/")
        if name in of_run:
            yield name, folder / RESULTS
        elif own != STAGE:  # a stage's record verifies itself
            yield own, folder / stage / STAGE


def _entries(cache: Path) -> Iterator[Spare]:
    """Yield the intact entries of a cache that a run can make again. What has other files is not kdbench's."""
    for kind, what in CACHED.items():
        for folder in sorted((cache / kind).glob("*/")):
            try:
                files = listed(folder / MANIFEST)
            except Damaged:
                continue
            if {path.name for path in folder.iterdir()} == {*files, MANIFEST}:
                yield Spare(folder, what, files, cache)


def _delete_entry(spare: Spare, cache: Path) -> str | None:
    with elsewhere.no_run_begins(cache):
        if open_runs := elsewhere.unfinished(cache):
            return f"the run in {open_runs[0]} has begun meanwhile"
        with locked(spare.folder), explained(spare.folder):
            remove(spare.folder)
    return None
