"""The texts for a prediction from a file, or from stdin."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdbench.data import raw
from kdbench.errors import Code, SourceError, UserError
from kdbench.schema import DatasetConfig


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
