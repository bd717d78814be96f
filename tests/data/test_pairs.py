"""Sentence pairs, from each kind of table into batches and logits."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from kdbench.data.batches import Examples
from kdbench.data.datasets import Split, load_dataset
from kdbench.data.tokenize import tokenize
from kdbench.errors import Code
from kdbench.methods.theseus import grafted, hybrid_logits
from kdbench.models import bert
from kdbench.models.network import view
from kdbench.models.students import logits
from kdbench.runs.identity import data_id
from kdbench.schema import DatasetConfig, DatasetSplits, RunConfig
from tests.refusals import refused

PAD, CLS, SEP, APPLE, PEAR, PLUM = 0, 2, 3, 5, 6, 7
SHAPE = {"vocab_size": 8, "hidden": 16, "layers": 4, "heads": 2, "ffn": 32, "max_positions": 16, "pad_token_id": PAD}
ROWS = [  # premise, hypothesis, label
    ("apple pear", "plum", "yes"),
    ("apple", "pear, plum pear", "no"),
    ("plum", "", "yes"),
    ("pear", "unlabelled", None),
    ("apple", "plum", "no"),
]
TABLES = ["csv", "tsv", "tab", "jsonl", "parquet", "hub"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\napple\npear\nplum\n", encoding="utf8")
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf8")
    return folder


def config(source: Path, train: str, test: str | None = None, **keys: Any) -> DatasetConfig:
    values: dict[str, Any] = {"text": "premise", "text_pair": "hypothesis", "label": "label", "classes": None}
    values |= {"dev_fraction": 0.2, "test_fraction": 0.2, "split_seed": 0, "max_length": 8, "epochs": 1}
    values |= {f"max_{split}_samples": None for split in ("train", "dev", "test")}
    return DatasetConfig(name="pairs", source=str(source), splits=DatasetSplits(train, None, test), **values | keys)


def table(folder: Path, kind: str, rows: list[tuple[Any, Any, Any]]) -> DatasetConfig:
    """`rows` as a table of this kind, read as train and as test."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("label", "premise", "more", "hypothesis")
    values = [(label, premise, "x", hypothesis) for premise, hypothesis, label in rows]
    objects = [dict(zip(names, row, strict=True)) for row in values]
    path = folder / f"train.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, objects)), encoding="utf8")
    elif kind == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(objects), path)
    elif kind == "hub":
        hub(folder / "train-00000-of-00001.parquet", objects)
        return config(folder, "train", test="train")
    else:
        with path.open("w", encoding="utf8", newline="") as file:
            more = [["discrete", "string", "string", "string"], ["class", "", "meta", "meta"]] if kind == "tab" else []
            csv.writer(file, delimiter="," if kind == "csv" else "\t").writerows([names, *more, *values])
    return config(folder, path.name, test=path.name)


def hub(path: Path, objects: list[dict[str, Any]]) -> None:
    from datasets import ClassLabel, Dataset

    whole = Dataset.from_list(objects)
    whole.cast_column("label", ClassLabel(names=["no", "yes"])).to_parquet(path)


@pytest.mark.parametrize("kind", TABLES)
def test_pairs_from_a_table_to_a_batch(tmp_path: Path, tokenizer: Path, kind: str) -> None:
    data = load_dataset(table(tmp_path / kind, kind, ROWS), tmp_path)
    labelled = [(premise, hypothesis) for premise, hypothesis, label in ROWS if label]
    assert data.test.inputs == labelled and data.test.ids.tolist() == [5, 6, 7, 9]
    assert [data.label_names[label] for label in data.test.labels] == ["yes", "no", "yes", "no"]
    tokens = tokenize(data.test, tokenizer, 8, tmp_path)
    batch = Examples(tokens, data.test.ids, data.test.labels, PAD).batch(np.array([2, 0, 1]))
    assert batch["input_ids"].tolist() == [
        [CLS, PLUM, SEP, SEP, PAD, PAD, PAD, PAD],
        [CLS, APPLE, PEAR, SEP, PLUM, SEP, PAD, PAD],
        [CLS, APPLE, SEP, PEAR, 1, PLUM, PEAR, SEP],  # the comma is unknown
    ]
    types = batch["token_type_ids"]
    assert types.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]]
    assert types.dtype == torch.int64
    assert batch["attention_mask"].sum(1).tolist() == [4, 6, 8] and batch["ids"].tolist() == [7, 5, 6]


