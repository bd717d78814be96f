"""Two-stage fine-tuning: take layers of the fine-tuned predecessor, and train them further on the task.

This is the source posts' negative control for Theseus: no replacement. Their code took the predecessor's weights
before it was trained, and scaled the head's kernel. Here the weights are taken after training, and a parameter group
multiplies the head's learning rate. (Scaling a parameter by m multiplies its step under Adam by m, but under SGD by
m^2. A group has the same effect under both.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdbench.models.network import view
from kdbench.objectives import supervised
from kdbench.options import above, one_of, option
from kdbench.schema import ENCODERS, TASKS
from kdbench.stage import ParamGroup, Stage

if TYPE_CHECKING:
    from kdbench.runs.context import Run


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "teacher", "encoder_teacher", "same_width", "same_kind"})
    students: ClassVar[frozenset[str]] = frozenset(ENCODERS)
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)

    head: str = option(one_of("inherit", "reinit"))
    head_lr_multiplier: float = option(above(0))


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student
    if p.head == "inherit":
        view(student).copy_head(view(run.teacher))
    body = [part for part in student.children() if part is not student.classifier and [*part.parameters()]]
    params = [*map(ParamGroup, body), ParamGroup(student.classifier, p.head_lr_multiplier)]
    objective, data = supervised(student, run.task), run.batches("successor")
    yield Stage("successor", student, objective, data, run.schedule("successor"), params)
