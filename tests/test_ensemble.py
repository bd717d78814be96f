"""An ensemble as the teacher: finished runs, or one teacher with several seeds; its answers are their mean."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from kdbench.data.teacher_cache import averaged
from kdbench.errors import Code
from kdbench.inference.finished_run import open_run
from kdbench.runs.identity import identity
from kdbench.runs.related import member_runs, teacher_run
from kdbench.shipping.card import model_card
from kdbench.storage.results import read_result
from kdbench.training import loop
from kdbench.training.hardware import settle
from kdbench.validation.fit import cross_faults
from kdbench.validation.load import NoTeacher
from tests.refusals import refused

SEEDS = "+teacher.seeds=[0,1]"


def logits_of(folder: Path, split: str) -> np.ndarray:
    rows = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()
    return np.array([row["logits"] for row in rows if row["split"] == split])


def folders(outputs: Path, method: str) -> list[Path]:
    return sorted(path.parent for path in (outputs / "topics" / method).rglob("results.json"))


def test_the_two_means():
    """Of logits, and of the probabilities that these stand for: exp of one, normalised."""
    logits = [torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 3.0, 1.0]])]
    assert averaged(logits, "logits").tolist() == [[1.0, 1.5, 0.0]]
    each = [np.exp(one.numpy()) / np.exp(one.numpy()).sum() for one in logits]
    np.testing.assert_allclose(averaged(logits, "probabilities").exp(), np.mean(each, 0), rtol=1e-6)
    one = torch.tensor([[1e4, 0.0]])
    assert averaged([one, one], "probabilities").tolist() == [[0.0, -1e4]], "nothing overflows"


def test_seeds_are_trained_once_and_judged_as_one(configure, execute, monkeypatch, tmp_path):
    trained = []
    run = loop._Trainer.run
    monkeypatch.setattr(loop._Trainer, "run", lambda self: (trained.append(self.folder.parent), run(self))[1])
    config = configure("method=logit_kd", "schedule.epochs=1", SEEDS)
    assert cross_faults(config) == []
    result = execute(config)
    assert len(trained) == 3
    assert result["teacher_identity"]["members"] == [
        {"id": one["id"], "seed": one["seed"]}
        for one in sorted(
            (read_result(path.parents[0] / path.name) for path in trained[:2]), key=lambda one: one["seed"]
        )
    ]
    members, (row,) = folders(tmp_path / "outputs", "finetune"), folders(tmp_path / "outputs", "answers")
    found = read_result(row)
    for split in ("dev", "test"):
        mean = np.mean([logits_of(one, split) for one in members], 0)
        np.testing.assert_allclose(logits_of(row, split), mean, atol=1e-6)
    assert {key: result["teacher"][key] for key in ("id", "seed", "metrics", "parameters", "test_id")} == (
        {key: found[key] for key in ("id", "seed", "metrics", "parameters")} | {"test_id": found["identity"]["test_id"]}
    )
    costs = [read_result(one)["cost"]["seconds"] for one in members]
    assert result["cost"]["teacher_seconds"] == pytest.approx(sum(costs))
    assert found["parameters"]["total"] == sum(read_result(one)["parameters"]["total"] for one in members)
    assert found["latency"]["batch_1"] is None
    # The same runs by their folders, for the next seed of the student: nothing but the student is trained.
    trained.clear()
    given = ["teacher=ensemble", f"teacher.members=[{','.join(map(str, members))}]", "seed=1"]
    named = configure("method=logit_kd", "schedule.epochs=1", *given)
    assert cross_faults(named) == []
    again = execute(named)
    card = model_card(open_run(Path(again["folder"])), None)
    assert "mean of the logits of 2 models" in card and all(read_result(one)["id"] in card for one in members)
    assert len(trained) == 1 and again["id"] == result["id"], "how the members are named does not matter"
    assert again["teacher"] == result["teacher"]
    other = execute(configure("method=logit_kd", "schedule.epochs=1", SEEDS, "+teacher.average=probabilities"))
    assert other["id"] != result["id"]


def test_one_seed_is_the_ordinary_teacher(configure):
    (zero, _), own = member_runs(configure("method=logit_kd", SEEDS)), configure("method=logit_kd")
    hardware = settle(own.hardware)
    assert identity(zero, hardware) == identity(teacher_run(own), hardware) and zero.seed == own.teacher.seed


@pytest.mark.parametrize(
    ("words", "code", "key", "named"),
    [
        (["method=pkd", SEEDS], Code.UNSUITABLE_TEACHER, "teacher", "layers"),
        (["method=cascade", SEEDS], Code.UNSUITABLE_TEACHER, "teacher", "model"),
        (["method=two_stage", SEEDS], Code.UNSUITABLE_TEACHER, "teacher", "layers"),
        (["method=logit_kd", "method.init.weights=finetuned", SEEDS],
         Code.UNUSABLE_START, "method.init.weights", "random"),
        (["method=logit_kd", SEEDS, "+teacher.finetune=false"], Code.CONFLICTING_VALUES, "teacher.seeds", "finetune"),
        (["method=logit_kd", "dataset.task=token_classification", SEEDS],
         Code.UNSUPPORTED_TASK, "dataset.task", "words"),
        (["method=logit_kd", "dataset.task=multi_label", SEEDS, "+teacher.average=probabilities"],
         Code.UNSUPPORTED_TASK, "teacher.average", "logits"),
        (["method=logit_kd", "+teacher.rest=spread"], Code.INAPPLICABLE_KEY, "teacher.rest", "teacher=file"),
        (["method=logit_kd", "student=own", "+student.encoder.seeds=[0,1]"],
         Code.UNUSABLE_START, "student.encoder", "encoder"),
    ],
)  # fmt: skip
def test_refusals(configure, words, code, key, named):
    found = [one for one in cross_faults(configure(*words)) if one.code == code]
    assert found and found[0].key == key and named in str(found[0])


def test_members_must_be_finished_runs(configure, tmp_path):
    given = ["method=logit_kd", "teacher=ensemble", f"teacher.members=[{tmp_path},{tmp_path / 'b'}]"]
    with refused(Code.NOT_A_RUN, str(tmp_path), kind=NoTeacher) as _:
        configure(*given)


def test_a_member_that_had_another_test_is_told(configure, execute, tmp_path):
    """It may have been trained on these test texts, so its test is the one that the record has."""
    own = configure("method=finetune", "student=full", "schedule.epochs=1")
    cut = replace(own.dataset, splits=replace(own.dataset.splits, test=None))
    members = [execute(own), execute(replace(own, dataset=cut))]
    given = ["teacher=ensemble", f"teacher.members=[{','.join(one['folder'] for one in members)}]"]
    result = execute(configure("method=logit_kd", "schedule.epochs=1", *given))
    assert result["teacher"]["test_id"] == members[1]["identity"]["test_id"] != result["identity"]["test_id"]
