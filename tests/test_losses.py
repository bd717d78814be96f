"""Oracle O1, the soft terms of O3 and O10 and the limits of the distillation loss, as the methods call them."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench import losses, objectives
from kdbench.losses import IGNORED, cross_entropy, soft_kl

STUDENT = torch.tensor([[1, 2, 0.5], [0.2, -1, 0.3]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 1, 0], [0, 0, 1]], dtype=torch.float64)
LABELS = torch.tensor([1, 2])
# O3: three tokens, the last one padding
TOKENS_STUDENT = torch.tensor([[1, 0, -1], [0.5, 0.5, 0], [7, -7, 7]], dtype=torch.float64)
TOKENS_TEACHER = torch.tensor([[2, 0, -2], [0, 1, 0], [-9, 9, 9]], dtype=torch.float64)
TOKEN_MASK = torch.tensor([1, 1, 0])
TOKEN_LABELS = torch.tensor([-100, 1, -100])


def close(value: Tensor, expected: float) -> None:
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy(oracles):
    close(cross_entropy(STUDENT, LABELS), oracles["O1_hinton"]["ce"])


@pytest.mark.parametrize(
    ("reduction", "squared", "key"),
    [
        ("batchmean", False, "kl_batchmean"),
        ("batchmean", True, "kl_batchmean_T2"),
        ("elementmean", True, "kl_elementmean_T2"),
    ],
)
def test_soft_kl(oracles, reduction, squared, key):
    close(soft_kl(STUDENT, TEACHER, 2.0, reduction, squared), oracles["O1_hinton"][key])


@pytest.mark.parametrize("temperature", [1, 5, 20, 1000])
def test_temperature_squared_keeps_the_size(oracles, temperature):
    expected = oracles["O1_hinton"][f"T2_kl_batchmean_tau{temperature}"]
    close(soft_kl(STUDENT, TEACHER, float(temperature), "batchmean", True), expected)


def test_high_temperature_limit_is_the_squared_distance_of_centred_logits(oracles):
    centred = [z - z.mean(-1, keepdim=True) for z in (STUDENT, TEACHER)]
    limit = ((centred[0] - centred[1]) ** 2).sum(-1).mean() / (2 * STUDENT.shape[1])
    close(limit, oracles["O1_hinton"]["highT_limit"])
    at_million = soft_kl(STUDENT, TEACHER, 1e6, "batchmean", True)
    assert at_million.item() == pytest.approx(limit.item(), rel=1e-3)


def test_gradient(oracles):
    student = STUDENT.clone().requires_grad_()
    soft_kl(student, TEACHER, 2.0, "batchmean", True).backward()
    torch.testing.assert_close(student.grad, torch.tensor(oracles["O1_hinton"]["grad_T2_kl_batchmean"]).double())


def test_kl_is_soft_cross_entropy_less_the_teachers_entropy(oracles):
    value = soft_kl(STUDENT, TEACHER, 2.0, "batchmean", False).item()
    expected = oracles["O1_hinton"]["soft_ce_batchmean"] - oracles["O1_hinton"]["teacher_entropy_tau"]
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("selected", "key"),
    [(TOKEN_MASK == 1, "loss_ce_attnmask"), (TOKEN_LABELS != -100, "loss_ce_restrict_to_mlm")],
)
def test_soft_kl_over_tokens(oracles, selected, key):
    value = soft_kl(TOKENS_STUDENT[selected], TOKENS_TEACHER[selected], 2.0, "batchmean", True)
    close(value, oracles["O3_distilbert"][key])


def test_soft_kl_of_branches(oracles):
    teacher = torch.tensor([[2, 0]], dtype=torch.float64)
    branches = torch.tensor([[[1, 0]], [[0, 0]]], dtype=torch.float64)
    values = [soft_kl(branch, teacher, 1.0, "batchmean", False) for branch in branches]
    for value, expected in zip(values, oracles["O10_fastbert"]["branch_kl"], strict=True):
        close(value, expected)
    close(torch.stack(values).sum(), oracles["O10_fastbert"]["selfdistill_sum"])


def test_zero_for_equal_logits_and_shift_invariant():
    assert soft_kl(TEACHER, TEACHER + 3, 2.0, "batchmean", True).item() == pytest.approx(0, abs=1e-12)


def test_reduction_is_a_known_word():
    with pytest.raises(KeyError):
        soft_kl(STUDENT, TEACHER, 2.0, "sum", True)


def test_half_precision_is_computed_wide():
    wide = soft_kl(STUDENT.bfloat16().float(), TEACHER.bfloat16().float(), 2.0, "batchmean", True)
    half = soft_kl(STUDENT.bfloat16(), TEACHER.bfloat16(), 2.0, "batchmean", True)
    assert half.dtype == torch.float32
    assert half.item() == wide.item()


def test_uniform_teacher_and_confident_student_stay_finite():
    student = torch.tensor([[1e4, 0.0, 0.0]])
    value = soft_kl(student, torch.zeros(1, 3), 1.0, "batchmean", True)
    assert math.isfinite(value.item())


def test_shapes_are_checked():
    with pytest.raises(Exception, match="C"):
        soft_kl(torch.zeros(2, 4), torch.zeros(2, 3), 1.0, "batchmean", True)


@pytest.mark.parametrize("squared", [True, False])
def test_binary_kl_is_the_kl_of_two_classes_for_each_label(squared):
    """sigmoid(z) and the rest are softmax([z, 0])."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, generator=generator)
    of_student, of_teacher = (torch.stack([z.flatten(), torch.zeros(15)], 1) for z in (student, teacher))
    expected = losses.soft_kl(of_student, of_teacher, 2.5, "batchmean", squared)  # a row a label
    assert torch.allclose(losses.soft_binary_kl(student, teacher, 2.5, "elementmean", squared), expected)
    assert torch.allclose(losses.soft_binary_kl(student, teacher, 2.5, "batchmean", squared), 3 * expected)
    assert losses.soft_binary_kl(teacher, teacher, 2.5, "batchmean", squared).abs() < 1e-6
    saturated = losses.soft_binary_kl(torch.full((1, 1), 60.0), torch.full((1, 1), -60.0), 1.0, "batchmean", False)
    assert torch.allclose(saturated, torch.tensor(60.0))  # in float32 1 - sigmoid(60) is 0


