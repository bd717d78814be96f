"""Losses: pure functions of tensors. No module, no configuration, no model inside.

Teacher tensors carry no gradient by contract of the callers; the functions do not detach.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def cross_entropy(logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Cross-entropy against hard labels in nats, mean over the batch; computed in float32 or wider."""
    return F.cross_entropy(_wide(logits), labels)


def soft_kl(
    student_logits: Float[Tensor, "B C"],
    teacher_logits: Float[Tensor, "B C"],
    temperature: float,
    reduction: str,
    scale_by_temperature_squared: bool,
) -> Float[Tensor, ""]:
    """KL(softmax(teacher / T) || softmax(student / T)) in nats: Hinton et al. 2015, section 2.

    `reduction`: `batchmean` divides the sum by B (DistilBERT, FastBERT), `elementmean` by B * C (PKD,
    TinyBERT): published weights are tied to one of them. With `scale_by_temperature_squared` the result is
    multiplied by T^2, so that its gradient keeps its size when T changes (Hinton et al. 2015, section 2).
    The paper has the soft cross-entropy, which differs by the teacher's entropy: same gradient, but KL is
    zero at the optimum.
    """
    # kl_div takes the approximating (student) log-probabilities first: the paper's order reversed.
    student = F.log_softmax(_wide(student_logits) / temperature, dim=-1)
    teacher = F.log_softmax(_wide(teacher_logits) / temperature, dim=-1)
    total = F.kl_div(student, teacher, reduction="sum", log_target=True)
    count = {"batchmean": student.shape[0], "elementmean": student.numel()}[reduction]
    return total / count * (temperature**2 if scale_by_temperature_squared else 1.0)


def _wide(logits: Tensor) -> Tensor:
    """At least float32: half-precision logits lose the small probabilities that carry the knowledge."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
