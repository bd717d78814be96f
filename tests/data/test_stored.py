"""Stored splits are the ones read, stay on the disk, and follow their source."""

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from kdbench.data import stored
from kdbench.data.columns import Column, joined, taken
from kdbench.data.datasets import Split, load_dataset
from kdbench.data.stored import stored_dataset
from kdbench.data.tokenize import Encoded, cached_tokens, tokenize
from kdbench.errors import SourceError
from tests.data.test_datasets import TEN, config, write
from tests.memory import peak

MANY = [(f"text {row} é\u2028x \0 {'y' * (row % 7)}", "ab"[row % 2]) for row in range(2500)]  # three record batches


def equal(one: Split, two: Split) -> bool:
    assert_array_equal(one.ids, two.ids)
    assert_array_equal(one.labels, two.labels)
    return [*one.texts] == [*two.texts] and [*(one.pairs or [])] == [*(two.pairs or [])]


@pytest.mark.parametrize("pairs", [False, True])
def test_stored_is_what_was_read_and_is_read_once(tmp_path, monkeypatch, pairs):
    write(tmp_path / "x.csv", MANY)
    wanted = config(tmp_path / "x.csv", text_pair="text" if pairs else None)
    read = load_dataset(wanted, tmp_path)
    first = stored_dataset(wanted, tmp_path / "cache")
    monkeypatch.setattr(stored, "load_dataset", lambda *_: pytest.fail("read again"))
    again = stored_dataset(wanted, tmp_path / "cache")
    for data in (first, again):
        assert (data.name, data.label_names, data.notes, data.test_is) == (
            read.name, read.label_names, read.notes, read.test_is,
        )  # fmt: skip
        for name in ("train", "dev", "test"):
            assert equal(getattr(data, name), getattr(read, name))
            assert (getattr(data, name).pairs is None) is not pairs


def test_a_column_is_a_sequence(tmp_path):
    write(tmp_path / "x.csv", MANY)
    data = stored_dataset(config(tmp_path / "x.csv"), tmp_path / "cache")
    texts, listed = data.train.texts, [*data.train.texts]
    assert isinstance(texts, Column) and len(texts) == len(listed)
    assert texts[7] == listed[7] and texts[-1] == listed[-1]
    assert texts[990:1010] == listed[990:1010] and texts[len(texts) :] == []
    with pytest.raises(IndexError):
        texts[len(texts)]


def test_another_content_or_key_is_another_data_set(tmp_path):
    path = write(tmp_path / "x.csv", TEN)
    first = stored_dataset(config(path), tmp_path / "cache")
    other = stored_dataset(dataclasses.replace(config(path), split_seed=1), tmp_path / "cache")
    assert not np.array_equal(first.dev.ids, other.dev.ids)
    write(path, [(text.upper(), label) for text, label in TEN])
    assert stored_dataset(config(path), tmp_path / "cache").train.texts[0].startswith("TEXT")


def test_what_cannot_be_read_leaves_nothing(tmp_path):
    path = write(tmp_path / "x.csv", TEN[:1])
    with pytest.raises(SourceError):
        stored_dataset(config(path), tmp_path / "cache")
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file() and file.suffix != ".lock"]


def test_tokens_do_not_depend_on_the_parts_they_are_made_in(tmp_path, teacher_folder, monkeypatch):
    split = Split(np.arange(9), ["apple pear", "", *["gold lead zinc the"] * 7], np.zeros(9, np.int64))
    whole = tokenize(split, teacher_folder, 6, tmp_path / "whole")
    monkeypatch.setattr("kdbench.data.tokenize.AT_A_TIME", 2)
    parts = tokenize(split, teacher_folder, 6, tmp_path / "parts")
    assert_array_equal(whole.flat, parts.flat)
    assert_array_equal(whole.offsets, parts.offsets)
    assert whole.lengths[1] == 2 and len(whole.lengths) == 9


def test_runs_of_other_length_and_epochs_or_another_download_share_it_and_nothing_else_does(tmp_path, monkeypatch):
    folders: list[Path] = []

    class Seen(Exception):
        pass

    def note(folder, make):
        folders.append(folder)
        raise Seen

    monkeypatch.setattr(stored, "cached", note)
    monkeypatch.setattr(stored, "dataset_identity", lambda *_: {})
    first = config(tmp_path / "x.csv")
    names = [field.name for field in dataclasses.fields(first)]
    for changed in (first, *(dataclasses.replace(first, **cast(dict[str, Any], {name: "other"})) for name in names)):
        with pytest.raises(Seen):
            stored_dataset(changed, tmp_path)
    alone, *others = folders
    shared = {name for name, folder in zip(names, others, strict=True) if folder == alone}
    of_no_split = {"max_length", "epochs", "parts", "unpacked_bytes", "unlabelled", "max_unlabelled_samples"}
    assert shared == of_no_split | {"language"}


def test_texts_that_are_taken_and_joined_stay_on_the_disk(tmp_path):
    """In the order of the rows; a list beside them is read as it is."""
    write(tmp_path / "x.csv", MANY)
    texts = stored_dataset(config(tmp_path / "x.csv"), tmp_path / "cache").train.texts
    listed, draw = [*texts], np.random.default_rng(0)
    for rows in (np.flatnonzero(np.arange(len(listed)) % 4 != 1), draw.permutation(len(listed))[:1200]):
        some = taken(texts, rows)
        expected = [listed[row] for row in rows]
        assert isinstance(some, Column) and [*some] == expected and some[5:9] == expected[5:9]
        again = taken(some, np.arange(1100)[::-1].copy())
        assert isinstance(again, Column) and [*again] == expected[1099::-1] and again[-1] == expected[0]
        both = joined(some, ["x", "y"])
        assert (
            [*both] == [*expected, "x", "y"]
            and both[-1] == "y"
            and both[len(expected) - 1 :] == [expected[-1], "x", "y"]
        )
        assert [*joined(["x"], joined(texts, some))] == ["x", *listed, *expected]
    assert taken(texts, np.array([3, 1])) == [listed[3], listed[1]]  # a few are read at once
    assert len(joined([], [])) == 0 and [*joined([], ["x"])] == ["x"]


def test_reading_all_texts_and_making_tokens_needs_the_memory_of_a_few(tmp_path):
    """Tokens of 200,000 texts have 9.6 MB in the file; the array that marks which ids occur has a byte for each id."""
    texts = [[7, 5, 3, 5, 11, 3, 2, 2, 9, 1]] * 2000
    written = peak(lambda: cached_tokens("k", lambda: (Encoded(texts) for _ in range(100)), tmp_path))
    found = cached_tokens("k", lambda: pytest.fail("made again"), tmp_path)
    assert len(found.lengths) == 200_000 and found.lengths.dtype == np.int32 and found.span(3) == slice(30, 40)
    assert found.flat[:12].tolist() == [*texts[0], 7, 5] and found.offsets[-1] == len(found.flat) == 2_000_000
    assert written < 1e6
    assert found.used.tolist() == [1, 2, 3, 5, 7, 9, 11] and peak(lambda: found.used) < 5e6
    write(tmp_path / "x.csv", MANY * 8)
    split = stored_dataset(config(tmp_path / "x.csv"), tmp_path / "cache").train
    rows = np.flatnonzero(np.arange(len(split)) % 3)
    assert 4 * peak(lambda: [None for _ in split.take(rows).texts]) < peak(lambda: [*split.texts])
