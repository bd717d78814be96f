"""Regression on the teacher's logits (Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?", section 2.1).

L = alpha * mean over classes and batch of (z_s - z_t)^2 + (1 - alpha) * CE(z_s, y); `centred` takes the mean of its row
from each z first, because the softmax does not see it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch.nn.functional import cross_entropy, mse_loss

from kdbench.models.students import logits
from kdbench.options import MISSING, between, option
from kdbench.stage import Batch, Stage, Terms

if TYPE_CHECKING:
    from kdbench.runs.context import Run


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "teacher"})

    alpha: float = option(between(0, 1))  # a value out of its range is refused before anything runs
    centred: bool = MISSING  # the YAML gives it


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student

    def objective(batch: Batch, step: int) -> Terms:
        own, teacher = logits(student, batch), batch["teacher_logits"]
        hard = cross_entropy(own, batch["labels"])
        if p.centred:
            own, teacher = (z - z.mean(-1, keepdim=True) for z in (own, teacher))
        return Terms({"regression": p.alpha * mse_loss(own, teacher), "hard": (1 - p.alpha) * hard})

    yield Stage("training", student, objective, run.batches("training", "logits"), run.schedule("training"))
