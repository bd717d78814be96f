"""Optimiser and learning-rate schedule of a stage."""

import torch
from torch import nn

from kdbench.stage import ParamGroup, Schedule, Stage

ADADELTA_RHO = 0.95  # Zeiler 2012, section 4.1; Tang et al. 2019


def lr_factor(step: int, schedule: Schedule) -> float:
    """Learning rate of `step` (counted from 0) as a share of the peak: linear warm-up, then linear decay to 0."""
    warm = round(schedule.warmup * schedule.steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 1.0 if schedule.decay == "constant" else (schedule.steps - step) / max(1, schedule.steps - warm)


def make_optimizer(module: nn.ModuleDict, stage: Stage) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """The optimiser over the stage's parameters, no decay on biases and norms; the rest is frozen."""
    module.requires_grad_(False)
    groups = list(stage.params) if stage.params is not None else [ParamGroup(stage.student)]
    if stage.extra is not None:
        groups.append(ParamGroup(stage.extra))
    trained: list[nn.Parameter] = []
    options: list[dict[str, object]] = []
    for part, multiplier in groups:
        part.requires_grad_(True)
        parameters = list(part.parameters())
        trained += parameters
        for decay in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decay]
            weight_decay = stage.schedule.weight_decay if decay else 0.0
            options.append({"params": chosen, "weight_decay": weight_decay, "lr_multiplier": multiplier})
    if stage.schedule.optimizer == "adadelta":
        return trained, torch.optim.Adadelta(options, lr=stage.schedule.lr, rho=ADADELTA_RHO)
    return trained, torch.optim.AdamW(options, lr=stage.schedule.lr, fused=True)
