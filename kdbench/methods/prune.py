"""Structured pruning: remove the least important heads and feed-forward units of the fine-tuned teacher.

Each of `rounds` rounds measures the importance of what is left, removes the least important heads and units, and trains
what remains on the labels (stage `recovery_<round>`). Afterwards the layers have `target` of the teacher's layer
parameters or FLOPs.

Importance is the same for a head and a unit. Let xi be a factor, 1 here, on a head's output before the layer's output
matrix, or on a unit's activation. Then

    I = E_x | dL(x) / dxi |

with the expectation over training texts (Michel et al. 2019, for heads). To first order, this
is the change of the loss if the part is removed. For a unit, dL/dxi is the sum of gradient times weight over its
outgoing weights, so it is Molchanov et al. 2019's first-order Taylor score, without their square.

Both are in nats a text. Heads and units are ranked apart, and both kinds lose the same share of their number. With
`together`, there is one order, by I per parameter, or FLOP, that the removal saves. So a head competes with as many
units as cost the same. A head that costs more than is still to be removed in a round is passed over while there are
units to remove, so that the size is met within one unit.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.models.network import view
from kdbench.models.pruned import pruned
from kdbench.models.students import flops, logits
from kdbench.objectives import soft_and_hard
from kdbench.options import MISSING, Rule, SoftAndHard, at_least, one_of, option, or_none
from kdbench.schema import ENCODERS, TASKS
from kdbench.stage import Batch, Stage, Terms
from kdbench.tasks import kind

if TYPE_CHECKING:
    from kdbench.runs.context import Run
    from kdbench.schema import RunConfig

log = logging.getLogger("kdbench")


def costs(measure: str, hidden: int, heads: int, ffn: int, length: int) -> tuple[int, int, int]:
    """Return what a head, a feed-forward unit, and the rest of a layer cost, in parameters or FLOPs.

    Parameters: a head, d wide, has four matrices of H x d and three biases; a unit has a row, a bias and a column. The
    rest is two biases and two LayerNorms. FLOPs of a text of `length` tokens, 2 per multiply-add in matrix products: of
    a head the four matrices, scores and weighted values; of a unit a row and a column; of the rest none.
    """
    width = hidden // heads
    if measure == "parameters":
        return 4 * hidden * width + 3 * width, 2 * hidden + 1, 6 * hidden
    return 8 * length * hidden * width + 4 * length**2 * width, 4 * length * hidden, 0


@dataclass
class Params(SoftAndHard):
    needs: ClassVar[frozenset[str]] = frozenset(
        {"encoder", "teacher", "encoder_teacher", "same_width", "same_kind", "heads"}
    )
    students: ClassVar[frozenset[str]] = frozenset(ENCODERS)
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)

    target: float = option(Rule("above 0 and below 1", lambda share: 0 < share < 1))  # of the layers' size
    measure: str = option(one_of("parameters", "flops"))
    rounds: int = option(at_least(1))
    texts: int | None = option(or_none(at_least(1)))  # whose gradients are measured; null: all of train
    normalise: bool = MISSING
    together: bool = MISSING  # whether heads and units have one order

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if the student is not the teacher, or the target cannot be reached."""
        teacher, student = config.teacher, config.student
        if student.layers != teacher.layers:
            yield "student.layers", f"must be {teacher.layers}, as the teacher's: choose student=full"
        if config.method.init.weights != "finetuned":
            yield "method.init.weights", "must be finetuned: what is pruned is the fine-tuned teacher"
        head, unit, rest = costs(self.measure, teacher.hidden, teacher.heads, teacher.ffn, config.dataset.max_length)
        least = (head + unit + rest) / (teacher.heads * head + teacher.ffn * unit + rest)
        if self.target < least:
            legal = math.ceil(least * 1e4) / 1e4
            yield "method.target", f"must be {legal:.4f} or more: each layer keeps one head and one unit"


class Importance(NamedTuple):
    """Importance of all heads and units, a tensor for each layer, in nats a text."""

    heads: list[Tensor]  # (A,) each
    units: list[Tensor]  # (F,) each


