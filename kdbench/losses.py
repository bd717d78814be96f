"""Losses: pure functions of tensors. No module, no configuration, no model inside.

Teacher tensors carry no gradient by contract of the callers; the functions do not detach. Half precision is
computed in float32. What stands at padding counts only where it is said.

Every mean is `_mean`: the mean over nothing is 0 and its gradient is zero. A batch of tagged words may have no
labelled word, and a masked batch no masked token: such a batch teaches nothing and must not turn weights into NaN.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

TokenMask = Int[Tensor, "B T"] | Bool[Tensor, "B T"]  # 1 = token, 0 = padding
IGNORED = -100  # the label of a token that is not predicted (PyTorch's convention)


def cross_entropy(logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Cross-entropy against hard labels in nats, mean over the batch; computed in float32 or wider."""
    return _mean(F.cross_entropy(_wide(logits), labels, reduction="sum"), len(labels))


def binary_cross_entropy(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B C"]) -> Float[Tensor, ""]:
    """Several labels: cross-entropy of each label on its own, in nats, mean over batch and labels."""
    logits = _wide(logits)
    total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
    return _mean(total, logits.numel())


def squared_error(values: Float[Tensor, "B 1"], labels: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Regression: squared difference, mean over the batch."""
    return _reduce(_squared_difference(values[:, 0], labels), "elementmean")


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
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True)
    return _reduce(divergence, reduction) * (temperature**2 if scale_by_temperature_squared else 1.0)


def soft_binary_kl(
    student_logits: Float[Tensor, "B C"],
    teacher_logits: Float[Tensor, "B C"],
    temperature: float,
    reduction: str,
    scale_by_temperature_squared: bool,
) -> Float[Tensor, ""]:
    """`soft_kl` of several labels: the KL of each label's own two outcomes, sigmoid(logit / T) and the rest.

    Reductions and scale are `soft_kl`'s, the sum going over the labels.
    """
    student, teacher = _wide(student_logits) / temperature, _wide(teacher_logits) / temperature
    divergence = torch.zeros_like(student)
    for sign in (1.0, -1.0):  # log sigmoid(-x) = log(1 - sigmoid(x)), without cancellation
        log_teacher = F.logsigmoid(sign * teacher)
        divergence = divergence + log_teacher.exp() * (log_teacher - F.logsigmoid(sign * student))
    return _reduce(divergence, reduction) * (temperature**2 if scale_by_temperature_squared else 1.0)


def logit_mse(student: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], reduction: str) -> Float[Tensor, ""]:
    """Squared distance of the logits: distilled BiLSTM, Tang et al. 2019, L_distill.

    `batchmean` sums over classes and averages over the batch (paper), `elementmean` averages over both (code).
    """
    return _reduce(_squared_difference(student, teacher), reduction)


def soft_cross_entropy(
    student_logits: Float[Tensor, "B C"], teacher_logits: Float[Tensor, "B C"], temperature: float, reduction: str
) -> Float[Tensor, ""]:
    """-sum softmax(teacher / T) log softmax(student / T) in nats: TinyBERT, Jiao et al. 2020, L_pred.

    No factor T^2. Both sides are divided by T, as in the authors' code; the paper's formula divides the student
    only. `elementmean` (code) divides the sum by B * C, `batchmean` by B.
    """
    log_probabilities = F.log_softmax(_wide(student_logits) / temperature, dim=-1)
    return _reduce(-F.softmax(_wide(teacher_logits) / temperature, dim=-1) * log_probabilities, reduction)


def masked_cross_entropy(logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Masked language modelling: cross-entropy in nats, mean over the tokens whose label is not IGNORED."""
    total = F.cross_entropy(_wide(logits), labels, ignore_index=IGNORED, reduction="sum")
    return _mean(total, (labels != IGNORED).sum())


def cosine_distance(student: Float[Tensor, "N H"], teacher: Float[Tensor, "N H"]) -> Float[Tensor, ""]:
    """Mean over tokens of 1 - cos(student, teacher): DistilBERT, Sanh et al. 2019, L_cos."""
    return _reduce(1 - F.cosine_similarity(_wide(student), _wide(teacher), dim=-1), "elementmean")


def patience(
    student: Float[Tensor, "B M H"], teacher: Float[Tensor, "B M H"], normalise: bool, reduction: str
) -> Float[Tensor, ""]:
    """Squared distance of the [CLS] states of M mapped layers: BERT-PKD, Sun et al. 2019, L_PT.

    `normalise` first scales every vector to length 1 (a pair then counts 2 - 2 cos; the paper always does, the
    published best runs not always). `batchmean` sums over M and H and averages over the batch (paper, a sample);
    `elementmean` averages over all three (code), so its weight is M * H times as large.
    """
    student, teacher = _wide(student), _wide(teacher)
    if normalise:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return _reduce(_squared_difference(student, teacher), reduction)


def hidden_mse(
    student: Float[Tensor, "B T H"], teacher: Float[Tensor, "B T H"], mask: TokenMask | None
) -> Float[Tensor, ""]:
    """Squared difference of hidden states, mean over the batch's tokens and H.

    TinyBERT, Jiao et al. 2020, L_hidn and L_embd (the caller projects the student's side); MobileBERT, Sun et
    al. 2020, L_FMT. `mask` None averages over padding too, as TinyBERT's code does.
    """
    squared = _squared_difference(student, teacher).mean(-1)
    return _reduce(squared, "elementmean") if mask is None else _token_mean(squared, mask)


def normalised_feature_mse(
    student: Float[Tensor, "B T H"], teacher: Float[Tensor, "B T H"], mask: TokenMask
) -> Float[Tensor, ""]:
    """`hidden_mse` of layer-normed maps without affine part: MobileBERT's code, in place of the raw L_FMT."""
    student, teacher = (F.layer_norm(_wide(x), x.shape[-1:], eps=1e-12) for x in (student, teacher))
    return hidden_mse(student, teacher, mask)


def attention_score_mse(
    student: Float[Tensor, "B A T T"], teacher: Float[Tensor, "B A T T"], mask: TokenMask, over: str
) -> Float[Tensor, ""]:
    """Squared difference of attention scores: TinyBERT, Jiao et al. 2020, L_attn.

    Scores are those before softmax and before the mask is added, (query, key) in the last two places. `over`
    `valid` averages over heads and pairs of real tokens. `all` is the authors' code: padded keys differ by zero
    and padded queries as they come, but both stay in the denominator B * A * T * T.
    """
    counted = {"valid": _token_pairs(mask), "all": mask.bool()[:, None, None, :]}[over]
    squared = _squared_difference(student, teacher).masked_fill(~counted, 0)
    count = squared.numel() if over == "all" else student.shape[1] * counted.sum()
    return _mean(squared.sum(), count)


def attention_kl(
    student_scores: Float[Tensor, "B A T T"], teacher_scores: Float[Tensor, "B A T T"], mask: TokenMask
) -> Float[Tensor, ""]:
    """KL(softmax(teacher) || softmax(student)) over real keys in nats, mean over heads and real queries.

    The mean is taken in each example first, then over the batch. MiniLM, Wang et al. 2020, L_AT, and with value
    relations L_VR; MiniLMv2, Wang et al. 2021; MobileBERT, Sun et al. 2020, L_AT (whose code has the
    cross-entropy, larger by the teacher's entropy). Scores as in `attention_score_mse`.
    """
    # The lowest finite number underflows to probability 0 where -inf would give 0 * (-inf + inf); the rows of
    # padded queries become uniform on both sides and add nothing.
    hidden = ~_token_pairs(mask)
    scores = [_wide(x) for x in (student_scores, teacher_scores)]
    log_student, log_teacher = (F.log_softmax(x.masked_fill(hidden, torch.finfo(x.dtype).min), dim=-1) for x in scores)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum((1, 2, 3))
    return _reduce(_mean(divergence, student_scores.shape[1] * mask.sum(-1)), "batchmean")


def relation(x: Float[Tensor, "B A T d"], y: Float[Tensor, "B A T d"]) -> Float[Tensor, "B A T T"]:
    """Scaled dot products x y^T / sqrt(d) within each head: scores for `attention_kl`.

    Queries with keys are attention scores, values with values MiniLM's value relation (Wang et al. 2020).
    Autocast is off here: it would multiply in half precision.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _wide(x) @ _wide(y).transpose(-1, -2) / math.sqrt(x.shape[-1])


def regroup_heads(x: Float[Tensor, "B A T d"], heads: int) -> Float[Tensor, "B heads T r"]:
    """Concatenate the A heads of each token and split them into `heads`, r = A * d / heads wide.

    MiniLMv2's relation heads (Wang et al. 2021). Raises ValueError where `heads` does not divide A * d.
    """
    width = x.shape[1] * x.shape[3]
    if width % heads:
        raise ValueError(f"a width of {width} does not split into {heads} heads")
    return x.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)


def distillation_targets(
    teacher_logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"], alpha: float
) -> Float[Tensor, "N V"]:
    """alpha * one_hot(labels) + (1 - alpha) * softmax(teacher): MobileBERT, Sun et al. 2020, L_PD less NSP."""
    soft = (1 - alpha) * F.softmax(_wide(teacher_logits), dim=-1)
    return soft.scatter_add(1, labels[:, None], soft.new_full((len(labels), 1), alpha))


def target_cross_entropy(logits: Float[Tensor, "N V"], targets: Float[Tensor, "N V"]) -> Float[Tensor, ""]:
    """Cross-entropy against distributions in nats, mean over N."""
    return _reduce(-targets * F.log_softmax(_wide(logits), dim=-1), "batchmean")


def normalised_entropy(logits: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Entropy of softmax(logits) as a share of its maximum log C: FastBERT's uncertainty (Liu et al. 2020).

    From 0 (certain, 0 log 0 being 0) to 1 (uniform), up to rounding.
    """
    return torch.special.entr(F.softmax(_wide(logits), dim=-1)).sum(-1) / math.log(logits.shape[-1])


def _squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    return (_wide(student) - _wide(teacher)) ** 2


def _reduce(values: Tensor, reduction: str) -> Tensor:
    """`batchmean`: sum over all but the first dimension, mean over the first; `elementmean`: mean over all."""
    return _mean(values.sum(), {"batchmean": len(values), "elementmean": values.numel()}[reduction])


def _mean(total: Tensor, count: int | Tensor) -> Tensor:
    """Divide `total` by `count`; where nothing was counted, `total` is 0 and stays 0."""
    return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))


def _token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (B, T) over the batch's tokens."""
    return _mean(values.masked_fill(~mask.bool(), 0).sum(), mask.sum())


def _token_pairs(mask: Tensor) -> Tensor:
    """(B, 1, T, T): query and key are both tokens."""
    token = mask.bool()
    return token[:, None, :, None] & token[:, None, None, :]


def _wide(logits: Tensor) -> Tensor:
    """At least float32: half-precision logits lose the small probabilities that carry the knowledge."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
