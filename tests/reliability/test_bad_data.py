"""Data as users have them: each fault is refused in words that name the place, or is read as is said here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.data.datasets import TextData, load_dataset
from kdbench.errors import Code
from tests.data.test_datasets import TEN, config, write
from tests.refusals import refused

ROWS = "text,label\n" + "".join(f"text {row},{'xy'[row % 2]}\n" for row in range(10))

# name -> (train.csv, test.csv or None, changed keys, code of the refusal, what it names)
REFUSED: dict[str, tuple[bytes, bytes | None, dict[str, Any], Code, *tuple[str, ...]]] = {
    "empty file": (b"", None, {}, Code.UNREADABLE_TABLE, "train.csv"),
    "header only": (b"text,label\n", None, {}, Code.MISSING_LABELS, "train=train.csv"),
    "one class": (b"text,label\na,x\nb,x\n", None, {}, Code.MISMATCHED_CLASSES, "'x'"),
    "no label anywhere": (b"text,label\na,\nb,\n", None, {}, Code.MISSING_LABELS, "train=train.csv"),
    "label only in test": (ROWS.encode(), b"text,label\na,x\nb,z\n", {}, Code.MISMATCHED_CLASSES, "test=test.csv"),
    "labels hidden in test": (
        b"text,label\na,0\nb,1\n",
        b"text,label\na,-1\nb,-1\n",
        {},
        Code.MISSING_LABELS,
        "dataset.splits.test=validation",
    ),
    "labels that are fractions": (
        b"text,label\na,0.5\nb,1.5\n",
        None,
        {},
        Code.INVALID_LABEL,
        "dataset.task=regression",
    ),
    "missing text column": (
        b"sentence,label\na,x\nb,y\n",
        None,
        {},
        Code.MISSING_COLUMN,
        "dataset.text=text: ",
        "sentence, label",
    ),
    "missing label column": (
        b"text,stars\na,x\nb,y\n",
        None,
        {},
        Code.MISSING_COLUMN,
        "dataset.label=label: ",
        "text, stars",
    ),
    "missing pair column": (ROWS.encode(), None, {"text_pair": "b"}, Code.MISSING_COLUMN, "dataset.text_pair=b: "),
    "wrong encoding": (
        "text,label\ncafé,x\nb,y\n".encode("latin-1"),
        None,
        {},
        Code.WRONG_ENCODING,
        "dataset.encoding=utf-8",
    ),
    "unknown encoding": (ROWS.encode(), None, {"encoding": "utf-9"}, Code.WRONG_ENCODING, "dataset.encoding=utf-9"),
    "UTF-16": (ROWS.encode("utf-16"), None, {}, Code.WRONG_ENCODING, "dataset.encoding=utf-8"),
    "open quote": (b'text,label\n"a,x\nb,y\n', None, {}, Code.UNREADABLE_TABLE, "line 2"),
    "classes differ": (ROWS.encode(), None, {"classes": 3}, Code.MISMATCHED_CLASSES, "dataset.classes=3", "2 labels"),
    "nothing to cut": (b"text,label\na,x\nb,y\n", None, {}, Code.TOO_FEW_ROWS, "3 rows"),
}

# what is read all the same, and how: (file, keys, what must hold of the data)
READ: dict[str, tuple[bytes, dict[str, Any], Callable[[TextData], bool]]] = {
    "NUL bytes in a text": (b"text,label\n" + b"a\0b,x\nc d,y\n" * 5, {}, lambda d: any("\0" in t for t in texts(d))),
    "a line of 10 MB": (
        b"text,label\n" + b"a" * 10_000_000 + b",x\n" + b"c,y\ne,x\n" * 5,
        {},
        lambda d: max(map(len, texts(d))) == 10_000_000,
    ),
    "a text without tokens": (b"text,label\n ,x\nc,y\n" * 5, {}, lambda d: " " in texts(d)),
    "rows twice": (
        b"text,label\n" + b"a,x\nb,y\n" * 5,
        {},
        lambda d: notes(d, "are also in train"),
    ),
    "rows twice, dropped": (
        ROWS.encode() + ROWS.encode().split(b"\n", 1)[1],
        {"deduplicate": True},
        lambda d: sorted(texts(d)) == [f"text {row}" for row in range(10)],
    ),
    "short rows": (
        b"text,label\n" + b"a,x\nb,y\n" * 5 + b"only\n",
        {},
        lambda d: notes(d, "another number of columns"),
    ),
    "rows without a label": (
        b"text,label\n" + b"a,x\nb,y\nc,\n" * 4,
        {},
        lambda d: notes(d, "without a label"),
    ),
    "a byte-order mark": (b"\xef\xbb\xbf" + ROWS.encode(), {}, lambda d: len(texts(d)) == 10),
}


def texts(data):
    return [text for split in (data.train, data.dev, data.test) for text in split.texts]


def notes(data, words):
    return any(words in note for note in data.notes)


def put(folder: Path, train: bytes, test: bytes | None) -> dict:
    (folder / "train.csv").write_bytes(train)
    if test is None:
        return {"train": "train.csv"}
    (folder / "test.csv").write_bytes(test)
    return {"train": "train.csv", "test": "test.csv"}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(tmp_path, name):
    train, test, keys, code, *named = REFUSED[name]
    with refused(code, *named):
        load_dataset(config(tmp_path, **put(tmp_path, train, test), **keys), tmp_path)


@pytest.mark.parametrize("name", READ)
def test_read_as_is_said(tmp_path, name):
    content, keys, holds = READ[name]
    assert holds(load_dataset(config(tmp_path, **put(tmp_path, content, None), **keys), tmp_path))


def test_half_a_character_is_refused(tmp_path):
    rows = [json.dumps({"text": "a \ud800" if row == 3 else "b", "label": "xy"[row % 2]}) for row in range(10)]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    with refused(Code.INVALID_TEXT, "dataset.text: "):
        load_dataset(config(tmp_path / "x.jsonl"), tmp_path)


def test_a_split_that_leaks_into_another_is_told(tmp_path):
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", TEN)
    data = load_dataset(config(tmp_path, "train.csv", None, "test.csv"), tmp_path)
    assert any(note.startswith("test: 8 of its texts are also in train") for note in data.notes)


def test_the_same_id_in_two_rows_is_no_matter(tmp_path):
    """A column named id is the user's; kdbench numbers the rows itself."""
    rows = [json.dumps({"id": 7, "text": f"t {i}", "label": "ab"[i % 2]}) for i in range(10)]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    data = load_dataset(config(tmp_path / "x.jsonl"), tmp_path)
    ids = [i for split in (data.train, data.dev, data.test) for i in split.ids.tolist()]
    assert sorted(ids) == list(range(10))
