"""Padding: an example's logits and loss do not depend on whom it is batched with."""

import numpy as np
import pytest
import torch

from kdbench.data.batches import Examples
from kdbench.data.tokenize import Tokens
from kdbench.losses import cross_entropy
from kdbench.models import bert, students

SHAPE = {"vocab_size": 30, "hidden": 16, "layers": 2, "heads": 2, "ffn": 32, "max_positions": 20, "pad_token_id": 0}


def examples() -> Examples:
    lengths = np.array([3, 9, 5, 12])
    flat = np.random.default_rng(0).integers(1, 30, lengths.sum()).astype(np.int32)
    return Examples(Tokens("t", flat, np.concatenate([[0], lengths.cumsum()])), np.arange(4), np.array([0, 1, 2, 0]), 0)


def padding_changes_nothing(attention: str = "eager") -> None:
    model = bert.Model.build(SHAPE, ["a", "b", "c"], attention, 0).eval()
    together = examples().batch(np.arange(4))
    logits = students.logits(model, together)
    losses = []
    for row in range(4):
        alone = examples().batch(np.array([row]))
        torch.testing.assert_close(logits[row], students.logits(model, alone)[0], rtol=1e-5, atol=1e-6)
        losses.append(cross_entropy(students.logits(model, alone), alone["labels"]))
    torch.testing.assert_close(cross_entropy(logits, together["labels"]), torch.stack(losses).mean())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_changes_nothing(attention):
    padding_changes_nothing(attention)


def test_a_batch_is_padded_to_its_longest():
    batch = examples().batch(np.array([0, 2]))
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 3:].tolist() == [0, 0]
    assert batch["labels"].tolist() == [0, 2]


def test_length_order_gives_every_row_once():
    rows = [rows.tolist() for rows, _ in examples().in_length_order(3)]
    assert rows == [[0, 2, 1], [3]]
