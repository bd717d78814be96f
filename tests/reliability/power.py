"""All that a disk may hold when the power goes: what was not synced may be lost or cut, in any order."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.reliability.faults import Disk, Op

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
            entries[op.at] = op.inode
            contents.setdefault(op.inode, b"")
        elif op.kind == "mkdir":
            entries[op.at] = op.inode
            contents[op.inode] = None
        elif op.kind == "write":
            end = len(op.content) // 2 if i in gone else None
            before, new = contents.get(op.inode) or b"", op.content[:end]
            before = before.ljust(op.start, b"\0")  # a write that was lost leaves zeros before a later one
            contents[op.inode] = before[: op.start] + new + before[op.start + len(new) :]
        elif op.kind == "remove":
            entries.pop(op.at, None)  # type: ignore[arg-type]
        elif op.kind == "rename":
            entries.pop(op.at, None)  # type: ignore[arg-type]
            entries[op.to] = op.inode
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
