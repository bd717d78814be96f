"""A teacher that was trained for one outputs folder serves another one, as long as it is whole."""

import logging
import shutil
from pathlib import Path

import pytest

from kdbench.runs import elsewhere
from kdbench.storage.results import read_result, verify_run
from kdbench.training import loop as train


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """The stage folders that were trained."""
    seen: list[str] = []
    run = train._Trainer.run
    monkeypatch.setattr(train._Trainer, "run", lambda self: (seen.append(str(self.folder)), run(self))[1])
    return seen


@pytest.mark.parametrize("harm", ["none", "gone", "damaged", "another"])
def test_a_teacher_is_trained_once_for_all_outputs(configure, execute, tmp_path, trained, harm):
    given = ["method=logit_kd", "schedule.steps=2", "teacher.schedule.steps=2"]
    first = execute(configure(*given, f"outputs={tmp_path / 'a'}"))
    assert len(trained) == 2
    (teacher,) = (path.parent for path in (tmp_path / "a/topics/finetune").rglob("results.json"))
    match harm:
        case "gone":
            shutil.rmtree(tmp_path / "a")
        case "damaged":
            (teacher / "model" / "model.safetensors").write_bytes(b"")
        case "another":
            shutil.rmtree(teacher)
            shutil.copytree(first["folder"], teacher)
    trained.clear()
    second = execute(configure(*given, f"outputs={tmp_path / 'b'}"))
    assert len(trained) == (1 if harm == "none" else 2)
    assert second["id"] == first["id"] and second["teacher"]["metrics"] == first["teacher"]["metrics"]
    (copy,) = (path.parent for path in (tmp_path / "b/topics/finetune").rglob("results.json"))
    assert verify_run(copy) is not None, "a row of this table, too"
    if harm == "none":
        assert (copy / "results.json").read_bytes() == (teacher / "results.json").read_bytes()


def test_a_run_that_was_asked_for_is_done(configure, execute, tmp_path, trained):
    for name in ("a", "b"):
        execute(configure("method=finetune", "schedule.steps=2", f"outputs={tmp_path / name}"))
    assert len(trained) == 2


def test_a_dry_run_is_not_remembered(configure, execute, tmp_path):
    execute(configure("method=finetune", "schedule.steps=2", "dry_run=true"))
    assert not (tmp_path / "cache" / elsewhere.NOTES).exists()


def test_a_note_that_cannot_be_read_is_none(tmp_path, caplog):
    (tmp_path / elsewhere.NOTES).mkdir()
    logging.getLogger("kdbench").propagate = True
    for content in (b"{", b"[]", b"\xff", b"3"):
        (tmp_path / elsewhere.NOTES / "ab-seed0.json").write_bytes(content)
        assert elsewhere.bring(tmp_path, "ab", 0, tmp_path / "x") is None
    assert "ab-seed0.json is damaged" in caplog.text
    assert read_result(Path(tmp_path / "x")) is None
