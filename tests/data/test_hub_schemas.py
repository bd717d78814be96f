"""Every YAML of a hub's data set, read from a small folder of that repository's own schema, made here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from omegaconf import OmegaConf

from kdbench.data.datasets import load_dataset
from tests.data.test_hub_datasets import CONF, SST2, TNEWS, config

HUB = sorted(path.stem for path in CONF.glob("*.yaml") if "\nsource: hub:" in path.read_text(encoding="utf8"))
ROWS = 60  # of train; half as many in each other split

PAIR = {"sentence1": str, "sentence2": str}
NLI = ["entailment", "neutral", "contradiction"]
CLUE_NLI = ["neutral", "entailment", "contradiction"]
ENTAILED = ["entailment", "not_entailment"]
TWO = ["0", "1"]
NER = ["O", *(f"{start}-{kind}" for kind in ("PER", "ORG", "LOC", "MISC") for start in "BI")]
POS = ["NN", "VB", "DT"]
GLUE, OFFICIAL, NO_DEV = ("train", "validation", "test"), ("train", "validation", "test"), ("train", "test")


def many(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


# Columns of the repository: text, a list of texts, a number, names of classes, a list of classes. Then its splits.
SCHEMAS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "cola": ({"sentence": str, "label": ["unacceptable", "acceptable"], "idx": int}, GLUE),
    "sst2": ({"sentence": str, "label": SST2, "idx": int}, GLUE),
    "mrpc": (PAIR | {"label": ["not_equivalent", "equivalent"], "idx": int}, GLUE),
    "qqp": ({"question1": str, "question2": str, "label": ["not_duplicate", "duplicate"], "idx": int}, GLUE),
    "stsb": (PAIR | {"label": float, "idx": int}, GLUE),
    "mnli": (
        {"premise": str, "hypothesis": str, "label": NLI, "idx": int},
        ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"),
    ),
    "qnli": ({"question": str, "sentence": str, "label": ENTAILED, "idx": int}, GLUE),
    "rte": (PAIR | {"label": ENTAILED, "idx": int}, GLUE),
    "wnli": (PAIR | {"label": ENTAILED[::-1], "idx": int}, GLUE),
    "iflytek": ({"sentence": str, "label": many(119), "idx": int}, GLUE),
    "tnews": ({"sentence": str, "label": TNEWS, "idx": int}, GLUE),
    "afqmc": (PAIR | {"label": TWO, "idx": int}, GLUE),
    "ocnli": (PAIR | {"label": CLUE_NLI, "idx": int}, GLUE),
    "cmnli": (PAIR | {"label": CLUE_NLI, "idx": int}, GLUE),
    "csl": ({"idx": int, "corpus_id": int, "abst": str, "label": TWO, "keyword": [str]}, GLUE),
    "ag_news": ({"text": str, "label": ["World", "Sports", "Business", "Sci/Tech"]}, NO_DEV),
    "imdb": ({"text": str, "label": ["neg", "pos"]}, (*NO_DEV, "unsupervised")),
    "dbpedia": ({"label": many(14, "kind"), "title": str, "content": str}, NO_DEV),
    "yelp_polarity": ({"text": str, "label": ["1", "2"]}, NO_DEV),
    "yelp_full": ({"label": ["1 star", *(f"{k} stars" for k in range(2, 6))], "text": str}, NO_DEV),
    "banking77": ({"text": str, "label": many(77, "intent")}, NO_DEV),
    "clinc150": ({"text": str, "intent": many(151, "intent")}, OFFICIAL),
    "newsgroups20_hub": ({"text": str, "label": int, "label_text": str}, NO_DEV),
    "go_emotions": ({"text": str, "labels": [many(28, "feeling")], "id": str}, OFFICIAL),
    "conll2003": ({"id": str, "tokens": [str], "pos_tags": [POS], "chunk_tags": [POS], "ner_tags": [NER]}, OFFICIAL),
}
SUBSETS = {"clinc150": ("imbalanced", "plus", "small"), "go_emotions": ("raw", "simplified")}


def feature(kind: Any) -> Any:
    if isinstance(kind, list):
        return List(feature(kind[0])) if len(kind) == 1 else ClassLabel(names=kind)
    return Value({str: "string", int: "int32", float: "float32"}[kind])


def cell(kind: Any, name: str, row: int, split: str, hidden: bool) -> Any:
    """What stands in `row`: texts tell where they are from, classes go round, lists are one to three long."""
    if isinstance(kind, list) and len(kind) == 1:
        return [cell(kind[0], name, row + at, split, False) for at in range(1 + row % 3)]
    if name == "label_text":
        return f"group{row % 20:02}"
    if kind is str:
        return f"{split}-{name}-{row}"
    if hidden and name == "label":
        return -1
    return row % len(kind) if isinstance(kind, list) else row / 4 if kind is float else row


def make(name: str, root: Path) -> None:
    """The repository: a folder and a configuration a subset, or, without subsets, what the library finds by itself."""
    columns, splits = SCHEMAS[name]
    subset = OmegaConf.load(CONF / f"{name}.yaml").subset
    subsets = SUBSETS.get(name, (subset, "another")) if subset else ("data",)
    card = ["---", "configs:"]
    for one in subsets:
        card += [f"- config_name: {one}", "  data_files:"]
        for split in splits:
            card += [f"  - split: {split}", f"    path: {one}/{split}/*"]
            hidden = split.startswith("test") and splits[1].startswith("validation") and "label" in columns
            rows = max([ROWS, *(3 * len(kind) for kind in columns.values() if isinstance(kind, list))])
            rows = rows if split == "train" else rows // 2
            values = {k: [cell(kind, k, row, split, hidden) for row in range(rows)] for k, kind in columns.items()}
            table = Dataset.from_dict(values, features=Features({k: feature(kind) for k, kind in columns.items()}))
            (root / one / split).mkdir(parents=True)
            table.to_parquet(root / one / split / "0000.parquet")
    if subset:
        (root / "README.md").write_text("\n".join([*card, "---"]))


def test_every_data_set_of_a_hub_has_its_schema_here():
    assert sorted(SCHEMAS) == HUB


@pytest.mark.parametrize("name", HUB)
def test_it_reads_its_repository(tmp_path: Path, name: str) -> None:
    make(name, tmp_path / "hub")
    asked = config(name, tmp_path / "hub")
    data = load_dataset(asked, tmp_path)
    columns = SCHEMAS[name][0]
    test = str(asked.splits.test)
    kind = columns[asked.label]
    if isinstance(kind, list):
        assert data.label_names == (kind[0] if len(kind) == 1 else kind)  # in the repository's order
    for row in (0, 1, len(data.test) - 1):
        for column, texts in ((asked.text, data.test.texts), (asked.text_pair, data.test.pairs)):
            if column is not None:
                wanted = cell(columns[column], column, row, test, False)
                assert texts[row] == (" ".join(wanted) if isinstance(wanted, list) else wanted)
            else:
                assert texts is None
        label, wanted = data.test.labels[row], cell(kind, asked.label, row, test, False)
        if asked.task == "multi_label":
            assert set(np.flatnonzero(label)) == set(wanted)
        elif kind is str:
            assert data.label_names[label] == wanted
        else:
            assert np.array_equal(label, wanted)
    assert data.test_is == ("dev" if test.startswith("validation") else "test")
    official = asked.splits.dev is not None
    assert all(text.startswith("validation" if official else "train") for text in data.dev.texts)
    assert not set(data.train.ids) & set(data.dev.ids) and len(data.train) > len(data.dev) > 0
