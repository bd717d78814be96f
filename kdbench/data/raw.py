"""Stream the texts of a file of any size, without labels: only a few rows are in memory at a time."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from kdbench.data import tables
from kdbench.errors import Code, SourceError
from kdbench.schema import DatasetConfig
from kdbench.sources import files
from kdbench.tasks.cells import Place, text_of

Row = tuple[str, ...]  # a text, or two
_ROWS = 1000  # of a parquet file, read at a time


def texts(path: Path, config: DatasetConfig) -> Iterator[Row]:
    """Yield the text of each row, or two if `config.text_pair` is set, in the order of the file.

    A table is read by the rules of `kdbench.data.tables`; only the columns with the texts must be there. Any other file
    has one text per line, or two with a tab between them. A row without a text yields empty texts, so that rows and
    results correspond. The encoding is UTF-8 or, if the file does not fit, `config.encoding`. A `.json` and an `.xlsx`
    are read as a whole, because their formats have no rows. Raises SourceError.
    """
    config = replace(config, label=config.text)  # no label is read
    columns = [config.text] if config.text_pair is None else [config.text, config.text_pair]
    try:
        with files.opened(path) as (ending, file):
            match ending:
                case ".parquet":
                    packed = ending != path.suffix.lower()
                    yield from _parquet(path, io.BytesIO(file.read()) if packed else path, config, columns)
                    return
                case ".json" | ".xlsx":
                    table = tables.read(path, config)
                    cells = zip(*(table.column(name) for name in columns), strict=True)
                    for line, row in zip(table.lines, cells, strict=True):
                        yield tuple(_text(cell, path, table.reading.unit, line) for cell in row)
                    return
        encoding = encoding_of(path, config.encoding)
        match ending:
            case ".csv" | ".tsv" | ".tab":
                yield from _table(path, ending, encoding, config, columns)
            case ".jsonl" | ".ndjson":
                yield from _objects(path, encoding, config, columns)
            case _:
                yield from _lines(path, encoding, len(columns))
    except OSError as error:
        raise SourceError(Code.MISSING_FILE, f"{path}: {error.strerror}") from error


def is_blank(row: Row) -> bool:
    return not "".join(row).strip()


def encoding_of(path: Path, other: str) -> str:
    """Return UTF-8 or else the other encoding, whichever fits the file."""
    try:
        with files.opened(path) as (_, file):
            files.check(path, file, "utf-8")
    except SourceError as error:
        if error.code != Code.WRONG_ENCODING or files.codec_of(other) == "utf-8":
            raise
    else:
        return "utf-8"
    with files.opened(path) as (_, file):
        files.check(path, file, other)
    return other


# --- text with separators


def _table(path: Path, ending: str, encoding: str, config: DatasetConfig, columns: Sequence[str]) -> Iterator[Row]:
    with files.stream(path, encoding, newline="") as stream:
        start = tables.with_line_ends(stream.read(tables.START), encoding)
    header = tables.checked_header(path, ending, start, config)
    at = [header.names.index(name) for name in columns]

    def lines() -> Iterator[str]:
        return table_lines(path, encoding, header.begin)

    quoting = tables.quoting_of(path, lines, header)
    for _, row in islice(tables.rows(path, lines(), header, quoting), header.rows, None):
        yield tuple(row[index] if index < len(row) else "" for index in at)


def table_lines(path: Path, encoding: str, begin: int) -> Iterator[str]:
    """Yield the lines from character `begin` on with their ends, as csv wants them."""
    with files.stream(path, encoding, newline="") as stream:
        stream.read(begin)
        if tables.with_line_ends("\x85", encoding) == "\x85":
            yield from stream
        else:
            for line in stream:
                yield from io.StringIO(tables.with_line_ends(line, encoding), newline="")


# --- other formats


def _objects(path: Path, encoding: str, config: DatasetConfig, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the texts of JSON lines. A key may be absent in some objects, but not in all."""
    absent, first = set(columns), None
    with files.stream(path, encoding, newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            row = tables.json_object(path, number, line) if line.strip() else None
            if absent and row is not None:
                names = tables.json_names(iter([row]))
                absent -= set(names)
                first = first or names
            yield tuple(_text(tables.reached(row, name), path, "line", number) for name in columns)
    if absent and first is not None:
        tables.require(path, first, config)


def _parquet(path: Path, source: Path | io.BytesIO, config: DatasetConfig, columns: Sequence[str]) -> Iterator[Row]:
    with tables.unreadable_parquet(path):
        file, _, outer = tables.opened_parquet(path, source, config)
        batches = file.iter_batches(_ROWS, columns=outer, use_threads=False)  # a thread keeps memory of its own
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield tuple(_text(tables.reached(row, name), path, "row", number) for name in columns)


def _lines(path: Path, encoding: str, columns: int) -> Iterator[Row]:
    with files.stream(path, encoding, newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            text = line.removesuffix("\n").rstrip("\r")
            row = tuple(text.split("\t")) if columns > 1 else (text,)
            if len(row) == columns:
                yield row
            elif not text.strip():
                yield ("",) * columns
            else:
                raise SourceError(
                    Code.MISMATCHED_INPUT, f"{path}, line {number}: must have two texts with a tab between them"
                )


def _text(value: Any, path: Path, unit: str, line: int) -> str:
    """Return a cell's text. Numbers are written as Python writes them, words of a list are joined by spaces."""
    if value is None or value != value:
        return ""
    where = Place(f"{path}, {unit}", line)
    return text_of(value if isinstance(value, str | list) else str(value), "text", where, False)
