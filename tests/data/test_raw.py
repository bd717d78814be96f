"""Texts without labels, streamed: the same rows as kdbench.data.tables reads, an empty one for each blank row."""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from kdbench.data import raw
from kdbench.errors import Code
from kdbench.sources import files
from tests.data.test_messy_tables import config, read, spelled
from tests.memory import peak
from tests.refusals import refused


def texts(path: Path, content: str | bytes | None = None, **keys: Any) -> list[tuple[str, ...]]:
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(raw.texts(path, config(path, **keys)))


ROWS = [("good: fine; cheap|ok", "a"), ("bad, late", "b"), ("so\nso", "a"), ('he said "no"', "b"), ("", "a")]
CONTENTS = {  # legal tables, of which tables.read drops no row
    "plain.csv": spelled(","),
    "semicolon.csv": spelled(";"),
    "tab.tsv": spelled("\t"),
    "mac.csv": "text,label\rone,a\rtwo,b\r",
    "excel.csv": "sep=;\r\n\r\n" + spelled(";"),
    "marked.csv": "\ufeff" + spelled(","),
    "orange.tab": "text\tlabel\nstring\td\nmeta\tclass\none\ta\ntwo\tb\n",
    "ordinary.tsv": 'text\tlabel\n"open\ta\nnot\tb\nso" he\tb\n',
    "ordinary.csv": 'text,label\n"open,a\nnot,b\nso",b\n',
    "inside.csv": 'text,label\n5" wide,a\nfine,b\n',
    "no_end.csv": "text,label\none,a\ntwo,b",
    "wide.csv": "text,label\none \u2028 line,a\nand\x0cone,b\n",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_table_is_read_as_the_training_data_are(tmp_path: Path, name: str) -> None:
    rows = read(tmp_path / name, CONTENTS[name])
    assert texts(tmp_path / name) == [(text,) for text in rows.texts]
    assert texts(tmp_path / name, text_pair="label") == list(zip(rows.texts, rows.labels, strict=True))


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "gb18030", "latin-1"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "txt"])
def test_the_encoding_is_utf_8_or_else_the_training_datas(tmp_path: Path, ending: str, encoding: str) -> None:
    lines = {"csv": ["text,label", "schön,a", "übel,b"], "txt": ["schön", "übel"]}
    lines["jsonl"] = [json.dumps({"text": text}, ensure_ascii=False) for text in lines["txt"]]
    path = tmp_path / f"x.{ending}"
    for codec in (encoding, "utf-8", "utf-8-sig"):
        assert texts(path, "\n".join(lines[ending]).encode(codec), encoding=encoding) == [("schön",), ("übel",)]
    mark = "" if encoding == "utf-16" else "\ufeff"  # Python writes that of utf-16 itself
    marked = (mark + "\n".join(lines[ending])).encode(encoding.removesuffix("-sig"), "ignore")
    assert texts(path, marked, encoding=encoding) == [
        ("schön",),
        ("übel",),
    ]


def test_a_latin_1_table_has_lines_that_end_in_nel(tmp_path: Path) -> None:
    content = "text,label\nschön,a\x85übel,b\n".encode("latin-1")
    rows = read(tmp_path / "x.csv", content, encoding="latin-1")
    assert texts(tmp_path / "x.csv", encoding="latin-1") == [(text,) for text in rows.texts] == [("schön",), ("übel",)]


def test_a_fault_of_the_encoding_is_found_in_any_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PIECE", 64)
    lines = [*(f"line {at} is good" for at in range(50)), "Grüße", *("and so on" for _ in range(50))]
    path = tmp_path / "x.txt"
    assert texts(path, "\n".join(lines)) == [(line,) for line in lines]
    with refused(Code.WRONG_ENCODING, "line 51", "dataset.encoding=cp1252 reads 'Grüße'"):
        texts(path, "\n".join(lines).encode("cp1252"))
    for cut in ("Grü".encode()[:-1], "\n".join(lines).encode("utf-16")[:-1]):
        with refused(Code.WRONG_ENCODING, path):
            texts(path, cut, encoding="utf-8")
    with refused(Code.WRONG_ENCODING, "ends within a character"):
        files.check(path, io.BytesIO("a\n".encode("utf-16-le")[:-1]), "utf-16-le")


