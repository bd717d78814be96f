"""Labels as people and programs write them: one meaning has one class, in every format; what is merged is said."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from kdbench.data.datasets import load_dataset
from kdbench.data.readers import Rows, read_splits
from kdbench.errors import Code
from kdbench.schema import DatasetConfig, DatasetSplits
from tests.data.test_messy_tables import config
from tests.refusals import refused


def write(path: Path, labels: list[Any]) -> None:
    """`labels` as this format writes them; of a CSV, as pandas does."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"text": f"t{row}", "label": one}) for row, one in enumerate(labels)))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(
            pa.table({"text": [f"t{row}" for row in range(len(labels))], "label": labels}), path
        )
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            cells = ["" if one is None else str(one) for one in labels]
            csv.writer(file).writerows([("text", "label"), *((f"t{row}", one) for row, one in enumerate(cells))])


def read(folder: Path, task: str = "classification", **files: list[Any]) -> dict[str, Rows]:
    """`train_csv=[...]` is the file train.csv with these labels."""
    names = {}
    for key, labels in files.items():
        split, ending = key.split("_")
        names[split] = f"{split}.{ending}"
        write(folder / names[split], labels)
    made = config(folder, task=task)
    made.splits = DatasetSplits(**names)
    return read_splits(made, folder)


def noted(rows: Rows, word: str) -> bool:
    return any(word in note for note in rows.reading.notes)


NAN = math.nan


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0.0, 1.0, 1.0], ["0", "1", "1"]),
        ([1.0, None, -2.0], ["1", None, "-2"]),
        ([1, 0, 10], ["1", "0", "10"]),
        ([True, False, None], ["true", "false", None]),
        ([1.0, NAN, 3.0], ["1", None, "3"]),
        (["a", "b", None], ["a", "b", None]),
        (["none", "nan", "x"], ["none", "nan", "x"]),
        (["1.0", "nan", "2"], ["1", None, "2"]),
        (["TRUE", "False", "true"], ["true", "false", "true"]),
        (["yes", "true", "no"], ["yes", "true", "no"]),
        (["1.1", "x", "2.0"], ["1.1", "x", "2.0"]),
        (["v1", "v1.0", "01"], ["v1", "v1.0", "01"]),
        ([" a ", "a", "\ta"], ["a", "a", "a"]),
    ],
)
def test_a_class_has_one_name_in_each_format(
    tmp_path: Path, ending: str, labels: list[Any], expected: list[Any]
) -> None:
    tables: dict[str, Any] = {f"train_{ending}": labels}
    (rows,) = read(tmp_path, **tables).values()
    assert rows.labels == expected


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ({"jsonl": [True, False]}, {"csv": ["True", "False"]}, ["true", "false"]),
        ({"csv": ["TRUE", "FALSE"]}, {"parquet": [True, False]}, ["true", "false"]),
        ({"jsonl": [True, False]}, {"csv": ["1", "0"]}, ["true", "false"]),
        ({"csv": ["0.0", "1.0"]}, {"jsonl": [0, 1]}, ["0", "1"]),
        ({"csv": ["0", "1"]}, {"parquet": [0.0, NAN]}, ["0", None]),
        ({"csv": ["café", "thé"]}, {"jsonl": ["cafe\u0301", "the\u0301"]}, ["café", "thé"]),
        ({"csv": ["a", "b c"]}, {"csv": ["\u200ba", "b\u00a0c\ufeff"]}, ["a", "b c"]),
    ],
)
def test_files_of_one_data_set_mean_the_same(
    tmp_path: Path, train: dict[str, Any], test: dict[str, Any], expected: list[Any]
) -> None:
    files = {f"train_{key}": value for key, value in train.items()} | {
        f"test_{key}": value for key, value in test.items()
    }
    assert read(tmp_path, **files)["test"].labels == expected


