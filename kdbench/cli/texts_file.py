"""The texts for a prediction from a file, or from stdin."""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kdbench.console import text_bar
from kdbench.data import raw
from kdbench.errors import Code, SourceError, UserError
from kdbench.schema import DatasetConfig
from kdbench.sources import files
from kdbench.storage import files as store

_TOLD = 10_000  # rows between two updates of the bar


def texts(path: Path, trained: DatasetConfig) -> Iterator[raw.Row]:
    """Yield the texts of each row, read like the training data. Raises UserError."""
    try:
        yield from raw.texts(path, trained)
    except SourceError as error:
        if error.code != Code.WRONG_ENCODING:
            raise
        windows = f"iconv -f cp1252 -t utf-8 {path} > utf8{path.suffix} converts a Windows file"
        also = "" if trained.encoding.lower().startswith("utf") else f" or {trained.encoding}"
        raise UserError(error.code, f"{path}: must be UTF-8{also}. {windows}, -f gb18030 a Chinese one") from error


class Count(NamedTuple):
    rows: int
    blank: int


def count(path: Path, trained: DatasetConfig, quiet: bool) -> Count:
    """Read all rows once, so that a fault is found before a model answers any. Raises UserError if there is none."""
    rows = blank = 0
    with text_bar("reading", None, not quiet) as told:
        for row in texts(path, trained):
            rows += 1
            blank += raw.is_blank(row)
            if rows % _TOLD == 0:
                told(_TOLD, False)
    if not rows:
        raise UserError(Code.UNREADABLE_TABLE, f"{path} has no rows. Give a file with texts")
    return Count(rows, blank)


def digest(path: Path, trained: DatasetConfig) -> str:
    """Return the SHA-256 of a file and of all that determines how it is read. Raises UserError."""
    reading = [files.ending(path.name), trained.text, trained.text_pair, trained.encoding, trained.delimiter]
    try:
        content = store.sha256_of(path)
    except OSError as error:
        raise UserError(Code.MISSING_FILE, f"{path}: {error.strerror}") from error
    return hashlib.sha256(json.dumps([content, *reading, trained.header, trained.subset]).encode()).hexdigest()


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """Yield the path; for `-`, that of a temporary copy of stdin, which is read more than once."""
    if str(path) != "-":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        copy = Path(folder) / "stdin"
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield copy
