"""The short way to a classifier's logits equals transformers' own forward, gradients and padding included."""

from typing import Any

import pytest
import torch
from torch import nn

from kdbench.losses import cross_entropy
from kdbench.models import bert, students
from kdbench.models.network import view
from kdbench.models.relu_bert import use_relu_head
from kdbench.stage import Batch

SHAPE = {"vocab_size": 50, "hidden": 16, "layers": 3, "heads": 4, "ffn": 32, "max_positions": 12, "pad_token_id": 0}


def model(attention: str = "eager", layers: int = 3):
    return bert.Model.build(SHAPE | {"layers": layers}, ["a", "b", "c"], attention, seed=1).eval()


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (4, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([9, 4, 7, 1])[:, None]).long()
    return Batch(ids=torch.arange(4), input_ids=ids * mask, attention_mask=mask, labels=torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_short_way_equals_the_models_own(attention, layers):
    own = model(attention, layers)
    torch.testing.assert_close(students.logits(own, batch()), students.forward(own, batch()), rtol=1e-5, atol=1e-6)


def test_both_ways_read_the_token_types_of_a_pair():
    own, single = model(), batch()
    pair: Any = single | {"token_type_ids": (torch.arange(9) > 3).long() * single["attention_mask"]}
    expected = own(
        input_ids=pair["input_ids"], attention_mask=pair["attention_mask"], token_type_ids=pair["token_type_ids"]
    )
    for logits in (students.logits, students.forward):
        torch.testing.assert_close(logits(own, pair), expected.logits, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(logits(own, pair), logits(own, single))


def test_its_gradients_are_the_same():
    gradients = []
    for logits in (students.logits, students.forward):
        trained = model()
        cross_entropy(logits(trained, batch()), batch()["labels"]).backward()
        gradients.append({name: p.grad for name, p in trained.named_parameters()})
    short, own = gradients
    unused = "bert.encoder.layer.2.attention.self.key.bias"  # moves all scores of a row alike: nothing but rounding
    assert short.pop(unused) is None and own.pop(unused).abs().max() < 1e-7
    torch.testing.assert_close(short, own, rtol=1e-4, atol=1e-6)


def test_dropout_drops_shares_of_the_last_layers_attention():
    torch.manual_seed(0)
    encoder = model().train()
    layer = encoder.bert.encoder.layer[-1]
    layer.attention.self.dropout.p = 0.5
    nn.init.ones_(layer.attention.self.value.bias)
    x, mask = torch.randn(1, 9, 16), torch.ones(1, 9, dtype=torch.long)
    drawn = torch.stack([view(encoder).passes(x, mask)[-1](x) for _ in range(400)])
    assert drawn.std(0).min() > 1e-4

    def whole(_: int) -> torch.Tensor:
        return layer(x, None)[:, :1]

    expected = torch.stack([whole(i) for i in range(400)])
    torch.testing.assert_close(drawn.mean(0), expected.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(drawn.std(0), expected.std(0), rtol=0.25, atol=0.02)


def test_first_tokens_are_those_of_the_hidden_states():
    encoder = model().bert
    below, last = view(encoder).first_tokens(batch())
    for short, state in zip([*below, last], view(encoder).states(batch())[1:], strict=True):
        torch.testing.assert_close(short, state[:, :1], rtol=1e-5, atol=1e-6)


def test_a_relu_head_is_taken_along():
    own = model()
    before = students.logits(own, batch())
    use_relu_head(own)
    assert not torch.allclose(students.logits(own, batch()), before)
    torch.testing.assert_close(students.logits(own, batch()), students.forward(own, batch()), rtol=1e-5, atol=1e-6)


def test_a_relu_head_has_no_dropout():
    own = model()
    use_relu_head(own)
    view(own).set_dropout(0.5)
    own.train()
    x = torch.tensor([[-1.0, 2.0]])
    assert all(torch.equal(own.dropout(x), x.relu()) for _ in range(9))
