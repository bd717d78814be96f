"""Write and read files that are complete or absent; all reading and writing of runs and caches goes through here.

A *record* is a JSON file that ends with the SHA-256 of its own bytes. It may list other files with their sizes and
digests, and is written last. A folder is filled under another name. Its files are synced, its record MANIFEST.json is
written, and a synced rename gives the folder its name. So what has no matching record was never finished or is
damaged, and is not read. tests/reliability/ tests this with crashes, power cuts, full disks and flipped bits.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdbench.errors import Code, UserError

MANIFEST = "MANIFEST.json"
_SEAL = re.compile(rb'"sha256": "([0-9a-f]{64})"\n\}\n\Z')
_REFUSALS = {  # by the system, for a reason that a person can remove
    errno.ENOSPC: (Code.DISK_FULL, "Make room"),
    errno.EDQUOT: (Code.DISK_FULL, "Make room"),
    errno.EFBIG: (Code.DISK_FULL, "Make room"),
    errno.EACCES: (Code.NOT_WRITABLE, "Make it writable"),
    errno.EPERM: (Code.NOT_WRITABLE, "Make it writable"),
    errno.EROFS: (Code.NOT_WRITABLE, "Make it writable"),
    errno.EMFILE: (Code.SYSTEM_ERROR, "Raise the limit (ulimit -n)"),
    errno.ENFILE: (Code.SYSTEM_ERROR, "Raise the limit (ulimit -n)"),
    errno.EIO: (Code.SYSTEM_ERROR, "Check the disk"),
}


class StoreError(UserError):
    """The system refused to write or read; what had been stored before is unchanged."""


class Damaged(UserError):
    """A file is missing, or is not what was written."""

    def __init__(self, path: Path, expected: str, found: str) -> None:
        super().__init__(Code.DAMAGED_FILE, f"{path} is damaged: expected {expected}, found {found}")


class Misfit(UserError):
    """A file is intact, but its content does not belong there: another program wrote it, or it is forged."""


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn an error within the block, which uses the intact content at `path`, into a Misfit."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or _errno(error) in _REFUSALS or "Memory" in type(error).__name__:
            raise  # nothing is wrong with the content
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        message = f"{path} is intact, but not what belongs there ({reason}). Remove it, then repeat the command"
        raise Misfit(Code.FOREIGN_FILE, message) from error


def sized(count: int) -> str:
    """Return a number of bytes as a person reads it."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of the operating system within the block into a StoreError that names `path`."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number not in _REFUSALS:
            raise
        named = getattr(error, "filename2", None) or getattr(error, "filename", None) or path  # 2: of a copy, its end
        code, remedy = _REFUSALS[number]
        raise StoreError(
            code,
            f"{named}: {os.strerror(number)}. What was stored before is intact. {remedy},"
            " then repeat the command: it resumes.",
        ) from error


def _errno(error: Exception) -> int | None:
    """Return the system's error number, which safetensors and tokenizers give only in their text; None if none."""
    found = re.search(r"os error (\d+)", str(error))
    return error.errno if isinstance(error, OSError) else int(found[1]) if found else None


def write_bytes(path: Path, content: bytes, synced: bool = True) -> None:
    """Write `path` atomically: a reader sees the old content or the new.

    If `synced`, this also holds after a power cut.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with staged.open("wb") as file:
                file.write(content)
                if synced:
                    file.flush()
                    os.fsync(file.fileno())
            if synced:
                _rename(staged, path)
            else:
                os.replace(staged, path)
        except OSError:
            with suppress(OSError):
                staged.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. Raises ValueError for NaN, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf8"))


def write_record(path: Path, value: dict[str, Any], files: Iterable[Path] = ()) -> None:
    """Write `value` as JSON with its own digest and those of `files`, which lie below it and are synced first."""
    listed = {}
    with explained(path):
        for file in sorted(files):
            # safetensors leaves files that only their owner may read
            file.chmod(file.parent.stat().st_mode & 0o644)
            _sync(file)
            name = file.relative_to(path.parent).as_posix()
            listed[name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for folder in sorted({(path.parent / name).parent for name in listed}):
            _sync(folder)
    _write_sealed(path, value, listed)


def amend_record(path: Path, changes: dict[str, Any]) -> None:
    """Write the record again with `changes`, keeping its list of files. Raises Damaged, StoreError."""
    value, files = _opened(path)
    _write_sealed(path, value | changes, files)


def listed(path: Path) -> dict[str, int]:
    """Return name -> bytes of each file that the record at `path` lists. Raises Damaged."""
    return {name: entry["bytes"] for name, entry in _opened(path)[1].items()}


def unlist(path: Path, names: Iterable[str]) -> None:
    """Write the record again without the files `names`, so that it is true without them. Raises Damaged, StoreError."""
    value, files = _opened(path)
    gone = set(names)
    _write_sealed(path, value, {name: entry for name, entry in files.items() if name not in gone})


def _write_sealed(path: Path, value: dict[str, Any], listed: dict[str, dict[str, Any]]) -> None:
    text = json.dumps(value | {"files": listed}, indent=2, allow_nan=False, ensure_ascii=False)
    text = text.removesuffix("\n}") + ',\n  "sha256": "'
    write_text(path, f'{text}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n')


def read_record(path: Path) -> dict[str, Any]:
    """Return the value of a record. Raises Damaged if it is not what was written."""
    return _opened(path)[0]


def verify(path: Path, only: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the value of the record at `path`, after checking each file that it lists, or those in `only`.

    Raises Damaged, StoreError.
    """
    value, files = _opened(path)
    for name in files if only is None else only:
        if name not in files or Path(name).is_absolute() or ".." in Path(name).parts:
            raise Damaged(path, f"a list of files, all below it, with {name}", "another list")
        _check(path.parent / name, files[name]["bytes"], files[name]["sha256"])
    return value


