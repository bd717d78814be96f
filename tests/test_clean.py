"""kdbench-clean deletes what no command reads: everything works as before, and nothing is trained again."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from kdbench.cli import clean, export, predict
from kdbench.compare import cli as compare_runs
from kdbench.errors import Code
from kdbench.runs import elsewhere, spare
from kdbench.storage import files as store
from kdbench.storage.results import verify_run
from kdbench.training import loop as train
from kdbench.training.interrupts import Stopped, listening

ROOT = Path(__file__).parents[1]
SHORT = ("schedule.epochs=1",)
OF_STAGES = {"student.safetensors", "extra.safetensors", "stage.json"}


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """The names of the stage folders that were trained."""
    seen: list[str] = []
    run = train._Trainer.run
    monkeypatch.setattr(train._Trainer, "run", lambda self: (seen.append(self.folder.name), run(self))[1])
    return seen


def content(*roots: Path) -> dict[Path, bytes]:
    found = (path for root in roots for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.read_bytes() for path in found}


def compared(outputs: Path, capsys, *words: str) -> str:
    capsys.readouterr()
    assert compare_runs.main([str(outputs), *words]) == 0
    return capsys.readouterr().out


def predicted(folder: Path, capsys) -> str:
    capsys.readouterr()
    assert predict.main([str(folder), "--text", "an apple and a pear", "--json"]) == 0
    return capsys.readouterr().out


def test_everything_works_as_before(configure, execute, tmp_path, capsys, trained):
    outputs, cache = tmp_path / "outputs", tmp_path / "cache"
    configs = [configure(f"method={name}", *SHORT) for name in ("theseus", "logit_kd")]
    folders = [Path(execute(config)["folder"]) for config in configs]
    forms = ("json", "html")
    shown = [compared(outputs, capsys, "--format", form) for form in forms]
    answers = [predicted(folder, capsys) for folder in folders]
    before = content(outputs, cache)

    assert clean.main([str(outputs), "--yes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    gone = before.keys() - content(outputs, cache).keys()
    in_runs = {path for path in gone if outputs in path.parents}
    assert {path.name for path in in_runs} == {"student.safetensors", "stage.json"}
    assert len(in_runs) == 2 * 4  # Theseus has two stages, logit_kd and the teacher one each
    assert {path.relative_to(cache).parts[0] for path in gone - in_runs} == {"teacher", "tokens"}
    size = sum(len(before[path]) for path in gone if path.name != store.MANIFEST)
    assert lines[-1] == f"deleted: {size / 1e6:,.1f} MB"
    same = {path: value for path, value in content(outputs, cache).items() if path.name != "results.json"}
    assert all(before[path] == value for path, value in same.items())
    for path in outputs.rglob("results.json"):
        result = verify_run(path.parent)
        assert result == {k: v for k, v in json.loads(before[path]).items() if k not in ("files", "sha256")}
        assert not {name for name in store.listed(path) if Path(name).name in OF_STAGES}

    assert [compared(outputs, capsys, "--format", form) for form in forms] == shown
    assert [predicted(folder, capsys) for folder in folders] == answers
    trained.clear()
    results = [execute(config) for config in configs]
    assert trained == [] and [Path(one["folder"]) for one in results] == folders
    for folder in folders:
        assert export.main([str(folder), "--quiet"]) == 0
        assert predicted(folder / "export", capsys).replace("/export", "") == answers[folders.index(folder)]
    assert clean.main([str(outputs)]) == 0
    assert "weights of finished stages" not in capsys.readouterr().out

    # a new student of the same teacher: the teacher is found, its outputs are computed again
    execute(configure("method=logit_kd", *SHORT, "seed=1"))
    assert trained == ["00_training"]


@pytest.mark.parametrize("method", ["tinybert", "mobilebert", "distilbert"])
def test_a_student_starts_from_the_cleaned_stages_before_the_task(configure, execute, tmp_path, trained, method):
    """They read a general run's model, the module beside its student, and a masked-LM head."""
    first = execute(configure(f"method={method}", *SHORT))
    kept = tmp_path / "kept"
    shutil.copytree(first["folder"], kept)
    assert clean.main([str(tmp_path / "outputs"), "--yes"]) == 0
    assert not list((tmp_path / "outputs").rglob("student.safetensors"))
    trained.clear()
    shutil.rmtree(first["folder"])
    again = execute(configure(f"method={method}", *SHORT))
    assert trained == [stage["folder"] for stage in first["stages"]], "neither the teacher nor the stages before it"
    for name in ("model/model.safetensors", "predictions.parquet"):
        assert (Path(again["folder"]) / name).read_bytes() == (kept / name).read_bytes()


