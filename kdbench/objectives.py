"""Objectives that two or more methods use, built from the pure functions in `losses`."""

from typing import Protocol

from torch import Tensor, nn

from kdbench.losses import cross_entropy, masked_cross_entropy, soft_kl
from kdbench.models.students import logits
from kdbench.stage import IGNORED, Batch, Objective, Terms


def supervised(student: nn.Module) -> Objective:
    """Cross-entropy of the student's logits against the labels."""

    def objective(batch: Batch, step: int) -> Terms:
        return Terms({"ce": cross_entropy(logits(student, batch), batch["labels"])})

    return objective


class SoftTargets(Protocol):
    """The keys of every method that learns from the teacher's logits and the labels."""

    alpha: float
    temperature: float
    reduction: str
    scale_by_temperature_squared: bool


def soft_and_hard(z: Tensor, batch: Batch, p: SoftTargets) -> dict[str, Tensor]:
    """alpha * KL(teacher || student) [* T^2] + (1 - alpha) * CE, by name (Hinton et al. 2015, section 2)."""
    losses = {}
    if p.alpha > 0:
        soft = soft_kl(z, batch["teacher_logits"], p.temperature, p.reduction, p.scale_by_temperature_squared)
        losses["soft"] = p.alpha * soft
    if p.alpha < 1:  # at alpha 1 the labels are not used at all
        losses["hard"] = (1 - p.alpha) * cross_entropy(z, batch["labels"])
    return losses


def masked_lm(hidden: Tensor, head: nn.Module, word_embeddings: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the masked tokens; hidden (B, T, H), labels (B, T). The head sees these tokens only."""
    chosen = labels != IGNORED
    return masked_cross_entropy(head(hidden[chosen], word_embeddings), labels[chosen])
