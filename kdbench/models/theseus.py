"""The hybrid of BERT-of-Theseus: predecessor blocks that give way to successor layers (Xu et al. 2020).

Module i of the successor (one layer) stands for block i of the predecessor (L_T / L_S layers). With
epsilon_i = 1 the block is computed, with 0 the layer, and in between both:

    x_{i+1} = epsilon_i * block_i(x_i) + (1 - epsilon_i) * layer_i(x_i)

The posts' ProportionalAdd halves this sum, which rescales every junction in training but not in inference;
here nothing is divided. Only what epsilon asks for is computed; where each example has its own, both are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdbench.models.encoder import Pass
from kdbench.models.encoders import view
from kdbench.stage import Batch

Share = float | Tensor  # one for the batch, or (B,), one an example


def mix(epsilon: Share, predecessor: Callable[[], Tensor], successor: Callable[[], Tensor]) -> Tensor:
    """epsilon * predecessor + (1 - epsilon) * successor, computing only what counts; states (B, T, H)."""
    if isinstance(epsilon, Tensor):
        old, new = predecessor(), successor()
        share = epsilon.to(old)[:, None, None]
        return share * old + (1 - share) * new
    if epsilon == 1:
        return predecessor()
    if epsilon == 0:
        return successor()
    return epsilon * predecessor() + (1 - epsilon) * successor()


def blocks(predecessor_layers: int, successor_layers: int) -> list[list[int]]:
    """The predecessor's layers, counted from 0, that each successor layer replaces."""
    size, rest = divmod(predecessor_layers, successor_layers)
    if rest:
        raise ValueError(f"{predecessor_layers} layers do not divide into {successor_layers} blocks")
    return [list(range(i * size, (i + 1) * size)) for i in range(successor_layers)]


def hybrid_logits(predecessor: Any, successor: Any, batch: Batch, epsilon: Sequence[Share], embeddings: str) -> Tensor:
    """Logits (B, C), of words (B, T, C), of the hybrid under the predecessor's head.

    `epsilon` has one value a module, independent of each other. `embeddings`: `frozen` takes the
    predecessor's, `trained` the successor's, `replaced` mixes both by a further, leading epsilon.
    """
    rest = list(epsilon)
    old, new = view(predecessor), view(successor)
    first: Share = rest.pop(0) if embeddings == "replaced" else {"frozen": 1.0, "trained": 0.0}[embeddings]
    x = mix(first, lambda: old.embed(batch), lambda: new.embed(batch))
    mask = batch["attention_mask"]
    layers, modules = old.passes(x, mask), new.passes(x, mask)
    for share, block, module in zip(rest, blocks(len(layers), len(modules)), modules, strict=True):
        x = junction(x, share, [layers[index] for index in block], module)
    return old.logits_of(x, mask)


def junction(x: Tensor, epsilon: Share, block: list[Pass], module: Pass) -> Tensor:
    """One step of the hybrid: the block, the module, or their mix."""

    def predecessor() -> Tensor:
        y = x
        for layer in block:
            y = layer(y)
        return y

    return mix(epsilon, predecessor, lambda: module(x))


def draw_epsilon(variant: str, progress: float, rate: float, modules: int, generator: torch.Generator) -> list[float]:
    """One epsilon a module for this step, each drawn on its own; 1 = predecessor, 0 = successor.

    `rate` is the replacement rate p of this step. bernoulli, linear: 0 with probability p, else 1 (Xu et
    al. 2020, section 3.1). mix: 1 - p, always. uniform: U(0, 1). annealed: from 1 to 0 as `progress` goes
    from 0 to 1.
    """
    if variant in ("bernoulli", "linear"):
        drawn = torch.rand(modules, generator=generator) < rate
        return (1.0 - drawn.double()).tolist()
    if variant == "uniform":
        return torch.rand(modules, generator=generator).tolist()
    share = {"mix": 1 - rate, "annealed": 1 - progress}[variant]
    return [share] * modules


def linear_rate(step: int, base: float, slope: float) -> float:
    """p_t = min(1, slope * t + base), t = optimiser steps already taken (Xu et al. 2020, section 3.3)."""
    return min(1.0, slope * step + base)
