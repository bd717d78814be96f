"""Figures of a model: parameters and FLOPs beside published ones and torch's counter."""

from itertools import groupby

import pytest
import torch

from kdbench.inference import measure
from kdbench.models import bert

BASE = {"vocab_size": 30522, "hidden": 768, "heads": 12, "ffn": 3072, "max_positions": 512, "pad_token_id": 0}
WIDE = {"hidden": 1024, "heads": 16, "ffn": 4096}
MINI = {"hidden": 384, "heads": 12, "ffn": 1536}
TINY = {"hidden": 312, "heads": 12, "ffn": 1200}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert_base_12L", {"layers": 12}),
        ("bert_6L", {"layers": 6}),
        ("bert_3L", {"layers": 3}),
        ("bert_large", {"layers": 24, **WIDE}),
        ("tinybert_4L312", {"layers": 4, **TINY}),
        ("minilm_L6H384", {"layers": 6, **MINI}),
        ("minilm_L12H384", {"layers": 12, **MINI}),
    ],
)
def test_parameters(oracles, name, changes):
    with torch.device("meta"):
        encoder = bert.Model.build(BASE | changes, ["a", "b"], "eager", 0).bert
    counted = measure.parameters(encoder)
    assert counted["total"] == oracles["params"][name] == counted["embeddings"] + counted["without_embeddings"]


@pytest.mark.parametrize(("layers", "length"), [(1, 7), (3, 16)])
@pytest.mark.parametrize("words", [False, True])
def test_flops_are_those_of_the_matrix_products(layers, length, words):
    small = {"vocab_size": 50, "hidden": 24, "layers": layers, "heads": 3, "ffn": 40, "max_positions": 20}
    h, t = 24, length
    layer = 4 * t * h * h + 2 * t * t * h + 2 * t * h * 40
    head = t * h * 3 if words else h * h + h * 3  # of all words; else pooler and classifier of the first token
    assert bert.Model.flops(small | {"pad_token_id": 0}, length, 3, words) == 2 * (layers * layer + head)


def test_latency_lets_the_calls_take_turns():
    calls: list[tuple[str, int, int]] = []
    figures = measure.latency(
        {name: lambda size, turn, name=name: calls.append((name, size, turn)) for name in "ab"}, rounds=3
    )
    assert figures.keys() == {"a", "b"} and figures["a"].keys() == {"batch_1", "batch_32"}
    assert [key for key, _ in groupby(calls)] == [
        (name, size, turn) for size in (1, 32) for turn in range(3) for _ in range(2) for name in "ab"
    ]
    one = figures["b"]["batch_32"]
    assert one["iqr_ms"] >= 0 and 0 <= one["repeat"] < 2 and 0 < one["median_ms"] <= one["p95_ms"]
