"""Weights of classes: in every loss of the labels, with a mean of 1, and in the id of a run only if they are set."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.sparse import csr_matrix
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_class_weight

from kdbench.compare.cli import main as compare
from kdbench.errors import Code, SettingError
from kdbench.losses import IGNORED, binary_cross_entropy, cross_entropy, masked_cross_entropy
from kdbench.methods.tfidf import linear
from kdbench.objectives import hard_loss, soft_and_hard
from kdbench.options import SoftAndHard
from kdbench.runs.identity import identity, run_id
from kdbench.runs.related import general_run, row_to_beat, teacher_run
from kdbench.schema import ScheduleConfig
from kdbench.tasks import kind
from kdbench.training.hardware import settle
from kdbench.validation.fit import cross_faults
from tests.refusals import refused

DRAW = torch.Generator().manual_seed(0)
Z = torch.randn(6, 3, generator=DRAW)
LABELS = torch.tensor([0, 2, 2, 1, 2, 0])
TRAIN = np.array([0] * 70 + [1] * 25 + [2] * 5)
NAMES = ["a", "b", "c"]


def of(task: str, given: Any, labels: Any = TRAIN, names: list[str] = NAMES) -> Any:
    """Return the weights of the classes."""
    return kind(task).class_weights(given, labels, names)


def test_balanced_is_scikit_learns_and_all_weights_have_the_mean_1() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=TRAIN)
    np.testing.assert_allclose(of("classification", "balanced"), expected)
    named = of("classification", {"c": 5.0})
    np.testing.assert_allclose(named / named[0], [1, 1, 5])
    for weights in (expected, named):
        assert weights[TRAIN].mean() == pytest.approx(1)
    without = of("classification", "balanced", TRAIN[:95])  # train has no text of the third class
    np.testing.assert_allclose(without[:2], compute_class_weight("balanced", classes=np.arange(2), y=TRAIN[:95]))


def test_several_labels_and_tags_have_weights_of_their_own() -> None:
    several = np.array([[1, 0], [0, 0], [0, 1], [0, 1]], np.int8)
    weights = of("multi_label", "balanced", several, ["a", "b"])
    np.testing.assert_allclose(weights, np.array([[4 / 6, 2], [1, 1]]))
    assert kind("multi_label").weigh(weights, several).mean(0) == pytest.approx([1, 1])
    named = of("multi_label", {"a": 4.0}, several, ["a", "b"])
    np.testing.assert_allclose(named, np.array([[1, 4], [1, 1]]) * 8 / 11)  # seven of eight have 1, one has 4
    tags = np.empty(2, object)
    tags[:] = [np.array([0, 0, 1]), np.array([0])]
    weights = of("token_classification", "balanced", tags, ["O", "B-x"])
    np.testing.assert_allclose(weights, [4 / 6, 2])
    assert [row.tolist() for row in kind("token_classification").weigh(weights, tags)] == [
        pytest.approx([2 / 3, 2 / 3, 2]), pytest.approx([2 / 3]),
    ]  # fmt: skip


def test_losses_are_pytorchs_but_for_the_divisor() -> None:
    weights = torch.tensor([0.5, 1.0, 4.0])
    own = weights[LABELS]
    expected = F.cross_entropy(Z, LABELS, weights, reduction="mean") * own.sum() / len(LABELS)
    torch.testing.assert_close(cross_entropy(Z, LABELS, own), expected)
    torch.testing.assert_close(cross_entropy(Z, LABELS, torch.ones(6)), cross_entropy(Z, LABELS))
    several = torch.randint(0, 2, (6, 3), generator=DRAW, dtype=torch.int8)
    each = torch.rand(6, 3, generator=DRAW)
    expected = (each * F.binary_cross_entropy_with_logits(Z, several.float(), reduction="none")).mean()
    torch.testing.assert_close(binary_cross_entropy(Z, several, each), expected)
    some = torch.where(torch.arange(6) % 2 == 0, LABELS, IGNORED)
    expected = (own * F.cross_entropy(Z, LABELS, reduction="none"))[::2].mean()
    torch.testing.assert_close(masked_cross_entropy(Z, some, own), expected)


SOFT = SoftAndHard(0.25, None, 2.0, "batchmean", True)


def test_a_text_without_a_label_has_no_weighted_loss() -> None:
    known = torch.tensor([True, False, True, True, False, True])
    batch: Any = {"labels": LABELS, "labelled": known, "weights": torch.arange(1.0, 7.0), "teacher_logits": Z.flip(0)}
    losses = F.cross_entropy(Z, LABELS, reduction="none")
    expected = (losses * batch["weights"])[known].sum() / 6
    torch.testing.assert_close(hard_loss("classification", Z, batch), expected)
    found = soft_and_hard("classification", Z, batch, SOFT)
    torch.testing.assert_close(found["hard"], 0.75 * expected)
    plain: Any = batch | {"weights": torch.ones(6)}
    without = soft_and_hard("classification", Z, plain, SOFT)
    torch.testing.assert_close(found["soft"], without["soft"])


def test_tf_idf_has_scikit_learns_weights() -> None:
    draw = np.random.default_rng(0)
    matrix, labels = csr_matrix(draw.uniform(size=(100, 8))), draw.permutation(TRAIN)
    planes, offsets = linear("classification", matrix, labels, 3, 1.0, 0, of("classification", "balanced"))
    own = LinearSVC(C=1.0, random_state=0, class_weight="balanced").fit(matrix, labels)
    np.testing.assert_allclose(planes.numpy(), own.coef_.T)
    np.testing.assert_allclose(offsets.numpy(), own.intercept_)
    several = (draw.uniform(size=(100, 2)) < [0.1, 0.5]).astype(np.int8)
    planes, _ = linear("multi_label", matrix, several, 2, 1.0, 0, of("multi_label", "balanced", several, ["a", "b"]))
    for label in range(2):
        own = LinearSVC(C=1.0, random_state=0, class_weight="balanced").fit(matrix, several[:, label])
        np.testing.assert_allclose(planes[:, label].numpy(), own.coef_[0])


WEIGHED = "schedule.class_weights={fruit:3,metal:0.5}"


def test_several_passes_give_the_step_of_one(configure, execute):
    one, two, without = (
        execute(configure("method=finetune", "schedule.steps=3", f"schedule.batch_size={size}", *weights,
                          f"schedule.accumulation={8 // size}", "schedule.dropout=0"))
        for size, weights in ((8, [WEIGHED]), (2, [WEIGHED]), (8, []))
    )  # fmt: skip
    models = [load_file(Path(result["folder"]) / "model" / "model.safetensors") for result in (one, two, without)]
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(value, models[2][name], atol=1e-4) for name, value in models[0].items())


def test_they_are_in_the_id_only_where_they_count(configure, teacher_folder):
    ids = {}
    for method in ("finetune", "logit_kd", "tfidf", "minilm"):
        plain, weighed = (configure(f"method={method}", *words) for words in ([], ["schedule.class_weights=balanced"]))
        hardware = settle(plain.hardware)
        assert "class_weights" not in json.dumps(identity(plain, hardware))
        assert "class_weights" in json.dumps(identity(weighed, hardware))
        ids[method] = (run_id(plain, hardware), run_id(weighed, hardware))
        assert run_id(teacher_run(plain), hardware) == run_id(teacher_run(weighed), hardware)
        if method == "minilm":
            assert run_id(general_run(plain), hardware) == run_id(general_run(weighed), hardware)
    assert all(plain != weighed for plain, weighed in ids.values())
    beaten = row_to_beat(configure("method=finetune", "schedule.class_weights=balanced"))
    assert beaten is not None and beaten.schedule.class_weights == "balanced"


def faulty(config: Any) -> list[tuple[Code, str]]:
    return [(fault.code, fault.key) for fault in cross_faults(config)]


def test_where_they_mean_nothing_they_are_refused(configure):
    balanced, key = "schedule.class_weights=balanced", "schedule.class_weights"
    expected = [(Code.INAPPLICABLE_KEY, key)]
    assert faulty(configure("method=finetune", "dataset.task=regression", balanced)) == expected
    assert faulty(configure("method=logit_kd", "method.alpha=1", balanced)) == expected
    assert faulty(configure("method=static", "method.alpha=1", balanced)) == expected
    assert faulty(configure("method=tinybert", balanced)) == expected
    assert faulty(configure("method=tinybert", "method.prediction=false", balanced)) == []
    assert faulty(configure("method=minilm", f"corpus.{balanced}")) == [(Code.INAPPLICABLE_KEY, f"corpus.{key}")]
    assert faulty(configure("method=logit_kd", "method.alpha=1", f"teacher.{balanced}")) == []
    stage = "method.stages.training.class_weights"
    own = configure("method=logit_kd", "method.alpha=1", f"++{stage}=balanced")
    assert faulty(own) == [(Code.INAPPLICABLE_KEY, stage)]


def test_a_class_that_is_not_there_is_named_before_anything_is_written(configure, execute, tmp_path):
    config = configure("method=finetune", "schedule.class_weights={fruits:3}")
    with refused(
        Code.MISMATCHED_CLASSES, "schedule.class_weights={fruits:3", "did you mean fruit?", "metal", kind=SettingError
    ):
        execute(config)
    assert not (tmp_path / "outputs").exists()


def test_names_that_yaml_reads_as_numbers_are_text(configure):
    assert configure("method=finetune", "schedule.class_weights={true:3}").schedule.class_weights == {"true": 3.0}
    config = configure("method=finetune", "schedule.class_weights={0:2,1:3}")
    assert config.schedule.class_weights == {"0": 2.0, "1": 3.0}
    stage: ScheduleConfig = config.method.stages["training"]
    assert stage.class_weights == config.schedule.class_weights


def test_a_rare_class_is_found_and_both_scores_are_shown(configure, execute, tmp_path, capsys):
    folder = tmp_path / "rare"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name, count in (("train", 300), ("test", 200)):
        labels = draw.uniform(size=count) < 0.08
        words = [["spam" if draw.uniform() < (0.6 if rare else 0.2) else "ham", "word"] for rare in labels]
        lines = [f"{' '.join(one)},{'yes' if rare else 'no'}" for one, rare in zip(words, labels, strict=True)]
        (folder / f"{name}.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    found = {}
    for weights in ("none", "balanced"):
        asked = ["method=tfidf", f"dataset.source={folder}", f"schedule.class_weights={weights}"]
        found[weights] = execute(configure(*asked))["metrics"]["test"]
    assert found["none"]["macro_f1"] < found["balanced"]["macro_f1"]
    assert found["none"]["accuracy"] > found["balanced"]["accuracy"]
    capsys.readouterr()
    assert compare([str(tmp_path / "outputs"), "--format", "markdown", "--no-tests"]) == 0
    shown = capsys.readouterr().out
    assert "macro-F1" in shown and "class_weights=balanced" in shown
    assert (
        f"{100 * found['balanced']['macro_f1']:.2f}" in shown and f"{100 * found['balanced']['accuracy']:.2f}" in shown
    )
