"""Open files: which endings hold a table, what a .gz or .zip contains, and how bytes become text."""

import codecs
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, NamedTuple

from kdbench.errors import Code, SourceError

TAGGED = (".conll", ".bio")  # a word and its tag on each line
TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", *TAGGED)
TEXT = ".txt"  # texts without labels, one on each line
PACKED = (".gz", ".zip")
FORMATS = f"a table ({', '.join(TABLES)}), {TEXT} for texts without labels, or one of these in a {' or '.join(PACKED)}"
_MARKS = (  # utf-32 first: its little-endian mark begins with that of utf-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"\x84\x31\x95\x33", "gb18030"),
)
# Legacy encodings of today's tables. Without a list, charset-normalizer suggests encodings of the 1970s.
_COMMON = [
    *("utf_8", "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1252", "cp1250", "cp1251", "koi8_r", "cp1253"),
    *("cp1254", "cp1255", "cp1256", "cp1257", "cp874"),
]
_SAMPLE = 1 << 16  # bytes
_PIECE = 50 * _SAMPLE  # bytes that are in memory at a time
Bytes = IO[bytes] | gzip.GzipFile


def ending(name: str) -> str:
    """Return the ending that gives the format, in lower case: .csv for reviews.csv.gz, .zip for x.zip."""
    path = PurePath(name.lower())
    inner = PurePath(path.stem).suffix
    return inner if path.suffix in PACKED and inner in (*TABLES, TEXT) else path.suffix


def is_file_name(name: str) -> bool:
    """Return whether the ending is one that can be read."""
    return ending(name) in (*TABLES, TEXT, ".zip")


class Opened(NamedTuple):
    ending: str
    file: Bytes


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a file, or the one that is packed in it. Raises SourceError if the archive cannot be read."""
    packed = path.suffix.lower()
    try:
        if packed == ".zip":
            with zipfile.ZipFile(path) as archive:
                name = _one_table(path, archive)
                with archive.open(name) as file:
                    yield Opened(ending(name), file)
        elif packed == ".gz":
            with gzip.open(path) as file:
                yield Opened(ending(path.name), file)
        else:
            with path.open("rb") as file:
                yield Opened(packed, file)
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        if packed not in PACKED:
            raise
        raise SourceError(
            Code.UNREADABLE_ARCHIVE, f"{path} cannot be unpacked: {error}. Unpack it yourself and name the table."
        ) from error


def _one_table(path: Path, archive: zipfile.ZipFile) -> str:
    names = [one.filename for one in archive.infolist() if not one.is_dir()]
    # macOS adds a hidden file for each file
    names = [name for name in names if not name.startswith("__MACOSX/") and not PurePath(name).name.startswith(".")]
    if len(names) != 1 or ending(names[0]) not in (*TABLES, TEXT):
        inside = f"{len(names)} files ({', '.join(names[:4])})" if len(names) != 1 else names[0]
        raise SourceError(
            Code.UNREADABLE_ARCHIVE,
            f"{path} holds {inside}, and must hold one table. Unpack it and name the file that is meant.",
        )
    return names[0]


def text(path: Path, data: bytes, encoding: str) -> str:
    """Return the text without a byte-order mark. Raises SourceError with a suggestion if `encoding` does not fit."""
    check(path, io.BytesIO(data), encoding)
    return data.decode(codec_of(encoding)).removeprefix("\ufeff")


def check(path: Path, file: Bytes, encoding: str) -> None:
    """Read an open file to its end. Raises SourceError with a suggestion if it is no text in `encoding`."""
    codec = codec_of(encoding)
    decoder = codecs.getincrementaldecoder(codec)()
    data = _piece(file)
    if name := _other_mark(data, codec):
        raise _misfit(path, encoding, f"the file begins with the byte-order mark of {name}", name)
    wide, line = _wide(data), 1
    while True:
        try:
            found = decoder.decode(data, final=not data)
        except UnicodeError as error:
            if wide:
                raise _misfit(path, encoding, f"every other byte is 0, as in {wide}", wide) from error
            line += data.count(b"\n", 0, getattr(error, "start", 0))
            raise SourceError(
                Code.WRONG_ENCODING, f"dataset.encoding={encoding} does not fit {path}, line {line}: {suggestion(data)}"
            ) from error
        if wide and "\0" in found[:100]:
            raise _misfit(path, encoding, f"every other byte is 0, as in {wide}", wide)
        if not data:
            return
        line += data.count(b"\n")
        data = _piece(file)


def _piece(file: Bytes) -> bytes:
    """Return the next bytes, to the end of a line, so that a suggestion can be read."""
    return file.read(_PIECE) + file.readline()


@contextmanager
def stream(path: Path, encoding: str, newline: str) -> Iterator[io.TextIOWrapper]:
    """Open the text of a file that `check` has passed, after its byte-order mark. `newline` is that of `open`."""
    codec = codec_of(encoding)
    with opened(path) as (_, file):
        head = file.read(4)
        marks = (mark for mark, _ in _MARKS if head.startswith(mark) and mark.decode(codec, "replace") == "\ufeff")
        file.seek(len(next(marks, b"")))
        yield io.TextIOWrapper(file, codec, newline=newline)


def start(data: bytes, encoding: str) -> str:
    """Return the text of a file's first bytes. Raises ValueError or LookupError if `text` would raise SourceError."""
    codec = codec_of(encoding)
    if _other_mark(data, codec):
        raise ValueError(encoding)
    return data.decode(codec, "replace").removeprefix("\ufeff")


