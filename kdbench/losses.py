"""Losses as pure functions of tensors, without modules, configuration or models.

Callers pass teacher tensors without gradients; the functions do not detach them. Half precision is computed in
float32. Values at padding are left out, unless a docstring says otherwise. Entropies and divergences are in nats.

Every mean is `_mean`, so the mean over nothing is 0, and its gradient is 0. A batch may have no labelled word or no
masked token. Such a batch must not turn the weights into NaN.

B: batch, C: classes, T: tokens, H: hidden size, A: attention heads, N: tokens of the whole batch, V: vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

TokenMask = Int[Tensor, "B T"] | Bool[Tensor, "B T"]  # 1 = token, 0 = padding
IGNORED = -100  # the label of a token that is not predicted (PyTorch's convention)


def cross_entropy(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"], weights: Float[Tensor, " B"] | None = None
) -> Float[Tensor, ""]:
    """Return the cross-entropy with hard labels, the mean over the batch.

    `weights` multiply the loss of each example. The sum is divided by B, where PyTorch divides by the sum of weights.
    """
    return _mean(_weighted_cross_entropy(logits, labels, weights), len(labels))


def binary_cross_entropy(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, "B C"], weights: Float[Tensor, "B C"] | None = None
) -> Float[Tensor, ""]:
    """Return the binary cross-entropy of each label for multi-label tasks, the mean over batch and labels.

    `weights` multiply the loss of each label of each example, and the divisor stays B * C.
    """
    logits = _wide(logits)
    total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), weights, reduction="sum")
    return _mean(total, logits.numel())


def squared_error(values: Float[Tensor, "B 1"], labels: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return the squared error for regression, the mean over the batch."""
    return _reduce(_squared_difference(values[:, 0], labels), "elementmean")


def soft_kl(
    student_logits: Float[Tensor, "B C"],
    teacher_logits: Float[Tensor, "B C"],
    temperature: float,
    reduction: str,
    scale_by_temperature_squared: bool,
) -> Float[Tensor, ""]:
    """Return KL(softmax(teacher / T) || softmax(student / T)), T the temperature (Hinton et al. 2015, section 2).

    The paper has the soft cross-entropy. It has the same gradient, but KL is zero at the optimum.
    `reduction`: `batchmean` divides the sum by B (DistilBERT, FastBERT), `elementmean` by B * C (PKD, TinyBERT). A
    published loss weight is valid for one of them only. `scale_by_temperature_squared` multiplies the result by T^2,
    so that the size of the gradient does not depend on T (Hinton et al. 2015, section 2).
    """
    # kl_div takes the student's log-probabilities first, the reverse of the paper's order.
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
    """Return `soft_kl` for multi-label tasks: KL of sigmoid(logit / T) against 1 - sigmoid, for each label.

    The options are those of `soft_kl`, with labels in the place of classes.
    """
    student, teacher = _wide(student_logits) / temperature, _wide(teacher_logits) / temperature
    divergence = torch.zeros_like(student)
    for sign in (1.0, -1.0):  # log sigmoid(-x) = log(1 - sigmoid(x)), without cancellation
        log_teacher = F.logsigmoid(sign * teacher)
        divergence = divergence + log_teacher.exp() * (log_teacher - F.logsigmoid(sign * student))
    return _reduce(divergence, reduction) * (temperature**2 if scale_by_temperature_squared else 1.0)


def logit_mse(student: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], reduction: str) -> Float[Tensor, ""]:
    """Return the squared error of the logits (distilled BiLSTM, Tang et al. 2019, L_distill).

    `batchmean` sums over classes and averages over the batch (paper). `elementmean` averages over both (code).
    """
    return _reduce(_squared_difference(student, teacher), reduction)


def soft_cross_entropy(
    student_logits: Float[Tensor, "B C"], teacher_logits: Float[Tensor, "B C"], temperature: float, reduction: str
) -> Float[Tensor, ""]:
    """Return -sum softmax(teacher / T) log softmax(student / T) (TinyBERT, Jiao et al. 2020, L_pred).

    There is no factor T^2. Both sides are divided by T, as in the authors' code; the paper's formula divides only the
    student. `elementmean` (code) divides the sum by B * C, `batchmean` by B.
    """
    log_probabilities = F.log_softmax(_wide(student_logits) / temperature, dim=-1)
    return _reduce(-F.softmax(_wide(teacher_logits) / temperature, dim=-1) * log_probabilities, reduction)