def test_what_was_merged_is_said(tmp_path: Path) -> None:
    assert noted(read(tmp_path, train_csv=["0.0", "1.0", "nan"])["train"], "0.0, 1.0 are read as whole numbers")
    assert noted(read(tmp_path, train_csv=["0.0", "1.0", "nan"])["train"], "nan among")
    assert noted(read(tmp_path, train_csv=["True", "False"])["train"], "False, True are read as")
    assert noted(read(tmp_path, train_csv=["\u200ba", "a", "b"])["train"], r"\u200ba")
    alike = read(tmp_path, train_csv=["Good", "good", "good", "bad"])["train"]
    assert noted(alike, "'Good' (1 rows) and 'good' (2 rows)") and set(alike.labels) == {"Good", "good", "bad"}
    assert noted(read(tmp_path, train_csv=["ＡＢ", "ab", "x"])["train"], "look alike")
    for plain in (["a", "b"], ["1", "2"], [" a", "b "], ["0", "1"]):
        assert read(tmp_path, train_csv=plain)["train"].reading.notes == ()


def test_numbers_with_a_fraction_are_no_classes(tmp_path: Path) -> None:
    made = config(tmp_path)
    made.splits = DatasetSplits("train.csv")
    write(tmp_path / "train.csv", ["0.5", "1.0", "nan", "1.5"])
    with refused(Code.INVALID_LABEL, "0.5"):
        load_dataset(made, tmp_path)
    with refused(Code.INVALID_LABEL, "line 2", "0.5"):
        read(tmp_path, train_jsonl=[1.0, 0.5])


@pytest.mark.parametrize(
    "cells",
    [
        ["['bad', 'short']", "['good', 'long']", "['bad']", "[]"],
        ['["bad", "short"]', '["good", "long"]', '["bad"]', "[]"],
        ["['bad' 'short']", "['good' 'long']", "['bad']", "[]"],
        ["['bad'\n 'short']", "['good'\n 'long']", "['bad']", "[]"],
        ["('bad', 'short')", "('good', 'long')", "('bad',)", "()"],
        ["{'short', 'bad'}", "{'good', 'long'}", "{'bad'}", ""],
        ["bad|short", "good|long", "bad", ""],
        ["bad;short", "good; long", "bad", ""],
        ["bad, short", "good,long", "bad", ""],
        ["short;bad;", "long;good", "bad;", ";"],
    ],
)
def test_several_labels_in_a_cell(tmp_path: Path, cells: list[str]) -> None:
    more = cells[:2] * 2 if ";" in cells[0] or "," in cells[0] else []
    again = ["long;short"] if ";" in cells[0] else ["long,short"] if cells[0] == "bad, short" else []
    again += ["good;bad"] if ";" in cells[0] else ["good,bad"] if cells[0] == "bad, short" else []
    rows = read(tmp_path, "multi_label", train_csv=[*cells, *more, *again])["train"]
    found: list[Any] = rows.labels[:4]
    assert [sorted(one) for one in found] == [["bad", "short"], ["good", "long"], ["bad"], []]
    assert noted(rows, "separated by") == bool(again)


def test_a_comma_inside_a_label_separates_nothing(tmp_path: Path) -> None:
    rows = read(tmp_path, "multi_label", train_csv=["Health, beauty", "sport", "sport", "Arts; crafts"])["train"]
    assert rows.labels == [["Health, beauty"], ["sport"], ["sport"], ["Arts; crafts"]] and noted(rows, "is one label")
    rows = read(tmp_path, "multi_label", train_csv=["Health, beauty|sport", "sport"])["train"]
    assert rows.labels == [["Health, beauty", "sport"], ["sport"]]


def test_the_sign_between_labels_is_that_of_all_files(tmp_path: Path) -> None:
    train, test = ["a,b", "b,c", "a,c", "a"], ["c,b"]
    rows = read(tmp_path, "multi_label", train_csv=train, test_csv=test)["test"]
    assert rows.labels == [["c", "b"]] and noted(rows, "separated by ,")
    rows = read(tmp_path, "multi_label", train_jsonl=[["a", "b"], ["b"], [], None, "a"], test_csv=["['a']", "b"])[
        "train"
    ]
    assert rows.labels == [["a", "b"], ["b"], [], None, ["a"]]
    rows = read(tmp_path, "multi_label", train_jsonl=[[True, 1.0], [2]], test_csv=["1"])["train"]
    assert rows.labels == [["true", "1"], ["2"]]


