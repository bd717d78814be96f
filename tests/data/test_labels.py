"""Labels of each kind of task, from tables, CoNLL files and cells of plain text; what is none is explained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertTokenizer

from kdbench.data.batches import Examples
from kdbench.data.datasets import load_dataset
from kdbench.data.stored import stored_dataset
from kdbench.data.tokenize import tokenize
from kdbench.errors import Code
from kdbench.losses import IGNORED
from kdbench.schema import DatasetConfig, DatasetSplits
from kdbench.tasks.arrays import plain
from tests.refusals import refused

CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP B-ORG
rejects VBZ I-VP O
British JJ B-NP B-MISC

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER

"""


def config(source: Path, train: str, task: str, **keys: Any) -> DatasetConfig:
    values: dict[str, Any] = {"text": "text", "label": "label", "classes": None, "dev_fraction": 0.2}
    values |= {"test_fraction": 0.2, "split_seed": 0, "max_length": 8, "epochs": 1}
    values |= {f"max_{split}_samples": None for split in ("train", "dev", "test")}
    splits = DatasetSplits(train, train, train)
    return DatasetConfig(name="small", source=str(source), splits=splits, task=task, **values | keys)


def written(folder: Path, name: str, content: str | list[dict]) -> Path:
    text = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
    (folder / name).write_text(text, encoding="utf8")
    return folder


@pytest.mark.parametrize("name", ["train.conll", "train.bio"])
def test_a_conll_file_has_words_and_their_last_columns(tmp_path: Path, name: str) -> None:
    data = load_dataset(config(written(tmp_path, name, CONLL), name, "token_classification"), tmp_path)
    assert data.train.texts == ["EU rejects British", "Peter Blackburn"]
    assert data.label_names == ["O", *(f"{start}-{kind}" for kind in ("MISC", "ORG", "PER") for start in "BI")]
    assert [[data.label_names[tag] for tag in tags] for tags in data.train.labels] == [
        ["B-ORG", "O", "B-MISC"],
        ["B-PER", "I-PER"],
    ]


def test_several_labels_stand_in_a_list_or_with_bars_between(tmp_path: Path) -> None:
    cells = ["sport|politics", "", "politics | money", "sport"]
    written(tmp_path, "train.csv", "text,label\n" + "\n".join(f"t{k},{cell}" for k, cell in enumerate(cells)))
    lists = [{"text": f"t{k}", "label": [c.strip() for c in cell.split("|") if c]} for k, cell in enumerate(cells)]
    written(tmp_path, "train.jsonl", [*lists, {"text": "dropped", "label": None}])
    for name in ("train.csv", "train.jsonl"):
        data = load_dataset(config(tmp_path, name, "multi_label"), tmp_path)
        assert data.label_names == ["money", "politics", "sport"]
        assert data.train.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]], name


def test_numbers_are_read_and_cut_without_classes(tmp_path: Path) -> None:
    rows = "\n".join(f"t{k},{k / 10}" for k in range(20))
    made = config(written(tmp_path, "train.csv", f"text,label\n{rows}\n"), "train.csv", "regression")
    made.splits = DatasetSplits("train.csv")
    data = load_dataset(made, tmp_path)
    assert data.label_names == ["label"] and [len(split) for split in (data.train, data.dev, data.test)] == [13, 3, 4]
    for split in (data.train, data.dev, data.test):
        assert split.labels.tolist() == pytest.approx((split.ids / 10).tolist())


@pytest.mark.parametrize("task", ["multi_label", "regression", "token_classification"])
def test_the_cache_gives_back_what_was_read(tmp_path: Path, task: str) -> None:
    label = {"multi_label": lambda k: ["a", "b"][: k % 3], "regression": lambda k: k / 7, "token_classification": None}
    rows = [{"text": f"t{k}", "label": (label[task] or (lambda k: None))(k)} for k in range(30)]
    if task == "token_classification":
        rows = [{"text": ["w"] * (1 + k % 3), "label": ["B-X", "I-X", "O"][: 1 + k % 3]} for k in range(30)]
    made = config(written(tmp_path, "train.jsonl", rows), "train.jsonl", task)
    read, kept = load_dataset(made, tmp_path), stored_dataset(made, tmp_path)
    assert (read.label_names, read.notes) == (kept.label_names, kept.notes)
    for a, b in zip((read.train, read.dev, read.test), (kept.train, kept.dev, kept.test), strict=True):
        assert list(a.texts) == list(b.texts) and a.labels.dtype == b.labels.dtype
        assert plain(a.labels) == plain(b.labels) and a.tagged == b.tagged == (task == "token_classification")


