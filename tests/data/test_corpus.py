"""The corpus of the general stages: whose texts, in which pieces, masked how."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from kdbench.data.batches import TrainBatches
from kdbench.data.corpus import MaskedBatches, Masking, corpus_examples, load_texts, smoothed_weights
from kdbench.losses import IGNORED
from kdbench.schema import CorpusConfig, DatasetConfig, DatasetSplits, RunningText


@pytest.fixture
def corpus(tmp_path):
    rows = {"train": ["iron gold", "lake river", "plum pear", "iron gold"], "test": ["lake river", "zinc lead"]}
    for name, texts in rows.items():
        lines = ["text,label", *(f"{text},{'ab'[i % 2]}" for i, text in enumerate(texts))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "wiki.txt").write_text("the big apple is old\na new sea near\n")
    dataset = DatasetConfig(
        name="d", source=str(tmp_path), splits=DatasetSplits("train.csv", "test.csv", "test.csv"), text="text",
        label="label", classes=None, dev_fraction=0.1, test_fraction=0.1, split_seed=0, max_length=16,
        max_train_samples=None, max_dev_samples=None, max_test_samples=None, epochs=1,
    )  # fmt: skip
    running = RunningText(source=str(tmp_path), files={"wiki.txt": "", "train.csv": "text"})
    return CorpusConfig(name="c", datasets={"d": dataset}, running=running, max_length=8, mask_probability=0.15, seed=0)


def test_train_texts_once_and_none_of_dev_or_test(corpus, tmp_path):
    texts = load_texts(corpus, tmp_path / "cache")
    assert texts[:2] == ["iron gold", "plum pear"]
    assert texts[2] == "the big apple is old\na new sea near"
    assert texts[3].startswith("iron gold\nlake river")


def test_pieces_hold_every_token_in_order(corpus, teacher_folder, tmp_path):
    examples = corpus_examples(corpus, "content", teacher_folder, 0, tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    assert examples.tokens.lengths.max() == 8
    seen = []
    for i in range(len(examples)):
        piece = examples.tokens.flat[examples.tokens.span(i)]
        assert piece[0] == tokenizer.cls_token_id and piece[-1] == tokenizer.sep_token_id
        seen += piece[1:-1].tolist()
    texts = load_texts(corpus, tmp_path / "cache")
    assert seen == [i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def masked(teacher_folder, probability=0.15, weights=None, rows=400, length=20):
    masking = Masking(teacher_folder, probability, weights)
    ids = torch.randint(5, 27, (rows, length), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1] = 2, 3
    mask = torch.ones_like(ids)
    mask[:, -4:] = 0
    batch: Any = {
        "ids": torch.arange(rows),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.zeros(rows).long(),
    }
    return batch, masking(batch, torch.Generator().manual_seed(2)), masking


def test_masking_draws_as_bert_does(teacher_folder):
    before, after, masking = masked(teacher_folder)
    chosen = after["mlm_labels"] != IGNORED
    assert not chosen[:, 0].any() and not chosen[:, -4:].any()  # special tokens and padding
    open_tokens = 400 * 15
    share = chosen.sum().item() / open_tokens
    assert share == pytest.approx(0.15, abs=4 * np.sqrt(0.15 * 0.85 / open_tokens))
    assert torch.equal(after["mlm_labels"][chosen], before["input_ids"][chosen])
    assert torch.equal(after["input_ids"][~chosen], before["input_ids"][~chosen])
    n = chosen.sum().item()
    replaced = (after["input_ids"][chosen] == masking.mask_id).float().mean().item()
    kept = (after["input_ids"][chosen] == before["input_ids"][chosen]).float().mean().item()
    assert replaced == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / n))
    assert kept == pytest.approx(0.1 + 0.1 / 27, abs=4 * np.sqrt(0.1 / n))


def test_weights_choose_rare_tokens_more_often_and_as_many_in_all(teacher_folder):
    weights = torch.ones(27)
    weights[10] = 4.0
    before, after, _ = masked(teacher_folder, weights=weights)
    chosen = after["mlm_labels"] != IGNORED
    assert chosen.sum().item() / (400 * 15) == pytest.approx(0.15, abs=0.02)
    rare, open_ = before["input_ids"] == 10, before["attention_mask"].bool()
    open_[:, 0] = False
    ratio = chosen[rare & open_].float().mean() / chosen[~rare & open_].float().mean()
    assert ratio.item() == pytest.approx(4, rel=0.3)


def test_smoothing_is_a_power_of_the_counts(corpus, teacher_folder, tmp_path):
    examples = corpus_examples(corpus, "content", teacher_folder, 0, tmp_path / "cache")
    counts = np.bincount(np.asarray(examples.tokens.flat), minlength=27)
    weights = smoothed_weights(examples, 27, 0.7)
    assert weights[3].item() == pytest.approx(counts[3] ** -0.7, rel=1e-5)


def test_masked_batches_are_a_function_of_seed_epoch_and_place(corpus, teacher_folder, tmp_path):
    examples = corpus_examples(corpus, "content", teacher_folder, 0, tmp_path / "cache")
    data = MaskedBatches(TrainBatches(examples, 2, 5), Masking(teacher_folder, 0.5))
    whole = [batch["input_ids"] for batch in data.epoch(1)]
    later = [batch["input_ids"] for batch in data.epoch(1, 2)]
    assert len(whole) == len(data) and all(torch.equal(a, b) for a, b in zip(whole[2:], later, strict=True))
    other = [batch["mlm_labels"] for batch in data.epoch(2)]
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(whole, other, strict=True))
