"""Texts to be asked about, from a file: a row each, in the file's order, blank ones too."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from kdbench.data import tables
from kdbench.errors import UserError
from kdbench.schema import DatasetConfig
from kdbench.sources import files

Row = tuple[str, ...]  # a text, or two


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a table in these columns, one or two; of another file its lines, of two with a tab between.

    A row without a text is one of blank texts, so that answers stand beside the file's rows. Raises UserError.
    """
    try:
        if str(path) == "-":
            ending, data = "", sys.stdin.buffer.read()
        else:
            with files.opened(path) as (ending, file):
                data = file.read()
        if ending in (".json", ".parquet", ".xlsx"):
            return _whole_table(path, columns)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        convert = (
            f"iconv -f cp1252 -t utf-8 {path} > utf8{path.suffix} converts a Windows file, -f gb18030 a Chinese one"
        )
        reason = error.strerror if isinstance(error, OSError) else f"is not UTF-8 (byte {error.start}): {convert}"
        raise UserError(f"--file {path}: {reason}") from error
    match ending:
        case ".csv" | ".tsv" | ".tab":
            return list(_table(path, ending, text, columns))
        case ".jsonl" | ".ndjson":
            return list(_objects(path, text, columns))
        case _:
            return list(_lines(path, text, columns))


def _as_read(columns: Sequence[str]) -> DatasetConfig:
    return DatasetConfig(text=columns[0], text_pair=columns[1] if len(columns) > 1 else None, label=columns[0])


def _whole_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """Of a format that has no lines."""
    table = tables.read(path, _as_read(columns))
    return [
        tuple("" if cell is None else str(cell) for cell in row)
        for row in zip(*(table.column(name) for name in columns), strict=True)
    ]


def _table(path: Path, ending: str, text: str, columns: Sequence[str]) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    header = tables.header_of(path, ending, text[: tables.START], _as_read(columns))
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
            raise UserError(f"--file {path}, line {number}: is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f'--file {path}, line {number}: must be an object, such as {{"{columns[0]}": "..."}}')
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
            raise UserError(f"--file {path}, line {number}: this model reads two texts with a tab between them")


def _whole_lines(text: str) -> list[str]:
    """What ends at a line feed; the last needs none."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    return lines[:-1] if not lines[-1] else lines


def _require(where: str, names: list[str], columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in names]:
        there = ", ".join(names)
        raise UserError(
            f"--file {where}: has no {missing[0]!r}, where this model's texts were in training; it has {there}"
        )