def _other_mark(data: bytes, codec: str) -> str | None:
    """Return the encoding whose byte-order mark the data begin with, if it is not that of `codec`."""
    mark, name = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", None))
    return name if mark.decode(codec, "replace").strip("\ufeff") else None


def codec_of(encoding: str) -> str:
    """Return Python's name of an encoding. `utf8-bom` and similar names are UTF-8. Raises SourceError."""
    name = re.sub(r"^utf[-_ ]?8[-_ ]?(sig|bom)$", "utf-8", encoding.strip().lower())
    try:
        codec = codecs.lookup(name).name
        with suppress(UnicodeError):
            b"a".decode(codec)  # "hex" is a codec, but not an encoding of text
    except (LookupError, ValueError) as error:
        raise SourceError(
            Code.WRONG_ENCODING, f"dataset.encoding={encoding}: Python knows no such encoding of text."
        ) from error
    return codec


def _misfit(path: Path, encoding: str, found: str, fitting: str) -> SourceError:
    return SourceError(
        Code.WRONG_ENCODING,
        f"dataset.encoding={encoding} does not fit {path}: {found}. Set dataset.encoding={fitting}.",
    )


def _wide(data: bytes) -> str | None:
    """Return the UTF-16 encoding of data without a mark: if letters are ASCII, every other byte is 0."""
    even, odd = data[:16:2].count(0), data[1:16:2].count(0)
    return "utf-16-le" if odd > 5 and not even else "utf-16-be" if even > 5 and not odd else None


def suggestion(data: bytes) -> str:
    """Return a sentence on likely encodings, each with a line as it then reads, so that a person can choose."""
    from charset_normalizer import from_bytes

    lines = [line for line in data[:_PIECE].splitlines() if not line.isascii()]
    if not lines:
        return "the file ends within a character. Is it complete?"
    sample = b"\n".join(lines)[:_SAMPLE].rpartition(b"\n")[0] or lines[0][:_SAMPLE]
    likely = [match.encoding for match in from_bytes(sample, cp_isolation=_COMMON)]
    if likely[:1] == ["cp1250"]:  # cp1250 and cp1252 differ in eastern European letters only
        likely.insert(0, "cp1252")
    readings = {}
    for name in likely:
        try:
            readings[name] = _around(lines[0].decode(name))
        except UnicodeDecodeError:
            continue
    if not readings:
        return "and none of the usual encodings does. Is it a text file?"
    shown = [f"dataset.encoding={name} reads {line!r}" for name, line in list(readings.items())[:3]]
    return f"{'; '.join(shown)}. Set the one that reads as it should."


def _around(line: str) -> str:
    """Return some characters on both sides of the first one that is not ASCII."""
    at = next((at for at, letter in enumerate(line) if not letter.isascii()), 0)
    return line[max(0, at - 8) : at + 12].strip()
