"""Each fault planted in the source turns a test red: the tests of the losses and of the mask can fail."""

import inspect
import types
from pathlib import Path

import pytest

from kdbench import losses
from kdbench.data import batches as batches_module
from tests import test_feature_losses, test_losses
from tests.data import test_batches

PACKAGE = Path(__file__).parents[1] / "kdbench"
LOSS_FAULTS = {
    "sign": ("return _reduce", "return -_reduce"),
    "argument order": ("F.kl_div(student, teacher,", "F.kl_div(teacher, student,"),
    "reduction": ('"batchmean": len(values)', '"batchmean": values.numel()', "_reduce"),
    "other reduction": ('"elementmean": values.numel()', '"elementmean": len(values)', "_reduce"),
    "temperature squared": ("(temperature**2 if", "(temperature if"),
    "temperature of the teacher": ("_wide(teacher_logits) / temperature", "_wide(teacher_logits)"),
    "probabilities for logarithms": ("log_target=True", "log_target=False"),
}
# Of the losses of tasks with other labels than one class a text.
TASK_FAULTS = {
    "binary_cross_entropy: sign": ("return _mean", "return -_mean"),
    "binary_cross_entropy: labels": ("labels.to(logits.dtype)", "1 - labels.to(logits.dtype)"),
    "squared_error: absolute": ("** 2", "** 1", "_squared_difference"),
    "squared_error: spread out": ("[:, 0]", ""),
    "soft_binary_kl: one outcome": ("(1.0, -1.0)", "(1.0, 1.0)"),
    "soft_binary_kl: order": ("log_teacher.exp() *", "F.logsigmoid(sign * student).exp() *"),
    "soft_binary_kl: reduction": ("divergence, reduction)", 'divergence, "elementmean")'),
    "soft_binary_kl: temperature squared": ("(temperature**2 if", "(temperature if"),
}
# "function: fault": old, new and, where the fault sits in what the function calls, that function
FEATURE_FAULTS = {
    "logit_mse: sign": (" - ", " + ", "_squared_difference"),
    "logit_mse: absolute": ("** 2", "** 1", "_squared_difference"),
    "logit_mse: batchmean over all": ('"batchmean": len(values)', '"batchmean": values.numel()', "_reduce"),
    "logit_mse: elementmean over the batch": ('"elementmean": values.numel()', '"elementmean": len(values)', "_reduce"),
    "soft_cross_entropy: sign": ("-F.softmax", "F.softmax"),
    "soft_cross_entropy: order": ("F.softmax(_wide(teacher_logits)", "F.softmax(_wide(student_logits)"),
    "soft_cross_entropy: temperature of the teacher": ("_wide(teacher_logits) / temperature", "_wide(teacher_logits)"),
    "soft_cross_entropy: temperature of the student": ("_wide(student_logits) / temperature", "_wide(student_logits)"),
    "soft_cross_entropy: reduction": ("log_probabilities, reduction)", 'log_probabilities, "elementmean")'),
    "masked_cross_entropy: sum": ('reduction="sum"', 'reduction="mean"', "_weighted_cross_entropy"),
    "masked_cross_entropy: over all tokens": ("(labels != IGNORED).sum()", "labels.new_tensor(len(labels))"),
    "masked_cross_entropy: over the others": ("labels != IGNORED", "labels == IGNORED"),
    "masked_cross_entropy: nothing masked": (".clamp(min=1)", "", "_mean"),
    "distillation_targets: soft share": ("(1 - alpha) * F", "alpha * F"),
    "distillation_targets: hard share": ("1), alpha)", "1), 1 - alpha)"),
    "distillation_targets: logits": ("F.softmax(_wide(teacher_logits), dim=-1)", "_wide(teacher_logits)"),
    "target_cross_entropy: sign": ("-targets", "targets"),
    "target_cross_entropy: reduction": ('"batchmean"', '"elementmean"'),
    "target_cross_entropy: no token": ("max(count, 1)", "count", "_mean"),
    "cosine_distance: sign": ("(1 - F", "(1 + F"),
    "cosine_distance: dimension": ("dim=-1", "dim=0"),
    "cosine_distance: reduction": ("return _reduce(", "return len(student) * _reduce("),
    "patience: normalise": ("if normalise:", "if not normalise:"),
    "patience: dimension of the norm": ("F.normalize(student, dim=-1)", "F.normalize(student, dim=1)"),
    "patience: teacher as it comes": ("F.normalize(teacher, dim=-1)", "teacher"),
    "patience: reduction": ("teacher), reduction)", 'teacher), "batchmean")'),
    "hidden_mse: mask": ("_mean(squared.masked_fill(~mask.bool(), 0).sum(), mask.sum())", "squared.mean()"),
    "hidden_mse: scale": (".mean(-1)", ".sum(-1)"),
    "hidden_mse: padding counted": ("~mask", "mask"),
    "hidden_mse: denominator": ("mask.sum()", "mask.numel()"),
    "hidden_mse: each example first": (".sum(), mask.sum())", ".sum(-1), mask.sum(-1)).mean()"),
    "normalised_feature_mse: order": ("in (student, teacher)", "in (student, student)"),
    "normalised_feature_mse: not normalised": ("F.layer_norm(_wide(x), x.shape[-1:], eps=1e-12)", "_wide(x)"),
    "normalised_feature_mse: scale": ("eps=1e-12", "eps=1e-2"),
    "normalised_feature_mse: mask": ("teacher, mask)", "teacher, None)"),
    "attention_score_mse: padded queries": ('"valid": _token_pairs(mask)', '"valid": mask.bool()[:, None, None, :]'),
    "attention_score_mse: queries for keys": ("[:, None, None, :]", "[:, None, :, None]"),
    "attention_score_mse: mask": ("~counted", "counted"),
    "attention_score_mse: no zeroing": (".masked_fill(~counted, 0)", ""),
    "attention_score_mse: heads": ("student.shape[1] * counted.sum()", "counted.sum()"),
    "attention_score_mse: denominator": ("squared.numel()", "counted.sum()"),
    "attention_kl: sign": ("(log_teacher - log_student)", "(log_student - log_teacher)"),
    "attention_kl: order": ("in (student_scores, teacher_scores)", "in (teacher_scores, student_scores)"),
    "attention_kl: heads": ("student_scores.shape[1] * ", ""),
    "attention_kl: padded queries": ("mask.sum(-1)", "mask.shape[-1]"),
    "attention_kl: over the batch": ("return _reduce(", "return len(mask) * _reduce("),
    "attention_kl: each example first": (".sum((1, 2, 3))", ".sum((1, 2, 3)).mean()"),
    "attention_kl: mask": ("torch.finfo(x.dtype).min", "0"),
    "attention_kl: no number": ("torch.finfo(x.dtype).min", "-math.inf"),
    "attention_kl: keys only": ("token[:, None, :, None] & ", "", "_token_pairs"),
    "attention_kl: dimension": ("dim=-1", "dim=-2"),
    "relation: order": ("_wide(x) @ _wide(y)", "_wide(y) @ _wide(x)"),
    "relation: one side": ("_wide(x) @ _wide(y)", "_wide(x) @ _wide(x)"),
    "relation: scale": ("math.sqrt(x.shape[-1])", "x.shape[-1]"),
    "relation: autocast": ("enabled=False", "enabled=True, dtype=torch.bfloat16"),
    "regroup_heads: order": ("x.transpose(1, 2).flatten(2)", "x.reshape(len(x), x.shape[2], -1)"),
    "regroup_heads: interleaved": (
        ".unflatten(2, (heads, -1)).transpose(1, 2)",
        ".unflatten(2, (-1, heads)).permute(0, 3, 1, 2)",
    ),
}


