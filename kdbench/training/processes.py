"""Split a batch over the processes of one run, and combine their gradients and numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from kdbench.errors import Code, UserError
from kdbench.losses import IGNORED
from kdbench.stage import Batch, Unit


class ProcessLost(UserError):
    """Another process of this run has died, or can no longer be reached."""


@contextmanager
def _together() -> Iterator[None]:
    """Guard communication between all processes. Raises ProcessLost if one does not answer."""
    try:
        yield
    except RuntimeError as error:  # gloo's own; NCCL's DistBackendError is one
        reason = str(error).partition("\n")[0]
        raise ProcessLost(
            Code.PROCESS_LOST,
            f"another process of this run has ended, or cannot be reached ({reason}), so this one ends too. The same"
            " command resumes from the last checkpoint",
        ) from error


def shares(batch: Batch, accelerator: Accelerator, accumulation: int) -> Iterator[tuple[Batch, dict[Unit, float]]]:
    """Yield this process's passes over one step's batch, each with its share of the batch's examples, tokens etc.

    A pass's mean loss is multiplied by its share of the elements that the mean is over. Summed over passes and
    processes, this is the mean loss of the complete batch. For tagged words, the task's loss is the mean over words.
    If a last batch has fewer examples than passes, the spare passes run an example with weight zero, because every
    process takes part in every step.
    """
    whole = _counts(batch)
    passes = accelerator.num_processes * accumulation
    for index in range(accumulation):
        first = accelerator.process_index + index * accelerator.num_processes
        spare = first >= len(batch["ids"])
        rows = slice(0, 1) if spare else slice(first, None, passes)
        share = cast(Batch, {name: value[rows] for name, value in cast(dict[str, Tensor], batch).items()})
        weights: dict[Unit, float] = {unit: (not spare) * n / max(1, whole[unit]) for unit, n in _counts(share).items()}
        moved = {name: _moved(value, accelerator.device) for name, value in cast(dict[str, Tensor], share).items()}
        yield cast(Batch, moved), weights


def _counts(batch: Batch) -> dict[Unit, int]:
    lengths = batch["attention_mask"].sum(-1)
    masked = int((batch["mlm_labels"] != IGNORED).sum()) if "mlm_labels" in batch else 0
    return {
        "examples": int(_parts(batch["labels"]).sum()),
        "tokens": int(lengths.sum()),
        "pairs": int((lengths**2).sum()),
        "masked": masked,
    }


def _parts(labels: Tensor) -> Tensor:
    """Return (B,) the number of values that each example adds to the mean of the loss: one, or its words."""
    tagged = labels.dim() == 2 and labels.dtype == torch.int64  # several labels are int8
    return (labels != IGNORED).sum(1) if tagged else torch.ones(len(labels), dtype=torch.int64)


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to the device; a copy to a GPU uses pinned memory, so the host does not wait for it."""
    if device.type == "cuda":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def reduce_gradients(parameters: list[torch.nn.Parameter], accelerator: Accelerator) -> None:
    """Sum gradients over processes; a missing gradient counts as zero, so that all processes agree."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if accelerator.num_processes > 1:
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        flat = torch._utils._flatten_dense_tensors(gradients)
        flat = summed(flat, accelerator)
        for gradient, total in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(total)


def summed(values: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum a tensor over all processes."""
    with _together():
        return cast(Tensor, accelerator.reduce(values, reduction="sum"))


def wait(accelerator: Accelerator) -> None:
    """Wait until all processes are here."""
    with _together():
        accelerator.wait_for_everyone()


def largest(number: int, accelerator: Accelerator) -> int:
    """Return the largest value of `number` over all processes."""
    if accelerator.num_processes == 1:
        return number
    with _together():
        return int(cast(Tensor, accelerator.gather(torch.tensor([number], device=accelerator.device))).max())