def masked_cross_entropy(
    logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"], weights: Float[Tensor, " N"] | None = None
) -> Float[Tensor, ""]:
    """Return the cross-entropy of masked language modelling, the mean over tokens whose label is not IGNORED.

    `weights` multiply the loss of each token, and the divisor stays the number of tokens.
    """
    return _mean(_weighted_cross_entropy(logits, labels, weights), (labels != IGNORED).sum())


def cosine_distance(student: Float[Tensor, "N H"], teacher: Float[Tensor, "N H"]) -> Float[Tensor, ""]:
    """Return 1 - cos(student, teacher), the mean over tokens (DistilBERT, Sanh et al. 2019, L_cos)."""
    return _reduce(1 - F.cosine_similarity(_wide(student), _wide(teacher), dim=-1), "elementmean")


def patience(
    student: Float[Tensor, "B M H"], teacher: Float[Tensor, "B M H"], normalise: bool, reduction: str
) -> Float[Tensor, ""]:
    """Return the squared error of the [CLS] states of M mapped layers (BERT-PKD, Sun et al. 2019, L_PT).

    `normalise` first scales every vector to length 1, so a pair of vectors counts 2 - 2 cos. The paper always does
    this, but not all of its published best runs do. `batchmean` sums over M and H and averages over the batch (paper).
    `elementmean` averages over all three (code), so the equivalent loss weight is M * H times as large.
    """
    student, teacher = _wide(student), _wide(teacher)
    if normalise:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return _reduce(_squared_difference(student, teacher), reduction)


def hidden_mse(
    student: Float[Tensor, "B T H"], teacher: Float[Tensor, "B T H"], mask: TokenMask | None
) -> Float[Tensor, ""]:
    """Return the squared error of hidden states, the mean over tokens and H. The caller projects the student's states.

    It is L_hidn and L_embd of TinyBERT (Jiao et al. 2020), and L_FMT of MobileBERT (Sun et al. 2020). If `mask` is
    None, the mean includes padding, as in TinyBERT's code.
    """
    squared = _squared_difference(student, teacher).mean(-1)
    if mask is None:
        return _reduce(squared, "elementmean")
    return _mean(squared.masked_fill(~mask.bool(), 0).sum(), mask.sum())


def normalised_feature_mse(
    student: Float[Tensor, "B T H"], teacher: Float[Tensor, "B T H"], mask: TokenMask
) -> Float[Tensor, ""]:
    """Return `hidden_mse` after a LayerNorm without affine part (MobileBERT's code, instead of the raw L_FMT)."""
    student, teacher = (F.layer_norm(_wide(x), x.shape[-1:], eps=1e-12) for x in (student, teacher))
    return hidden_mse(student, teacher, mask)


def attention_score_mse(
    student: Float[Tensor, "B A T T"], teacher: Float[Tensor, "B A T T"], mask: TokenMask, over: str
) -> Float[Tensor, ""]:
    """Return the squared error of attention scores (TinyBERT, Jiao et al. 2020, L_attn).

    Scores are taken before the softmax and before the mask is added. Their last two dimensions are query and key.
    `over=valid` averages over heads and pairs of real tokens. `over=all` is the authors' code: the error is 0 at padded
    keys, is counted at padded queries, and the mean is over B * A * T * T.
    """
    counted = {"valid": _token_pairs(mask), "all": mask.bool()[:, None, None, :]}[over]
    squared = _squared_difference(student, teacher).masked_fill(~counted, 0)
    count = squared.numel() if over == "all" else student.shape[1] * counted.sum()
    return _mean(squared.sum(), count)