def mutated(file: str, old: str, new: str, function: str = "") -> types.ModuleType:
    """The module with one place changed: the only `old` in the file, or in one function of it."""
    source = (PACKAGE / file).read_text(encoding="utf8")
    start = source.index(f"\ndef {function}(") if function else 0
    end = source.index("\n\n\n", start) if function else len(source)  # as the formatter leaves it
    part = source[start:end]
    assert part.count(old) == 1, f"{file} {function} no longer holds {old!r} once"
    module = types.ModuleType("mutated")
    module.__dict__["__name__"] = "mutated"
    exec(compile(source[:start] + part.replace(old, new) + source[end:], file, "exec"), module.__dict__)
    return module


def checks(oracles):
    for arguments in (("batchmean", False, "kl_batchmean"), ("batchmean", True, "kl_batchmean_T2")):
        yield lambda arguments=arguments: test_losses.test_soft_kl(oracles, *arguments)
    yield lambda: test_losses.test_soft_kl(oracles, "elementmean", True, "kl_elementmean_T2")
    yield lambda: test_losses.test_gradient(oracles)


def feature_checks(function, oracles):
    for name, test in vars(test_feature_losses).items():
        if name.startswith(f"test_{function}"):
            arguments = [oracles] if inspect.signature(test).parameters else []
            yield lambda test=test, arguments=arguments: test(*arguments)


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
    old, new, *place = LOSS_FAULTS[fault]
    faulty = mutated("losses.py", old, new, *(place or ["soft_kl"]))
    monkeypatch.setattr(test_losses, "soft_kl", faulty.soft_kl)
    assert red(checks(oracles)) > 0


