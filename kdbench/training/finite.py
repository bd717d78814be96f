"""Check that losses and weights are finite, and say what to do if they are not."""

import math
from pathlib import Path

from torch import nn

from kdbench.errors import Code, UserError
from kdbench.stage import Stage
from kdbench.training import checkpoint
from kdbench.training.checkpoint import Pass


class NonFiniteLoss(UserError):
    """A loss term or a weight became infinite or NaN; the message names stage, step and term."""


def bad_loss(stage: Stage, folder: Path, step: int, passes: list[Pass], mean: dict[str, float]) -> NonFiniteLoss:
    """Describe the loss that is not finite, given the last passes up to `step`.

    If none of these passes is bad, another process's was, and `mean` has the terms.
    """
    after, terms = checkpoint.first_bad(passes) or (0, mean)
    first = step - after // stage.schedule.accumulation
    shown = ", ".join(f"{name} {value:g}" for name, value in terms.items())
    advice = "Lower schedule.lr, or try hardware.precision=fp32."
    if first == 1:
        broken = ", ".join(name for name, value in terms.items() if not math.isfinite(value))
        advice = (
            f"This is the first step, so the learning rate is not the cause. Check the temperature and the weights"
            f" under method that scale {broken}, and the teacher, or try hardware.precision=fp32."
        )
    return NonFiniteLoss(
        Code.LOSS_NOT_FINITE,
        f"stage {stage.name}, step {first}: the loss is not finite ({shown}). {advice} {checkpoint.last(folder)}",
    )


def require_finite_weights(stage: Stage, folder: Path, step: int, module: nn.Module) -> None:
    """Raise NonFiniteLoss if a weight is not finite, so that it is neither kept nor saved.

    A gradient may overflow although the loss is finite.
    """
    broken = [name for name, parameter in module.named_parameters() if not parameter.isfinite().all()]
    if broken:
        where = f"stage {stage.name}, step {step}: {broken[0]} is not finite, but the loss is."
        raise NonFiniteLoss(
            Code.LOSS_NOT_FINITE, f"{where} Lower schedule.lr, or set schedule.clip. {checkpoint.last(folder)}"
        )
