"""Texts that stay on the disk: they are read when they are accessed, a record batch at a time, and not mapped.

A map would count as memory of the process once all texts were read.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

TEXTS = ("text", "pair")  # columns of texts
_FEW = 1000  # rows that are read at a time


class _Part(Protocol):
    """Consecutive texts in pieces."""

    sizes: list[int]  # of the pieces

    def piece(self, number: int) -> list[str]: ...


class _Stored:
    """A column of a file. The file stays open, so that it can be read even if it is removed."""

    def __init__(self, file: Any, sizes: list[int], field: int) -> None:
        self.sizes = sizes
        self.reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[field]))

    def piece(self, number: int) -> list[str]:
        found: list[str] = self.reader.get_batch(number).column(0).to_pylist()
        return found


class _Listed:
    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = [*texts]
        self.sizes = [len(texts)]

    def piece(self, number: int) -> list[str]:
        return self.texts


class Column(Sequence[str]):
    """A sequence of texts, of which one piece at a time is in memory."""

    def __init__(self, parts: Sequence[_Part], rows: NDArray[np.int64] | None = None) -> None:
        """Choose `rows` of the parts, in this order; None: all."""
        self.parts, self.rows = parts, rows
        self.pieces = [(part, number) for part in parts for number in range(len(part.sizes))]
        self.ends = np.cumsum([size for part in parts for size in part.sizes], dtype=np.int64)
        self.last: tuple[int, list[str]] = (-1, [])  # the piece that was read last

    def __len__(self) -> int:
        return self._size if self.rows is None else len(self.rows)

    @property
    def _size(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __iter__(self) -> Iterator[str]:
        if self.rows is None:
            for part, number in self.pieces:
                yield from part.piece(number)
        else:
            for start in range(0, len(self.rows), _FEW):
                yield from self._at(self.rows[start : start + _FEW])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        chosen = range(len(self))[index]  # raises IndexError
        places = np.arange(chosen.start, chosen.stop, chosen.step) if isinstance(chosen, range) else np.array([chosen])
        found = self._at(places if self.rows is None else self.rows[places])
        return found if isinstance(index, slice) else found[0]

    def _at(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the texts in these rows of the parts."""
        of = np.searchsorted(self.ends, rows, side="right")
        found = [""] * len(rows)
        for piece in np.unique(of).tolist():
            first, texts = int(self.ends[piece - 1]) if piece else 0, self._piece(piece)
            for place in np.flatnonzero(of == piece).tolist():
                found[place] = texts[int(rows[place]) - first]
        return found

    def _piece(self, number: int) -> list[str]:
        if self.last[0] != number:
            part, its = self.pieces[number]
            self.last = (number, part.piece(its))
        return self.last[1]


def stored_columns(path: Path) -> tuple[Any, dict[str, Column]]:
    """Return the numbers in a file of record batches as a table, and the columns of TEXTS that it has."""
    file = pa.OSFile(str(path))
    names = pa.ipc.open_file(file).schema.names
    others = pa.ipc.IpcReadOptions(included_fields=[at for at, name in enumerate(names) if name not in TEXTS])
    reader = pa.ipc.open_file(file, options=others)
    batches = [_copy(reader.get_batch(number)) for number in range(reader.num_record_batches)]
    sizes = [batch.num_rows for batch in batches]
    texts = {name: Column([_Stored(file, sizes, at)]) for at, name in enumerate(names) if name in TEXTS}
    return pa.Table.from_batches(batches), texts


def _copy(batch: Any) -> Any:
    """Return a batch with memory of its own. What a reader gives keeps all that was read, texts as well."""
    columns = [pa.concat_arrays([column, column[:0]]) for column in batch.columns]
    return pa.record_batch(columns, names=batch.schema.names)


def taken(texts: Sequence[str], rows: NDArray[np.int64]) -> Sequence[str]:
    """Return the texts in these rows. Many texts that are on the disk stay there."""
    if isinstance(texts, Column) and len(rows) > _FEW:
        return Column(texts.parts, rows if texts.rows is None else texts.rows[rows])
    return [texts[row] for row in rows.tolist()]


def joined(first: Sequence[str], second: Sequence[str]) -> Column:
    """Return the texts of both. Those that are on the disk stay there."""
    one, two = (part if isinstance(part, Column) else Column([_Listed(part)]) for part in (first, second))
    rows = None
    if one.rows is not None or two.rows is not None:
        of_one, of_two = (np.arange(part._size) if part.rows is None else part.rows for part in (one, two))
        rows = np.concatenate([of_one, of_two + one._size])
    return Column([*one.parts, *two.parts], rows)
