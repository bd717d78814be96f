"""Extract named plain files from a zip archive. No other member is ever written."""

import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from kdbench.errors import Code, SourceError
from kdbench.storage.files import MANIFEST

_LARGEST = 4 << 30  # bytes of all files together, several times the weights of bert-large
_RATIO = 200  # unpacked size to packed size: about ten for texts, a thousand for a zip bomb
_UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError)


def extract(packed: Path | IO[bytes], members: Sequence[str], folder: Path) -> None:
    """Write the named files of the archive, a path or an open file, below `folder`.

    Raises SourceError if a name leads outside the folder, is missing or occurs twice, is no plain file or is too large,
    or if the archive is damaged. Nothing of a refused member is written.
    """
    name = packed.name
    for member in members:
        if fault := _name_fault(member, members):
            raise SourceError(Code.UNSAFE_CONTENT, f"{name}: {member!r} {fault}; refused.")
    try:
        with zipfile.ZipFile(packed) as archive:
            infos = [_plain_file(name, archive, member) for member in members]
            if sum(info.file_size for info in infos) > _LARGEST:
                raise SourceError(Code.UNSAFE_CONTENT, f"{name}: the files asked for are too large together; refused.")
            for info in infos:
                target = folder / info.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                # zipfile never returns more than info.file_size bytes, so the limits above hold for the written file.
                with archive.open(info) as content, target.open("xb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
    except SourceError:
        raise
    except _UNREADABLE as error:
        raise SourceError(Code.UNREADABLE_ARCHIVE, f"{name} cannot be unpacked: {error}") from error


def _name_fault(member: str, members: Sequence[str]) -> str:
    parts = PurePosixPath(member).parts
    if member != "/".join(parts) or not parts or parts[0] == "/" or {"..", "."} & {*parts}:
        return "would be written outside its folder, or is no file's name"
    if "\\" in member or "\0" in member or ":" in member:
        return "would be another name on another system"
    if parts[0].startswith(".") or member.casefold() == MANIFEST.casefold():
        return "is a name that kdbench keeps for itself"
    within = [other for other in members if f"{other}/".casefold().startswith(f"{member}/".casefold())]
    if len(within) > 1:
        return "is asked for twice, or as a file and a folder"
    return ""


def _plain_file(name: str, archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    """Return the entry of this name. Raises SourceError if it is no plain file, or another differs in case only."""
    found = [info for info in archive.infolist() if info.filename.casefold() == member.casefold()]
    if not any(info.filename == member for info in found):
        raise SourceError(
            Code.UNREADABLE_ARCHIVE, f"{name} has no file {member!r}: check the names that the YAML gives."
        )
    if len(found) > 1:
        raise SourceError(Code.UNSAFE_CONTENT, f"{name} has {member!r} {len(found)} times, or in other cases; refused.")
    (info,) = found
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0: the archive has no Unix modes
    disguised = info.orig_filename != info.filename or info.header_offset < 0
    if disguised or info.is_dir() or kind not in (0, stat.S_IFREG):
        raise SourceError(Code.UNSAFE_CONTENT, f"{name}: {member!r} is a link, a folder or in disguise; refused.")
    if info.file_size > _LARGEST or info.file_size > _RATIO * max(info.compress_size, 1 << 10):
        raise SourceError(
            Code.UNSAFE_CONTENT, f"{name}: {member!r} would unpack to {info.file_size} bytes: too large; refused."
        )
    return info
