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

from kdbench.models.bert import attention_bias, first_token, head
from kdbench.stage import Batch

Layer = Callable[[Tensor, Tensor | None], Tensor]  # (states, mask in the attention's form) -> states
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
    words = {"input_ids": batch["input_ids"], "token_type_ids": batch.get("token_type_ids")}
    old, new = predecessor.bert.embeddings, successor.bert.embeddings
    first: Share = rest.pop(0) if embeddings == "replaced" else {"frozen": 1.0, "trained": 0.0}[embeddings]
    x = mix(first, lambda: old(**words), lambda: new(**words))
    mask = batch["attention_mask"]
    bias = attention_bias(predecessor, x, mask)
    layers, modules = ([*model.bert.encoder.layer] for model in (predecessor, successor))
    for last in (layers, modules) if predecessor.bert.pooler is not None else ():  # the head reads one token
        last[-1] = lambda x, _, layer=last[-1]: first_token(layer, x, mask)
    for share, block, module in zip(rest, blocks(len(layers), len(modules)), modules, strict=True):
        x = junction(x, share, [layers[index] for index in block], module, bias)
    return head(predecessor, x)


def junction(x: Tensor, epsilon: Share, block: list[Layer], module: Layer, bias: Tensor | None) -> Tensor:
    """One step of the hybrid: the block, the module, or their mix."""

    def predecessor() -> Tensor:
        y = x
        for layer in block:
            y = layer(y, bias)
        return y

    return mix(epsilon, predecessor, lambda: module(x, bias))


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
