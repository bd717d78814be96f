"""Objectives that two or more methods use, built from the pure functions in `losses`."""

from torch import nn

from kdbench.losses import cross_entropy
from kdbench.models.bert import logits
from kdbench.stage import Batch, Objective, Terms


def supervised(student: nn.Module) -> Objective:
    """Cross-entropy of the student's logits against the labels."""

    def objective(batch: Batch, step: int) -> Terms:
        return Terms({"ce": cross_entropy(logits(student, batch), batch["labels"])})

    return objective