def test_single_sentences_have_no_types(tmp_path: Path, tokenizer: Path) -> None:
    data = load_dataset(dataclasses.replace(table(tmp_path / "x", "csv", ROWS), text_pair=None), tmp_path)
    assert data.test.pairs is None and data.test.inputs[0] == ("apple pear",)
    tokens = tokenize(data.test, tokenizer, 8, tmp_path)
    assert tokens.types is None and tokens.flat.tolist()[:4] == [CLS, APPLE, PEAR, SEP]
    batch = Examples(tokens, data.test.ids, data.test.labels, PAD).batch(np.arange(3))
    assert "token_type_ids" not in batch
    assert not list((tmp_path / "tokens").rglob("types.npy"))


def split(texts: list[str], pairs: list[str] | None) -> Split:
    return Split(np.arange(len(texts)), texts, np.zeros(len(texts), np.int64), pairs)


@pytest.mark.parametrize(
    ("text", "pair", "first", "second"),
    [
        ("apple " * 6, "pear " * 2, 3, 2),  # the longer one gives way
        ("apple " * 2, "pear " * 6, 2, 3),
        ("apple", "pear " * 4, 1, 4),  # fits exactly
        ("apple " * 9, "", 5, 0),
    ],
)
def test_the_longer_sentence_is_cut_first(
    tmp_path: Path, tokenizer: Path, text: str, pair: str, first: int, second: int
) -> None:
    tokens = tokenize(split([text], [pair]), tokenizer, 8, tmp_path)
    assert tokens.flat.tolist() == [CLS, *[APPLE] * first, SEP, *[PEAR] * second, SEP]
    assert tokens.types is not None and tokens.types.tolist() == [0] * (first + 2) + [1] * (second + 1)


def test_the_cache_tells_pairs_apart(tmp_path: Path, tokenizer: Path) -> None:
    texts = ["apple", "pear apple", ""]
    single = tokenize(split(texts, None), tokenizer, 8, tmp_path).key
    pairs = [["plum", "", "pear"], ["", "plum", "pear"], ["", "", ""]]
    made = [tokenize(split(texts, pair), tokenizer, 8, tmp_path) for pair in pairs]
    assert len({tokens.key for tokens in made} | {single}) == 4
    again = tokenize(split(texts, pairs[0]), tokenizer, 8, tmp_path)
    assert again.key == made[0].key
    assert again.types is not None and again.types.tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1]
    nothing: tuple[list[str] | None, ...] = (None, [])
    empty = [tokenize(split([], pair), tokenizer, 8, tmp_path) for pair in nothing]
    assert len(empty[0].lengths) == len(empty[1].lengths) == 0 and empty[0].key != empty[1].key


def test_the_second_sentence_is_part_of_the_data_id() -> None:
    one = config(Path("."), "a.csv", text="text", text_pair=None)
    one.name, one.source, one.sha256 = "tiny", "pypi:a==1", "0" * 64
    others = [dataclasses.replace(one, text_pair=column) for column in ("b", "c")]
    assert len({data_id(RunConfig(dataset=dataset)) for dataset in (one, *others)}) == 3


@pytest.mark.parametrize("kind", TABLES)
def test_a_missing_column_is_refused_by_key(tmp_path: Path, kind: str) -> None:
    made = dataclasses.replace(table(tmp_path / kind, kind, ROWS), text_pair="second")
    there = "label, premise, more, hypothesis"
    with refused(Code.MISSING_COLUMN, "dataset.text_pair=second: ", there):
        load_dataset(made, tmp_path)


def test_a_row_without_a_second_sentence(tmp_path: Path) -> None:
    made = table(tmp_path / "null", "jsonl", [*ROWS, ("apple", None, "yes")])
    assert load_dataset(made, tmp_path).test.inputs[-1] == ("apple", "")
    made = table(tmp_path / "number", "jsonl", [*ROWS, ("apple", 3, "yes")])
    with refused(Code.INVALID_TEXT, "dataset.text_pair: ", "train.jsonl, line 6, has 3"):
        load_dataset(made, tmp_path)
    path = tmp_path / "number" / "train.jsonl"
    path.write_text(f'{path.read_text()}\n{{"premise": "x", "label": "no"}}', encoding="utf8")
    path.write_text(path.read_text().replace('"hypothesis": 3', '"hypothesis": null'))
    assert load_dataset(made, tmp_path).test.inputs[-2:] == [("apple", ""), ("x", "")], "an absent key is null"


