"""Objectives that several methods use: the losses of a task, as its file in `kdbench.tasks` gives them."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from kdbench.losses import IGNORED, masked_cross_entropy, soft_kl
from kdbench.models.students import logits
from kdbench.options import SoftAndHard
from kdbench.stage import Batch, Objective, Terms
from kdbench.tasks import SoftTargets, kind


def hard_loss(task: str, z: Tensor, batch: Batch) -> Tensor:
    """Return the task's loss of a batch's logits against its labels, the mean over the batch.

    An example without a label adds 0 to this mean, so that each label weighs alike whatever batch it is in. Weights of
    labels do not change what the sum is divided by.
    """
    labels, weights = batch["labels"], batch.get("weights")
    if "labelled" not in batch:
        return kind(task).hard_loss(z, labels, weights)
    known = batch["labelled"]
    counted = (labels != IGNORED).sum(1) if kind(task).words else torch.ones_like(known, dtype=torch.int64)
    share = counted[known].sum() / counted.sum().clamp_min(1)
    return share * kind(task).hard_loss(z[known], labels[known], None if weights is None else weights[known])


def hard_terms(task: str, z: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Return `hard_loss` under its name."""
    return {kind(task).loss: hard_loss(task, z, batch)}


def supervised(student: nn.Module, task: str) -> Objective:
    """Return the objective whose one term is `hard_loss` of the student's logits."""

    def objective(batch: Batch, step: int) -> Terms:
        return Terms(hard_terms(task, logits(student, batch), batch))

    return objective


def over_answers(z: Tensor, batch: Batch, loss: Callable[[Tensor, Batch], Tensor]) -> Tensor:
    """Return a loss of a batch's logits against the teacher's, the mean over the batch.

    An example that the teacher does not answer adds 0 to this mean, as one without a label does to `hard_loss`.
    """
    if "answered" not in batch:
        return loss(z, batch)
    known = batch["answered"]
    chosen = cast(Batch, {name: value[known] for name, value in cast(dict[str, Tensor], batch).items()})
    return known.float().mean() * loss(z[known], chosen)


def soft_loss(task: str, z: Tensor, batch: Batch, p: SoftTargets) -> Tensor:
    """Return KL(teacher || student) [* T^2], or what the task has in its place, by the rule of `over_answers`."""

    def kl(student: Tensor, teacher: Tensor) -> Tensor:
        return soft_kl(student, teacher, p.temperature, p.reduction, p.scale_by_temperature_squared)

    return over_answers(z, batch, lambda z, batch: kind(task).soft_loss(z, batch, p, kl))


def soft_and_hard(task: str, z: Tensor, batch: Batch, p: SoftAndHard) -> dict[str, Tensor]:
    """Return alpha * `soft_loss` and (1 - alpha) * `hard_loss`, by name (Hinton et al. 2015, section 2)."""
    losses = {}
    if p.alpha > 0:
        losses["soft"] = p.alpha * soft_loss(task, z, batch, p)
    if p.alpha < 1:  # at alpha 1 the labels are not used at all
        losses["hard"] = (1 - p.alpha) * hard_loss(task, z, batch)
    return losses


def masked_lm(hidden: Tensor, head: nn.Module, word_embeddings: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the masked tokens, which alone the head sees; hidden (B, T, H), labels (B, T)."""
    chosen = labels != IGNORED
    return masked_cross_entropy(head(hidden[chosen], word_embeddings), labels[chosen])