def contents(path: Path, names: Iterable[str], optional: Iterable[str] = ()) -> dict[str, bytes]:
    """Return the content of files that the record at `path` lists, each as it was checked, and those in `optional`.

    A file that is replaced meanwhile is returned as the record says, or not at all. Raises Damaged, StoreError.
    """
    _, files = _opened(path)
    found = {}
    for name in (*names, *(name for name in optional if name in files)):
        if name not in files:
            raise Damaged(path, f"a list of files with {name}", "a list without it")
        size, digest = files[name]["bytes"], files[name]["sha256"]
        with explained(path.parent / name):
            try:
                content = (path.parent / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError) as error:
                raise Damaged(path.parent / name, f"{size} bytes", "no file") from error
        if (own := hashlib.sha256(content).hexdigest()) != digest:
            raise Damaged(path.parent / name, f"SHA-256 {digest}", own)
        found[name] = content
    return found


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the value of the record at `path`, and name -> {bytes, sha256} of each file that it lists."""
    with explained(path):
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Damaged(path, "a record of what belongs here", "none") from error
    seal = _SEAL.search(content)
    if seal is None:
        raise Damaged(path, "its own SHA-256 at its end", repr(content[-24:])[1:])
    expected, found = seal[1].decode(), hashlib.sha256(content[: seal.start(1)]).hexdigest()
    if found != expected:
        raise Damaged(path, f"SHA-256 {expected}", found)
    try:
        value = json.loads(content)
        del value["sha256"]
        files = {name: {key: one[key] for key in ("bytes", "sha256")} for name, one in value.pop("files").items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # sealed, but not by us
        raise Damaged(path, "a record of files with sizes and digests", f"{type(error).__name__}: {error}") from error
    return value, files


def _check(path: Path, expected_size: int, expected: str) -> None:
    with explained(path):
        size = path.stat().st_size if path.is_file() else None
        if size != expected_size:
            raise Damaged(path, f"{expected_size} bytes", "no file" if size is None else f"{size} bytes")
        if (found := sha256_of(path)) != expected:
            raise Damaged(path, f"SHA-256 {expected}", found)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; if the block succeeds, it becomes `folder`, with a manifest. Raises StoreError.

    An existing folder is moved aside, and back if the new one fails. The caller must hold a lock.
    """
    staged, before = (folder.with_name(f".{folder.name}.{kind}part") for kind in ("", "before."))
    with explained(folder):
        try:
            remove(staged)  # of a killed process
            staged.mkdir(parents=True)
            yield staged
            write_record(staged / MANIFEST, {}, [path for path in staged.rglob("*") if path.is_file()])
            remove(before)
            if folder.exists():
                os.replace(folder, before)
            _rename(staged, folder)
        finally:
            if before.exists() and not folder.exists():
                os.replace(before, folder)
            for left in (staged, before):
                shutil.rmtree(left, ignore_errors=True)


def add_file(folder: Path, name: str, content: bytes) -> None:
    """Add a file to a folder that `filling` made, and to its manifest. Raises Damaged, StoreError."""
    write_bytes(folder / name, content)
    value, listed = _opened(folder / MANIFEST)
    listed[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _write_sealed(folder / MANIFEST, value, dict(sorted(listed.items())))


def private(folder: Path) -> Path:
    """Return `folder`, created if it is missing. Its content is trusted, so nobody else may write to it.

    Raises StoreError if others can write to it.
    """
    with explained(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode
    if os.name != "nt" and mode & (stat.S_IWGRP | stat.S_IWOTH):  # Windows' bits say nothing of others
        raise StoreError(
            Code.UNSAFE_FOLDER,
            f"{folder}: others can write to it ({stat.filemode(mode)}), and kdbench trusts what is in it."
            f" Set cache_dir=<a folder of your own>, or run: chmod go-w {folder}",
        )
    return folder


def remove(path: Path) -> None:
    """Remove a folder or file if it exists."""
    with explained(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left below `folder`, which the caller has locked."""
    for pattern in (".*.part", ".tmp*"):  # ours, and safetensors'
        for path in sorted(folder.rglob(pattern)):
            remove(path)


def publish(staged: Path, final: Path) -> None:
    """Give a complete file its name, synced: a reader sees what was there before or the new file."""
    with explained(final):
        _sync(staged)
        _rename(staged, final)


def _rename(staged: Path, final: Path) -> None:
    os.replace(staged, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # cannot be opened there, and NTFS journals the rename
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
