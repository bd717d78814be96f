"""Keep what a table needs of many runs beside them, so that the next call reads only those that changed.

Below a root with MANY runs, `.compare-runs/<request>` has one table: a line for each folder, with its time and size and
the names in it, and for each run those of its files and the `Run` that was read. A folder or file with the same time,
size and inode is not opened again. So a call with an index costs a `stat` for each folder and each results.json. Only
damage that changes no time, such as that of a failing disk, is not seen until the index is made again.

The index is never needed. One that is missing, damaged or of another version is made again, and a root that cannot be
written to has none.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout

from kdbench import __version__
from kdbench.storage import files as store
from kdbench.storage.cache import locked
from kdbench.storage.results import MEASURED, RESULTS
from kdbench.storage.status import STATUS

FOLDER = ".compare-runs"
MANY = 1000  # runs below a root that has an index
SHARE = 0.02  # of the entries that have changed, at which the index is written again
KEPT = 8  # requests with an index of their own
RECENT = 2_000_000_000  # ns; what changed so shortly before it was read may change again at the same time
TEXTS = ("shared", "own")
_TABLE = "runs.arrow"
_ROWS = 1000  # of a record batch; only those are opened that a call needs

Signature = tuple[int, ...]  # of a file or folder: times, size, inode
NUMBERS = 4  # of each
CODE = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("index.py", "collect.py", "keys.py"))


class Listed(NamedTuple):
    """What a folder was found to have."""

    signature: Signature
    below: str  # names of the folders to look into, joined by /
    has: str  # RESULTS, STATUS or nothing


class Kept(NamedTuple):
    """A run that was read."""

    signature: Signature
    dataset: str | None  # None: the run makes no row


def _signature(path: str) -> Signature:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


@dataclass
class Index:
    """What is known of the tree below `root`, and what this call found."""

    root: Path
    request: Sequence[Any]  # what the runs were read for
    files: Sequence[str]  # of a run, from which it was read; the last may be missing
    began: int = field(default_factory=time.time_ns)
    listed: dict[str, Listed] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    now_listed: dict[str, Listed] = field(default_factory=dict)
    now_kept: dict[str, Kept] = field(default_factory=dict)
    texts: dict[str, tuple[str, str]] = field(default_factory=dict)  # of runs that were read, see `text_of`
    fresh: int = 0  # entries that were read

    def __post_init__(self) -> None:
        key = json.dumps([__version__, *self.request]).encode() + CODE  # other code may read runs otherwise
        self.place = self.root / FOLDER / hashlib.sha256(key).hexdigest()[:16]
        if self.place.is_dir():
            with suppress(store.Damaged, store.StoreError):
                self._open(store.contents(self.place / store.MANIFEST, [_TABLE])[_TABLE])

    def _open(self, content: bytes) -> None:
        import pyarrow as pa

        names = pa.ipc.open_file(content).schema.names
        of = {text: [at for at, name in enumerate(names) if (name in TEXTS) is text] for text in (True, False)}
        table = pa.ipc.open_file(content, options=pa.ipc.IpcReadOptions(included_fields=of[False])).read_all()
        self.batches = pa.ipc.open_file(content, options=pa.ipc.IpcReadOptions(included_fields=of[True]))
        self.batch: tuple[int, list[tuple[str, str]]] = (-1, [])  # the one that was read last
        folders, below, has, dataset = (table[name].to_pylist() for name in ("folder", "below", "has", "dataset"))
        of_folder, of_run = (
            zip(*(table[name].to_numpy().tolist() for name in names if name.startswith(start)), strict=True)
            for start in ("folder_", "run_")
        )
        self.at = {folder: at for at, folder in enumerate(folders)}
        self.listed = dict(zip(folders, map(Listed, of_folder, below, has), strict=True))
        self.kept = dict(zip(folders, map(Kept, of_run, dataset), strict=True))

    def text_of(self, folder: str) -> tuple[str, str]:
        """Return what a known run was read as, in JSON: what it shares with its other seeds, and its own."""
        if (found := self.texts.get(folder)) is not None:
            return found
        number, row = divmod(self.at[folder], _ROWS)
        if self.batch[0] != number:
            batch = self.batches.get_batch(number)
            self.batch = number, list(zip(*(batch[name].to_pylist() for name in TEXTS), strict=True))
        return self.batch[1][row]

    def path(self, folder: str) -> str:
        return f"{self.root}/{folder}" if folder else str(self.root)

    def signature_of(self, folder: str) -> Signature:
        """Return what differs after a change of the run's files. Raises OSError."""
        first, *others = self.files
        found = _signature(f"{self.path(folder)}/{first}")
        for name in others:
            try:
                found += _signature(f"{self.path(folder)}/{name}")
            except FileNotFoundError:
                found += (0,) * NUMBERS
        return found

    def look(self, folder: str) -> Listed:
        """List a folder, by its path below the root. Raises OSError."""
        path = self.path(folder)
        seen = _signature(path)
        found = self.listed.get(folder)
        if found is None or found.signature != seen:
            self.fresh += 1
            found = Listed(self._trusted(seen), *_scanned(path))
        self.now_listed[folder] = found
        return found

    def _trusted(self, seen: Signature) -> Signature:
        times = (time for at in range(0, len(seen), NUMBERS) for time in seen[at : at + 2])
        return seen if max(times) < self.began - RECENT else (0,) * len(seen)

    def known(self, folder: str, seen: Signature) -> Kept | None:
        """Return what the run was read as, if its files are the same."""
        found = self.kept.get(folder)
        if found is None or found.signature != seen:
            self.fresh += 1
            return None
        self.now_kept[folder] = found
        return found

    def keep(self, folder: str, seen: Signature, dataset: str | None, shared: str, own: str) -> None:
        self.now_kept[folder] = Kept(self._trusted(seen), dataset)
        self.texts[folder] = shared, own

    def write(self) -> None:
        """Write the index if much of it has changed. It is not written if another process does so."""
        if len(self.now_kept) < MANY or self.fresh <= SHARE * len(self.now_listed):
            return
        with suppress(store.StoreError, Timeout), locked(self.place.with_name("index"), timeout=0):
            with store.filling(self.place) as staged:
                store.write_bytes(staged / _TABLE, self._table())
            for old in sorted(self.place.parent.glob("*/"), key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
                store.remove(old)

    def _table(self) -> bytes:
        import pyarrow as pa

        none = Kept((0,) * NUMBERS * len(self.files), None)
        kept = [self.now_kept.get(folder, none) for folder in self.now_listed]
        texts = [self.text_of(folder) if folder in self.now_kept else ("", "") for folder in self.now_listed]
        columns: dict[str, Any] = {
            "folder": list(self.now_listed),
            "dataset": pa.array([one.dataset for one in kept], pa.string()),
        }
        for of, entries in (("folder", self.now_listed.values()), ("run", kept)):
            for at, values in enumerate(zip(*(one.signature for one in entries), strict=True)):
                columns[f"{of}_{at}"] = pa.array(values, pa.int64())
        columns |= {name: [getattr(one, name) for one in self.now_listed.values()] for name in ("below", "has")}
        table = pa.table(columns | dict(zip(TEXTS, zip(*texts, strict=True), strict=True)))
        content = pa.BufferOutputStream()
        with pa.ipc.new_file(content, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table, max_chunksize=_ROWS)
        return bytes(content.getvalue())


def _scanned(path: str) -> tuple[str, str]:
    """Return the names of the folders in which runs may be, joined by /, and RESULTS, STATUS or nothing."""
    below, has = [], ""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            elif entry.name == RESULTS or (entry.name == STATUS and not has):
                has = entry.name
    inside = {RESULTS: {MEASURED}, STATUS: set()}  # stages, checkpoints and the model hold no runs
    kept = set(below) & inside[has] if has else set(below) - {FOLDER}
    return "/".join(sorted(kept)), has
