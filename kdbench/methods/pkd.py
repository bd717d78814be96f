"""Patient knowledge distillation (Sun et al. 2019): logit distillation, and [CLS] states of chosen teacher layers.

L = logit distillation + beta * sum over i, j of || h_s / |h_s| - h_t / |h_t| ||^2

The sum is over examples i and over the student's layers j except the last. `patient_reduction` chooses the reduction:
the paper sums, its code takes the mean, and the published betas were used with the mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from kdbench.losses import patience
from kdbench.models.network import view
from kdbench.objectives import soft_and_hard
from kdbench.options import MISSING, TEMPERATURE, Rule, at_least, between, one_of, option
from kdbench.schema import ENCODERS
from kdbench.stage import Batch, Stage, Terms

if TYPE_CHECKING:
    from kdbench.runs.context import Run
    from kdbench.schema import RunConfig


def _choice(given: Any) -> bool:
    if isinstance(given, list):
        return bool(given) and all(type(k) is int and k >= 1 for k in given) and sorted(set(given)) == given
    return given in ("skip", "last")


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "teacher", "same_width", "encoder_teacher"})
    students: ClassVar[frozenset[str]] = frozenset(ENCODERS)
    tasks: ClassVar[frozenset[str]] = frozenset({"classification", "multi_label", "regression"})
    not_others: ClassVar[str] = "it compares the [CLS] states, which stand for the text and not for its words"

    alpha: float = option(between(0, 1))
    temperature: float = option(TEMPERATURE)
    reduction: str = option(one_of("batchmean", "elementmean"))  # of the soft term
    scale_by_temperature_squared: bool = MISSING
    beta: float = option(at_least(0))
    patient_layers: Any = option(Rule("skip, last, or a rising list of the teacher's layers from 1, [2,4]", _choice))
    normalise: bool = MISSING
    patient_reduction: str = option(one_of("batchmean", "elementmean"))

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if the choice of layers does not fit teacher and student."""
        teacher, student = config.teacher, config.student
        if student.layers < 2:
            yield "student.layers", "must be 2 or more: PKD leaves the last layer out"
        elif self.patient_layers == "skip" and teacher.layers % student.layers:
            problem = f"skip needs student.layers={student.layers} to divide teacher.layers={teacher.layers}"
            yield "method.patient_layers", f"{problem}: use last or a list"
        elif student.layers > teacher.layers:
            yield "student.layers", f"must be {teacher.layers} or less (teacher.layers)"
        elif isinstance(self.patient_layers, list) and len(self.patient_layers) != student.layers - 1:
            yield "method.patient_layers", f"must name {student.layers - 1} layers: the student's but the last"
        elif isinstance(self.patient_layers, list) and max(self.patient_layers) > teacher.layers:
            yield "method.patient_layers", f"must be {teacher.layers} or less (teacher.layers)"


def layer_map(choice: str | list[int], teacher: int, student: int) -> list[int]:
    """Return the teacher's layer (from 1) for each student layer 1 to L_S - 1 (Sun et al. 2019, section 3.2)."""
    if isinstance(choice, list):
        return choice
    if choice == "skip":
        return [layer * teacher // student for layer in range(1, student)]
    return list(range(teacher - student + 1, teacher))


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student, teacher = view(run.student), run.config.teacher
    chosen = torch.tensor(layer_map(p.patient_layers, teacher.layers, run.config.student.layers)) - 1

    def objective(batch: Batch, step: int) -> Terms:
        below, last = student.first_tokens(batch)
        losses = soft_and_hard(run.task, student.logits_of(last, batch["attention_mask"]), batch, p)
        if p.beta > 0:
            own = torch.cat(below, dim=1)
            target = batch["teacher_cls"][:, chosen.to(own.device)]
            losses["patience"] = p.beta * patience(own, target, p.normalise, p.patient_reduction)
        return Terms(losses)

    yield Stage("training", run.student, objective, run.batches("training", "logits", "cls"), run.schedule("training"))
