"""Objectives that two or more methods use, built from the pure functions in `losses`.

Labels and logits are as `kdbench.tasks` says; of tagged words they are laid as the batch's tokens.
"""

from typing import Protocol

from torch import Tensor, nn

from kdbench.losses import (
    binary_cross_entropy,
    cross_entropy,
    logit_mse,
    masked_cross_entropy,
    soft_binary_kl,
    soft_kl,
    squared_error,
)
from kdbench.models.students import logits
from kdbench.stage import IGNORED, Batch, Objective, Terms

HARD = {"classification": "ce", "multi_label": "bce", "regression": "mse", "token_classification": "ce"}  # its name


def hard_loss(task: str, z: Tensor, labels: Tensor) -> Tensor:
    """What the task itself asks for: cross-entropy, of each label where there are several, or squared error."""
    match task:
        case "multi_label":
            return binary_cross_entropy(z, labels)
        case "regression":
            return squared_error(z, labels)
        case "token_classification":
            return masked_cross_entropy(z.flatten(0, 1), labels.flatten())
        case _:
            return cross_entropy(z, labels)


def supervised(student: nn.Module, task: str) -> Objective:
    """`hard_loss` of the student's logits."""

    def objective(batch: Batch, step: int) -> Terms:
        return Terms({HARD[task]: hard_loss(task, logits(student, batch), batch["labels"])})

    return objective


class SoftTargets(Protocol):
    """The keys of every method that learns from the teacher's logits and the labels."""

    alpha: float
    temperature: float
    reduction: str
    scale_by_temperature_squared: bool


def soft_loss(task: str, z: Tensor, batch: Batch, p: SoftTargets) -> Tensor:
    """KL(teacher || student) [* T^2] of a text's class, of each label, or of each word's class.

    A number has no distribution: there it is the squared distance to the teacher's, without T.
    """
    target = batch["teacher_logits"]
    if task == "regression":
        return logit_mse(z, target, p.reduction)
    if task == "token_classification":
        labelled = batch["labels"] != IGNORED
        z, target = z[labelled], target[labelled]
    kl = soft_binary_kl if task == "multi_label" else soft_kl
    return kl(z, target, p.temperature, p.reduction, p.scale_by_temperature_squared)


def soft_and_hard(task: str, z: Tensor, batch: Batch, p: SoftTargets) -> dict[str, Tensor]:
    """alpha * `soft_loss` + (1 - alpha) * `hard_loss`, by name (Hinton et al. 2015, section 2)."""
    losses = {}
    if p.alpha > 0:
        losses["soft"] = p.alpha * soft_loss(task, z, batch, p)
    if p.alpha < 1:  # at alpha 1 the labels are not used at all
        losses["hard"] = (1 - p.alpha) * hard_loss(task, z, batch["labels"])
    return losses


def masked_lm(hidden: Tensor, head: nn.Module, word_embeddings: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the masked tokens; hidden (B, T, H), labels (B, T). The head sees these tokens only."""
    chosen = labels != IGNORED
    return masked_cross_entropy(head(hidden[chosen], word_embeddings), labels[chosen])
