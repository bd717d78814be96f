"""Update the parameters from the gradients: sum them over processes, clip, set the learning rate, step."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from kdbench.stage import ParamGroup, Stage
from kdbench.training.processes import reduce_gradients
from kdbench.training.used_rows import UsedRows

ADADELTA_RHO = 0.95  # Zeiler 2012, section 4.1; Tang et al. 2019


class Updates:
    """The optimiser of a stage's parameters, without decay on biases and norms; it freezes the rest of `module`."""

    def __init__(self, module: nn.ModuleDict, stage: Stage, accelerator: Accelerator) -> None:
        self.schedule, self.accelerator = stage.schedule, accelerator
        module.requires_grad_(False)
        parts = list(stage.params) if stage.params is not None else [ParamGroup(stage.student)]
        if stage.extra is not None:
            parts.append(ParamGroup(stage.extra))
        groups = _groups(parts, stage.schedule.weight_decay)
        self.words = _used_rows(stage, groups, accelerator)
        optimised = {words.weight: words.rows for words in self.words}
        self.trained = [optimised.get(one, one) for part, _ in parts for one in part.parameters()]
        self.optimizer: torch.optim.Optimizer
        if stage.schedule.optimizer == "adadelta":
            self.optimizer = torch.optim.Adadelta(groups, lr=stage.schedule.lr, rho=ADADELTA_RHO)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=stage.schedule.lr, fused=True)

    def begin(self) -> None:
        """Start from the weights that the module now has, initial ones or a checkpoint's."""
        for words in self.words:
            words.read()

    def apply(self, step: int) -> None:
        """Update by the gradients that the passes of `step` (counted from 0) have accumulated, then clear them."""
        for words in self.words:
            words.take_gradient()
        reduce_gradients(self.trained, self.accelerator)
        if self.schedule.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.schedule.clip)
        factor = self.schedule.lr_factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr * group["lr_multiplier"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for words in self.words:
            words.give_back()

    def settle(self, steps: int) -> None:
        """Bring the unused word embeddings to their values after `steps` updates; needed before scoring and saving."""
        for words in self.words:
            words.settle(steps)

    def end(self) -> None:
        """Undo every change to the module except its weights."""
        for words in self.words:
            words.release()


def _groups(parts: list[ParamGroup], weight_decay: float) -> list[dict[str, Any]]:
    """Return torch's parameter groups, and turn on gradients for their parameters only."""
    groups = []
    for part, multiplier in parts:
        part.requires_grad_(True)
        for matrices in (True, False):
            chosen = [one for one in part.parameters() if (one.ndim > 1) == matrices]
            decay = weight_decay if matrices else 0.0
            groups.append({"params": chosen, "weight_decay": decay, "lr_multiplier": multiplier})
    return groups


def _used_rows(stage: Stage, groups: list[dict[str, Any]], accelerator: Accelerator) -> list[UsedRows]:
    """Return a UsedRows for the stage's word table, if it is trained by AdamW on a CPU; else an empty list.

    A GPU updates the complete table in almost no time, and its scattered sums have no fixed order.
    """
    if stage.words is None or stage.schedule.optimizer != "adamw" or accelerator.device.type != "cpu":
        return []
    weight = stage.words.table.weight
    return [
        UsedRows(stage.words, group, stage.schedule)
        for group in groups
        if any(one is weight for one in group["params"])
    ]