@pytest.mark.parametrize("on", [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("TRUE", "false")])
def test_a_column_for_each_label(tmp_path: Path, on: tuple[str, str]) -> None:
    yes, no = on
    body = [("t0", yes, no, yes), ("t1", no, no, no), ("t2", no, yes, no), ("t3", "", "", ""), ("t4", "-1", "-1", "-1")]
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "c", "a", "b"), *body])
    made = config(tmp_path / "x.csv", task="multi_label", label=["a", "b", "c"])
    rows = read_splits(made, tmp_path)["train"]
    assert rows.labels == [["b", "c"], [], ["a"], None, None] and rows.names == ["a", "b", "c"]
    for cell, words in (("2", "'2' in column a"), ("", "nothing in column a")):
        (tmp_path / "x.csv").write_text(f"text,a,b,c\nt,{cell},1,0\nu,1,0,1\n")
        with refused(Code.INVALID_LABEL, f"x.csv, line 2, has {words}"):
            read_splits(made, tmp_path)
    (tmp_path / "x.csv").write_text("text,a,c\nt,1,1\n")
    with refused(Code.MISSING_COLUMN, "dataset.label=b: ", "text, a, c"):
        read_splits(made, tmp_path)


def test_a_column_for_each_label_to_the_end(tmp_path: Path) -> None:
    rows = "".join(f"t{k},{k % 2},{k % 3 == 0:d}\n" for k in range(30))
    (tmp_path / "x.csv").write_text(f"text,z,a\n{rows}")
    data = load_dataset(config(tmp_path / "x.csv", task="multi_label", label=["z", "a"]), tmp_path)
    assert data.label_names == ["z", "a"]
    for split in (data.train, data.dev, data.test):
        assert split.labels.tolist() == [[k % 2, k % 3 == 0] for k in split.ids]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["3,5", "4", "-0,25"], [3.5, 4.0, -0.25]),
        (["3.5", "4", "1e3"], [3.5, 4.0, 1000.0]),
        (["3,50", "1,234", ""], [3.5, 1.234, None]),
        (["0,123", "0,5"], [0.123, 0.5]),
        (["1.5", "nan", "NA"], [1.5, None, None]),
        ([" 2 ", "None", "3"], [2.0, None, 3.0]),
    ],
)
@pytest.mark.parametrize("sign", [";", ",", "\t"])
def test_numbers_to_predict(tmp_path: Path, cells: list[str], expected: list[float | None], sign: str) -> None:
    lines = "".join(f't{sign}"{cell}"\n' for cell in cells)
    (tmp_path / "x.csv").write_text(f"text{sign}label\n{lines}")
    rows = read_splits(config(tmp_path / "x.csv", task="regression"), tmp_path)["train"]
    assert rows.labels == expected
    assert noted(rows, "decimal sign") == any("," in cell for cell in cells)
    assert noted(rows, "says that a row has none") == any(cell in ("nan", "NA", "None") for cell in cells)


@pytest.mark.parametrize(
    "cells", [["1,234", "5"], ["1,234.5", "2"], ["3,5", "1.5"], ["1_000", "2"], ["1,2,3", "4"], ["1.234,5"]]
)
def test_numbers_that_can_be_read_in_two_ways_are_refused(tmp_path: Path, cells: list[str]) -> None:
    with refused(Code.INVALID_LABEL, "train.csv, line "):
        read(tmp_path, "regression", train_csv=cells)


def test_missing_numbers_of_each_format(tmp_path: Path) -> None:
    for ending in ("csv", "jsonl", "parquet"):
        (rows,) = read(tmp_path, "regression", **{f"train_{ending}": [1.5, None, 2.0, NAN]}).values()
        assert rows.labels == [1.5, None, 2.0, None], ending


def test_words_and_tags_in_cells_of_plain_text(tmp_path: Path) -> None:
    made = config(tmp_path / "x.csv", task="token_classification")
    with (tmp_path / "x.csv").open("w", newline="") as file:
        rows = [(["EU", "rejects"], ["B-ORG", "O"]), (["it's", "Peter"], ["O", "B-PER"])]
        csv.writer(file).writerows([("text", "label"), *rows, ('["a" "b"]', "['O' 'O']")])
    found = read_splits(made, tmp_path)["train"]
    assert found.texts == ["EU rejects", "it's Peter", "a b"]
    assert found.labels == [["B-ORG", "O"], ["O", "B-PER"], ["O", "O"]]


def test_a_column_may_be_named_by_a_number(tmp_path: Path) -> None:
    assert isinstance(config(tmp_path, label=[1, 2]), DatasetConfig)
    assert config(tmp_path, label=[1, 2]).label == ["1", "2"] and config(tmp_path, label=3).label == "3"
