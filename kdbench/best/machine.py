"""How fast this machine trains: matrix products of the shape that an encoder's layers have."""

import time
from typing import NamedTuple

import torch

from kdbench.best.work import configured
from kdbench.training.hardware import settle

_TOKENS, _HIDDEN, _FFN = 1024, 384, 1536  # of a batch of 32 texts, and of the default encoder
_SECONDS = 1.0
_OVERHEAD = 1.5  # of a training step over its matrix products; scripts/bench/NOTES.md has 0.8 to 1.3 for logit KD


class Machine(NamedTuple):
    """Seconds that one multiply-add takes in a training step, and in an answer to a single text."""

    training: float
    answering: float

    def step(self, parameters: float, tokens: float) -> float:
        """Return the seconds of an update: a forward pass, and a backward pass that costs two."""
        return 3 * parameters * tokens * self.training * _OVERHEAD

    def passes(self, parameters: float, tokens: float) -> float:
        """Return the seconds of a forward pass over many texts."""
        return parameters * tokens * self.training * _OVERHEAD

    def ms(self, parameters: float, tokens: float) -> float:
        """Return the ms of an answer to one text."""
        return 1000 * parameters * tokens * self.answering * _OVERHEAD


def measure() -> Machine:
    """Measure for about two seconds."""
    settled = settle(configured(("method=finetune",))[0].hardware)
    kind = torch.bfloat16 if settled.precision == "bf16" else torch.float32
    return Machine(_a_product(_TOKENS, kind, settled.device), _a_product(32, torch.float32, "cpu"))


def _a_product(tokens: int, kind: torch.dtype, device: str) -> float:
    """Return the seconds of a multiply-add within products of (tokens, hidden) and (hidden, ffn)."""
    a, b = (torch.randn(*shape, dtype=kind, device=device) for shape in ((tokens, _HIDDEN), (_HIDDEN, _FFN)))
    float((a @ b)[0, 0])  # warms up
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        float((a @ b)[0, 0])  # waits for a GPU
        count += 1
    return (time.perf_counter() - began) / (count * tokens * _HIDDEN * _FFN)
