"""Tables as people have them: separators, encodings, quotes, widths and headers; what is guessed is said."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet
import pytest

from kdbench.data.readers import Rows, read_splits, read_texts
from kdbench.data.tables import names_at_start
from kdbench.errors import Code, SourceError
from kdbench.schema import DatasetConfig, DatasetSplits
from kdbench.sources.sources import dataset_identity
from tests.refusals import refused
from tests.tables import read_table

ROWS = [("good: fine; cheap|ok", "a"), ("bad, late", "b"), ("so\nso", "a"), ('he said "no"', "b")]


def config(path: Path, **keys: Any) -> DatasetConfig:
    values: dict[str, Any] = {"text": "text", "label": "label", "classes": None, "dev_fraction": 0.2}
    values |= {"test_fraction": 0.2, "split_seed": 0, "max_length": 8, "epochs": 1}
    values |= {f"max_{split}_samples": None for split in ("train", "dev", "test")}
    return DatasetConfig(name="messy", source=str(path), splits=DatasetSplits("."), **values | keys)


def spelled(sign: str, rows: list[tuple[str, str]] = ROWS, header: str | None = "text,label") -> str:
    """The rows with every cell in quotes."""
    lines = [sign.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    return "\n".join([*([header.replace(",", sign)] if header else []), *lines]) + "\n"


def read(path: Path, content: str | bytes, **keys: Any) -> Rows:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(keys.get("encoding", "utf-8")))
    return read_table(path, config(path, **keys))


def pairs(rows: Rows) -> list[tuple[str, Any]]:
    return list(zip(rows.texts, rows.labels, strict=True))


def noted(rows: Rows, word: str) -> bool:
    return any(word in note for note in rows.reading.notes)


@pytest.mark.parametrize("ending", ["csv", "tsv", "tab"])
@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_the_separator_is_found_in_the_header_and_said(tmp_path: Path, ending: str, sign: str) -> None:
    rows = read(tmp_path / f"x.{ending}", spelled(sign))
    assert pairs(rows) == ROWS and rows.reading.separator == sign
    own = "," if ending == "csv" else "\t"
    assert noted(rows, "dataset.delimiter") == (sign != own)
    assert names_at_start(tmp_path / f"x.{ending}", config(tmp_path)) == ["text", "label"]


@pytest.mark.parametrize(
    ("given", "sign"), [("tab", "\t"), ("semicolon", ";"), ("~", "~"), ("space", " "), ("pipe", "|")]
)
def test_a_separator_is_set_by_sign_or_name(tmp_path: Path, given: str, sign: str) -> None:
    rows = read(tmp_path / "x.csv", spelled(sign), delimiter=given)
    assert pairs(rows) == ROWS and not rows.reading.notes
    assert names_at_start(tmp_path / "x.csv", config(tmp_path, delimiter=given)) == ["text", "label"]


@pytest.mark.parametrize(
    "before",
    ["sep=;\n", "sep=;\r\n", '"sep=;"\n', "\n\n", "  \n", ";;\n", "\r\n\r\n", "\ufeff\n", "\ufeffsep=;\n", '"";""\n'],
)
def test_what_stands_above_the_header_is_skipped_and_said(tmp_path: Path, before: str) -> None:
    rows = read(tmp_path / "x.csv", before + spelled(";"))
    assert pairs(rows) == ROWS and rows.lines[0] == before.count("\n") + 2
    assert noted(rows, "line 1") or noted(rows, "empty lines")
    assert names_at_start(tmp_path / "x.csv", config(tmp_path)) == ["text", "label"]


UTF8 = ["utf-8", "utf8", "UTF-8", "utf_8", "UTF8", "U8", "utf-8-sig", "utf8-sig", "utf_8_sig", "utf-8-bom", "UTF8 BOM"]
MARKED = [*((name, "utf-8-sig") for name in UTF8), ("utf-16", "utf-16"), ("UTF_16", "utf-16"), ("utf-16-le", "utf-16"),
          ("utf16", "utf-16"), ("utf-32", "utf-32"), ("gb18030", "gb18030")]  # fmt: skip


@pytest.mark.parametrize(("spelling", "codec"), MARKED)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "tsv"])
def test_a_byte_order_mark_is_read_over_under_each_spelling(
    tmp_path: Path, spelling: str, codec: str, ending: str
) -> None:
    made = {
        "csv": spelled(","),
        "tsv": spelled("\t"),
        "jsonl": "\n".join(json.dumps({"text": text, "label": label}) for text, label in ROWS),
        "json": json.dumps([{"text": text, "label": label} for text, label in ROWS], indent=1),
    }[ending]
    marked = made.encode(codec) if codec != "gb18030" else ("\ufeff" + made).encode(codec)
    path = tmp_path / f"x.{ending}"
    for data in (marked, made.encode(codec.removesuffix("-sig"))):
        path.write_bytes(data)
        assert pairs(read_table(path, config(path, encoding=spelling))) == ROWS
        assert names_at_start(path, config(path, encoding=spelling)) == ["text", "label"]


CHINESE = "text,label\n" + "这个手机的电池很好，我非常喜欢,好\n质量太差，不推荐购买,坏\n" * 5
RUSSIAN = "text,label\n" + "Очень хороший телефон,да\nНе рекомендую никому,нет\n" * 5
GERMAN = "text,label\n" + "Grüße aus München – schön,ja\nTür fällt ständig zu,nein\n" * 5


@pytest.mark.parametrize(
    ("content", "codec", "asked", "fitting"),
    [
        (CHINESE, "gb18030", "utf-8", "gb18030"),
        (CHINESE, "gbk", "utf-8", "gb18030"),
        (CHINESE, "gb2312", "utf8", "gb18030"),
        (CHINESE, "utf-16", "utf-8", "utf-16"),
        (CHINESE, "utf-8-sig", "cp1252", "utf-8"),
        (CHINESE, "utf-8-sig", "latin-1", "utf-8"),
        (CHINESE, "utf-16", "utf-16-be", "utf-16"),
        (RUSSIAN, "cp1251", "utf-8", "cp1251"),
        (RUSSIAN, "koi8-r", "utf-8", "koi8_r"),
        (GERMAN, "cp1252", "utf-8", "cp1252"),
        (GERMAN, "utf-16-le", "utf-8", "utf-16-le"),
        (GERMAN, "utf-16-be", "latin-1", "utf-16-be"),
        (GERMAN, "utf-8", "ascii", "utf_8"),
    ],
)
def test_an_encoding_that_does_not_fit_is_told_which_does(
    tmp_path: Path, content: str, codec: str, asked: str, fitting: str
) -> None:
    with pytest.raises(SourceError, match=f"dataset.encoding={asked} .*dataset.encoding={fitting}") as caught:
        read(tmp_path / "x.csv", content.encode(codec), encoding=asked)
    assert caught.value.code == Code.WRONG_ENCODING
    assert content != CHINESE or not {"cp1252", "latin"} & set(str(caught.value).replace("=", " ").split()[3:])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hex", "utf-9", "", "zip", "x\0y"])
def test_what_is_no_encoding_is_refused_by_key(tmp_path: Path, name: str) -> None:
    with refused(Code.WRONG_ENCODING, "dataset.encoding="):
        read(tmp_path / "x.csv", b"text,label\na,b\n", encoding=name)


ORANGE = "text\tlabel\nstring\td\nmeta\tclass\n"


@pytest.mark.parametrize(
    ("content", "orange"),
    [
        (ORANGE, True),
        ("text\tlabel\nstring\ta b\n\tclass\n", True),
        ("text\tlabel\ns\tdiscrete\n\tc\n", True),
        ("text\tlabel\n", False),
        ("text\tlabel\nd\ta\n", False),
        ("text\tlabel\nmeta\tb\nclass\ta\n", False),
    ],
)
def test_a_tab_file_is_oranges_only_where_it_says_types_and_flags(tmp_path: Path, content: str, orange: bool) -> None:
    body = [("first", "a"), ("second", "b"), ("third", "a"), ("fourth", "b")]
    rows = read(tmp_path / "x.tab", content + "".join(f"{text}\t{label}\n" for text, label in body))
    above = [] if orange else [tuple(line.split("\t")) for line in content.splitlines()[1:]]
    assert pairs(rows) == [*above, *body]
    assert rows.reading.format == ("orange tab" if orange else "tab") and noted(rows, "Orange") == orange


def test_one_content_read_in_two_ways_is_two_data_sets(tmp_path: Path) -> None:
    for name in ("x.tab", "x.tsv"):
        (tmp_path / name).write_text(ORANGE + "a\tb\n" * 3)
    one, two = (dataset_identity(config(tmp_path / name), tmp_path) for name in ("x.tab", "x.tsv"))
    assert one != two


@pytest.mark.parametrize(
    ("odd", "of"),
    [
        ("unquoted, comma,a\n", 3),
        ("a,b,\n", 3),
        ('"with \\"quotes, here\\" in it",a\n', 3),
        ("alone\n", 1),
        ("a,,b\n", 3),
    ],
)
def test_a_file_whose_rows_mostly_have_another_width_is_refused_with_the_first(
    tmp_path: Path, odd: str, of: int
) -> None:
    content = "text,label\n" + "fine,a\n" * 3 + odd * 7
    with refused(Code.UNREADABLE_TABLE, "7 of 10 rows", f"line 5 with {of}"):
        read(tmp_path / "x.csv", content)


def test_few_rows_of_another_width_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = read(tmp_path / "x.csv", "text,label\n" + 'a,"x\ny"\n' * 8 + "one,two,three\nalone\n\n  \nb,x,\n")
    assert len(rows.texts) == 9 and rows.lines[-1] == 22 and noted(rows, "1 rows end in empty cells")
    (dropped,) = rows.reading.dropped
    assert (dropped.rows, dropped.first, rows.reading.unit) == (2, 18, "line")
    rows = read(tmp_path / "x.csv", "text,label,,\na,x\n" * 1 + "a,x,,\nb,y\n")
    assert pairs(rows) == [("a", "x"), ("a", "x"), ("b", "y")], "a header may end in separators, too"


def test_stray_quotes_join_no_lines(tmp_path: Path) -> None:
    lines = [('"Great movie', "a"), ("dull", "b"), ('bad"', "b"), ('so "so"', "a"), ('"Late', "b")]
    rows = read(tmp_path / "x.tsv", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in lines))
    assert pairs(rows) == lines and noted(rows, "no cell is in quotes")
    rows = read(tmp_path / "x.tsv", spelled("\t"))
    assert pairs(rows) == ROWS and not rows.reading.notes
    with refused(Code.UNREADABLE_TABLE, "line 3"):
        read(tmp_path / "x.csv", 'text,label\nx,a\n"y,b,c\nz,a\n')


def test_columns_of_one_name_and_columns_that_lack(tmp_path: Path) -> None:
    with refused(Code.MISSING_COLUMN, "dataset.text=text: ", "2 columns"):
        read(tmp_path / "x.csv", "text,label,text\na,b,c\n")
    assert pairs(read(tmp_path / "x.csv", "text,more,label,more\na,b,c,d\n")) == [("a", "c")]
    with refused(Code.MISSING_COLUMN, "body, stars"):
        read(tmp_path / "x.csv", "body;stars\na;b\n")


@pytest.mark.parametrize("ending", ["csv", "tsv", "xlsx"])
@pytest.mark.parametrize("sign", [",", ";"])
def test_without_a_header_columns_go_by_number(tmp_path: Path, ending: str, sign: str) -> None:
    path = tmp_path / f"x.{ending}"
    if ending == "xlsx":
        book(path, {"one": [[None, None, None], *(["x", *row] for row in ROWS)]})
    else:
        path.write_text("\n" + spelled(sign, [("x", *row) for row in ROWS], header=None))
    keys = {"header": False, "text": "2", "label": 3}
    rows = read_table(path, config(path, **keys))
    assert pairs(rows) == ROWS and rows.lines[0] == 2
    if ending != "xlsx":
        assert names_at_start(path, config(path, **keys)) == ["1", "2", "3"]
    with refused(Code.MISSING_COLUMN, "dataset.text=text: ", "1, 2, 3", "dataset.header=false"):
        read_table(path, config(path, header=False))


# --- formats


def book(path: Path, sheets: dict[str, list[list[Any]]]) -> Path:
    made = openpyxl.Workbook()
    made.remove(made.active)
    for title, rows in sheets.items():
        sheet = made.create_sheet(title)
        for row in rows:
            sheet.append(row)
    made.save(path)
    return path


def test_a_sheet_of_excel(tmp_path: Path) -> None:
    import datetime

    rows: list[list[Any]] = [
        [None],
        ["text", "label"],
        ["fine", 1],
        [2024, 2.0],
        [datetime.datetime(2024, 1, 2), True],
        [None, 1],
        ["x", None],
    ]
    path = book(tmp_path / "x.xlsx", {"empty": [], "data": rows, "notes": [["more"]]})
    read_rows = read_table(path, config(path))
    assert read_rows.texts == ["fine", "2024", "2024-01-02 00:00:00", "", "x"]
    assert read_rows.lines == [3, 4, 5, 6, 7] and read_rows.reading.unit == "row"
    assert (
        read_rows.labels[:2] == ["1", "2"] and read_rows.labels[-1] is None and noted(read_rows, "'data', the first of")
    )
    other = book(tmp_path / "y.xlsx", {"data": rows, "second": [["text", "label"], ["b", "x"], ["c", "y"]]})
    assert pairs(read_table(other, config(other, subset="second"))) == [("b", "x"), ("c", "y")]
    with refused(Code.MISSING_COLUMN, "dataset.subset=third: ", "data, second"):
        read_table(other, config(other, subset="third"))
    for content in (b"", b"text,label\n", b"PK\x03\x04 no sheet"):
        path.write_bytes(content)
        with refused(Code.UNREADABLE_TABLE, path):
            read_table(path, config(path))


def test_json_in_its_forms(tmp_path: Path) -> None:
    objects = [{"text": text, "label": label} for text, label in ROWS]
    lines = "\n".join(map(json.dumps, objects))
    forms = {
        "list.json": json.dumps(objects),
        "lines.json": lines,
        "one.ndjson": lines,
        "within.json": json.dumps({"version": 1, "data": objects}),
        "text.jsonl": f"\n{lines}\r\n\n",
    }
    for name, content in forms.items():
        rows = read(tmp_path / name, content)
        assert pairs(rows) == ROWS, name
        assert names_at_start(tmp_path / name, config(tmp_path)) in (["text", "label"], None), name
    assert noted(read(tmp_path / "x.json", forms["within.json"]), "'data'")
    for content in ("", "{", "3", "[1]", '["a"]', '{"text": {"0": "a"}, "label": {"0": "b"}}', '{"a": [1], "b": [2]}'):
        with refused(Code.INVALID_LABEL if '"0"' in content else Code.UNREADABLE_TABLE, "x.json"):
            read(tmp_path / "x.json", content)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_keys_of_inner_objects_and_keys_that_are_absent(tmp_path: Path, ending: str) -> None:
    objects = [{"message": {"body": text, "id": 1}, "meta": {"stars": {"n": label}}} for text, label in ROWS]
    path = tmp_path / f"x.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(objects), path)
    else:
        path.write_text(json.dumps(objects) if ending == "json" else "\n".join(map(json.dumps, objects)))
    keys = {"text": "message.body", "label": "meta.stars.n"}
    assert pairs(read_table(path, config(path, **keys))) == ROWS
    assert {"message.body", "meta.stars.n"} <= set(names_at_start(path, config(path, **keys)) or ())
    with refused(Code.MISSING_COLUMN, "dataset.text=message.text: ", "message, message.body"):
        read_table(path, config(path, text="message.text", label="meta.stars.n"))


def test_an_absent_key_is_null(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": "x"}', '{"text": "b"}', '{"text": "c", "label": null}', '{"label": "y"}', "{}"]
    rows = read(tmp_path / "x.jsonl", "\n".join(lines))
    assert rows.texts == ["a", "b", "c", "", ""] and rows.labels == ["x", None, None, "y", None]
    first = read(tmp_path / "x.jsonl", "\n".join(lines[::-1]))
    assert first.labels == rows.labels[::-1], "nor need the first line have it"
    dotted = read(tmp_path / "x.jsonl", '{"a.b": "t", "label": "x"}\n{"a": {"b": "u"}, "label": "y"}', text="a.b")
    assert dotted.texts == ["t", "u"]


@pytest.mark.parametrize("inner", ["x.csv", "x.tsv", "x.jsonl", "x.json", "x.parquet", "x.xlsx", "x.tab", "x.ndjson"])
def test_one_packed_table(tmp_path: Path, inner: str) -> None:
    plain = tmp_path / inner
    objects = [{"text": text, "label": label} for text, label in ROWS]
    if inner == "x.parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(objects), plain)
    elif inner == "x.xlsx":
        book(plain, {"s": [["text", "label"], *map(list, ROWS)]})
    elif "json" in inner:
        plain.write_text(json.dumps(objects) if inner == "x.json" else "\n".join(map(json.dumps, objects)))
    else:
        plain.write_text(spelled("," if inner == "x.csv" else "\t"))
    packed = [tmp_path / f"{inner}.gz", tmp_path / f"{inner}.zip", tmp_path / "other.zip"]
    packed[0].write_bytes(gzip.compress(plain.read_bytes()))
    for path in packed[1:]:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("folder/", "")
            archive.writestr("__MACOSX/folder/._" + inner, b"shadow")
            archive.writestr("folder/" + inner, plain.read_bytes())
    for path in packed:
        assert read_splits(config(path), tmp_path)["train"].texts == [text for text, _ in ROWS], path
        assert names_at_start(path, config(path)) in (["text", "label"], None)


def test_what_cannot_be_unpacked_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "x"), archive.writestr("b.csv", "x")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("a.docx", "x")
    (tmp_path / "no.zip").write_bytes(b"text,label\n")
    (tmp_path / "no.csv.gz").write_bytes(b"text,label\n")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"text,label\n" * 900)[:40])
    for name, words in {
        "two.zip": "2 files",
        "none.zip": "a.docx",
        "no.zip": "",
        "no.csv.gz": "",
        "cut.csv.gz": "",
    }.items():
        with refused(Code.UNREADABLE_ARCHIVE, name, words):
            read_table(tmp_path / name, config(tmp_path / name))


@pytest.mark.parametrize("name", ["x.docx", "x.xls", "x.pkl", "x.csv.bz2", "x", "x.7z", "x.feather", "x.html"])
def test_any_other_file_is_told_what_can_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("text,label\n")
    for source, splits in ((tmp_path / name, "."), (tmp_path, name)):
        made = config(source)
        made.splits = DatasetSplits(splits)
        with pytest.raises(SourceError, match=r"\.csv.*\.xlsx.*\.txt.*\.gz") as caught:
            read_splits(made, tmp_path)
        assert caught.value.code == Code.INVALID_SOURCE and "\n" not in str(caught.value)
    (tmp_path / "train.csv").write_text(spelled(","))
    made.splits = DatasetSplits("train.csv", test=name)
    with refused(Code.INVALID_SOURCE, "dataset.splits.test="):
        read_splits(made, tmp_path)


def test_a_txt_has_texts_without_labels_or_columns_by_a_key(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffone\r\ntwo\n".encode())
    assert read_texts(path, "", "utf-8") == ["one", "two"]
    with refused(Code.UNREADABLE_TABLE, path, "dataset.delimiter=tab"):
        read_table(path, config(path))
    assert pairs(read(path, spelled("\t").encode("utf-16"), delimiter="tab", encoding="utf-16")) == ROWS
    packed = tmp_path / "x.txt.gz"
    packed.write_bytes(gzip.compress(b"one\ntwo"))
    assert read_texts(packed, "", "utf-8") == ["one", "two"]


@pytest.mark.parametrize(
    "name", ["ab:c.csv", "a b.csv", "a=b.csv", "~t.csv", "ä,ö.csv", "[x].csv", "a: b.csv", "x'y.csv"]
)
def test_a_file_may_have_any_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(spelled(","))
    assert pairs(read_splits(config(Path(name)), tmp_path)["train"]) == ROWS
