"""Patient knowledge distillation (Sun et al. 2019): logit distillation, and [CLS] states of chosen teacher layers.

L = logit distillation + beta * sum over i, j of || h_s / |h_s| - h_t / |h_t| ||^2

The sum is over examples i and over the student's layers j except the last. `patient_reduction` chooses the reduction:
the paper sums, its code takes the mean, and the published betas were used with the mean.

Two choices of the paper (section 3.2) can be undone. It compares [CLS] alone: with `patient_tokens=all`, i goes over
the real tokens of all examples. It leaves out the last layer: `last_layer` adds it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from kdbench.losses import patience
from kdbench.models.network import view
from kdbench.objectives import soft_and_hard
from kdbench.options import MISSING, Rule, SoftAndHard, at_least, one_of, option
from kdbench.schema import ENCODERS
from kdbench.stage import Batch, Stage, Terms, Unit

if TYPE_CHECKING:
    from kdbench.runs.context import Run
    from kdbench.schema import RunConfig


def _choice(given: Any) -> bool:
    if isinstance(given, list):
        return bool(given) and all(type(k) is int and k >= 1 for k in given) and sorted(set(given)) == given
    return given in ("skip", "last")


@dataclass
class Params(SoftAndHard):
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "teacher", "same_width", "encoder_teacher"})
    students: ClassVar[frozenset[str]] = frozenset(ENCODERS)
    tasks: ClassVar[frozenset[str]] = frozenset({"classification", "multi_label", "regression"})
    not_others: ClassVar[str] = "it compares the [CLS] states, which stand for the text and not for its words"

    beta: float = option(at_least(0))
    patient_layers: Any = option(Rule("skip, last, or a rising list of the teacher's layers from 1, [2,4]", _choice))
    normalise: bool = MISSING
    patient_reduction: str = option(one_of("batchmean", "elementmean"))
    patient_tokens: str = option(one_of("cls", "all"))
    last_layer: bool = MISSING  # whether the student's last layer has a term too

    @property
    def reads_unlabelled(self) -> bool:
        """Return whether there is a term that needs no label."""
        return self.alpha > 0 or self.beta > 0

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if the choice of layers does not fit teacher and student."""
        teacher, student = config.teacher, config.student
        compared = student.layers - (not self.last_layer)
        if compared < 1:
            yield "student.layers", "must be 2 or more, or set method.last_layer=true: PKD leaves the last layer out"
        elif self.patient_layers == "skip" and teacher.layers % student.layers:
            problem = f"skip needs student.layers={student.layers} to divide teacher.layers={teacher.layers}"
            yield "method.patient_layers", f"{problem}: use last or a list"
        elif student.layers > teacher.layers:
            yield "student.layers", f"must be {teacher.layers} or less (teacher.layers)"
        elif isinstance(self.patient_layers, list) and len(self.patient_layers) != compared:
            which = "one for each of the student's" if self.last_layer else "the student's but the last"
            yield "method.patient_layers", f"must name {compared} layers: {which}"
        elif isinstance(self.patient_layers, list) and max(self.patient_layers) > teacher.layers:
            yield "method.patient_layers", f"must be {teacher.layers} or less (teacher.layers)"


def layer_map(choice: str | list[int], teacher: int, student: int, last_layer: bool = False) -> list[int]:
    """Return the teacher's layer (from 1) for each student layer 1 to L_S - 1 (Sun et al. 2019, section 3.2).

    With `last_layer` the student's last layer is there too, and its layer is the teacher's last.
    """
    if isinstance(choice, list):
        return choice
    layers = range(1, student + last_layer)
    return [layer * teacher // student if choice == "skip" else teacher - student + layer for layer in layers]


def first_token_states(student: Any, batch: Batch, chosen: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return [CLS] after the student's lowest layers and the teacher's `chosen` (from 1), and what the head reads.

    The first two are (B, M, H), for M layers of each.
    """
    below, last = student.first_tokens(batch)
    own = torch.cat([*below, last[:, :1]][: len(chosen)], dim=1)
    return own, batch["teacher_cls"][:, [layer - 1 for layer in chosen]], last


def all_token_states(student: Any, teacher: Any, batch: Batch, chosen: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return `first_token_states` of each real token of the batch: (N, M, H) for N tokens in place of B texts.

    The teacher runs here. A cache of its states would be as many times larger as a text has tokens.
    """
    real = batch["attention_mask"].bool()
    own, target = student.states(batch), teacher.states(batch, max(chosen))
    own_layers, target_layers = own[1 : len(chosen) + 1], [target[layer] for layer in chosen]
    return torch.stack(own_layers, 2)[real], torch.stack(target_layers, 2)[real], own[-1]


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student, config = view(run.student), run.config
    chosen = layer_map(p.patient_layers, config.teacher.layers, config.student.layers, p.last_layer)
    over: dict[str, Unit] = {"patience": "tokens"} if p.patient_tokens == "all" else {}
    outputs = ["logits"] if p.patient_tokens == "all" else ["logits", "cls"]

    def objective(batch: Batch, step: int) -> Terms:
        if p.patient_tokens == "all":
            own, target, last = all_token_states(student, view(run.teacher), batch, chosen)
        else:
            own, target, last = first_token_states(student, batch, chosen)
        losses = soft_and_hard(run.task, student.logits_of(last, batch["attention_mask"]), batch, p)
        if p.beta > 0:
            losses["patience"] = p.beta * patience(own, target, p.normalise, p.patient_reduction)
        return Terms(losses, over=over)

    data = run.batches("training", *outputs, split=run.with_unlabelled(run.data.train))
    yield Stage("training", run.student, objective, data, run.schedule("training", data))
