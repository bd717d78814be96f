"""Files as they lie on the disk: which endings hold a table, what is packed in a .gz or .zip, bytes as text."""

import codecs
import gzip
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, NamedTuple

from kdbench.errors import Code, SourceError

TAGGED = (".conll", ".bio")  # a word a line, with its tag
TABLES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", *TAGGED)
TEXT = ".txt"  # texts without labels, one a line
PACKED = (".gz", ".zip")
FORMATS = f"a table ({', '.join(TABLES)}), {TEXT} for texts without labels, or one of these in a {' or '.join(PACKED)}"
_MARKS = (  # utf-32's little-endian mark begins with utf-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"\x84\x31\x95\x33", "gb18030"),
)
# Legacy encodings in which tables are still written; without a list charset-normalizer offers those of the 1970s.
_COMMON = [
    *("utf_8", "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1252", "cp1250", "cp1251", "koi8_r", "cp1253"),
    *("cp1254", "cp1255", "cp1256", "cp1257", "cp874"),
]
_SAMPLE = 1 << 16  # bytes


def ending(name: str) -> str:
    """The ending that says what a file holds, in lower case: of reviews.csv.gz it is .csv, of x.zip .zip."""
    path = PurePath(name.lower())
    inner = PurePath(path.stem).suffix
    return inner if path.suffix in PACKED and inner in (*TABLES, TEXT) else path.suffix


def is_file_name(name: str) -> bool:
    """Whether it names a file that can be read, by its ending."""
    return ending(name) in (*TABLES, TEXT, ".zip")


class Opened(NamedTuple):
    ending: str
    file: IO[bytes] | gzip.GzipFile


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """The file, or the one that is packed in it. Raises SourceError where that cannot be read."""
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
    # macOS packs a shadow of each file
    names = [name for name in names if not name.startswith("__MACOSX/") and not PurePath(name).name.startswith(".")]
    if len(names) != 1 or ending(names[0]) not in (*TABLES, TEXT):
        inside = f"{len(names)} files ({', '.join(names[:4])})" if len(names) != 1 else names[0]
        raise SourceError(
            Code.UNREADABLE_ARCHIVE,
            f"{path} holds {inside}, and must hold one table. Unpack it and name the file that is meant.",
        )
    return names[0]


def text(path: Path, data: bytes, encoding: str) -> str:
    """The file's text, without a byte-order mark. Raises SourceError, with what fits, where `encoding` does not."""
    codec = codec_of(encoding)
    if name := _other_mark(data, codec):
        raise _misfit(path, encoding, f"the file begins with the byte-order mark of {name}", name)
    try:
        whole = data.decode(codec).removeprefix("\ufeff")
    except UnicodeError as error:
        if wide := _wide(data):
            raise _misfit(path, encoding, f"every other byte is 0, as in {wide}", wide) from error
        line = data.count(b"\n", 0, getattr(error, "start", 0)) + 1
        raise SourceError(
            Code.WRONG_ENCODING, f"dataset.encoding={encoding} does not fit {path}, line {line}: {suggestion(data)}"
        ) from error
    if "\0" in whole[:100] and (wide := _wide(data)):
        raise _misfit(path, encoding, f"every other byte is 0, as in {wide}", wide)
    return whole


def start(data: bytes, encoding: str) -> str:
    """The text of a file's first bytes. Raises ValueError or LookupError where `text` will say what is wrong."""
    codec = codec_of(encoding)
    if _other_mark(data, codec):
        raise ValueError(encoding)
    return data.decode(codec, "replace").removeprefix("\ufeff")


def _other_mark(data: bytes, codec: str) -> str | None:
    """The encoding whose byte-order mark the data begin with, where it is none of `codec`'s."""
    mark, name = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", None))
    return name if mark.decode(codec, "replace").strip("\ufeff") else None


def codec_of(encoding: str) -> str:
    """Python's name, which takes `utf8-bom` and its like for UTF-8."""
    name = re.sub(r"^utf[-_ ]?8[-_ ]?(sig|bom)$", "utf-8", encoding.strip().lower())
    try:
        codec = codecs.lookup(name).name
        with suppress(UnicodeError):
            b"a".decode(codec)  # "hex" is a codec and no encoding of text
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
    """UTF-16 without a mark: of ASCII letters, such as those of a header, every other byte is 0."""
    even, odd = data[:16:2].count(0), data[1:16:2].count(0)
    return "utf-16-le" if odd > 5 and not even else "utf-16-be" if even > 5 and not odd else None


def suggestion(data: bytes) -> str:
    """What encodings the bytes may be in, each with how a line then reads: a person sees which is right."""
    from charset_normalizer import from_bytes

    lines = [line for line in data[: 50 * _SAMPLE].splitlines() if not line.isascii()]
    sample = b"\n".join(lines)[:_SAMPLE].rpartition(b"\n")[0] or lines[0][:_SAMPLE]
    likely = [match.encoding for match in from_bytes(sample, cp_isolation=_COMMON)]
    if likely[:1] == ["cp1250"]:  # it and cp1252 differ in letters of eastern Europe alone
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
    """Some letters on both sides of the first that is not ASCII."""
    at = next((at for at, letter in enumerate(line) if not letter.isascii()), 0)
    return line[max(0, at - 8) : at + 12].strip()
