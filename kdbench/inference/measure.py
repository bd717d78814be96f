"""Figures of a finished model: size and latency."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Measurement, Timer

from kdbench.data.batches import Examples
from kdbench.stage import Batch

Call = Callable[[int, int], object]  # (batch size, number of the round): does what is timed


def parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: all, those in embedding tables, and the rest."""
    total = sum(p.numel() for p in model.parameters())
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embeddings = sum(p.numel() for table in tables for p in table.parameters())
    return {"total": total, "embeddings": embeddings, "without_embeddings": total - embeddings}


def latency(
    calls: Mapping[str, Call],
    batch_sizes: tuple[int, ...] = (1, 32),
    rounds: int = 20,
    seconds: float = 0.003,
) -> dict[str, dict[str, dict[str, float]]]:
    """Wall-clock times in ms of each `call(batch size, round)`: median, interquartile range and 95th percentile.

    The calls take turns, `rounds` times for at least `seconds` each, warmed up each time: what the machine does
    meanwhile hits all alike. With torch's number of threads.
    """
    result: dict[str, dict[str, dict[str, float]]] = {name: {} for name in calls}
    for size in batch_sizes:
        taken: dict[str, list[Measurement]] = {name: [] for name in calls}
        for turn in range(rounds):
            for name, call in calls.items():
                given = {"call": call, "size": size, "turn": turn}
                timer = Timer("call(size, turn)", globals=given, num_threads=torch.get_num_threads())
                taken[name].append(timer.blocked_autorange(min_run_time=seconds))
        for name, measurements in taken.items():
            (one,) = Measurement.merge(measurements)
            p95 = float(np.percentile(one.times, 95))
            figures = {"median_ms": 1000 * one.median, "iqr_ms": 1000 * one.iqr, "p95_ms": 1000 * p95}
            result[name][f"batch_{size}"] = figures
    return result


def model_call(logits: Callable[[Batch], Tensor], length: int, vocabulary: int, pairs: bool) -> Call:
    """A forward pass over `length` random tokens, none of them padding."""

    def call(size: int, turn: int) -> object:
        generator = torch.Generator().manual_seed(size)
        ids = torch.randint(0, vocabulary, (size, length), generator=generator)
        nothing = torch.zeros(size, dtype=torch.long)
        batch = Batch(ids=nothing, input_ids=ids, attention_mask=torch.ones_like(ids), labels=nothing)
        if pairs:
            batch["token_type_ids"] = (torch.arange(length) >= length // 2).long().expand(size, -1)
        with torch.inference_mode():
            return logits(batch).sum().item()  # waits for a GPU

    return call


def examples_call(logits: Callable[[Batch], Tensor], examples: Examples) -> Call:
    """A forward pass over examples, each round over others, all models over the same."""
    order = np.random.default_rng(0).permutation(len(examples))

    def call(size: int, turn: int) -> object:
        batch = examples.batch(order[(turn * size + np.arange(size)) % len(order)])
        with torch.inference_mode():
            return logits(batch).sum().item()

    return call