def test_hard_and_soft_losses_of_each_task():
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn(2, 2, 3, 4, generator=generator)  # (B, T, C)
    labels = torch.tensor([[IGNORED, 2, IGNORED], [0, 1, 3]])
    seen, said = z[labels != IGNORED], labels[labels != IGNORED]
    words = objectives.hard_loss("token_classification", z, {"labels": labels})  # type: ignore[typeddict-item]
    assert torch.allclose(words, torch.nn.functional.cross_entropy(seen, said))
    batch: Any = {"labels": labels, "teacher_logits": t}
    p = SimpleNamespace(alpha=0.5, temperature=2.0, reduction="batchmean", scale_by_temperature_squared=True)
    soft = objectives.soft_loss("token_classification", z, batch, p)
    assert torch.allclose(soft, losses.soft_kl(seen, t[labels != IGNORED], 2.0, "batchmean", True))
    several = (torch.rand(3, 4, generator=generator) < 0.5).to(torch.int8)
    bce = objectives.hard_loss("multi_label", z[0], {"labels": several})  # type: ignore[typeddict-item]
    shares = torch.where(several == 1, z[0].sigmoid(), 1 - z[0].sigmoid())
    assert torch.allclose(bce, -shares.log().mean())
    number = objectives.hard_loss("regression", z[0, :, :1], {"labels": torch.tensor([1.0, 2.0, 3.0])})  # type: ignore[typeddict-item]
    assert torch.allclose(number, ((z[0, :, 0] - torch.tensor([1.0, 2.0, 3.0])) ** 2).mean())
    batch = {"labels": labels, "teacher_logits": t[0, :, :1]}
    assert torch.allclose(
        objectives.soft_loss("regression", z[0, :, :1], batch, p), ((z[0, :, 0] - t[0, :, 0]) ** 2).mean()
    )
