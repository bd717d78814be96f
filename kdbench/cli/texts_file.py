"""The texts for a prediction from a file: one row each, in the file's order, including blank ones."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from kdbench.data import tables
from kdbench.errors import Code, UserError
from kdbench.schema import DatasetConfig
from kdbench.sources import files

Row = tuple[str, ...]  # a text, or two


def read(path: Path, trained: DatasetConfig) -> list[Row]:
    """Return the rows of a table, in the columns of the training data, or the lines of any other file.

    A line of pairs has two texts with a tab between them. The encoding is UTF-8 or else that of the training data. A
    row without a text becomes blank texts, so that answers and rows correspond. Raises UserError.
    """
    config = replace(trained, label=trained.text)  # a prediction needs no labels
    columns = [name for name in (config.text, config.text_pair) if name is not None]
    try:
        if str(path) == "-":
            ending, data = "", sys.stdin.buffer.read()
        else:
            with files.opened(path) as (ending, file):
                data = file.read()
        if ending in (".json", ".parquet", ".xlsx"):
            return _whole_table(path, config, columns)
        text = _decoded(path, data, config.encoding)
    except OSError as error:
        raise UserError(Code.MISSING_FILE, f"--file {path}: {error.strerror}") from error
    match ending:
        case ".csv" | ".tsv" | ".tab":
            return list(_table(path, ending, text, config, columns))
        case ".jsonl" | ".ndjson":
            return list(_objects(path, text, columns))
        case _:
            return list(_lines(path, text, columns))


def _decoded(path: Path, data: bytes, trained: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if files.codec_of(trained) != "utf-8":
            return files.text(path, data, trained)
        windows = f"iconv -f cp1252 -t utf-8 {path} > utf8{path.suffix} converts a Windows file"
        raise UserError(
            Code.WRONG_ENCODING,
            f"--file {path}: must be UTF-8 (byte {error.start}). {windows}, -f gb18030 a Chinese one",
        ) from error


def _whole_table(path: Path, config: DatasetConfig, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a table in a format without lines."""
    table = tables.read(path, config)
    return [
        tuple("" if cell is None else str(cell) for cell in row)
        for row in zip(*(table.column(name) for name in columns), strict=True)
    ]


def _table(path: Path, ending: str, text: str, config: DatasetConfig, columns: Sequence[str]) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    header = tables.header_of(path, ending, text[: tables.START], config)
    _require(f"{path}", header.names, columns)
    at = [header.names.index(name) for name in columns]
    rows = csv.reader(io.StringIO(text[header.begin :], newline=""), delimiter=header.separator)
    for row in islice(rows, header.rows, None):
        yield tuple(row[index] if index < len(row) else "" for index in at)


def _objects(path: Path, text: str, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(_whole_lines(text), start=1):
        try:
            row: Any = json.loads(line) if line.strip() else dict.fromkeys(columns, "")
        except ValueError as error:
            raise UserError(Code.UNREADABLE_TABLE, f"--file {path}, line {number}: must be JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(
                Code.UNREADABLE_TABLE,
                f'--file {path}, line {number}: must be an object, such as {{"{columns[0]}": "..."}}',
            )
        _require(f"{path}, line {number}", list(row), columns)
        yield tuple("" if row[name] is None else str(row[name]) for name in columns)


def _lines(path: Path, text: str, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(_whole_lines(text), start=1):
        row = tuple(line.split("\t")) if len(columns) > 1 else (line,)
        if len(row) == len(columns):
            yield row
        elif not line.strip():
            yield ("",) * len(columns)
        else:
            raise UserError(
                Code.MISMATCHED_INPUT,
                f"--file {path}, line {number}: must have two texts with a tab between them",
            )


def _whole_lines(text: str) -> list[str]:
    """Return the lines, each ended by a line feed except perhaps the last."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    return lines[:-1] if not lines[-1] else lines


def _require(where: str, names: list[str], columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in names]:
        there = ", ".join(names)
        raise UserError(
            Code.MISSING_COLUMN,
            f"--file {where}: must have {missing[0]!r}, the column of the training texts; it has {there}",
        )
