"""Oracle O10: where rows leave, and the curves and timings made of it."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.methods._early_exit import break_even_share, cascade_curve, curve, exits
from kdbench.models import fastbert

UNCERTAINTY = np.array([[0.9, 0.6, 0.3, 0.1], [0.2, 0.1, 0.05, 0.01], [0.95, 0.9, 0.85, 0.8]]).T  # (L, n)


def draw(*shape: int) -> Any:
    return 3 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def flops_at(layer: int) -> float:
    return 10.0 * layer + layer


def test_exits(oracles):
    for speed, expected in oracles["O10_fastbert"]["exits"].items():
        exit_layer = exits(UNCERTAINTY, float(speed)) + 1
        assert exit_layer.tolist() == expected["exit_layer"], speed
        assert exit_layer.mean() == pytest.approx(expected["mean"])
        assert 4 / exit_layer.mean() == pytest.approx(expected["layer_speedup"])


def test_exits_leaves_its_argument_alone():
    before = UNCERTAINTY.copy()
    exits(UNCERTAINTY, 0.5)
    assert np.array_equal(UNCERTAINTY, before)


def test_curve_by_hand():
    """Three rows, two layers: the first head is sure and right, sure and wrong, unsure."""
    sure, unsure = [0.0, 6.0], [0.0, 0.1]
    logits = np.array([[sure, sure, unsure], [sure, sure[::-1], sure[::-1]]], dtype=np.float32)
    labels = np.array([1, 0, 0])
    full, half, off = curve(logits, labels, [0.0, 0.5, 1.1], flops_at, 21.0)
    assert full == {
        "speed": 0.0, "n": 3, "accuracy": 1.0, "lost": 0.0, "gained": 0.0, "mean_exit_layer": 2.0,
        "mean_exit_layer_hard": None, "exit_shares": [0.0, 1.0], "mean_flops": 21.0,
    }  # fmt: skip
    assert half["lost"] == pytest.approx(1 / 3) and half["gained"] == 0
    (other,) = curve(logits[::-1].copy(), labels, [1.1], flops_at, 21.0)
    assert other["lost"] == 0 and other["gained"] == pytest.approx(2 / 3) and other["mean_exit_layer_hard"] == 1
    assert half["accuracy"] == pytest.approx(2 / 3)
    assert half["mean_exit_layer"] == pytest.approx(4 / 3)
    assert half["exit_shares"] == pytest.approx([2 / 3, 1 / 3])
    assert half["mean_flops"] == pytest.approx((2 * 11 + 22) / 3)
    assert off["accuracy"] == pytest.approx(1 / 3)
    assert off["exit_shares"] == [1.0, 0.0]
    json.dumps([full, half, off])


def test_at_the_break_even_share_early_exit_costs_what_none_costs():
    share = break_even_share(flops_at, 5, 51.0)
    assert 0 < share < 1 and share * flops_at(1) + (1 - share) * flops_at(5) == pytest.approx(51.0)


def test_curve_properties():
    logits = draw(5, 200, 4)
    labels = np.random.default_rng(1).integers(0, 4, 200)
    rows = curve(logits, labels, [0.0, 0.1, 0.3, 0.5, 0.8, 1.0, 1.01], flops_at, 51.0)
    means = [row["mean_exit_layer"] for row in rows]
    assert all(b <= a for a, b in pairwise(means)) and len(set(means)) >= 5
    assert all(sum(row["exit_shares"]) == pytest.approx(1) for row in rows)
    assert rows[0]["accuracy"] == (logits[-1].argmax(-1) == labels).mean()
    assert rows[-1]["accuracy"] == (logits[0].argmax(-1) == labels).mean()
    assert rows[0]["mean_flops"] == 51 and rows[-1]["mean_flops"] == flops_at(1)
    for row in rows[1:]:
        assert row["mean_flops"] == pytest.approx(flops_at(1) * row["mean_exit_layer"])


@pytest.mark.parametrize("classes", [2, 3, 8, 10, 19, 52])  # in float32, 8, 10 and 19 give less than 1
def test_equal_logits_leave_early_only_above_1(classes):
    logits = np.full((3, 4, classes), 0.7, dtype=np.float32)
    rows = curve(logits, np.zeros(4, dtype=np.int64), [0.5, 1.0, 1.01], flops_at, 31.0)
    assert [row["mean_exit_layer"] for row in rows] == [3, 3, 1]


def test_curve_tells_what_the_model_does():
    shape = {"vocab_size": 30, "hidden": 16, "layers": 3, "heads": 2, "ffn": 32, "max_positions": 9, "pad_token_id": 0}
    shape |= {"config": {"model_type": "bert"}, "embedding_branch": False}
    model = fastbert.Model.build(shape, ["a", "b"], "eager", 0).eval()
    for branch in model.branches:
        branch.classifier.weight.data.mul_(30)
    torch.nn.init.normal_(model.encoder.embeddings.word_embeddings.weight, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(1, 30, (40, 9), generator=torch.Generator().manual_seed(0))
    labels = np.random.default_rng(0).integers(0, 2, 40)
    with torch.no_grad():
        everything = model.all_logits(ids, torch.ones_like(ids)).numpy()
        speed = float(np.median(fastbert.uncertainty(torch.from_numpy(everything[0])).numpy())) + 1e-5
        for row in curve(everything, labels, [0.0, speed, 1.1], flops_at, 31.0):
            logits, exit_layer = model.early_exit(ids, torch.ones_like(ids), row["speed"])
            assert row["mean_exit_layer"] == pytest.approx(exit_layer.double().mean().item())
            assert row["accuracy"] == pytest.approx((logits.argmax(-1).numpy() == labels).mean())
        assert 1 < curve(everything, labels, [speed], flops_at, 31.0)[0]["mean_exit_layer"] < 3


def test_cascade():
    small, large = draw(2, 100, 3)
    labels = np.random.default_rng(1).integers(0, 3, 100)
    none, some, everything = cascade_curve(small, large, labels, [0.0, 0.5, 1.01], 1.0, 20.0)
    assert none["mean_flops"] == 20 and none["exit_shares"] == [0, 1]
    assert none["accuracy"] == (large.argmax(-1) == labels).mean()
    uncertainty = fastbert.uncertainty(torch.from_numpy(small)).numpy()
    assert 0 < some["exit_shares"][0] < 1
    assert some["exit_shares"][0] == pytest.approx((uncertainty < 0.5).mean())
    answers = np.where(uncertainty < 0.5, small.argmax(-1), large.argmax(-1))
    assert some["accuracy"] == (answers == labels).mean()
    assert some["mean_flops"] == pytest.approx(1 + 20 * some["exit_shares"][1])  # the small one is always paid
    assert everything["mean_flops"] == 1
    assert everything["accuracy"] == (small.argmax(-1) == labels).mean()
    assert none.keys() == curve(draw(2, 9, 3), np.zeros(9, dtype=np.int64), [0.5], flops_at, 21.0)[0].keys()
