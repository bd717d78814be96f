"""FastBERT (Liu et al. 2020): a classifier after every layer, so that rows with a sure answer exit early.

Stage `training` fine-tunes the backbone with the last classifier. Stage `self_distillation` trains the other
classifiers to imitate the last one, by the sum over i < L of KL(p_L || p_i) (equation 4). It uses no labels, unless
`branch_ce` adds their cross-entropy at each of these classifiers, as the posts do. Everything else is frozen. The row
of results is that of `speed`. The complete curve and the exit layers are reported too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from kdbench.losses import soft_kl
from kdbench.methods._early_exit import break_even_share, curve
from kdbench.models.fastbert import flops, full_flops
from kdbench.objectives import hard_loss, supervised
from kdbench.options import SHARE, Rule, at_least, between, option
from kdbench.stage import Batch, ParamGroup, Stage, Terms

if TYPE_CHECKING:
    from kdbench.runs.context import Run
    from kdbench.schema import RunConfig

SHARES = Rule("numbers from 0 to 1", lambda given: all(0 <= share <= 1 for share in given))


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder"})
    students: ClassVar[frozenset[str]] = frozenset({"fastbert"})
    not_others: ClassVar[str] = "rows leave by the entropy of one distribution over classes"

    branch_ce: float = option(at_least(0))  # weight of the labels' cross-entropy at each earlier classifier
    speed: float = option(between(0, 1))
    speeds: list[float] = option(SHARES)  # of the curve
    timed_speeds: list[float] = option(SHARES)  # of these the time is measured too, by kdbench.inference.latency
    unlabelled_share: float | None = option(SHARE)  # of an epoch's texts; null: train and the raw texts once

    @property
    def reads_unlabelled(self) -> bool:
        """Return True: self-distillation needs no label."""
        return True

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if there is no layer at which to exit early."""
        student = config.student
        if student.layers < 2:
            yield "student.layers", "must be 2 or more: rows leave before the last layer"


def branch_logits(student: Any, batch: Batch) -> Tensor:
    """Return the logits of all layers, (L, B, C); gradients reach only the classifiers."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}
    return student.all_logits(**inputs)


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student
    student.speed = 0.0  # all layers, while it trains
    whole = [ParamGroup(student.encoder), ParamGroup(student.branches[-1])]
    objective, data = supervised(student, run.task), run.batches("training")
    yield Stage("training", student, objective, data, run.schedule("training"), whole)

    def self_distillation(batch: Batch, step: int) -> Terms:
        student.encoder.eval()  # what stands still answers alike each time
        student.branches[-1].eval()
        *branches, last = branch_logits(student, batch)
        losses = {"kl": _sum(soft_kl(z, last.detach(), 1.0, "batchmean", False) for z in branches)}
        if p.branch_ce > 0:
            losses["ce"] = p.branch_ce * _sum(hard_loss(run.task, z, batch) for z in branches)
        return Terms(losses)

    params = [ParamGroup(branch) for branch in student.branches[:-1]]
    data = run.batches("self_distillation", split=run.with_unlabelled(run.data.train))
    schedule = run.schedule("self_distillation", data)
    yield Stage("self_distillation", student, self_distillation, data, schedule, params, predict={})
    report_curves(run, student, p)


def _sum(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack([*losses]).sum()


def report_curves(run: "Run", student: Any, p: Params) -> None:
    """Report accuracy, FLOPs and exit layers at every speed, on dev and test."""
    shape, length = run.shape(run.config.student), run.config.dataset.max_length
    full, first = full_flops(shape, length), student.first

    def cost(layer: int) -> int:
        return flops(shape, length, layer)

    for name, split in {"dev": run.data.dev, "test": run.data.test}.items():
        logits = run.outputs(split, lambda batch, step: branch_logits(student, batch).transpose(0, 1))
        points = curve(logits.transpose(0, 1).numpy(), split.labels, p.speeds, cost, full, first)
        run.report(f"curve_{name}", points)
        right = logits.argmax(-1).numpy() == split.labels[:, None]
        run.report(f"layers_{name}", right.mean(0).tolist())  # accuracy of each layer's classifier alone
    run.report("break_even_share", break_even_share(cost, run.config.student.layers, full, first))
    student.speed = p.speed