def importance(student: Any, task: str, batches: Iterator[Batch]) -> Importance:
    """Return E_x | dL(x) / dxi | of each head and unit, summed in float64 (Michel et al. 2019).

    The absolute value is taken text by text. (The authors' code takes it token by token.)
    """
    parts, texts = view(student), 0
    layers = parts.layers
    read = [attrgetter(name)(layer) for layer in layers for name in (parts.mixing, parts.feed_forward[1])]
    widths = [parts.head_width, 1] * len(layers)
    sums = [torch.zeros(one.in_features // width, dtype=torch.float64) for one, width in zip(read, widths, strict=True)]
    for batch in batches:
        size = len(batch["input_ids"])
        texts += size
        gates = [torch.ones(size, len(one), device=batch["input_ids"].device, requires_grad=True) for one in sums]
        hooks = [
            module.register_forward_pre_hook(_gated(gate, width))
            for module, gate, width in zip(read, gates, widths, strict=True)
        ]
        z = logits(student, batch)
        for hook in hooks:
            hook.remove()
        losses = [kind(task).hard_loss(z[at : at + 1], batch["labels"][at : at + 1]) for at in range(size)]
        for total, gradient in zip(sums, torch.autograd.grad(losses, gates), strict=True):
            total += gradient.abs().double().sum(0).cpu()
    found = [total / texts for total in sums]
    return Importance(found[::2], found[1::2])


def _gated(gate: Tensor, width: int) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    """Return a hook that multiplies a module's input (B, T, N * width) by the gate (B, N)."""

    def hook(module: nn.Module, given: tuple[Tensor]) -> Tensor:
        return (given[0].unflatten(-1, (-1, width)) * gate[:, None, :, None]).flatten(-2)

    return hook


def normalised(scores: list[Tensor]) -> list[Tensor]:
    """Divide the scores of each layer by their l2 norm, and multiply all by the root mean square of these norms.

    The first is what Michel et al. 2019 do with heads. The second does not change the order of the heads,
    nor that of the units. It keeps the size of both, so that heads and units can still be compared.
    """
    norms = torch.stack([one.norm() for one in scores])
    factors = norms.square().mean().sqrt() / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    return [one * factor for one, factor in zip(scores, factors, strict=True)]


def remaining(
    found: Importance, head: int, unit: int, excess: int, together: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the heads and units of each layer that are left, after at least `excess` was removed.

    `head` and `unit` are what the removal of one saves; the module's docstring has the order, and `together`. Each
    layer keeps its most important head and unit.
    """
    kinds = ((found.heads, head), (found.units, unit))
    order = []
    for which, (scores, cost) in enumerate(kinds):
        ranked = sorted((score, layer, at) for layer, own in enumerate(scores) for at, score in enumerate(own.tolist()))
        for rank, (score, layer, at) in enumerate(ranked, start=1):
            order.append((score / cost if together else rank / len(ranked), which, layer, at))
    order.sort()
    left = [[set(range(len(own))) for own in scores] for scores, _ in kinds]
    too_large = []
    for _, which, layer, at in order:
        cost = kinds[which][1]
        if excess > 0 and len(left[which][layer]) > 1:
            if which == 0 and cost > excess:
                too_large.append((layer, at))
                continue
            left[which][layer].remove(at)
            excess -= cost
    for layer, at in too_large:  # no unit is left to remove instead
        if excess > 0 and len(left[0][layer]) > 1:
            left[0][layer].remove(at)
            excess -= head
    heads, units = ([sorted(own) for own in layers] for layers in left)
    return heads, units


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    config, student = run.config, run.student
    view(student).copy_head(view(run.teacher))
    student.eval()
    teacher, length = config.teacher, config.dataset.max_length
    head, unit, rest = costs(p.measure, teacher.hidden, teacher.heads, teacher.ffn, length)
    half = -(-run.stage("recovery").batch_size // 2)  # texts of a pass: its fp32 takes twice the memory of bf16
    full = teacher.layers * (teacher.heads * head + teacher.ffn * unit + rest)
    rounds = [_figures(run, student) | {"dev": _dev(run, student)}]
    outputs, split = (["logits"], run.with_unlabelled(run.data.train)) if p.alpha > 0 else ([], run.data.train)
    data = run.batches("recovery", *outputs, split=split)
    schedule = run.schedule("recovery", data, share=p.rounds)
    run.release("teacher", "student")  # all that is needed of them is in the student and in the cache of their answers
    for number in range(1, p.rounds + 1):
        texts = run.sample(run.data.train, p.texts, half, "importance")
        found = importance(student.requires_grad_(False), run.task, texts)
        if p.normalise:
            found = Importance(normalised(found.heads), normalised(found.units))
        size = sum(len(own) * head for own in found.heads) + sum(len(own) * unit for own in found.units)
        goal = math.floor(full * (1 - (1 - p.target) * number / p.rounds) + 1e-6)  # of the layers, after this round
        excess = size + teacher.layers * rest - goal
        student = pruned(student, *remaining(found, head, unit, excess, p.together))
        rounds.append(_figures(run, student) | {"dev_before_recovery": _dev(run, student)})
        log.info("%s", _left(number, rounds[0], rounds[-1]))
        yield Stage(
            f"recovery_{number}",
            student,
            _objective(student, run.task, p),
            replace(data, seed=run.seed("order", "recovery", number)),
            schedule,
            key="recovery",
        )
        rounds[-1]["dev"] = _dev(run, student)
    run.report("rounds", rounds)


def _left(number: int, before: dict[str, Any], now: dict[str, Any]) -> str:
    """Say what a round left of the teacher."""
    heads, units = (f"{sum(now[key])} of {sum(before[key])} {key}" for key in ("heads", "units"))
    return f"round {number}: {heads} and {units} are left, {now['parameters'] / 1e6:.1f} M parameters"


def _objective(student: Any, task: str, p: Params) -> Callable[[Batch, int], Terms]:
    return lambda batch, step: Terms(soft_and_hard(task, logits(student, batch), batch, p))


def _dev(run: "Run", student: Any) -> float:
    return run.score(lambda batch, step: logits(student, batch))[run.metric]


def _figures(run: "Run", student: Any) -> dict[str, Any]:
    """Return what is left of the student: numbers of heads and units of each layer, parameters, FLOPs."""
    parts = view(student)
    shape = run.shape(run.config.student) | parts.found_shape
    return {
        "heads": [len(own) for own in parts.kept_heads],
        "units": parts.kept_units,
        "parameters": sum(one.numel() for one in student.parameters()),
        "layer_parameters": sum(one.numel() for one in parts.stacked.parameters()),
        "flops_per_example": flops(shape, run.config.dataset.max_length, len(run.data.label_names), run.task),
    }
