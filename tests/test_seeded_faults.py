"""Each fault planted in the source turns a test red: the tests of the losses and of the mask can fail."""

import types
from pathlib import Path

import pytest

from kdbench.data import batches as batches_module
from tests import test_losses
from tests.data import test_batches

PACKAGE = Path(__file__).parents[1] / "kdbench"
LOSS_FAULTS = {
    "sign": ("return total / count", "return -total / count"),
    "argument order": ("F.kl_div(student, teacher,", "F.kl_div(teacher, student,"),
    "reduction": ('"batchmean": student.shape[0]', '"batchmean": student.numel()'),
    "other reduction": ('"elementmean": student.numel()', '"elementmean": student.shape[0]'),
    "temperature squared": ("(temperature**2 if", "(temperature if"),
    "temperature of the teacher": ("_wide(teacher_logits) / temperature", "_wide(teacher_logits)"),
    "probabilities for logarithms": ("log_target=True", "log_target=False"),
}


def mutated(file: str, old: str, new: str) -> types.ModuleType:
    source = (PACKAGE / file).read_text(encoding="utf8")
    assert source.count(old) == 1, f"{file} no longer holds {old!r} once"
    module = types.ModuleType("mutated")
    module.__dict__["__name__"] = "mutated"
    exec(compile(source.replace(old, new), file, "exec"), module.__dict__)
    return module


def checks(oracles):
    for arguments in (("batchmean", False, "kl_batchmean"), ("batchmean", True, "kl_batchmean_T2")):
        yield lambda arguments=arguments: test_losses.test_soft_kl(oracles, *arguments)
    yield lambda: test_losses.test_soft_kl(oracles, "elementmean", True, "kl_elementmean_T2")
    yield lambda: test_losses.test_gradient(oracles)


def red(checks) -> int:
    count = 0
    for check in checks:
        try:
            check()
        except AssertionError:
            count += 1
    return count


@pytest.mark.parametrize("fault", LOSS_FAULTS)
def test_a_fault_in_the_loss_is_noticed(monkeypatch, oracles, fault):
    assert red(checks(oracles)) == 0
    monkeypatch.setattr(test_losses, "soft_kl", mutated("losses.py", *LOSS_FAULTS[fault]).soft_kl)
    assert red(checks(oracles)) > 0


def test_a_fault_in_the_mask_is_noticed(monkeypatch):
    faulty = mutated("data/batches.py", "[None, :] < lengths", "[None, :] <= lengths")
    monkeypatch.setattr(batches_module.Examples, "batch", faulty.Examples.batch)
    assert red([test_batches.padding_changes_nothing]) == 1
