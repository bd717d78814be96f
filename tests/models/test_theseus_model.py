"""Oracle O8: replacement rates, the mix at a junction, independence of the draws, and the hybrid's limits."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from kdbench.methods.theseus import blocks, draw_epsilon, hybrid_logits, junction, linear_rate
from kdbench.models import bert
from kdbench.models.network import view
from kdbench.models.students import logits

SHAPE = {"vocab_size": 30, "hidden": 16, "layers": 6, "heads": 2, "ffn": 32, "max_positions": 20, "pad_token_id": 0}
LABELS = ["a", "b", "c"]


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def toy(epsilons: list[float], halved: bool = False) -> float:
    x = torch.ones((), dtype=torch.float64)
    for epsilon in epsilons:
        x = junction(x, epsilon, [Times(2)], Times(3), halved)
    return x.item()


def models() -> tuple[Any, Any]:
    predecessor = bert.Model.build(SHAPE, LABELS, "eager", 1).eval()
    successor = bert.Model.build(SHAPE | {"layers": 3}, LABELS, "eager", 2).eval()
    view(successor).copy_head(view(predecessor))
    return predecessor, successor


def batch() -> Any:
    ids = torch.randint(1, 30, (4, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_linear_rate(oracles):
    for step, expected in oracles["O8_theseus"]["p"].items():
        assert linear_rate(int(step), 0.3, 6e-4) == pytest.approx(expected)
    first = oracles["O8_theseus"]["first_t_p1"]
    assert linear_rate(first - 1, 0.3, 6e-4) < 1 == linear_rate(first, 0.3, 6e-4)


def test_junctions(oracles):
    expected = oracles["O8_theseus"]
    assert toy([1, 1, 1]) == expected["toy_pred"]
    assert toy([0, 0, 0]) == expected["toy_succ"]
    assert toy([0.5] * 3) == expected["toy_mix_eps05"]  # halving at each junction would give 1.953125
    assert toy([0.25] * 3) == expected["toy_mix_eps_025"]


def test_halved_junctions(oracles):
    expected = oracles["O8_theseus"]
    assert toy([0.5] * 3, halved=True) == expected["toy_mix_eps05_buggy_halved"]
    assert toy([0.25] * 3, halved=True) == expected["toy_mix_eps_025"] / 8
    # A share of all or nothing is halved too, as the posts' layer does.
    assert toy([1, 1, 1], halved=True) == expected["toy_pred"] / 8
    assert toy([0, 0, 0], halved=True) == expected["toy_succ"] / 8


@pytest.mark.parametrize("embeddings", ["frozen", "replaced"])
def test_each_junction_is_halved_once(embeddings):
    """Beside a walk through transformers' own layers; the embeddings are a junction where they are replaced."""
    predecessor, successor = models()
    ids = batch()["input_ids"]
    replaced = embeddings == "replaced"
    shares = [0.25, 0.5, 0.75, 0.4][not replaced :]
    old, new = predecessor.bert, successor.bert
    x = old.embeddings(input_ids=ids)
    if replaced:
        x = (shares[0] * x + (1 - shares[0]) * new.embeddings(input_ids=ids)) / 2
    for index, share in enumerate(shares[replaced:]):
        block = old.encoder.layer[2 * index + 1](old.encoder.layer[2 * index](x))
        x = (share * block + (1 - share) * new.encoder.layer[index](x)) / 2
    data = batch() | {"attention_mask": torch.ones_like(ids)}
    found = hybrid_logits(predecessor, successor, data, shares, embeddings, halved=True)
    torch.testing.assert_close(found, predecessor.classifier(old.pooler(x)))


@pytest.mark.parametrize(("variant", "name"), [("bernoulli", "bernoulli05"), ("uniform", "uniform")])
def test_draws_are_independent_per_module(oracles, variant, name):
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([toy(draw_epsilon(variant, 0, 0.5, 3, generator)) for _ in range(4000)])
    mean, variance = (oracles["O8_theseus"][f"{key}_{name}_independent"] for key in ("E", "var"))
    assert values.mean().item() == pytest.approx(mean, abs=4 * (variance / 4000) ** 0.5)
    assert values.var().item() == pytest.approx(variance, rel=0.1)  # of one draw for all three, it is three times


