"""What several processes of one run share out and put together again; with one process, next to nothing."""

from collections.abc import Iterator
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from kdbench.stage import IGNORED, Batch


def shares(batch: Batch, accelerator: Accelerator, accumulation: int) -> Iterator[tuple[Batch, float]]:
    """This process's passes over one step's batch, each with its share of the batch's examples.

    A pass's mean loss times its share, summed over passes and processes, is the whole batch's mean loss. Of tagged
    words, which the loss is the mean of, the share is that of the batch's words.
    Where a last batch has fewer examples than passes, the spare ones run an example at weight zero: every
    process takes part in every step.
    """
    count = len(batch["ids"])
    parts = _parts(batch["labels"])
    passes = accelerator.num_processes * accumulation
    for index in range(accumulation):
        first = accelerator.process_index + index * accelerator.num_processes
        rows = slice(first, None, passes)
        weight = int(parts[rows].sum()) / max(1, int(parts.sum()))
        if first >= count:
            rows = slice(0, 1)
        share = {
            name: _moved(value[rows], accelerator.device) for name, value in cast(dict[str, Tensor], batch).items()
        }
        yield cast(Batch, share), weight


def _parts(labels: Tensor) -> Tensor:
    """(B,) How many values each example adds to the mean that a loss is: one, or its words."""
    tagged = labels.dim() == 2 and labels.dtype == torch.int64  # several labels are int8
    return (labels != IGNORED).sum(1) if tagged else torch.ones(len(labels), dtype=torch.int64)


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU the host does not wait for the copy, which needs pinned memory."""
    if device.type == "cuda":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def reduce_gradients(parameters: list[torch.nn.Parameter], accelerator: Accelerator) -> None:
    """Sum over processes; a parameter without a gradient has a zero one, so that all processes agree."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if accelerator.num_processes > 1:
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        flat = torch._utils._flatten_dense_tensors(gradients)
        flat = accelerator.reduce(flat, reduction="sum")
        for gradient, total in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(total)


def largest(number: int, accelerator: Accelerator) -> int:
    """Over all processes."""
    if accelerator.num_processes == 1:
        return number
    return int(cast(Tensor, accelerator.gather(torch.tensor([number], device=accelerator.device))).max())
