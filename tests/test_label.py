"""kdbench-label: which texts it chooses, what it leaves out, and that its file is a data set once it is filled."""

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from kdbench.cli import label
from kdbench.cli import main as cli
from kdbench.data.readers import read_splits
from kdbench.errors import Code, UserError
from kdbench.inference import choosing
from kdbench.inference.choosing import choose, disagreement, entropy, margin, text_key
from kdbench.inference.classifier import Classifier, load_classifier
from kdbench.schema import DatasetConfig
from tests.data.test_messy_tables import config
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("taught")


class Stub(Classifier):
    """Gives each text the logits that a table has for it."""

    def logits(self, texts: Any, pairs: Any = None) -> torch.Tensor:
        return torch.tensor([self.tokenizer[text] for text in texts])


def stub(
    logits: dict[str, list[float]], labels: str = "ab", task: str = "classification", probable: bool = True
) -> Stub:
    dataset = DatasetConfig(text="text", label="label", task=task)
    return Stub(dataset, list(labels), 8, logits, 0, lambda batch, step: None, probable)  # type: ignore[arg-type, return-value]


def random_beliefs(seed: int, questions: int = 1) -> Any:
    return np.random.default_rng(seed).dirichlet([0.5, 0.5, 0.5], (20, questions))


@pytest.mark.parametrize("questions", [1, 3])
def test_the_criteria_are_their_formulas(questions):
    one, two = random_beliefs(0, questions), random_beliefs(1, questions)
    one[0] = [1.0, 0.0, 0.0]
    np.testing.assert_allclose(entropy(one), scipy.stats.entropy(one, axis=-1).mean(-1))
    best = np.partition(one, -2)
    np.testing.assert_allclose(margin(one), (best[..., 2] - best[..., 1]).min(-1))
    mean = (one + two) / 2
    each = [scipy.stats.entropy(model, mean, axis=-1).mean(-1) for model in (one, two)]  # KL divergence
    np.testing.assert_allclose(disagreement([one, two]), np.mean(each, 0), atol=1e-12)
    assert disagreement([one, one]).tolist() == [0.0] * 20


LOGITS = {"sure": [9.0, 0.0], "even": [0.0, 0.0], "nearly": [0.5, 0.0], "other": [0.0, 2.0]}


def chosen(by: str, top: int, texts: list[str], *models: Any, known: frozenset[bytes] = frozenset()) -> Any:
    rows = iter([(text,) for text in texts])
    return choose(models, rows, by, top, set(known), lambda texts, before: None)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_best_come_first_whatever_the_parts(monkeypatch, size):
    monkeypatch.setattr(choosing, "AT_A_TIME", size)
    texts = ["sure", "nearly", " ", "even", "nearly", "other", "even", "sure", "ev\nen"]
    logits = LOGITS | {"ev\nen": [0.0, 0.0]}
    for by in ("entropy", "margin"):
        pool = chosen(by, 3, texts, stub(logits))
        assert [one.row[0] for one in pool.best] == ["even", "nearly", "other"]
        assert [one.guess for one in pool.best] == ["a", "a", "b"]
        assert pool[1:4] == (9, 1, 0) and pool.repeated == 3
    assert pool.best[0].value == pytest.approx(0) and pool.best[2].value == pytest.approx(np.tanh(1))
    pool = chosen("margin", 9, texts, stub(logits), known=frozenset({text_key(("even",))}))
    assert [one.row[0] for one in pool.best] == ["nearly", "other", "sure"] and pool.known == 3


def test_of_equal_texts_the_first_ones_are_chosen(monkeypatch):
    monkeypatch.setattr(choosing, "AT_A_TIME", 3)
    texts = [f"{number}" for number in range(10)]
    pool = chosen("margin", 4, texts, stub({text: [1.0, 1.0] for text in texts}))
    assert [one.row[0] for one in pool.best] == texts[:4]


def test_several_models_and_several_labels():
    one, two = stub(LOGITS), stub({text: [b, a] for text, (a, b) in LOGITS.items()}, "ba")
    assert chosen("disagreement", 4, list(LOGITS), one, two).best[0].value == 0.0  # the same, in another order
    two = stub({text: [b, a] for text, (a, b) in LOGITS.items()})
    pool = chosen("disagreement", 2, list(LOGITS), one, two)
    assert [one.row[0] for one in pool.best] == ["sure", "other"]
    p = 1 / (1 + np.exp(-9.0))
    assert pool.best[0].value == pytest.approx(scipy.stats.entropy([p, 1 - p], [0.5, 0.5]))
    several = stub({"x": [1.0, -1.0, 2.0], "y": [0.1, -9.0, 9.0]}, "abc", "multi_label")
    first, second = chosen("margin", 2, ["x", "y"], several).best
    assert (first.row, first.guess, second.guess) == (("y",), "a|c", "a|c")
    assert (first.value, second.value) == pytest.approx((np.tanh(0.05), np.tanh(0.5)))
    scores = stub({"x": [1.0, -1.0, 2.0], "y": [0.1, -9.0, 9.0]}, "abc", "multi_label", False)
    assert [one.value for one in chosen("margin", 2, ["x", "y"], scores).best] == pytest.approx([0.1, 1.0])


