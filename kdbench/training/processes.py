"""What several processes of one run share out and put together again; with one process, next to nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from kdbench.errors import UserError
from kdbench.stage import IGNORED, Batch, Unit


class ProcessLost(UserError):
    """Another process of this run has died, or can no longer be reached."""


@contextmanager
def _together() -> Iterator[None]:
    """Within, all processes talk to each other. Raises ProcessLost where one does not answer."""
    try:
        yield
    except RuntimeError as error:  # gloo's own; NCCL's DistBackendError is one
        reason = str(error).partition("\n")[0]
        raise ProcessLost(
            f"another process of this run is gone, or cannot be reached ({reason}): this one ends too. The same command"
            " goes on from the last checkpoint"
        ) from error


def shares(batch: Batch, accelerator: Accelerator, accumulation: int) -> Iterator[tuple[Batch, dict[Unit, float]]]:
    """This process's passes over one step's batch, each with its share of the batch's examples, tokens and so on.

    A pass's mean loss times its share of what the mean is over, summed over passes and processes, is the whole
    batch's mean loss; of tagged words the task's loss is the mean over these. Where a last batch has fewer examples
    than passes, the spare ones run an example at weight zero: every process takes part in every step.
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
        flat = summed(flat, accelerator)
        for gradient, total in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(total)


def summed(values: Tensor, accelerator: Accelerator) -> Tensor:
    """Over all processes."""
    with _together():
        return cast(Tensor, accelerator.reduce(values, reduction="sum"))


def wait(accelerator: Accelerator) -> None:
    """Until all processes are here."""
    with _together():
        accelerator.wait_for_everyone()


def largest(number: int, accelerator: Accelerator) -> int:
    """Over all processes."""
    if accelerator.num_processes == 1:
        return number
    with _together():
        return int(cast(Tensor, accelerator.gather(torch.tensor([number], device=accelerator.device))).max())
