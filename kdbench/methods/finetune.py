"""Direct fine-tuning of an encoder of any depth: the baseline of every method, and the teacher itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdbench.objectives import supervised
from kdbench.schema import ARCHITECTURES, TASKS
from kdbench.stage import Stage

if TYPE_CHECKING:
    from kdbench.runs.context import Run


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder"})
    students: ClassVar[frozenset[str]] = frozenset(ARCHITECTURES)
    own_encoder: ClassVar[bool] = True
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student
    if run.config.method.init.weights == "classifier":
        return  # the teacher as it was found (derived.found_teacher_run): there is nothing to train
    yield Stage("training", student, supervised(student, run.task), run.batches("training"), run.schedule("training"))
