"""Oracles O2 to O7 and O10 and the invariants of the losses on logits, hidden states, attention and relations.

test_seeded_faults.py runs every `test_<function>...` against faulty versions of <function>.
"""

import inspect
from typing import get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench import losses
from kdbench.losses import (
    attention_kl,
    attention_score_mse,
    cosine_distance,
    cross_entropy,
    distillation_targets,
    hidden_mse,
    logit_mse,
    masked_cross_entropy,
    normalised_feature_mse,
    patience,
    regroup_heads,
    relation,
    soft_cross_entropy,
    soft_kl,
    target_cross_entropy,
)
from tests.test_losses import (
    LABELS,
    STUDENT,
    TEACHER,
    TOKEN_LABELS,
    TOKEN_MASK,
    TOKENS_STUDENT,
    TOKENS_TEACHER,
    close,
)


def wide(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- logits ---------------------------------------------------------------------------------------------------------


def test_logit_mse(oracles):
    expected = oracles["O2_bilstm"]
    close(logit_mse(STUDENT, TEACHER, "elementmean"), expected["mse_elementmean"])
    close(logit_mse(STUDENT, TEACHER, "batchmean"), expected["mse_sum_over_classes_batchmean"])
    total = cross_entropy(STUDENT, LABELS) + logit_mse(STUDENT, TEACHER, "elementmean")
    close(total, expected["total_ce1_distill1"])


def test_soft_cross_entropy(oracles):
    close(
        soft_cross_entropy(STUDENT, TEACHER, 1.0, "elementmean"), oracles["O5_tinybert"]["pred_code_elementmean_tau1"]
    )
    close(soft_cross_entropy(STUDENT, TEACHER, 1.0, "batchmean"), oracles["O5_tinybert"]["pred_sum_batchmean_tau1"])
    close(soft_cross_entropy(STUDENT, TEACHER, 2.0, "elementmean"), oracles["O1_hinton"]["soft_ce_elementmean"])
    close(soft_cross_entropy(STUDENT, TEACHER, 2.0, "batchmean"), oracles["O1_hinton"]["soft_ce_batchmean"])


def test_soft_cross_entropy_has_the_gradient_of_the_kl():
    students = [STUDENT.clone().requires_grad_() for _ in range(2)]
    soft_cross_entropy(students[0], TEACHER, 2.0, "batchmean").backward()
    soft_kl(students[1], TEACHER, 2.0, "batchmean", False).backward()
    torch.testing.assert_close(students[0].grad, students[1].grad)


def test_masked_cross_entropy(oracles):
    close(masked_cross_entropy(TOKENS_STUDENT, TOKEN_LABELS), oracles["O3_distilbert"]["loss_mlm"])
    both = masked_cross_entropy(TOKENS_STUDENT, torch.tensor([0, 1, -100]))
    close(both, cross_entropy(TOKENS_STUDENT[:2], torch.tensor([0, 1])).item())


def test_masked_cross_entropy_is_zero_where_nothing_is_masked():
    logits = TOKENS_STUDENT.clone().requires_grad_()
    value = masked_cross_entropy(logits, torch.full((3,), -100))
    value.backward()
    assert value.item() == 0
    assert logits.grad.tolist() == torch.zeros(3, 3).tolist()


def test_distillation_targets(oracles):
    teacher, labels = wide([[1, 0, 0]]), torch.tensor([1])
    expected = wide([oracles["O6_mobilebert"]["pd_targets_alpha05"]])
    torch.testing.assert_close(distillation_targets(teacher, labels, 0.5), expected)
    for alpha in (0.0, 0.25, 1.0):
        mixed = distillation_targets(TEACHER, LABELS, alpha)
        torch.testing.assert_close(mixed, alpha * F.one_hot(LABELS, 3) + (1 - alpha) * TEACHER.softmax(-1))
        torch.testing.assert_close(mixed.sum(-1), wide([1, 1]))


def test_target_cross_entropy(oracles):
    close(target_cross_entropy(STUDENT, F.one_hot(LABELS, 3).double()), oracles["O1_hinton"]["ce"])
    close(target_cross_entropy(STUDENT, TEACHER.softmax(-1)), oracles["O5_tinybert"]["pred_sum_batchmean_tau1"])


def test_target_cross_entropy_of_no_token_is_zero():
    assert target_cross_entropy(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0


# --- hidden states --------------------------------------------------------------------------------------------------


def test_cosine_distance(oracles):
    student, teacher = wide([[1, 0], [1, 1]]), wide([[1, 1], [2, 2]])
    close(cosine_distance(student, teacher), oracles["O3_distilbert"]["loss_cos"])
    assert cosine_distance(student, -3 * student).item() == pytest.approx(2)


def test_distilbert_total(oracles):
    real = TOKEN_MASK.bool()
    soft = soft_kl(TOKENS_STUDENT[real], TOKENS_TEACHER[real], 2.0, "batchmean", True)
    cosine = cosine_distance(wide([[1, 0], [1, 1]]), wide([[1, 1], [2, 2]]))
    total = 5 * soft + 2 * masked_cross_entropy(TOKENS_STUDENT, TOKEN_LABELS) + cosine
    close(total, oracles["O3_distilbert"]["total_5_2_1"])


CLS_STUDENT = wide([[[1, 2, 2], [0, 3, 4]], [[2, 0, 0], [1, 1, 1]]])
CLS_TEACHER = wide([[[2, 4, 4], [0, 4, 3]], [[0, 2, 0], [1, 2, 2]]])


def test_patience(oracles):
    expected = oracles["O4_pkd"]
    close(patience(CLS_STUDENT, CLS_TEACHER, True, "elementmean"), expected["code_elementmean"])
    close(patience(CLS_STUDENT, CLS_TEACHER, True, "batchmean"), expected["per_sample_sum_then_batchmean"])
    close(patience(CLS_STUDENT, CLS_TEACHER, True, "batchmean") * 2, expected["paper_sum"])
    close(patience(CLS_STUDENT, CLS_TEACHER, False, "elementmean"), expected["unnormalised_elementmean"])
    for layer, value in enumerate(expected["textbrewer_per_layer"]):
        one = slice(layer, layer + 1)
        close(patience(CLS_STUDENT[:, one], CLS_TEACHER[:, one], True, "batchmean"), value)


def test_patience_is_two_less_two_cosines():
    cosines = F.cosine_similarity(CLS_STUDENT, CLS_TEACHER, dim=-1)
    close(patience(CLS_STUDENT, CLS_TEACHER, True, "batchmean"), (2 - 2 * cosines).sum(1).mean().item())


def test_patience_does_not_see_the_scale_of_normalised_vectors():
    value = patience(CLS_STUDENT, CLS_TEACHER, True, "batchmean").item()
    scale = wide([[[0.1], [5]], [[2], [300]]])
    close(patience(CLS_STUDENT * scale, CLS_TEACHER, True, "batchmean"), value)
    close(patience(CLS_STUDENT, CLS_TEACHER * scale, True, "batchmean"), value)
    assert patience(CLS_TEACHER * scale, CLS_TEACHER, True, "batchmean").item() == pytest.approx(0, abs=1e-12)


def test_patience_is_at_most_four_a_pair():
    close(patience(CLS_STUDENT, -2 * CLS_STUDENT, True, "batchmean"), 4 * 2)


def test_hidden_mse(oracles):
    projected = wide([[[1, 2], [3, 4]]]) @ wide([[1, 0, 1], [0, 1, 0]])
    assert projected.tolist() == oracles["O5_tinybert"]["projected"]
    teacher = wide([[[1, 0, 2], [0, 1, 1]]])
    close(hidden_mse(projected, teacher, None), oracles["O5_tinybert"]["hidden_mse"])
    close(hidden_mse(projected, teacher, torch.ones(1, 2).long()), oracles["O5_tinybert"]["hidden_mse"])
    close(hidden_mse(MAP_STUDENT, MAP_TEACHER, MAP_MASK), oracles["O6_mobilebert"]["fmt_raw_elementmean"])
    close(hidden_mse(MAP_STUDENT, MAP_TEACHER, None), (5 + 0.25 + 10_000) / 3)


def test_hidden_mse_weighs_tokens_alike():
    student, teacher = noise(2, 3, 4, seed=0), noise(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    one = hidden_mse(student[:1], teacher[:1], mask[:1])
    other = hidden_mse(student[1:], teacher[1:], mask[1:])
    close(hidden_mse(student, teacher, mask), ((3 * one + other) / 4).item())


MAP_TEACHER = wide([[[1, 2, 3, 4], [0, 0, 0, 4], [100, 100, 100, 100]]])  # O6 and a position of padding
MAP_STUDENT = wide([[[4, 3, 2, 1], [0, 0, 1, 4], [0, 0, 0, 0]]])
MAP_MASK = torch.tensor([[1, 1, 0]])


def test_normalised_feature_mse(oracles):
    value = normalised_feature_mse(MAP_STUDENT, MAP_TEACHER, MAP_MASK)
    close(value, oracles["O6_mobilebert"]["fmt_layernormed_elementmean"])
    affine = normalised_feature_mse(3 * MAP_STUDENT + 1, MAP_TEACHER, MAP_MASK)
    assert affine.item() == pytest.approx(value.item(), rel=1e-9)


# --- attention and relations ----------------------------------------------------------------------------------------

SCORES_STUDENT = wide([[[[0.5, -0.5, 0], [1, 0, 0], [0.2, 0.1, 0]]]])
SCORES_TEACHER = wide([[[[0, 0.5, -0.3], [2, -1, 0.5], [0, 0, 0]]]])


def test_attention_score_mse(oracles):
    expected, mask = oracles["O5_tinybert"], torch.tensor([[1, 1, 0]])
    close(attention_score_mse(SCORES_STUDENT, SCORES_TEACHER, mask, "valid"), expected["attn_mean_valid_pairs"])
    close(attention_score_mse(SCORES_STUDENT, SCORES_TEACHER, mask, "all"), expected["attn_code_mean_all"])
    full = torch.ones_like(mask)
    for over in ("valid", "all"):
        close(attention_score_mse(SCORES_STUDENT, SCORES_TEACHER, full, over), expected["attn_without_zeroing"])


def test_attention_score_mse_is_a_mean_over_heads():
    student, teacher = (x.expand(1, 3, 3, 3) for x in (SCORES_STUDENT, SCORES_TEACHER))
    for over in ("valid", "all"):
        one = attention_score_mse(SCORES_STUDENT, SCORES_TEACHER, torch.tensor([[1, 1, 0]]), over)
        close(attention_score_mse(student, teacher, torch.tensor([[1, 1, 0]]), over), one.item())


def test_attention_kl(oracles):
    student, teacher, mask = wide([[[[0, 1], [0, 1]]]]), wide([[[[1, 0], [0, 2]]]]), torch.tensor([[1, 1]])
    expected = oracles["O6_mobilebert"]
    close(attention_kl(student, teacher, mask), expected["at_kl"])
    close(attention_kl(student, teacher, mask), expected["at_ce_as_in_code"] - expected["at_teacher_entropy"])
    shifted = attention_kl(student + 5, teacher - wide([[[[1], [2]]]]), mask)
    close(shifted, expected["at_kl"])


def test_attention_kl_averages_heads_and_tokens_in_each_example_first():
    student, teacher = noise(2, 3, 4, 4, seed=0), noise(2, 3, 4, 4, seed=1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    alone = []
    for example, length in ((0, 4), (1, 2)):
        for head in range(3):
            log_student = student[example, head, :length, :length].log_softmax(-1)
            log_teacher = teacher[example, head, :length, :length].log_softmax(-1)
            alone.append(F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True))
    close(attention_kl(student, teacher, mask), torch.stack(alone).mean().item())


def test_attention_kl_gives_padding_no_gradient():
    student = noise(2, 2, 3, 3, seed=0).requires_grad_()
    teacher = noise(2, 2, 3, 3, seed=1).requires_grad_()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    attention_kl(student, teacher, mask).backward()
    for gradient in (student.grad, teacher.grad):
        assert gradient.isfinite().all()
        assert (gradient[0] != 0).all()
        assert (gradient[1, :, :2, :2] != 0).all()
        assert gradient[1, :, 2].tolist() == [[0, 0, 0]] * 2
        assert gradient[1, :, :, 2].tolist() == [[0, 0, 0]] * 2


# O7: one head, the third token is padding
MINILM_MASK = torch.tensor([[1, 1, 0]])
Q_TEACHER = wide([[[[1, 0], [0, 1], [9, 9]]]])
K_TEACHER = wide([[[[1, 1], [0, 2], [-9, 9]]]])
V_TEACHER = wide([[[[1, 2], [2, 0], [9, -9]]]])
Q_STUDENT, K_STUDENT, V_STUDENT = (wide([[[[a], [b], [7]]]]) for a, b in ((1, 2), (1, -1), (1, 0.5)))


def minilm(x_student: Tensor, y_student: Tensor, x_teacher: Tensor, y_teacher: Tensor) -> Tensor:
    return attention_kl(relation(x_student, y_student), relation(x_teacher, y_teacher), MINILM_MASK)


def test_relation(oracles):
    expected = oracles["O7_minilm"]
    for key, (x, y) in {"attn_T": (Q_TEACHER, K_TEACHER), "attn_S": (Q_STUDENT, K_STUDENT)}.items():
        attention = relation(x, y)[0, 0, :2, :2].softmax(-1)
        torch.testing.assert_close(attention, wide(expected[key]), rtol=1e-8, atol=0)


def test_relation_minilm(oracles):
    expected = oracles["O7_minilm"]
    attention = minilm(Q_STUDENT, K_STUDENT, Q_TEACHER, K_TEACHER)
    queries, keys, values = (
        minilm(student, student, teacher, teacher)
        for student, teacher in ((Q_STUDENT, Q_TEACHER), (K_STUDENT, K_TEACHER), (V_STUDENT, V_TEACHER))
    )
    close(attention, expected["L_AT"])
    close(values, expected["L_VR"])
    close(attention + values, expected["total_v1"])
    close(queries, expected["L_QQ"])
    close(keys, expected["L_KK"])
    close(queries + keys + values, expected["total_v2_weights1"])


def test_attention_kl_takes_the_models_own_mask_too(oracles):
    bias = wide([0, 0, -1e4])
    student, teacher = relation(Q_STUDENT, K_STUDENT) + bias, relation(Q_TEACHER, K_TEACHER) + bias
    close(attention_kl(student, teacher, MINILM_MASK), oracles["O7_minilm"]["L_AT_additive_mask"])


def test_relation_does_not_see_a_rotation_within_a_head():
    values = noise(2, 3, 4, 5, seed=0)
    rotation = torch.linalg.qr(noise(3, 5, 5, seed=1)).Q
    torch.testing.assert_close(relation(values @ rotation, values @ rotation), relation(values, values))
    stretched = relation(values @ (2 * rotation), values @ (2 * rotation))
    assert not torch.allclose(stretched, relation(values, values))


def test_relation_is_wide_under_autocast():
    x, y = noise(1, 2, 3, 4, seed=0).float(), noise(1, 2, 3, 4, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = relation(x, y)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, relation(x, y))


REGROUP_TEACHER = torch.arange(1, 9, dtype=torch.float64).view(1, 1, 2, 4) / 4  # O7: two tokens, four dimensions
REGROUP_STUDENT = wide([[[[1, -1], [0.5, 2]]]])


def test_regroup_heads(oracles):
    expected = oracles["O7_minilm"]
    two_heads = REGROUP_TEACHER.view(1, 2, 2, 2).transpose(1, 2)  # the same vectors as the teacher's two heads
    for teacher in (REGROUP_TEACHER, two_heads):
        for heads, key in ((2, "v2_regroup_teacher4_student2_Ar2"), (1, "v2_regroup_Ar1")):
            of_student, of_teacher = (regroup_heads(x, heads) for x in (REGROUP_STUDENT, teacher))
            relations = relation(of_student, of_student), relation(of_teacher, of_teacher)
            close(attention_kl(*relations, torch.ones(1, 2).long()), expected[key])
    for x, key in ((two_heads, "v2_rel_T_Ar2"), (REGROUP_STUDENT, "v2_rel_S_Ar2")):
        grouped = regroup_heads(x, 2)
        torch.testing.assert_close(relation(grouped, grouped)[0].softmax(-1), wide(expected[key]), rtol=1e-7, atol=0)


def test_regroup_heads_keeps_each_tokens_order():
    x = noise(2, 3, 5, 4, seed=0)
    grouped = regroup_heads(x, 6)
    assert grouped.shape == (2, 6, 5, 2)
    concatenated = torch.cat([x[:, head] for head in range(3)], dim=-1)
    assert torch.equal(torch.cat([grouped[:, head] for head in range(6)], dim=-1), concatenated)
    assert torch.equal(regroup_heads(grouped, 3), x)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"12 .* 5 heads"):
        regroup_heads(torch.zeros(1, 3, 2, 4), 5)


# --- invariants of all ----------------------------------------------------------------------------------------------

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
ON_TOKENS = {
    "hidden_mse": hidden_mse,
    "normalised_feature_mse": normalised_feature_mse,
}
ON_SCORES = {
    "attention_score_mse valid": lambda s, t, mask: attention_score_mse(s, t, mask, "valid"),
    "attention_kl": attention_kl,
}
MASKED = {name: (loss, (2, 3, 4), (1,)) for name, loss in ON_TOKENS.items()} | {
    name: (loss, (2, 2, 3, 3), (2, 3)) for name, loss in ON_SCORES.items()
}
UNMASKED = {
    "logit_mse": (lambda s, t: logit_mse(s, t, "batchmean"), (4, 3)),
    "cosine_distance": (cosine_distance, (4, 3)),
    "patience": (lambda s, t: patience(s, t, True, "elementmean"), (2, 3, 4)),
    "patience raw": (lambda s, t: patience(s, t, False, "batchmean"), (2, 3, 4)),
    "hidden_mse over padding": (lambda s, t: hidden_mse(s, t, None), (2, 3, 4)),
    "attention_score_mse all": (lambda s, t: attention_score_mse(s, t, MASK, "all"), (2, 2, 3, 3)),
}
FEATURES = UNMASKED | {
    name: (lambda s, t, loss=loss: loss(s, t, MASK), shape) for name, (loss, shape, _) in MASKED.items()
}
OTHERS = {
    "soft_cross_entropy": (lambda s, t: soft_cross_entropy(s, t, 2.0, "batchmean"), (2, 3)),
    "masked_cross_entropy": (lambda s, t: masked_cross_entropy(s, LABELS), (2, 3)),
    "target_cross_entropy": (lambda s, t: target_cross_entropy(s, distillation_targets(t, LABELS, 0.5)), (2, 3)),
    "relation": (lambda s, t: relation(s, t).square().sum(), (1, 2, 3, 4)),
}


@pytest.mark.parametrize("name", FEATURES)
def test_zero_where_student_is_teacher(name):
    loss, shape = FEATURES[name]
    teacher = noise(*shape, seed=0)
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert loss(noise(*shape, seed=1), teacher).item() > 1e-3


def padded(x: Tensor, dims: tuple[int, ...], garbage: float) -> Tensor:
    for dim in dims:
        shape = list(x.shape)
        shape[dim] = 2
        x = torch.cat([x, torch.full(shape, garbage, dtype=x.dtype)], dim)
    return x


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("name", MASKED)
def test_padding_changes_nothing(name, boolean):
    loss, shape, dims = MASKED[name]
    student, teacher = noise(*shape, seed=0), noise(*shape, seed=1)
    mask = F.pad(MASK, (0, 2))
    value = loss(student, teacher, MASK).item()
    longer = loss(padded(student, dims, 1e4), padded(teacher, dims, -3e3), mask.bool() if boolean else mask)
    assert longer.item() == pytest.approx(value, rel=1e-12)


def test_the_references_mean_over_all_pairs_does_see_padding():
    student, teacher = (padded(x, (2, 3), 0.0) for x in (SCORES_STUDENT, SCORES_TEACHER))
    mask = torch.tensor([[1, 1, 0, 0, 0]])
    close(attention_score_mse(student, teacher, mask, "all"), 3.3 / 25)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("name", MASKED)
def test_gradients_are_finite(name, full):
    loss, shape, dims = MASKED[name]
    student = noise(*shape, seed=0).float().requires_grad_()
    mask = torch.ones_like(MASK) if full else MASK
    loss(student, noise(*shape, seed=1).float(), mask).backward()
    assert student.grad.isfinite().all()
    assert (student.grad[0] != 0).all()
    assert all((student.grad[1].select(dim - 1, 2) != 0).any().item() is full for dim in dims)


# Each loss over nothing: no example, no class that counts, or padding only.
NOTHING = torch.zeros(2, 3, dtype=torch.long)
EMPTY = {
    "cross_entropy": (lambda s, t: losses.cross_entropy(s, torch.zeros(0, dtype=torch.long)), (0, 3)),
    "binary_cross_entropy": (lambda s, t: losses.binary_cross_entropy(s, torch.zeros(0, 3).long()), (0, 3)),
    "squared_error": (lambda s, t: losses.squared_error(s, t[:, 0]), (0, 1)),
    "soft_kl": (lambda s, t: soft_kl(s, t, 2.0, "elementmean", True), (0, 3)),
    "soft_kl batchmean": (lambda s, t: soft_kl(s, t, 2.0, "batchmean", True), (0, 3)),
    "soft_binary_kl": (lambda s, t: losses.soft_binary_kl(s, t, 2.0, "elementmean", True), (0, 3)),
    "soft_binary_kl batchmean": (lambda s, t: losses.soft_binary_kl(s, t, 2.0, "batchmean", True), (0, 3)),
    "logit_mse": (lambda s, t: logit_mse(s, t, "elementmean"), (0, 3)),
    "logit_mse batchmean": (lambda s, t: logit_mse(s, t, "batchmean"), (0, 3)),
    "soft_cross_entropy": (lambda s, t: soft_cross_entropy(s, t, 2.0, "elementmean"), (0, 3)),
    "soft_cross_entropy batchmean": (lambda s, t: soft_cross_entropy(s, t, 2.0, "batchmean"), (0, 3)),
    "masked_cross_entropy": (lambda s, t: masked_cross_entropy(s, torch.zeros(0, dtype=torch.long)), (0, 3)),
    "masked_cross_entropy ignored": (lambda s, t: masked_cross_entropy(s, torch.full((3,), -100)), (3, 3)),
    "cosine_distance": (cosine_distance, (0, 3)),
    "patience": (lambda s, t: patience(s, t, True, "elementmean"), (0, 2, 3)),
    "patience batchmean": (lambda s, t: patience(s, t, True, "batchmean"), (0, 2, 3)),
    "hidden_mse over padding": (lambda s, t: hidden_mse(s, t, None), (0, 3, 4)),
    "attention_score_mse all": (lambda s, t: attention_score_mse(s, t, NOTHING[:0], "all"), (0, 2, 3, 3)),
    "target_cross_entropy": (target_cross_entropy, (0, 3)),
} | {name: (lambda s, t, loss=loss: loss(s, t, NOTHING), shape) for name, (loss, shape, _) in MASKED.items()}


def is_number(function) -> bool:
    kind = get_type_hints(function)["return"]
    return kind.dims == ()


def test_each_mean_is_tried_over_nothing():
    functions = {name: f for name, f in vars(losses).items() if inspect.isfunction(f) and name[0] != "_"}
    means = {name for name, f in functions.items() if f.__module__ == losses.__name__ and is_number(f)}
    assert means == {name.split()[0] for name in EMPTY}


@pytest.mark.parametrize("name", EMPTY)
def test_a_mean_over_nothing_is_zero_and_teaches_nothing(name):
    loss, shape = EMPTY[name]
    student = noise(*shape, seed=0).requires_grad_()
    value = loss(student, noise(*shape, seed=1))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None and torch.equal(student.grad, torch.zeros(shape, dtype=student.dtype))


@pytest.mark.parametrize("name", FEATURES | OTHERS)
def test_half_precision_is_computed_wide(name):
    loss, shape = (FEATURES | OTHERS)[name]
    student, teacher = noise(*shape, seed=0).bfloat16(), noise(*shape, seed=1).bfloat16()
    half = loss(student, teacher)
    assert half.dtype == torch.float32
    assert half.item() == loss(student.float(), teacher.float()).item()


@pytest.mark.parametrize("name", ["logit_mse", "soft_cross_entropy", "patience"])
def test_reduction_is_a_known_word(name):
    x = noise(2, 3, 4, seed=0) if name == "patience" else STUDENT
    arguments = {"logit_mse": (), "soft_cross_entropy": (1.0,), "patience": (True,)}[name]
    with pytest.raises(KeyError):
        getattr(losses, name)(x, x, *arguments, "sum")


def test_pairs_are_a_known_word():
    with pytest.raises(KeyError):
        attention_score_mse(SCORES_STUDENT, SCORES_TEACHER, MINILM_MASK, "some")


def test_head_counts_must_agree():
    with pytest.raises(Exception, match="A"):
        attention_kl(torch.zeros(1, 1, 3, 3), torch.zeros(1, 2, 3, 3), MINILM_MASK)
