"""Logit distillation (Hinton, Vinyals, Dean 2015): soft targets beside the labels.

L = alpha * KL(softmax(z_t / T) || softmax(z_s / T)) [* T^2] + (1 - alpha) * CE(z_s, y)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdbench.models.students import logits
from kdbench.objectives import soft_and_hard
from kdbench.options import SoftAndHard
from kdbench.schema import ARCHITECTURES, TASKS
from kdbench.stage import Batch, Stage, Terms

if TYPE_CHECKING:
    from kdbench.runs.context import Run


@dataclass
class Params(SoftAndHard):
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "teacher"})
    students: ClassVar[frozenset[str]] = frozenset(ARCHITECTURES)
    own_encoder: ClassVar[bool] = True
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student

    def objective(batch: Batch, step: int) -> Terms:
        return Terms(soft_and_hard(run.task, logits(student, batch), batch, p))

    data = run.batches("training", "logits", split=run.with_unlabelled(run.data.train), hard=p.alpha < 1)
    yield Stage("training", student, objective, data, run.schedule("training", data))
