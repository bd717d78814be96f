"""Measure a finished model: number of parameters, memory, latency."""

import math
import sys
import time
import timeit
from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from kdbench.data.batches import Examples
from kdbench.inference.quiet import Stopwatch, is_quiet
from kdbench.stage import Batch, Predict

Call = Callable[[int, int], object]  # (batch size, number of the round): runs what is timed
Name = TypeVar("Name", bound=Hashable)  # of a call
LONG = 0.3  # seconds: a call that takes longer needs no warm-up


def parameters(model: nn.Module) -> dict[str, int]:
    """Return the numbers of parameters: all, those in embedding tables, and the rest."""
    total = sum(p.numel() for p in model.parameters())
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embeddings = sum(p.numel() for table in tables for p in table.parameters())
    return {"total": total, "embeddings": embeddings, "without_embeddings": total - embeddings}


def peak_mb() -> float:
    """Return the peak memory of this process, in MiB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would include the memory of the parent process
        return next(int(line.split()[1]) / 2**10 for line in status.read_text().splitlines() if line[:5] == "VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def latency(
    calls: Mapping[Name, Call],
    rounds: int = 10,
    seconds: float = 0.01,
    budget: float = 2.0,
) -> dict[Name, dict[str, dict[str, float]]]:
    """Return wall-clock times in ms of each `call(batch size, round)`: median, interquartile range, 95th percentile.

    The calls take turns, so that other work of the machine affects all alike. In each round, a call gets its input
    twice. Each time it is warmed up, and timed for at least `seconds`. `repeat` is the relative difference of these two
    timings, the median over the rounds. There are `rounds` rounds, or fewer if they would take longer than `budget`
    seconds for each call. Batch sizes are 1 and 32. Threads are torch's.
    """
    result: dict[Name, dict[str, dict[str, float]]] = {name: {} for name in calls}
    for size in (1, 32):
        taken: dict[Name, list[list[float]]] = {name: [] for name in calls}
        started = time.perf_counter()
        for turn in range(rounds):
            if turn and time.perf_counter() - started > budget * len(calls):
                break
            for _ in range(2):
                for name, call in calls.items():
                    taken[name].append(_timed(partial(call, size, turn), seconds))
        for name, times in taken.items():
            result[name][f"batch_{size}"] = _figures(times)
    return result


def measured(calls: Mapping[Name, Call]) -> dict[Name, dict[str, Any]]:
    """Return `latency` of each call, the time of the measurement, the machine's load, and whether it was quiet."""
    stopwatch = Stopwatch()
    times = latency(calls)
    load, when = stopwatch.load(), datetime.now(UTC).isoformat(timespec="seconds")
    return {
        name: {**figures, "when": when, "load": load.record(), "quiet": is_quiet(load, figures.values())}
        for name, figures in times.items()
    }


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Return the times of single calls in seconds, after a warm-up: at least one, for about `seconds` in all."""
    timer = timeit.Timer(call)
    first = timer.timeit(1)
    if first > LONG:
        return [first]
    return timer.repeat(max(1, math.ceil(seconds / first)), 1)


def _figures(times: list[list[float]]) -> dict[str, float]:
    """Return the figures of one call from the times of its turns. Turns 2i and 2i + 1 have the same input."""
    every = np.concatenate(times) * 1000
    low, middle, high, p95 = np.percentile(every, [25, 50, 75, 95]).tolist()
    pairs = np.array([np.median(one) for one in times]).reshape(-1, 2)
    repeat = np.median(np.abs(pairs[:, 0] - pairs[:, 1]) / pairs.mean(1))
    return {"median_ms": middle, "iqr_ms": high - low, "p95_ms": p95, "repeat": float(repeat)}


def model_call(predict: Predict, length: int, vocabulary: int, pairs: bool) -> Call:
    """Return a call of `predict` on `length` random tokens, without padding."""

    def call(size: int, turn: int) -> object:
        generator = torch.Generator().manual_seed(size)
        ids = torch.randint(0, vocabulary, (size, length), generator=generator)
        nothing = torch.zeros(size, dtype=torch.long)
        batch = Batch(ids=nothing, input_ids=ids, attention_mask=torch.ones_like(ids), labels=nothing)
        if pairs:
            batch["token_type_ids"] = (torch.arange(length) >= length // 2).long().expand(size, -1)
        with torch.inference_mode():
            return predict(batch, 0).sum().item()  # waits for a GPU

    return call


def examples_call(predict: Predict, examples: Examples) -> Call:
    """Return a call of `predict` on examples: other ones in each round, the same ones for all models."""
    order = np.random.default_rng(0).permutation(len(examples))

    def call(size: int, turn: int) -> object:
        batch = examples.batch(order[(turn * size + np.arange(size)) % len(order)])
        with torch.inference_mode():
            return predict(batch, 0).sum().item()

    return call
