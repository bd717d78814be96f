"""Bits that flip and files that are cut off: each is noticed by its digest, named, and made again or refused."""

import logging
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kdbench
from kdbench.compare.collect import read_runs
from kdbench.compare.keys import Wanted
from kdbench.errors import Code, UserError
from kdbench.runs import elsewhere
from kdbench.runs import execute as run
from kdbench.storage import files as store
from kdbench.storage.cache import cached
from kdbench.storage.files import MANIFEST
from kdbench.storage.results import RESULTS, read_result, verify_run
from kdbench.training import loop as train
from tests.refusals import refused

UNREAD = {"run.log"}  # for people; locks, too, are never read


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Where the run of `finished` is done once, to be copied."""
    return tmp_path_factory.mktemp("template")


@pytest.fixture
def finished(configure, execute, tmp_path, template):
    """(config, result) of a run with a teacher, two stages and cached teacher outputs."""
    there = [f"outputs={template / 'outputs'}", f"cache_dir={template / 'cache'}"]
    if not (template / "outputs").exists():
        execute(configure("method=tinybert", *there))
    for name in ("outputs", "cache"):
        shutil.copytree(template / name, tmp_path / name)
    config = configure("method=tinybert")
    return config, execute(config)


def files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file() and p.name not in UNREAD and p.suffix != ".lock")


def damage(path: Path, draw: random.Random) -> bytes:
    """Flip a bit, or cut the file; returns what it was."""
    whole = path.read_bytes()
    if draw.random() < 0.8:
        at = draw.randrange(len(whole))
        broken = whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :]
    else:
        broken = whole[: draw.randrange(len(whole))]
    path.unlink()  # what is open keeps the old content
    path.write_bytes(broken)
    return whole


def owner(path: Path, tmp_path: Path) -> tuple[str, Path]:
    """Which reader is to notice, and of which folder."""
    if path.is_relative_to(tmp_path / "cache"):
        if path.parent.name == elsewhere.NOTES:
            return "note", path
        return "cache", next(p for p in path.parents if p.parent.parent == tmp_path / "cache")
    return "run", next(p for p in path.parents if p.name.startswith("seed"))


def noticed(kind: str, folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """What the reader says of the damage."""
    caplog.clear()
    if kind == "note":
        id_, seed = folder.stem.split("-seed")
        assert elsewhere.bring(folder.parents[1], id_, int(seed), folder.parent / "x") is None
    elif kind == "run":
        assert run._finished(folder) is None, f"{folder} was taken for whole"
    else:

        def fill(staged: Path) -> None:
            raise UserError(Code.NOT_A_RUN, "would be made again")

        with pytest.raises(UserError, match="made again"):
            cached(folder, fill)
    return caplog.text


@pytest.mark.parametrize("tries", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_damage_to_a_run_and_the_cache_is_noticed_and_named(finished, tmp_path, caplog, capsys, tries):
    everything = files(tmp_path / "outputs") + files(tmp_path / "cache")
    assert len(everything) > 30
    draw, counts = random.Random(0), Counter()
    caplog.set_level(logging.WARNING, "kdbench")
    logging.getLogger("kdbench").propagate = True
    for number in range(tries):
        path = everything[number % len(everything)]
        kind, folder = owner(path, tmp_path)
        whole = damage(path, draw)
        said = noticed(kind, folder, caplog)
        assert str(path) in said and "expected" in said and "found" in said, f"{path}: {said}"
        path.write_bytes(whole)
        counts[kind] += 1
    assert {run._finished(folder) is None for folder in (p.parent for p in (tmp_path / "outputs").rglob(RESULTS))} == {
        False
    }
    with capsys.disabled():
        print(f"\ndamage over {len(everything)} files: {tries} tried {dict(counts)}, {tries} named, 0 silent")


@pytest.mark.parametrize("tries", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, caplog, capsys, tries):
    from kdbench.training import checkpoint
    from tests.reliability.test_crash import read_back, saved

    stage = saved(tmp_path)
    checkpoint.save(tmp_path, stage.module, stage.optimizer, stage.train_to(10))
    everything, draw = files(tmp_path / "checkpoint-10") + files(tmp_path / "best-10"), random.Random(0)
    assert len(everything) == 6
    logging.getLogger("kdbench").propagate = True
    for number in range(tries):
        path = everything[number % len(everything)]
        whole = damage(path, draw)
        caplog.clear()
        assert read_back(tmp_path, stage) == 5
        assert str(path) in caplog.text and "checkpoint-10 is skipped" in caplog.text
        path.write_bytes(whole)
    assert read_back(tmp_path, stage) == 10
    for missing in (tmp_path / "best-10" / "module.safetensors", tmp_path / "best-10"):
        store.remove(missing)
        caplog.clear()
        assert read_back(tmp_path, stage) == 5
        (record,) = caplog.records
        assert str(missing) in record.getMessage() and record.getMessage().endswith("; checkpoint-10 is skipped")
    with capsys.disabled():
        print(f"\ndamage to a checkpoint: {tries} tried, {tries} named and skipped, 0 silent")


def weights(result):
    return load_file(Path(result["folder"]) / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("model/model.safetensors", []),
        ("model/MANIFEST.json", []),
        ("predictions.parquet", []),
        ("results.json", []),
        ("config.yaml", []),
        ("01_prediction/student.safetensors", ["01_prediction"]),
        ("00_intermediate/stage.json", ["00_intermediate"]),
        ("00_intermediate/metrics.jsonl", ["00_intermediate"]),
    ],
)
def test_what_is_damaged_is_made_again_and_no_more(finished, execute, monkeypatch, name, stages):
    config, before = finished
    folder = Path(before["folder"])
    kept = {name: value.clone() for name, value in weights(before).items()}
    assert [p.name for p in sorted(folder.glob("0*"))] == ["00_intermediate", "01_prediction"]
    damage(folder / name, random.Random(1))
    trained = set()
    step = train._Trainer._step
    monkeypatch.setattr(
        train._Trainer, "_step", lambda self, batch: (trained.add(self.folder.name), step(self, batch))[1]
    )
    after = execute(config)
    assert sorted(trained) == stages
    assert after["metrics"] == before["metrics"] and after["reported"] == before["reported"]
    assert all(torch.equal(value, kept[name]) for name, value in weights(after).items())
    assert verify_run(folder) == {key: value for key, value in after.items() if key != "folder"}


def test_a_damaged_cache_is_made_again(finished, execute, tmp_path):
    config, before = finished
    for folder in (p.parent for p in list((tmp_path / "cache").rglob(MANIFEST))):
        for path in files(folder):
            damage(path, random.Random(2))
    shutil.rmtree(tmp_path / "cache" / elsewhere.NOTES)  # so that no run is found
    after = execute(replace(config, outputs=str(tmp_path / "again")))  # reads all of it
    assert after["metrics"] == before["metrics"]
    for manifest in (tmp_path / "cache").rglob(MANIFEST):
        store.verify(manifest)


@pytest.mark.usefixtures("finished")
def test_what_cannot_be_made_again_is_refused(configure, execute, tmp_path):
    teacher = next((tmp_path / "outputs/topics/finetune").rglob(RESULTS)).parent
    whole = damage(teacher / "model/model.safetensors", random.Random(3))
    with refused(Code.DAMAGED_FILE, "model.safetensors", kind=UserError):
        kdbench.load(teacher / "model")
    from_run = ["teacher=run", f"teacher.path={teacher}", "method=logit_kd"]
    with refused(Code.DAMAGED_FILE, "model.safetensors", kind=UserError):
        execute(configure(*from_run))
    (teacher / "model/model.safetensors").write_bytes(whole)
    damage(teacher / "config.yaml", random.Random(3))
    with refused(Code.DAMAGED_FILE, "config.yaml", kind=UserError):
        configure(*from_run)
    runs, warnings = read_runs([tmp_path / "outputs"], "accuracy", "test", Wanted())
    assert len(runs) == 2 and warnings == []
    damage(teacher / RESULTS, random.Random(3))
    runs, warnings = read_runs([tmp_path / "outputs"], "accuracy", "test", Wanted())
    assert len(runs) == 1 and len(warnings) == 1
    assert str(teacher / RESULTS) in warnings[0] and "expected" in warnings[0] and "found" in warnings[0]


def test_a_run_of_before_there_were_digests_is_read_as_it_is(finished, execute, tmp_path):
    """Two years of results must not be lost: they have no digests, so there is nothing to hold them against."""
    import json

    config, result = finished
    folder = Path(result["folder"])
    old = json.loads((folder / RESULTS).read_text())
    del old["files"], old["sha256"]
    (folder / RESULTS).write_text(json.dumps(old, indent=2) + "\n")
    (folder / "model" / MANIFEST).unlink()
    assert read_result(folder) == verify_run(folder) == old
    assert execute(config) == old | {"folder": str(folder)}
    assert len(read_runs([tmp_path / "outputs"], "accuracy", "test", Wanted())[0]) == 2
    kdbench.load(folder / "model")


def test_flipped_bits_in_a_local_teacher_config_are_told(configure, tmp_path, teacher_folder):
    """A local model has no digests of ours: what cannot be read is refused, in words."""
    folder = tmp_path / "teacher"
    shutil.copytree(teacher_folder, folder)
    (folder / "config.json").write_text('{"model_type": "bert"')
    with refused(Code.INCOMPLETE_MODEL, "config.json", kind=UserError):
        configure(f"teacher.source={folder}")
