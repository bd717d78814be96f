"""Figures of a finished model: metrics, size, FLOPs, latency."""

import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdbench.data.batches import Examples
from kdbench.stage import Batch


def metrics(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy and macro-F1 (over the classes that occur in either), in [0, 1], with n."""
    from sklearn.metrics import f1_score

    return {
        "n": len(labels),
        "accuracy": float((labels == predicted).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
    }


def parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: all, those in embedding tables, and the rest."""
    total = sum(p.numel() for p in model.parameters())
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embeddings = sum(p.numel() for table in tables for p in table.parameters())
    return {"total": total, "embeddings": embeddings, "without_embeddings": total - embeddings}


def latency(call: Callable[[int], object], batch_sizes: tuple[int, ...] = (1, 32)) -> dict[str, dict[str, float]]:
    """Wall-clock time in ms of `call(batch size)`, after warm-up: median and 95th percentile of 30 calls."""
    result = {}
    for size in batch_sizes:
        for _ in range(3):
            call(size)
        times = []
        for _ in range(30):
            started = time.perf_counter()
            call(size)
            times.append(1000 * (time.perf_counter() - started))
        result[f"batch_{size}"] = {
            "median_ms": statistics.median(times),
            "p95_ms": statistics.quantiles(times, n=20)[-1],
        }
    return result


def model_call(logits: Callable[[Batch], Tensor], length: int, vocabulary: int, pairs: bool) -> Callable[[int], object]:
    """A forward pass over `length` random tokens, none of them padding, for `latency`."""

    def call(size: int) -> object:
        generator = torch.Generator().manual_seed(size)
        ids = torch.randint(0, vocabulary, (size, length), generator=generator)
        nothing = torch.zeros(size, dtype=torch.long)
        batch = Batch(ids=nothing, input_ids=ids, attention_mask=torch.ones_like(ids), labels=nothing)
        if pairs:
            batch["token_type_ids"] = (torch.arange(length) >= length // 2).long().expand(size, -1)
        with torch.inference_mode():
            return logits(batch).sum().item()  # waits for a GPU

    return call


def examples_call(logits: Callable[[Batch], Tensor], examples: Examples) -> Callable[[int], object]:
    """A forward pass over examples, each call over others, for a model whose work depends on what it reads."""
    rows = itertools.cycle(np.random.default_rng(0).permutation(len(examples)))

    def call(size: int) -> object:
        batch = examples.batch(np.fromiter(itertools.islice(rows, size), np.int64))
        with torch.inference_mode():
            return logits(batch).sum().item()

    return call
