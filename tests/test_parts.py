"""Tables that are read in parts: the same cells and lines as in one piece, and little memory."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from kdbench.data import parts, tables
from kdbench.errors import Code, SourceError
from kdbench.schema import DatasetConfig
from kdbench.sources import files
from tests.memory import peak

CONFIG = DatasetConfig(text="text", label="p")
HARD = ["plain", 'two, and "quotes"', "a line\nbreak", "", "ß€", "  spaces  "]


def write(path: Path, texts: list[str]) -> Path:
    rows: list[dict[str, Any]] = [{"text": text, "p": at / 10, "inner": {"q": at}} for at, text in enumerate(texts)]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        quoted = ['"{}",{}'.format(row["text"].replace('"', '""'), row["p"]) for row in rows]
        path.write_text("\n".join(["text,p", *quoted]) + "\n", encoding="utf8")
    else:
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), encoding="utf8")
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_parts_are_the_table(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(parts, "_ROWS", 4)
    path = write(tmp_path / f"x.{ending}", HARD)
    whole, found = tables.read(path, CONFIG), parts.in_parts(path, CONFIG)
    every = list(found.read(["p"]))
    assert found.names == whole.names and len(every) == 2
    for name in ("text", "p"):
        assert [cell for part in every for cell in part.column(name)] == list(whole.column(name))
    assert [line for part in every for line in part.lines] == list(whole.lines)
    assert every[0].reading.unit == whole.reading.unit
    if ending != "csv":
        inner = [cell for part in found.read(["inner.q"]) for cell in part.column("inner.q")]
        assert inner == list(range(len(HARD)))


def test_rows_of_another_width_are_left_out_or_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,p\n" + "a,1\n" * 9 + "a,1,,\n" + "b,1,2\n")
    assert sum(len(part.lines) for part in parts.in_parts(path, CONFIG).read(["p"])) == 10
    path.write_text("text,p\na,1\nb,1,2\n")
    with pytest.raises(SourceError, match="1 of 2 rows have another number of columns than the header") as error:
        list(parts.in_parts(path, CONFIG).read(["p"]))
    assert error.value.code == Code.UNREADABLE_TABLE


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_many_rows_take_no_more_memory_than_few(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(files, "_PIECE", 1 << 14)  # bytes that are checked at a time

    def read(path: Path) -> None:
        for part in parts.in_parts(path, CONFIG).read(["p"]):
            part.column("text")

    few, many = (
        write(tmp_path / f"{n}.{ending}", [f"text {at} {'x' * 80}" for at in range(n)]) for n in (5000, 30_000)
    )
    read(few)  # imports
    assert peak(lambda: read(many)) < 1.2 * peak(lambda: read(few))
