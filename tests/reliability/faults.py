"""Machines that fail: every write, sync, rename and removal of the process goes through here and may be the last.

`Disk` counts the operations below one folder, and can die at the k-th, refuse it, or keep a trace. `power_cuts` makes
of a trace all that a disk may hold when the power goes: what was not synced may be lost or cut, in any order.
What libraries write in Rust or C (tokenizer.json) is not cut; it lies in staging folders only.
"""

import builtins
import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch


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
        return isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(self.root)

    def place(self, path: Any) -> tuple[int, str]:
        parts = Path(path).absolute().relative_to(self.root).parts
        folder = self.root_inode
        for part in parts[:-1]:
            folder = self.entries[folder, part]
        return folder, parts[-1]

    def inode(self, path: Any) -> int:
        if Path(path).absolute() == self.root:
            return self.root_inode
        place = self.place(path)
        if place not in self.entries:  # written by Rust, unseen
            self.entries[place] = next(self.numbers)
        return self.entries[place]

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

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        content = content.encode() if isinstance(content, str) else bytes(content)
        try:
            self.disk.step(self.path)
        except Death:
            if self.disk.count == self.disk.die_at and not self.file.closed:
                self.file.write(content[: len(content) // 2])
                self.file.close()
            raise
        self.disk.trace.append(Op("write", self.disk.inode(self.path), content=content))
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
    real_serialize = safetensors.torch.serialize_file

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
            at, inode = disk.place(path), disk.inode(path)
            to = disk.place(args[0]) if kind == "rename" else None
            disk.trace.append(Op(kind, inode, at, to))
            if kind != "mkdir":
                del disk.entries[at]
            if to is not None:
                disk.entries[to] = inode
            return done

        return call

    def serialize_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
        """As safetensors' own does: a temporary file beside the final name, then a rename; in three writes."""
        with tempfile.NamedTemporaryFile() as aside:  # outside the disk
            real_serialize(tensors, aside.name, metadata=metadata)
            content = Path(aside.name).read_bytes()
        staged = Path(filename).with_name(f".tmp{disk.count}")
        with opened(staged, "wb") as file:
            for start in (0, len(content) // 3, 2 * (len(content) // 3)):
                end = None if start == 2 * (len(content) // 3) else start + len(content) // 3
                file.write(content[start:end])
        os.replace(staged, filename)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "_use_fd_functions", False)  # whole paths
        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        for name, kind in {
            "replace": "rename", "rename": "rename", "unlink": "remove", "remove": "remove", "rmdir": "remove",
            "mkdir": "mkdir",
        }.items():  # fmt: skip
            patch.setattr(os, name, changing(kind, getattr(os, name)))
        patch.setattr(os, "fsync", fsync)
        patch.setattr(safetensors.torch, "serialize_file", serialize_file)
        yield disk


Tree = dict[tuple[int, str], int]


def power_cuts(disk: Disk, lost: int) -> Iterator[tuple[int, dict[str, bytes | None]]]:
    """(operations done, what the disk holds: path -> content, None for folders), each state once.

    The power goes after each operation of the trace; of those not yet synced up to `lost` are lost or, of writes, cut.
    """
    seen: set[Any] = set()
    for end in range(len(disk.trace) + 1):
        done = disk.trace[:end]
        open_ = [i for i, op in enumerate(done) if op.kind != "sync" and not _synced(op, done[i + 1 :])]
        for size in range(lost + 1):
            for gone in itertools.combinations(open_, size):
                variants = [("lost", "cut") if done[i].kind == "write" else ("lost",) for i in gone]
                for how in itertools.product(*variants):
                    state = _state(disk, done, dict(zip(gone, how, strict=True)))
                    key = (end == len(disk.trace), tuple(sorted(state.items())))
                    if key not in seen:
                        seen.add(key)
                        yield end, state


def _synced(op: Op, later: list[Op]) -> bool:
    synced = {other.inode for other in later if other.kind == "sync"}
    if op.kind == "write":
        return op.inode in synced
    return all(place[0] in synced for place in (op.at, op.to) if place is not None)


def _state(disk: Disk, done: list[Op], gone: dict[int, str]) -> dict[str, bytes | None]:
    entries, contents = dict(disk.entries_at_start), dict(disk.start)
    for i, op in enumerate(done):
        if gone.get(i) == "lost":
            continue
        if op.kind == "create":
            entries[op.at] = op.inode  # type: ignore[index]
            contents.setdefault(op.inode, b"")
        elif op.kind == "mkdir":
            entries[op.at] = op.inode  # type: ignore[index]
            contents[op.inode] = None
        elif op.kind == "write":
            end = len(op.content) // 2 if i in gone else None
            contents[op.inode] = (contents.get(op.inode) or b"") + op.content[:end]
        elif op.kind == "remove":
            entries.pop(op.at, None)  # type: ignore[arg-type]
        elif op.kind == "rename":
            entries.pop(op.at, None)  # type: ignore[arg-type]
            entries[op.to] = op.inode  # type: ignore[index]
    return dict(_paths(entries, contents, disk.root_inode, ""))


def _paths(
    entries: Tree, contents: dict[int, bytes | None], folder: int, at: str
) -> Iterator[tuple[str, bytes | None]]:
    for (parent, name), inode in entries.items():
        if parent == folder:
            content = contents.get(inode, None if any(p == inode for p, _ in entries) else b"")
            yield at + name, content
            if content is None:
                yield from _paths(entries, contents, inode, f"{at}{name}/")


def put(root: Path, state: dict[str, bytes | None]) -> Path:
    """Lay a state down in a fresh folder."""
    root.mkdir(parents=True)
    for name, content in sorted(state.items()):
        if content is None:
            (root / name).mkdir(exist_ok=True)
        else:
            (root / name).write_bytes(content)
    return root
