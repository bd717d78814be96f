"""A static student: the mean of its pieces' vectors and a small head learn the teacher's logits and the labels.

The vectors start from what an encoder returns for each piece alone, as in model2vec, or from a file. They are trained
with the head, on train and on the texts of `dataset.unlabelled`. At alpha 0 there are labels only, and no teacher.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdbench.models.students import logits
from kdbench.objectives import soft_and_hard
from kdbench.options import MISSING, SoftAndHard
from kdbench.schema import TASKS
from kdbench.stage import Batch, ParamGroup, Stage, Terms

if TYPE_CHECKING:
    from kdbench.runs.context import Run


@dataclass
class Params(SoftAndHard):
    needs: ClassVar[frozenset[str]] = frozenset({"encoder"})
    students: ClassVar[frozenset[str]] = frozenset({"static"})
    own_encoder: ClassVar[bool] = True
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS) - {"token_classification"}
    not_others: ClassVar[str] = "it has one vector for a text, and no answer for one of its words"

    train_vectors: bool = MISSING

    @property
    def reads_teacher(self) -> bool:
        """Return whether there is a soft term."""
        return self.alpha > 0


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student

    def objective(batch: Batch, step: int) -> Terms:
        return Terms(soft_and_hard(run.task, logits(student, batch), batch, p))

    needed = ("logits",) if p.alpha > 0 else ()
    data = run.batches("training", *needed, split=run.with_unlabelled(run.data.train), hard=p.alpha < 1)
    head = [ParamGroup(part) for part in (student.hidden, student.classifier) if part is not None]
    params = None if p.train_vectors else head
    yield Stage("training", student, objective, data, run.schedule("training", data), params)