def test_bernoulli_replaces_at_its_rate():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw_epsilon("bernoulli", 0, 0.3, 4, generator) for _ in range(5000)])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (1 - drawn).mean(0).tolist() == pytest.approx([0.3] * 4, abs=0.03)
    assert draw_epsilon("bernoulli", 0, 0.0, 3, generator) == [1, 1, 1]
    assert draw_epsilon("linear", 0, 1.0, 3, generator) == [0, 0, 0]


def test_annealed_goes_from_one_to_zero():
    shares = [draw_epsilon("annealed", step / 9, 0.5, 2, torch.Generator())[0] for step in range(10)]
    assert shares[0] == 1 and shares[-1] == 0
    assert all(a > b for a, b in pairwise(shares))


@pytest.mark.parametrize(
    ("steps", "modules", "newest"),
    [
        (12, 3, [0] * 4 + [1] * 4 + [2] * 4),
        (7, 3, [0, 0, 1, 1, 2, 2, 2]),  # the last part has what is left over
        (4, 4, [0, 1, 2, 3]),
        (5, 1, [0] * 5),
        (1, 3, [0]),
    ],
)
def test_ordered_puts_in_one_module_after_the_other(steps, modules, newest):
    for step, last in enumerate(newest):
        drawn = draw_epsilon("ordered", step / max(1, steps - 1), 0.5, modules, torch.Generator())
        assert drawn == [0.0 if module <= last else 1.0 for module in range(modules)]


@pytest.mark.parametrize("modules", [2, 6, 12, 25])
def test_ordered_divides_the_stage_into_equal_parts(modules):
    steps = modules * 341
    draws = (draw_epsilon("ordered", step / (steps - 1), 0.5, modules, torch.Generator()) for step in range(steps))
    assert Counter(drawn.count(0.0) for drawn in draws) == dict.fromkeys(range(1, modules + 1), 341)


def test_blocks(oracles):
    assert blocks(12, 6) == oracles["O8_theseus"]["module_map_12_6"]
    assert blocks(12, 3) == oracles["O8_theseus"]["module_map_12_3"]
    with pytest.raises(ValueError, match="do not divide"):
        blocks(12, 5)


def test_epsilon_one_is_the_predecessor_bitwise():
    predecessor, successor = models()
    hybrid = hybrid_logits(predecessor, successor, batch(), [1.0] * 3, "frozen")
    assert torch.equal(hybrid, logits(predecessor, batch()))


def test_epsilon_zero_is_the_successor_bitwise():
    predecessor, successor = models()
    replaced = hybrid_logits(predecessor, successor, batch(), [0.0] * 4, "replaced")
    assert torch.equal(replaced, logits(successor, batch()))
    successor.bert.embeddings.load_state_dict(predecessor.bert.embeddings.state_dict())
    frozen = hybrid_logits(predecessor, successor, batch(), [0.0] * 3, "frozen")
    assert torch.equal(frozen, logits(successor, batch()))


def test_only_what_was_drawn_is_computed():
    predecessor, successor = models()
    calls: list[str] = []
    for name, model in (("old", predecessor), ("new", successor)):
        for index, layer in enumerate(model.bert.encoder.layer):
            layer.intermediate.register_forward_pre_hook(lambda *_, tag=f"{name}{index}": calls.append(tag))
    hybrid_logits(predecessor, successor, batch(), [1.0, 0.0, 1.0], "frozen")
    assert calls == ["old0", "old1", "new1", "old4", "old5"]


@pytest.mark.parametrize("embeddings", ["frozen", "replaced"])
def test_each_example_may_have_its_own_epsilon(embeddings):
    predecessor, successor = models()
    modules = 3 + (embeddings == "replaced")
    drawn = torch.rand(4, modules, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    together = hybrid_logits(predecessor, successor, batch(), drawn.unbind(1), embeddings)
    for row, shares in enumerate(drawn.tolist()):
        alone = hybrid_logits(predecessor, successor, batch(), shares, embeddings)
        torch.testing.assert_close(together[row], alone[row])


def test_padding_changes_nothing():
    predecessor, successor = models()
    data = batch()
    padded = {name: nn.functional.pad(tensor, (0, 5)) for name, tensor in data.items()}
    for epsilon in ([0.0, 1.0, 0.5], [0.3] * 3):
        a = hybrid_logits(predecessor, successor, data, epsilon, "frozen")
        b = hybrid_logits(predecessor, successor, padded, epsilon, "frozen")  # type: ignore[arg-type]
        torch.testing.assert_close(a, b)