def test_cuts_and_limits_keep_pairs_together(tmp_path: Path) -> None:
    rows = [(f"text {row}", f"pair {row}", "ab"[row % 2]) for row in range(40)]
    made = dataclasses.replace(table(tmp_path, "csv", rows), splits=DatasetSplits("train.csv"), max_train_samples=9)
    data = load_dataset(made, tmp_path)
    assert [len(part) for part in (data.train, data.dev, data.test)] == [9, 6, 8]
    for part in (data.train, data.dev, data.test):
        assert part.inputs == [(f"text {row}", f"pair {row}") for row in part.ids]


def test_a_repeat_is_the_same_text_with_the_same_pair(tmp_path: Path) -> None:
    rows = [("a", "b", "x"), ("a", "c", "x"), ("ab", "", "y"), ("a", "b", "y"), ("a", "b\n", "y")]
    made = table(tmp_path, "csv", rows)
    kept = load_dataset(
        dataclasses.replace(made, splits=DatasetSplits("train.csv", "train.csv", "train.csv")), tmp_path
    )
    assert kept.report["splits"]["train"]["repeated"] == 1
    assert "train: 1 repeated pairs have more than one label" in kept.notes
    assert "test: 5 of its pairs are also in train, kept" in kept.notes
    table(tmp_path / "test", "csv", [("a", "b", "x"), ("b", "a", "x"), ("a", "", "y"), ("b", "a", "y")])
    (tmp_path / "test" / "train.csv").rename(tmp_path / "test.csv")
    parts = DatasetSplits("train.csv", "train.csv", "test.csv")
    dropped = load_dataset(dataclasses.replace(made, splits=parts, deduplicate=True), tmp_path)
    assert dropped.train.inputs == [("a", "b"), ("a", "c"), ("ab", "")]
    assert dropped.test.inputs == [("b", "a"), ("a", "")]
    assert "train: 2 repeated pairs dropped" in dropped.notes


def pair_batch(tmp_path: Path, tokenizer: Path, rows: list[int]) -> Any:
    given = split(["apple pear", "plum", "pear"], ["plum", "apple plum pear", ""])
    return Examples(tokenize(given, tokenizer, 8, tmp_path), given.ids, given.labels, PAD).batch(np.array(rows))


def models() -> tuple[Any, Any]:
    predecessor = bert.Model.build(SHAPE, ["a", "b", "c"], "eager", 1).eval()
    successor = bert.Model.build(SHAPE | {"layers": 2}, ["a", "b", "c"], "eager", 2).eval()
    view(successor).copy_head(view(predecessor))
    return predecessor, successor


def test_logits_are_those_of_the_types_whatever_the_padding(tmp_path: Path, tokenizer: Path) -> None:
    model, _ = models()
    together = pair_batch(tmp_path, tokenizer, [0, 1, 2])
    z = logits(model, together)
    inputs = {key: together[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    torch.testing.assert_close(z, model(**inputs).logits, rtol=1e-5, atol=1e-6)
    del together["token_type_ids"]
    assert not torch.allclose(z, logits(model, together))
    for row in range(3):
        alone = logits(model, pair_batch(tmp_path, tokenizer, [row]))
        torch.testing.assert_close(z[row], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("embeddings", ["frozen", "trained", "replaced"])
def test_the_hybrid_reads_the_types(tmp_path: Path, tokenizer: Path, embeddings: str) -> None:
    (predecessor, successor), batch = models(), pair_batch(tmp_path, tokenizer, [0, 1, 2])
    junctions = 3 if embeddings == "replaced" else 2
    whole = hybrid_logits(predecessor, successor, batch, [0.0] * junctions, embeddings)
    if embeddings == "frozen":
        successor.bert.embeddings.load_state_dict(predecessor.bert.embeddings.state_dict())
    assert torch.equal(whole, logits(successor, batch))
    if embeddings == "trained":
        predecessor.bert.embeddings.load_state_dict(successor.bert.embeddings.state_dict())
    nothing = hybrid_logits(predecessor, successor, batch, [1.0] * junctions, embeddings)  # p = 0
    assert torch.equal(nothing, logits(predecessor, batch))
    single = {key: value for key, value in batch.items() if key != "token_type_ids"}
    assert not torch.allclose(nothing, logits(predecessor, single))  # type: ignore[arg-type]


def test_the_graft_reads_the_types(tmp_path: Path, tokenizer: Path) -> None:
    (predecessor, successor), batch = models(), pair_batch(tmp_path, tokenizer, [0, 1, 2])
    assert torch.equal(grafted(predecessor, successor)(batch, 0), logits(predecessor, batch))
