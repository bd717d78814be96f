"""A model folder that can do the task already is the teacher as it is; another is fine-tuned, and the log says why."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench.compare.cli import main as compare
from kdbench.errors import Code, UserError
from kdbench.sources.model_folder import head_misfit
from kdbench.storage.results import read_result
from kdbench.training import loop as train
from tests.refusals import refused

LABELS = ["fruit", "metal", "water"]


@pytest.fixture
def found(configure, execute, tmp_path) -> tuple[Path, dict]:
    """A classifier of the data's classes, as another program would leave it: no manifest, labels in another order."""
    result = execute(configure("method=finetune", "student=full", f"outputs={tmp_path / 'elsewhere'}"))
    folder = tmp_path / "found"
    shutil.copytree(Path(result["folder"]) / "model", folder)
    (folder / "MANIFEST.json").unlink()
    order = [2, 0, 1]
    names = [LABELS[index] for index in order]
    change(folder, id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
    state = load_file(folder / "model.safetensors")
    state |= {name: state[name][order].clone() for name in ("classifier.weight", "classifier.bias")}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder, result


def change(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_it_is_used_as_it_is(configure, execute, found, monkeypatch, tmp_path, capsys):
    folder, made = found
    stages = []
    run = train._Trainer.run
    monkeypatch.setattr(train._Trainer, "run", lambda self: (stages.append(self.folder), run(self))[1])
    result = execute(configure("method=logit_kd", f"teacher.source={folder}", "schedule.epochs=1"))
    assert len(stages) == 1, "the student's alone"
    assert result["teacher"]["metrics"] == made["metrics"] and result["cost"]["teacher_seconds"] == 0
    (teacher,) = [one for path in (tmp_path / "outputs/topics/finetune").rglob("results.json")
                  if (one := read_result(path.parent))["id"] == result["teacher"]["id"]]  # fmt: skip
    assert teacher["stages"] == [] and teacher["identity"]["parameters"]["init"]["weights"] == "classifier"
    saved = load_file(next((tmp_path / "outputs/topics/finetune").rglob("model.safetensors")))
    torch.testing.assert_close(saved, load_file(Path(made["folder"]) / "model" / "model.safetensors"))
    capsys.readouterr()
    assert compare([str(tmp_path / "outputs"), "--format", "json"]) == 0
    stages.clear()
    execute(configure("method=logit_kd", f"teacher.source={folder}", "schedule.epochs=1", "seed=1"))
    assert len(stages) == 1, "found by another seed"


def test_it_can_be_fine_tuned_all_the_same(configure, execute, found):
    folder, _ = found
    given = ["method=logit_kd", f"teacher.source={folder}", "schedule.epochs=1"]
    results = [execute(configure(*given, *more)) for more in ([], ["+teacher.finetune=true"])]
    assert results[0]["id"] != results[1]["id"]
    assert results[1]["cost"]["teacher_seconds"] > 0


def test_a_head_that_does_not_fit_is_told(configure, execute, found, monkeypatch):
    folder, _ = found
    change(folder, id2label={0: "fruit", 1: "metal", 2: "wood"})
    lines: list[str] = []
    monkeypatch.setattr(logging.getLogger("kdbench"), "info", lambda text, *values, **_: lines.append(text % values))
    given = ["method=logit_kd", f"teacher.source={folder}", "schedule.epochs=1", "schedule.steps=2"]
    result = execute(configure(*given))
    assert result["cost"]["teacher_seconds"] > 0
    assert any("is not used" in line and "wood" in line and "water" in line for line in lines)
    with refused(Code.UNSUITABLE_TEACHER, "teacher.finetune=false", "wood", kind=UserError):
        execute(configure(*given, "+teacher.finetune=false"))


@pytest.mark.parametrize(
    ("config", "task", "words"),
    [
        ({"architectures": ["BertModel"]}, "classification", None),
        ({"architectures": None}, "classification", None),
        ({}, "classification", ""),
        ({"id2label": {"0": "water", "1": "fruit", "2": "metal"}}, "classification", ""),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, "classification", "LABEL_0"),
        ({"id2label": [1, 2]}, "classification", "labels"),
        ({}, "token_classification", "BertForSequenceClassification"),
        ({"architectures": ["BertForTokenClassification"]}, "token_classification", ""),
        ({}, "regression", "regression"),
        ({}, "multi_label", "problem_type"),
        ({"problem_type": "multi_label_classification"}, "multi_label", ""),
        ({"problem_type": "multi_label_classification"}, "classification", "problem_type"),
    ],
)
def test_which_head_fits(tmp_path, config, task, words):
    whole = {"architectures": ["BertForSequenceClassification"], "id2label": dict(enumerate(LABELS))} | config
    (tmp_path / "config.json").write_text(json.dumps(whole))
    misfit = head_misfit(tmp_path, task, LABELS)
    assert misfit == words if not words else words in misfit
