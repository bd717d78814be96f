"""Logit distillation (Hinton, Vinyals, Dean 2015): soft targets beside the labels.

L = alpha * KL(softmax(z_t / T) || softmax(z_s / T)) [* T^2] + (1 - alpha) * CE(z_s, y)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdbench.losses import cross_entropy, soft_kl
from kdbench.models.bert import logits
from kdbench.options import MISSING, above, between, one_of, option
from kdbench.stage import Batch, Stage, Terms

if TYPE_CHECKING:
    from kdbench.context import Run


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "teacher"})

    alpha: float = option(between(0, 1))
    temperature: float = option(above(0))
    reduction: str = option(one_of("batchmean", "elementmean"))
    scale_by_temperature_squared: bool = MISSING


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student

    def objective(batch: Batch, step: int) -> Terms:
        z = logits(student, batch)
        losses = {}
        if p.alpha > 0:
            soft = soft_kl(z, batch["teacher_logits"], p.temperature, p.reduction, p.scale_by_temperature_squared)
            losses["soft"] = p.alpha * soft
        if p.alpha < 1:  # at alpha 1 the labels are not used at all
            losses["hard"] = (1 - p.alpha) * cross_entropy(z, batch["labels"])
        return Terms(losses)

    data = run.batches("training", teacher_logits=True)
    yield Stage("training", student, objective, data, run.schedule("training"))
