"""Figures of a finished model: metrics, size, FLOPs, latency."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kdbench.config import StudentConfig


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


def bert_flops(shape: StudentConfig, length: int, classes: int) -> int:
    """FLOPs of one example of `length` tokens: 2 per multiply-add in matrix products, nothing else.

    Per layer: Q, K, V and output projections, scores and weighted values, the two feed-forward products;
    then pooler and classifier on one token.
    """
    h, f, t = shape.hidden, shape.ffn, length
    layer = 4 * t * h * h + 2 * t * t * h + 2 * t * h * f
    return 2 * (shape.layers * layer + h * h + h * classes)


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


def model_call(model: nn.Module, length: int, vocabulary: int, device: torch.device) -> Callable[[int], object]:
    """A forward pass over `length` tokens, none of them padding, for `latency`."""

    def call(size: int) -> object:
        generator = torch.Generator().manual_seed(size)
        ids = torch.randint(0, vocabulary, (size, length), generator=generator).to(device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return logits.sum().item()  # waits for a GPU

    return call
