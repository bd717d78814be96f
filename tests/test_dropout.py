"""Cheap dropout: what torch's does, from other random numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdbench.training.dropout import CheapDropout, cheap, dropout
from kdbench.training.hardware import Hardware

CPU = Hardware("cpu", "bf16", "eager", 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_and_the_others_are_scaled_as_torch_does(dtype, p):
    torch.manual_seed(0)
    ones = torch.ones(400, 1001, dtype=dtype)  # of 64 random bits a part is left over
    dropped = dropout(ones, p)
    assert dropped.dtype == dtype and set(dropped.unique().tolist()) == set(F.dropout(ones, p).unique().tolist())
    share, spread = (dropped == 0).float(), (p * (1 - p)) ** 0.5
    assert abs(share.mean() - p) < 5 * spread / share.numel() ** 0.5
    for lane in range(4):  # all parts of a drawn number
        assert abs(share.flatten()[lane::4].mean() - p) < 5 * spread / (share.numel() / 4) ** 0.5
    neighbours = ((share[:, 1:] - p) * (share[:, :-1] - p)).mean() / spread**2
    assert abs(neighbours) < 5 / share.numel() ** 0.5  # uncorrelated


def test_the_gradient_is_dropped_where_the_number_is():
    torch.manual_seed(0)
    x = torch.randn(64, 64, requires_grad=True)
    dropped = dropout(x, 0.3)
    dropped.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.where(dropped == 0, 0.0, 1 / 0.7))


def test_draws_follow_torchs_generator():
    x = torch.ones(50, 50)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5), first) and not torch.equal(first, second)


def test_every_dropout_within_is_cheap_and_none_without(monkeypatch):
    calls = []
    monkeypatch.setattr("kdbench.training.dropout.keep", lambda x, p: calls.append(p) or torch.zeros_like(x))
    module, x = nn.Dropout(0.2), torch.ones(3)
    with cheap(CPU, 0.2):
        assert module(x).sum() == 0 and F.dropout(x, p=0.4, training=True).sum() == 0
        assert module.eval()(x).sum() == 3 and F.dropout(x, 0.4, False).sum() == 3
    assert calls == [0.2, 0.4]
    module.train()(x)
    assert calls == [0.2, 0.4]


def test_where_it_is_used():
    assert isinstance(cheap(CPU, 0.1), CheapDropout)
    for hardware, p in (
        (CPU, 0.0),
        (Hardware("cuda", "bf16", "sdpa", 1), 0.1),
        (Hardware("cpu", "bf16", "eager", 1, True), 0.1),
    ):
        assert not isinstance(cheap(hardware, p), CheapDropout)
