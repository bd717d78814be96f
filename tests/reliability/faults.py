"""Machines that fail: every write, sync, rename and removal of the process goes through here and may be the last.

`Disk` counts the operations below one folder, and can die at the k-th, refuse it, or keep a trace, of which
`power_cuts` makes all that a disk may hold when the power goes. What libraries write past Python: see `writers`.
"""

import builtins
import io
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.reliability import writers


class Death(BaseException):
    """The process is gone; nothing after this is written."""


@dataclass
class Op:
    """`kind` create, write, sync, rename, remove or mkdir; of a file's inode or of the folders that name it."""

    kind: str
    inode: int
    at: tuple[int, str] | None = None  # (folder's inode, name)
    to: tuple[int, str] | None = None  # of a rename
    content: bytes = b""
    start: int = 0  # of a write: its place in the file


@dataclass
class Disk:
    """What happens below `root`. `die_at` and `refuse_at` count from 1; a refused operation raises `refusal`."""

    root: Path
    die_at: int | None = None
    refuse_at: int | None = None
    refusal: int = 0
    count: int = 0
    dead: bool = False
    trace: list[Op] = field(default_factory=list)
    entries: dict[tuple[int, str], int] = field(default_factory=dict)
    start: dict[int, bytes | None] = field(default_factory=dict)  # inode -> content; None: a folder
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.root_inode = self._known(None, "", None)
        places = {self.root: self.root_inode}
        for path in sorted(self.root.rglob("*")):
            content = path.read_bytes() if path.is_file() else None
            places[path] = self._known(places[path.parent], path.name, content)
        self.entries_at_start = dict(self.entries)

    def _known(self, folder: int | None, name: str, content: bytes | None) -> int:
        inode = next(self.numbers)
        self.start[inode] = content
        if folder is not None:
            self.entries[folder, name] = inode
        return inode

    def mine(self, path: Any) -> bool:
        """Return whether the path is below the root; a lock is no file of it, as it has no content."""
        if not isinstance(path, str | os.PathLike) or str(path).endswith(".lock"):
            return False
        return Path(path).absolute().is_relative_to(self.root)

    def place(self, path: Any) -> tuple[int, str]:
        parts = Path(path).absolute().relative_to(self.root).parts
        folder = self.root_inode
        for part in parts[:-1]:
            folder = self.entries[folder, part]
        return folder, parts[-1]

    def inode(self, path: Any) -> int:
        if Path(path).absolute() == self.root:
            return self.root_inode
        return self.entries[self.place(path)]

    def step(self, path: Any) -> None:
        """One operation: the process may die here, or be refused."""
        if self.dead:
            raise Death
        self.count += 1
        if self.count == self.die_at:
            self.dead = True
            raise Death
        if self.count == self.refuse_at:
            raise OSError(self.refusal, os.strerror(self.refusal), str(path))


class _File(io.RawIOBase):
    """A file being written, each write of which is an operation; a death leaves half of it."""

    def __init__(self, disk: Disk, path: Any, file: Any) -> None:
        self.disk, self.path, self.file = disk, path, file
        self.appends = "a" in file.mode

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())

    def write(self, content: Any) -> int:
        content = content.encode() if isinstance(content, str) else bytes(content)
        try:
            self.disk.step(self.path)
        except Death:
            if self.disk.count == self.disk.die_at and not self.file.closed:
                self.file.write(content[: len(content) // 2])
                self.file.close()
            raise
        start = int(self.file.seek(0, os.SEEK_END) if self.appends else self.file.tell())
        self.disk.trace.append(Op("write", self.disk.inode(self.path), content=content, start=start))
        return int(self.file.write(content))

    def fileno(self) -> int:
        return int(self.file.fileno())

    def close(self) -> None:
        self.file.close()
        super().close()


@contextmanager
def failing(disk: Disk) -> Iterator[Disk]:
    """Within, the process writes to `disk`."""
    real_open, real_fsync = io.open, os.fsync

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not disk.mine(path) or not set(mode) & set("wax+"):
            return real_open(path, mode, *args, **kwargs)
        disk.step(path)
        new = not Path(path).exists()
        file = real_open(path, ("a" if "a" in mode else "w") + "b", buffering=0)
        if new:
            inode = next(disk.numbers)
            disk.entries[disk.place(path)] = inode
            disk.trace.append(Op("create", inode, disk.place(path)))
        return _File(disk, path, file)

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if disk.mine(path):
            disk.step(path)
            disk.trace.append(Op("sync", disk.inode(path)))
        real_fsync(descriptor)

    def changing(kind: str, real: Any) -> Any:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if not disk.mine(path):
                return real(path, *args, **kwargs)
            disk.step(path)
            done = real(path, *args, **kwargs)
            at = disk.place(path)
            inode = next(disk.numbers) if kind == "mkdir" else disk.inode(path)
            to = disk.place(args[0]) if kind == "rename" else None
            disk.trace.append(Op(kind, inode, at, to))
            disk.entries.pop(at, None)
            if kind != "remove":
                disk.entries[to or at] = inode
            return done

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "_use_fd_functions", False)  # whole paths
        patch.setattr(shutil, "_USE_CP_SENDFILE", False)  # copies are written
        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        for name, kind in {
            "replace": "rename", "rename": "rename", "unlink": "remove", "remove": "remove", "rmdir": "remove",
            "mkdir": "mkdir",
        }.items():  # fmt: skip
            patch.setattr(os, name, changing(kind, getattr(os, name)))
        patch.setattr(os, "fsync", fsync)
        writers.pass_on(patch, disk.mine, opened)
        yield disk