OTHERS = {
    "x.jsonl": '{"text": "one", "label": "a"}\n\n{"text": null}\r\n{"label": "b"}\n{"text": ["two", "words"]}\n',
    "nested.jsonl": '{"m": {"text": "one"}}\n{"m": null}\n{}\n{"m": {}}\n{"m": {"text": "two words"}}',
    "x.json": '[{"text": "one"}, {"text": ""}, {"text": null}, {"y": 1}, {"text": "two words"}]',
    "x.txt": "one\n\n\n\r\ntwo words",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("packed", ["", ".gz", ".zip"])
def test_blank_rows_are_rows(tmp_path: Path, name: str, packed: str) -> None:
    path, content = tmp_path / f"{name}{packed}", OTHERS[name].encode()
    if packed == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
    else:
        path.write_bytes(gzip.compress(content) if packed else content)
    column = "m.text" if name.startswith("nested") else "text"
    assert texts(path, text=column) == [("one",), ("",), ("",), ("",), ("two words",)]


def test_parquet_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_ROWS", 2)
    table = {"text": ["one", None, "two"], "pair": [1, 2.5, float("nan")], "m": [{"text": "a"}, None, {"text": "b"}]}
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pa.table(table), path)
    assert texts(path, text_pair="m.text") == [("one", "a"), ("", ""), ("two", "b")]
    assert texts(path, text_pair="pair") == [("one", "1.0"), ("", "2.5"), ("two", "")]
    (tmp_path / "y.parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert texts(tmp_path / "y.parquet.gz") == [("one",), ("",), ("two",)]
    with refused(Code.MISSING_COLUMN, "dataset.text=body", "it has text, pair, m, m.text"):
        texts(path, text="body")
    with refused(Code.UNREADABLE_TABLE, path):
        texts(path, b"no parquet")


def test_no_header_and_two_texts_in_a_line(tmp_path: Path) -> None:
    assert texts(tmp_path / "x.csv", "a,one\nb,two\n", text="2", header=False) == [("one",), ("two",)]
    assert texts(tmp_path / "x.txt", "a\tone\n\nb\ttwo\n", text_pair="b") == [("a", "one"), ("", ""), ("b", "two")]
    with refused(Code.MISMATCHED_INPUT, "line 2"):
        texts(tmp_path / "x.txt", "a\tone\nb\n", text_pair="b")


@pytest.mark.parametrize(
    ("name", "content", "code", "named"),
    [
        ("x.csv", "", Code.UNREADABLE_TABLE, "is empty"),
        ("x.csv", "body,label\na,b\n", Code.MISSING_COLUMN, "it has body, label"),
        ("x.csv", "text,text\na,b\n", Code.MISSING_COLUMN, "2 columns"),
        ("x.csv", 'text,label\n"a",b\n"open,b\nc,d\n', Code.UNREADABLE_TABLE, "line 3"),
        ("x.jsonl", '{"text": "a"}\n{', Code.UNREADABLE_TABLE, "line 2"),
        ("x.jsonl", '{"text": "a"}\n[1]', Code.UNREADABLE_TABLE, "line 2"),
        ("x.jsonl", '{"text": "\\ud800"}\n', Code.INVALID_TEXT, "line 1"),
        ("x.jsonl", '{"body": "a"}\n{"body": "b"}\n', Code.MISSING_COLUMN, "it has body"),
        ("x.json", "{", Code.UNREADABLE_TABLE, "not JSON"),
        ("x.csv.gz", "text,label\n", Code.UNREADABLE_ARCHIVE, "cannot be unpacked"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, content: str, code: Code, named: str) -> None:
    with refused(code, name, named):
        texts(tmp_path / name, content)


def test_no_such_file_or_a_folder(tmp_path: Path) -> None:
    for name in ("none.csv", "."):
        with refused(Code.MISSING_FILE, tmp_path / name):
            texts(tmp_path / name)


def of_rows(path: Path, rows: int) -> Path:
    """A file of different texts; a Parquet file of row groups of 5,000."""
    lines = [f"text number {row} of many, and so on and on" for row in range(rows)]
    match path.suffix:
        case ".parquet":
            pyarrow.parquet.write_table(pa.table({"text": lines}), path, row_group_size=5000, use_dictionary=False)
        case ".jsonl":
            path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        case ".csv":
            path.write_text("text,label\n" + "".join(f'"{line}",a\n' for line in lines))
        case _:
            path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl", "parquet"])
def test_a_larger_file_needs_no_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """That of Python, and that of Arrow, which Python does not count."""
    monkeypatch.setattr(files, "_PIECE", 1 << 14)  # smaller than the files
    held, arrow = [], []
    for rows in (5000, 30_000):
        path = of_rows(tmp_path / f"{rows}.{ending}", rows)
        wanted, most = config(path), 0

        def read(path: Path = path, wanted: Any = wanted) -> None:
            nonlocal most
            for number, _ in enumerate(raw.texts(path, wanted)):
                most = max(most, pa.total_allocated_bytes()) if number % 500 == 0 else most

        before = pa.total_allocated_bytes()
        held.append(peak(read))
        arrow.append(most - before)
    assert held[1] < 1.2 * held[0] + 50_000
    assert arrow[1] < 1.2 * arrow[0] + 50_000