@pytest.mark.parametrize(
    ("models", "by", "code", "named"),
    [
        ([stub({}, task="regression")], "margin", Code.UNSUPPORTED_TASK, "regression"),
        ([stub({}, task="token_classification")], "margin", Code.UNSUPPORTED_TASK, "token_classification"),
        ([stub({})], "disagreement", Code.CONFLICTING_OPTIONS, "several RUNs"),
        ([stub({}), stub({})], "entropy", Code.CONFLICTING_OPTIONS, "--by disagreement"),
        ([stub({}, probable=False)], "entropy", Code.CONFLICTING_OPTIONS, "--by margin"),
        ([stub({}), stub({}, probable=False)], "disagreement", Code.CONFLICTING_OPTIONS, "TF-IDF"),
        ([stub({}), stub({}, "ac")], "disagreement", Code.MISMATCHED_CLASSES, "labels"),
    ],
)
def test_models_that_a_criterion_cannot_judge(models, by, code, named):
    with refused(code, named, kind=UserError):
        choosing.require_suitable(models, by)


@pytest.fixture
def runs(configure, execute, capsys) -> list[str]:
    found = [execute(configure("method=finetune", f"seed={seed}"))["folder"] for seed in (0, 1)]
    capsys.readouterr()
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_from_a_pool_to_a_data_set(runs, data_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held_out = rows_of(data_folder / "test.csv")[0]["text"]
    new = ['a "new" apple, and', "iron of the lake", "sea near gold\nplum", "über the pear"]
    pool = Path("pool.jsonl")
    pool.write_text("\n".join(json.dumps({"text": text}) for text in [held_out, *new, new[0], ""]))
    assert label.main([*runs[:1], "--texts", str(pool), "--top", "3", "--by", "entropy"]) == 0
    said = capsys.readouterr()
    assert said.out == "labels_to_give.csv\n"
    assert "3 of 7 texts, by entropy. Left out: 1 in train, dev or test" in said.err and "1 blank" in said.err
    out = Path("labels_to_give.csv")
    rows = rows_of(out)
    assert list(rows[0]) == ["text", "label", "guess", "entropy"] and {row["text"] for row in rows} <= {*new}
    values = [float(row["entropy"]) for row in rows]
    assert len(rows) == 3 and values == sorted(values, reverse=True) and not any(row["label"] for row in rows)
    answers = load_classifier(Path(runs[0]))([row["text"] for row in rows])
    assert [row["guess"] for row in rows] == [one.label for one in answers]
    assert values == pytest.approx([scipy.stats.entropy([*one.probabilities.values()]) for one in answers], rel=1e-4)

    # a person fills it, and kdbench reads it by the command that is shown
    command = shlex.split(said.err.splitlines()[-1].partition(": ")[2])
    given = dict(word.split("=", 1) for word in command[1:])
    assert command[0] == "kdbench" and given["dataset.source"] == str(out) and given["inspect"] == "true"
    for row, topic in zip(rows, ("fruit", "metal", "fruit"), strict=True):
        row["label"] = topic
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    keys = {key: given[f"dataset.{key}"] for key in ("text", "label", "task")}
    assert cli.refuse(command[1:]) == []
    train = read_splits(config(out, **keys), tmp_path / "cache")["train"]
    assert train.texts == [row["text"] for row in rows] and train.labels == ["fruit", "metal", "fruit"]

    # labels are not lost
    before = out.read_bytes()
    assert label.main([*runs, "--texts", str(pool), "--by", "disagreement"]) == 2
    assert "KD079 would-overwrite" in capsys.readouterr().err and out.read_bytes() == before
    assert label.main([*runs, "--texts", str(pool), "--by", "disagreement", "--force", "--quiet"]) == 0
    assert capsys.readouterr().err == "" and list(rows_of(out)[0])[3] == "disagreement"
    assert label.main([*runs[:1], "--texts", str(pool), "--quiet"]) == 0  # no labels yet
    assert list(rows_of(out)[0])[3] == "margin"


def test_what_is_refused_writes_nothing(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run, _), before = runs, {"pool.txt", "empty.csv", "other.csv", "blank.txt", "mine.csv", "bytes.txt"}
    contents = {"pool.txt": "a\n", "other.csv": "a,b\nx,y\n", "blank.txt": "\n", "mine.csv": "x\n1\n", "bytes.txt": "ü"}
    for name in before:
        Path(name).write_bytes(contents.get(name, "").encode("latin-1"))
    there = {path.name for path in tmp_path.iterdir()}
    for words, problem in (
        ([run, "--texts", "pool.txt", "--top", "0"], "KD015 out-of-range"),
        ([run, "--texts", "pool.txt", "--out", "x.parquet"], "KD015 out-of-range"),
        ([run, "--texts", "pool.txt", "--out", "mine.csv"], "KD079 would-overwrite"),
        ([run, "--texts", "none.txt"], "KD042 missing-file"),
        ([run, "--texts", "empty.csv"], "KD051 unreadable-table"),
        ([run, "--texts", "other.csv"], "KD053 missing-column"),
        ([run, "--texts", "bytes.txt"], "KD052 wrong-encoding"),
        ([run, "--texts", "blank.txt"], "KD083 mismatched-input"),
        ([run, "--texts", "pool.txt", "--by", "disagreement"], "KD006 conflicting-options"),
        (["none", "--texts", "pool.txt"], "KD042 missing-file"),
        ([".", "--texts", "pool.txt"], "KD071 not-a-run"),
    ):
        assert label.main(words) == 2, words
        said = capsys.readouterr()
        assert said.out == "" and problem in said.err and "Traceback" not in said.err, words
        assert {path.name for path in tmp_path.iterdir()} == there, words