def attention_kl(
    student_scores: Float[Tensor, "B A T T"], teacher_scores: Float[Tensor, "B A T T"], mask: TokenMask
) -> Float[Tensor, ""]:
    """Return KL(softmax(teacher) || softmax(student)) over real keys, the mean over heads and real queries.

    The mean is taken in each example first, then over the batch. It is L_AT of MiniLM (Wang et al. 2020) and, with
    value relations as scores, L_VR. MiniLMv2 (Wang et al. 2021) also uses it. MobileBERT's L_AT (Sun et al. 2020) is
    the same; its code has the cross-entropy, larger by the teacher's entropy. Scores: see `attention_score_mse`.
    """
    # The lowest finite number gives probability 0; -inf would give NaN, from 0 * (-inf + inf). At padded queries both
    # distributions become uniform, so their divergence is 0.
    hidden = ~_token_pairs(mask)
    scores = [_wide(x) for x in (student_scores, teacher_scores)]
    log_student, log_teacher = (F.log_softmax(x.masked_fill(hidden, torch.finfo(x.dtype).min), dim=-1) for x in scores)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum((1, 2, 3))
    return _reduce(_mean(divergence, student_scores.shape[1] * mask.sum(-1)), "batchmean")


def relation(x: Float[Tensor, "B A T d"], y: Float[Tensor, "B A T d"]) -> Float[Tensor, "B A T T"]:
    """Return the scaled dot products x y^T / sqrt(d) of each head, as scores for `attention_kl`.

    Queries and keys give attention scores. Values and values give MiniLM's value relation (Wang et al. 2020).
    Autocast is off, because it would multiply in half precision.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _wide(x) @ _wide(y).transpose(-1, -2) / math.sqrt(x.shape[-1])


def regroup_heads(x: Float[Tensor, "B A T d"], heads: int) -> Float[Tensor, "B heads T r"]:
    """Concatenate the A heads of each token and split them into `heads`, each r = A * d / heads wide.

    These are MiniLMv2's relation heads (Wang et al. 2021). Raises ValueError if `heads` does not divide A * d.
    """
    width = x.shape[1] * x.shape[3]
    if width % heads:
        raise ValueError(f"a width of {width} does not split into {heads} heads")
    return x.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)


def distillation_targets(
    teacher_logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"], alpha: float
) -> Float[Tensor, "N V"]:
    """Return alpha * one_hot(labels) + (1 - alpha) * softmax(teacher).

    These are the targets of MobileBERT's L_PD (Sun et al. 2020), without its NSP term.
    """
    soft = (1 - alpha) * F.softmax(_wide(teacher_logits), dim=-1)
    return soft.scatter_add(1, labels[:, None], soft.new_full((len(labels), 1), alpha))


def target_cross_entropy(logits: Float[Tensor, "N V"], targets: Float[Tensor, "N V"]) -> Float[Tensor, ""]:
    """Return the cross-entropy with target distributions, the mean over N (MobileBERT, Sun et al. 2020, L_PD)."""
    return _reduce(-targets * F.log_softmax(_wide(logits), dim=-1), "batchmean")


def _weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return the sum over labels that are not IGNORED, each times its weight."""
    if weights is None:
        return F.cross_entropy(_wide(logits), labels, ignore_index=IGNORED, reduction="sum")
    return (weights * F.cross_entropy(_wide(logits), labels, ignore_index=IGNORED, reduction="none")).sum()


def _squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    return (_wide(student) - _wide(teacher)) ** 2


def _reduce(values: Tensor, reduction: str) -> Tensor:
    """Return the mean over all dimensions (`elementmean`), or the sum divided by the first dimension (`batchmean`)."""
    return _mean(values.sum(), {"batchmean": len(values), "elementmean": values.numel()}[reduction])


def _mean(total: Tensor, count: int | Tensor) -> Tensor:
    """Return `total` divided by `count`, or `total`, which is then 0, if `count` is 0."""
    return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))


def _token_pairs(mask: Tensor) -> Tensor:
    """Return (B, 1, T, T): whether query and key are both real tokens."""
    token = mask.bool()
    return token[:, None, :, None] & token[:, None, None, :]


def _wide(logits: Tensor) -> Tensor:
    """Return the tensor in float32 or wider, because half precision loses small probabilities."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
