"""What a stage needs is logged before it is trained, and a disk that is too small is refused."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from kdbench.errors import Code, SettingError
from kdbench.training import needs
from kdbench.training.hardware import used_memory
from kdbench.training.interrupts import Stopped, listening
from kdbench.training.needs import Room
from tests.refusals import refused


class Disk(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def free(monkeypatch):
    def make(count: int) -> None:
        monkeypatch.setattr("kdbench.training.needs.shutil.disk_usage", lambda path: Disk(10**12, 0, count))

    return make


def test_bytes_of_a_module():
    module = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    p, trained = 28 + 15 + 8, 15 + 8
    room = Room("outputs", texts=2, length=5, heads=3)
    activations = 4 * (2 * 5 * (4 + 3 + 3 + 2) + 2 * 2 * 3 * 5 * 5)  # attention: before and after its dropout
    assert needs.activations(module, room) == activations
    parts = [*module[1].parameters(), *module[2].parameters()]
    found = needs.needs(module, parts, room, checkpoints=9, scores=9)
    assert found.checkpoint == 4 * p + 8 * trained
    assert found.disk == 3 * found.checkpoint + 3 * 4 * p  # each with best weights of its own
    assert needs.needs(module, parts, room, checkpoints=9, scores=2).disk == 3 * found.checkpoint + 2 * 4 * p
    assert found.memory == 8 * trained + 8 * p + 4 * trained + activations
    half = needs.needs(module, parts, room._replace(autocast=True), checkpoints=9, scores=9)
    assert half.memory == 8 * trained + 8 * p + 4 * trained + 3 * activations // 4 + 2 * p
    frozen = needs.needs(module, parts, room, checkpoints=9, scores=9, through=nn.Linear(6, 1))
    assert frozen.memory - found.memory == 4 * (2 * 5 * 7 + 2 * 2 * 3 * 5 * 5)
    one = needs.needs(module, parts, room, checkpoints=1, scores=9)
    assert one.disk == found.checkpoint + 4 * p + 4 * p  # the best weights, and those of the finished stage


def tensor_bytes(path: Path) -> int:
    """The size of a safetensors file without its header."""
    return path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")


@pytest.mark.usefixtures("taught")
def test_a_checkpoint_is_as_large_as_said_and_a_run_says_what_it_needs(
    configure, execute, tmp_path, monkeypatch, caplog
):
    """AdamW's moments cover the words of the texts only, and a safetensors header is not counted."""
    said: list[needs.Needs] = []
    monkeypatch.setattr(needs, "sized", lambda count: str(count))
    own = needs.require

    def require(stage: str, need: needs.Needs, *more) -> int:
        said.append(need)
        return own(stage, need, *more)

    monkeypatch.setattr("kdbench.training.loop.require", require)
    logging.getLogger("kdbench").propagate = True
    with listening(), pytest.raises(Stopped):
        execute(configure("method=logit_kd", "preempt_at=14"))  # 8 steps an epoch: it has a best dev score
    (folder,) = (tmp_path / "outputs").rglob("checkpoint-14")
    weights, moments = tensor_bytes(folder / "module.safetensors"), tensor_bytes(folder / "optimizer.safetensors")
    steps = 4 * (folder / "optimizer.safetensors").read_bytes().count(b".step")
    assert weights + moments - steps == said[0].checkpoint
    assert {path.name for path in folder.iterdir()} == {
        "module.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"
    }  # fmt: skip
    assert tensor_bytes(folder.with_name("best-8") / "module.safetensors") == weights
    (line,) = re.findall(r"stage training: needs about (\d+) of memory, and at most (\d+) of disk", caplog.text)
    assert int(line[1]) == said[0].disk and int(line[0]) > said[0].memory


@pytest.mark.usefixtures("taught")
@pytest.mark.parametrize(("said", "times"), [(1, 3), (10**15, 0)])
def test_a_stage_gives_freed_memory_back_when_it_has_more_than_was_said(configure, execute, monkeypatch, said, times):
    """When it reads its losses within an epoch of eight steps: at its checkpoints, after 5, 10 and 15 steps."""
    given: list[int] = []
    monkeypatch.setattr("kdbench.training.loop.require", lambda *of_stage: said)
    monkeypatch.setattr("kdbench.training.hardware.give_back", lambda: given.append(1))
    execute(configure("method=logit_kd"))
    assert len(given) == times


@pytest.mark.usefixtures("taught")
def test_a_disk_that_is_too_small_is_refused_before_the_stage(configure, execute, tmp_path, free):
    free(1000)
    outputs = tmp_path / "outputs"
    with refused(Code.DISK_FULL, f"outputs={outputs}: ", "0.0 MB are free", "kdbench-clean", kind=SettingError):
        execute(configure("method=logit_kd"))
    assert not list((outputs / "topics" / "logit_kd").rglob("*.safetensors"))
    free(10**9)
    execute(configure("method=logit_kd"))


def test_the_checkpoints_of_an_interrupted_stage_are_not_counted_twice(tmp_path, free):
    for name, size in (("checkpoint-5", 400), ("best-5", 200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.safetensors").write_bytes(b"x" * size)
    need, room, cpu = needs.Needs(memory=0, checkpoint=600, disk=1000), Room("outputs", 1, 1), Accelerator(cpu=True)
    free(400)
    needs.require("training", need, room, tmp_path, cpu)
    free(399)
    with refused(Code.DISK_FULL, "outputs=outputs: stage training needs", kind=SettingError):
        needs.require("training", need, room, tmp_path, cpu)
    with refused(Code.DISK_FULL, kind=SettingError):  # the folder of a stage that has not begun
        needs.require("training", need, room, Path("none/of/these"), cpu)


def test_memory_now_includes_tensors():
    before = used_memory(torch.device("cpu"))
    held = torch.ones(16 * 2**20)
    assert used_memory(torch.device("cpu")) - before == pytest.approx(held.numel() * 4, rel=0.1)
