"""Read a table of any size in parts, by the rules of `kdbench.data.tables`: a few rows are in memory at a time."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.data import raw, tables
from kdbench.data.tables import Reading, Table
from kdbench.errors import Code, SourceError
from kdbench.schema import DatasetConfig
from kdbench.sources import files

_ROWS = 1000  # of a part


class Parts(NamedTuple):
    names: list[str]  # of the columns
    read: Callable[[Sequence[str]], Iterator[Table]]  # the columns that are needed -> the parts, in the file's order


def in_parts(path: Path, config: DatasetConfig) -> Parts:
    """Return the parts of the table in a file, which must have the columns of `config`. Raises SourceError.

    A `.json` and an `.xlsx` are one part, because their formats have no rows.
    """
    with files.opened(path) as (ending, file):
        if ending == ".parquet":
            packed = ending != path.suffix.lower()
            return _parquet(path, io.BytesIO(file.read()) if packed else path, config)
    if ending in (".csv", ".tsv", ".tab"):
        return _delimited(path, ending, raw.encoding_of(path, config.encoding), config)
    if ending in (".jsonl", ".ndjson"):
        return _objects(path, raw.encoding_of(path, config.encoding), config)
    table = tables.read(path, config)
    return Parts(table.names, lambda columns: iter([table]))


def _parquet(path: Path, source: Path | io.BytesIO, config: DatasetConfig) -> Parts:
    with tables.unreadable_parquet(path):
        _, names, _ = tables.opened_parquet(path, source, config)

    def read(columns: Sequence[str]) -> Iterator[Table]:
        with tables.unreadable_parquet(path):
            file, _, outer = tables.opened_parquet(path, source, replace(config, label=[*columns]))
            first = 1
            for batch in file.iter_batches(_ROWS, columns=outer, use_threads=False):  # a thread keeps memory of its own
                yield tables.of_arrow(path, names, batch, first)
                first += batch.num_rows

    return Parts(names, read)


def _delimited(path: Path, ending: str, encoding: str, config: DatasetConfig) -> Parts:
    with files.stream(path, encoding, newline="") as stream:
        start = tables.with_line_ends(stream.read(tables.START), encoding)
    header = tables.checked_header(path, ending, start, config)
    width = len(header.names)

    def lines() -> Iterator[str]:
        return raw.table_lines(path, encoding, header.begin)

    quoting = tables.quoting_of(path, lines, header)
    reading = Reading(str(path), ending.removeprefix("."), header.separator, encoding)

    def kept() -> Iterator[tuple[int, list[str]]]:
        """Yield the rows as wide as the header. Raises SourceError at the end if too many are not."""
        every, others, first = 0, 0, (0, [""])
        for line, row in islice(tables.rows(path, lines(), header, quoting), header.rows, None):
            if tables.blank(row):
                continue
            every += 1
            if not "".join(row[width:]).strip():
                del row[width:]
            if len(row) == width:
                yield line, row
            else:
                first, others = first if others else (line, row), others + 1
        if others > tables.MOST_LEFT_OUT * every:
            what = tables.other_width(path, *first, f"{others} of {every}", header)
            raise SourceError(Code.UNREADABLE_TABLE, what)

    def cells(rows: list[list[str]], name: str) -> list[Any]:
        at = header.names.index(name)
        return [row[at] for row in rows]

    return Parts(header.names, lambda columns: _tables(header.names, kept(), cells, reading))


def _objects(path: Path, encoding: str, config: DatasetConfig) -> Parts:
    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        with files.stream(path, encoding, newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, tables.json_object(path, number, line)

    names = tables.json_names(row for _, row in objects())
    if not names:
        raise SourceError(Code.UNREADABLE_TABLE, f"{path} is empty.")
    tables.require(path, names, config)
    reading = Reading(str(path), "jsonl", encoding=encoding)

    def cells(rows: list[dict[str, Any]], name: str) -> list[Any]:
        return [tables.reached(row, name) for row in rows]

    return Parts(names, lambda columns: _tables(names, objects(), cells, reading))


def _tables(
    names: list[str],
    rows: Iterator[tuple[int, Any]],
    cells: Callable[[list[Any], str], list[Any]],
    reading: Reading,
) -> Iterator[Table]:
    """Yield the (line, row) in tables of at most _ROWS; `cells` returns a column of some rows."""
    while part := list(islice(rows, _ROWS)):
        lines, found = [line for line, _ in part], [row for _, row in part]
        yield Table(names, lambda name, found=found: cells(found, name), lines, reading)  # type: ignore[misc]