def test_an_interrupted_run_resumes_after_its_neighbours_are_cleaned(configure, execute, tmp_path, capsys, trained):
    outputs, cache = tmp_path / "outputs", tmp_path / "cache"
    unbroken = Path(execute(configure("method=theseus", "seed=1", f"outputs={tmp_path / 'unbroken'}"))["folder"])
    execute(configure("method=logit_kd", *SHORT))
    with listening(), pytest.raises(Stopped):
        execute(configure("method=theseus", "seed=1", "preempt_at=22"))  # `replacing` has 16 steps
    (stopped,) = {path.parent for path in outputs.rglob("checkpoint-*")}
    before, entries = content(stopped.parent), content(cache)

    assert clean.main([str(outputs), "--yes"]) == 0
    out = capsys.readouterr().out
    assert f"kept: {stopped.parent}: the run is not finished. The same command resumes it" in out
    assert f"kept: {cache}: the run in {stopped.parent} is not finished, and may read the cache" in out
    assert content(stopped.parent) == before
    assert content(cache) == entries
    trained.clear()
    result = execute(configure("method=theseus", "seed=1"))
    assert trained == [stopped.name]
    for name in ("model/model.safetensors", "predictions.parquet", "01_successor/metrics.jsonl"):
        assert (Path(result["folder"]) / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_damaged_run_is_trained_again_if_it_was_cleaned(configure, execute, tmp_path, trained):
    config = configure("method=theseus", *SHORT)
    model = Path(execute(config)["folder"]) / "model" / "model.safetensors"
    weights = model.read_bytes()
    assert clean.main([str(tmp_path / "outputs"), "--yes"]) == 0
    model.write_bytes(b"damaged")
    trained.clear()
    execute(config)
    assert trained == ["00_replacing", "01_successor"] and model.read_bytes() == weights


@pytest.fixture
def finished(configure, execute, tmp_path, capsys) -> Path:
    """The folder of a finished run."""
    folder = Path(execute(configure("method=finetune", "schedule.steps=2"))["folder"])
    capsys.readouterr()
    return folder


def test_without_a_terminal_it_only_lists(finished, tmp_path, capsys):
    before = content(tmp_path)
    assert clean.main([str(tmp_path / "outputs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    sizes = [(finished / "00_training" / name).stat().st_size for name in ("student.safetensors", "stage.json")]
    assert lines[0] == f"{sum(sizes) / 1e6:>10,.1f} MB  {finished}  weights of finished stages"
    assert lines[-1] == "nothing was deleted. To delete these files, add --yes"
    assert content(tmp_path) == before


@pytest.mark.parametrize(("answer", "deleted"), [("y", True), ("", False), ("n", False)])
def test_on_a_terminal_it_asks(finished, tmp_path, answer, deleted):
    ours, theirs = pty.openpty()
    program = "import sys; from kdbench.cli.clean import main; sys.exit(main())"
    command = [sys.executable, "-c", program, str(tmp_path / "outputs")]
    process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ)
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    said = b""
    try:
        while chunk := os.read(ours, 4096):
            said += chunk
    except OSError:  # Linux: the other end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0 and b"Delete them? [y/N]" in said
    assert (b"deleted: " in said) is deleted
    assert (finished / "00_training" / "student.safetensors").exists() is not deleted


def test_a_run_in_use_and_one_that_begins_are_left(finished, tmp_path, capsys):
    outputs, cache = tmp_path / "outputs", tmp_path / "cache"
    before = content(tmp_path)
    (run, *entries) = spare.find(outputs).spare
    with FileLock(finished.parent / f".{finished.name}.lock"):
        assert spare.delete(run) == "a command is using this run"
    elsewhere.begin(cache, begun := tmp_path / "other" / "seed0")
    begun.mkdir(parents=True)
    assert entries and {spare.delete(one) for one in entries} == {f"the run in {begun} has begun meanwhile"}
    assert clean.main([str(outputs)]) == 0
    assert f"kept: {cache}: the run in {begun} is not finished" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "other")  # a run that somebody removed holds nothing back
    assert elsewhere.unfinished(cache) == []
    assert before.items() <= content(tmp_path).items()


def test_what_kdbench_did_not_write_is_left(finished, tmp_path, capsys):
    outputs, cache = tmp_path / "outputs", tmp_path / "cache"
    (finished / "00_training" / "notes.txt").write_text("mine")
    (finished / "student.safetensors").write_text("mine")
    tokens = sorted((cache / "tokens").glob("*/"))
    (tokens[0] / "mine.npy").write_text("mine")
    (cache / "tokens" / "mine").mkdir()
    (finished / "00_training" / "student.safetensors").write_bytes(b"another file")
    assert clean.main([str(outputs), "--yes"]) == 0
    assert f"kept: {finished}: " in capsys.readouterr().out
    left = {path.relative_to(finished).as_posix() for path in finished.rglob("*.*")}
    assert left >= {"00_training/notes.txt", "student.safetensors", "00_training/student.safetensors"}
    assert sorted((cache / "tokens").glob("*/")) == [tokens[0], cache / "tokens" / "mine"]


def test_a_deletion_that_was_interrupted_is_finished_later(finished, tmp_path, monkeypatch):
    (run, *_) = spare.find(tmp_path / "outputs").spare
    removed: list[Path] = []

    def remove(path: Path) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(path)
        store.remove(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(spare, "remove", remove)
        spare.delete(run)
    assert verify_run(finished) is not None and [path.name for path in removed] == ["student.safetensors"]
    (rest, *_) = spare.find(tmp_path / "outputs").spare
    assert set(rest.files) == {"00_training/stage.json"}
    assert spare.delete(rest) is None and not (finished / "00_training" / "stage.json").exists()


def test_no_folder_and_no_runs(tmp_path, capsys):
    assert clean.main([str(tmp_path / "none")]) == 2
    assert str(Code.MISSING_FILE) in capsys.readouterr().err
    assert clean.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "nothing to delete\n"