@pytest.mark.parametrize(
    ("task", "rows", "code", "named"),
    [
        ("multi_label", [{"text": "a", "label": 1.5}], Code.INVALID_LABEL, "sport|politics"),
        ("regression", [{"text": "a", "label": "much"}], Code.INVALID_LABEL, "'much'"),
        ("regression", [{"text": "a", "label": float("inf")}], Code.INVALID_LABEL, "inf"),
        ("classification", [{"text": "a", "label": ["x"]}], Code.INVALID_LABEL, "multi_label for lists"),
        ("token_classification", [{"text": "a b", "label": ["O", "O"]}], Code.INVALID_TEXT, "'a b'"),
        ("token_classification", [{"text": ["a b"], "label": ["O"]}], Code.INVALID_TEXT, "'a b'"),
        ("token_classification", [{"text": ["a"], "label": "O"}], Code.INVALID_LABEL, "'O'"),
        (
            "token_classification",
            [{"text": ["a"], "label": ["B-X", "O"]}],
            Code.INVALID_LABEL,
            "2 tags for the 1 words 'a'",
        ),
        (
            "token_classification",
            [{"text": ["a", "b"], "label": ["NOUN", "VERB"]}],
            Code.MISMATCHED_CLASSES,
            "metric=word_accuracy",
        ),
    ],
)
def test_what_is_no_label_is_explained(tmp_path: Path, task: str, rows: list[dict], code: Code, named: str) -> None:
    with refused(code, named):
        load_dataset(config(written(tmp_path, "train.jsonl", rows), "train.jsonl", task), tmp_path)


def test_files_of_other_tasks_and_metrics_are_explained(tmp_path: Path) -> None:
    written(tmp_path, "train.conll", CONLL)
    with refused(Code.INAPPLICABLE_KEY, "dataset.task=token_classification"):
        load_dataset(config(tmp_path, "train.conll", "classification"), tmp_path)
    written(tmp_path, "train.conll", "alone\n")
    with refused(Code.UNREADABLE_TABLE, "line 1"):
        load_dataset(config(tmp_path, "train.conll", "token_classification"), tmp_path)
    written(tmp_path, "train.csv", "text,label\na,x\nb,y\nc,z\n")
    with refused(Code.MISMATCHED_CLASSES, "dataset.metric=f1 ", "small has 3"):
        load_dataset(config(tmp_path, "train.csv", "classification", metric="f1"), tmp_path)


def test_a_words_first_piece_carries_its_label_and_its_output(tmp_path: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##s", "we"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    rows = [
        {"text": ["we", "playing", "plays"], "label": ["O", "B-X", "I-X"]},
        {"text": ["plays", "we"], "label": ["B-X", "O"]},
    ]
    data = load_dataset(config(written(tmp_path, "train.jsonl", rows), "train.jsonl", "token_classification"), tmp_path)
    split = data.train
    examples = Examples(tokenize(split, tmp_path, 6, tmp_path), split.ids, split.labels, 0)
    batch = examples.batch(np.array([1, 0]))
    x = IGNORED
    assert batch["labels"].tolist() == [[x, 1, x, 0, x, x], [x, 0, 1, x, 2, x]]  # [CLS] plays ##s we, we play ##ing ...
    assert examples.outputs == 5 and examples.rows(np.array([1, 0])).tolist() == [3, 4, 0, 1, 2]
    import torch

    found = examples.by_example(torch.arange(10.0).reshape(5, 2))
    assert [one.tolist() for one in found] == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9]]]