@pytest.mark.parametrize("fault", FEATURE_FAULTS)
def test_a_fault_in_a_feature_loss_is_noticed(monkeypatch, oracles, fault):
    function = fault.split(":")[0]
    old, new, *place = FEATURE_FAULTS[fault]
    assert red(feature_checks(function, oracles)) == 0
    faulty = mutated("losses.py", old, new, *(place or [function]))
    monkeypatch.setattr(test_feature_losses, function, getattr(faulty, function))
    assert red(feature_checks(function, oracles)) > 0


def task_checks():
    for squared in (True, False):
        yield lambda squared=squared: test_losses.test_binary_kl_is_the_kl_of_two_classes_for_each_label(squared)
    yield test_losses.test_hard_and_soft_losses_of_each_task


@pytest.mark.filterwarnings("ignore:Using a target size")  # torch's word on the one that is spread out
@pytest.mark.parametrize("fault", TASK_FAULTS)
def test_a_fault_in_a_loss_of_a_task_is_noticed(monkeypatch, fault):
    function = fault.split(":")[0]
    assert red(task_checks()) == 0
    old, new, *place = TASK_FAULTS[fault]
    faulty = getattr(mutated("losses.py", old, new, *(place or [function])), function)
    monkeypatch.setattr(losses, function, faulty)
    assert red(task_checks()) > 0


def test_every_loss_has_two_faults():
    functions = [name for name, _ in inspect.getmembers(losses, inspect.isfunction) if not name.startswith("_")]
    ours = [name for name in functions if getattr(losses, name).__module__ == losses.__name__]
    counts = {name: sum(fault.startswith(f"{name}:") for fault in (*FEATURE_FAULTS, *TASK_FAULTS)) for name in ours}
    assert {name for name, count in counts.items() if count < 2} == {"cross_entropy", "soft_kl"}  # others above


def test_a_fault_in_the_mask_is_noticed(monkeypatch):
    faulty = mutated("data/batches.py", "from_numpy(mask.astype", "from_numpy(np.ones_like(mask).astype")
    monkeypatch.setattr(batches_module.Examples, "batch", faulty.Examples.batch)
    assert red([test_batches.padding_changes_nothing]) == 1
