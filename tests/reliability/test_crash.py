"""A process that dies, or a power cut, at every operation of a save: what is read afterwards is whole, old or new."""

import contextlib
import errno
import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from kdbench.storage import files as store
from kdbench.storage.results import verify_run, write_result
from kdbench.training import checkpoint
from kdbench.training.checkpoint import Best, Pass, Progress, State
from tests.reliability.faults import Death, Disk, failing
from tests.reliability.forks import forked
from tests.reliability.power import power_cuts, put
from tests.test_train import equal, run, supervised, toy

BEFORE, OLD, NEW = 3, 5, 10  # steps of checkpoints: the save under test keeps the last two


class Stage:
    """A module with its optimiser, as it was at each of some steps: what a checkpoint must bring back."""

    def __init__(self) -> None:
        self.module = nn.ModuleDict({"student": nn.Linear(3, 2), "extra": nn.Linear(2, 2)})
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.1)
        self.at: dict[int, Any] = {}

    def train_to(self, step: int) -> State:
        torch.manual_seed(step)
        for parameter in self.module.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        lines = [{"step": step, "losses": {"ce": 0.1 + 0.2}}]
        state = State(Progress(step, 1.5, 0.3, step), Best(checkpoint.state_of(self.module)), lines)
        state.passes = [Pass(["ce"], torch.tensor([1 / 3]), {"rate": 0.5})]
        self.at[step] = self.content(state)
        return state

    def content(self, state: State) -> str:
        """A digest of all of it."""
        best = {name: value.tolist() for name, value in sorted(state.best.weights.items())}
        passes = [(one.names, one.values.tolist(), one.logged) for one in state.passes]
        moments = [{k: s[k].tolist() for k in sorted(s)} for s in self.optimizer.state_dict()["state"].values()]
        weights = {name: value.tolist() for name, value in self.module.state_dict().items()}
        whole = repr((weights, moments, state.progress, best, state.lines, passes))
        return hashlib.sha256(whole.encode()).hexdigest()


READER = Stage()  # stands for a fresh process: all that it holds is read


def saved(folder: Path) -> Stage:
    """A stage with two checkpoints, each with best weights of its own."""
    stage = Stage()
    for step in (BEFORE, OLD):
        checkpoint.save(folder, stage.module, stage.optimizer, stage.train_to(step))
    return stage


def again(folder: Path, stage: Stage, state: State) -> None:
    """Save as the same command does when it comes to this step again: of the best weights, it has saved none."""
    assert state.best is not None
    checkpoint.save(folder, stage.module, stage.optimizer, replace(state, best=replace(state.best, sha256=None)))


def read_back(folder: Path, stage: Stage) -> int:
    """The step that a fresh process goes on from; everything it has read is as it was at that step."""
    state = checkpoint.restore(folder, READER.module, READER.optimizer)
    step = state.progress.step
    assert step in stage.at, f"{folder} gives step {step}"
    assert READER.content(state) == stage.at[step]
    return step


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists what a process has mapped")
def test_no_file_of_a_checkpoint_stays_mapped(tmp_path):
    """On NFS, its folder could not be removed: a mapped file is not removed there, but gets another name."""
    saved(tmp_path)
    state = checkpoint.restore(tmp_path, READER.module, READER.optimizer)
    assert state.best and str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_death_at_each_operation_of_a_save_leaves_a_whole_checkpoint(tmp_path, capsys):
    counts = {OLD: 0, NEW: 0}
    for k in range(1, 1000):
        folder = tmp_path / str(k)
        stage = saved(folder)
        state = stage.train_to(NEW)
        with failing(Disk(folder, die_at=k)) as disk:
            try:
                checkpoint.save(folder, stage.module, stage.optimizer, state)
                break
            except Death:
                pass
        counts[read_back(folder, stage)] += 1
        again(folder, stage, state)
        assert read_back(folder, stage) == NEW
        assert {path.name for path in folder.iterdir()} == {"checkpoint-5", "checkpoint-10", "best-5", "best-10"}
    assert disk.count == k - 1 > 50 and min(counts.values()) > 0
    with capsys.disabled():
        print(f"\ndeath at each operation of a save: {k - 1} tried, {counts[OLD]} old, {counts[NEW]} new, 0 lost")


RISING = {"lr": 0.03, "steps": 20}  # the toy has a new best dev score after each of its four epochs of five steps


def went_on_from(folder: Path) -> int:
    """The first step that an interrupted stage takes when it is started again; it must end as an unbroken one."""
    whole, resumed = toy(dropout=0.3), toy(dropout=0.3)
    steps: list[int] = []
    inner = supervised(resumed)
    run(whole, folder.parent / f"whole {folder.name}", schedule=RISING)
    run(resumed, folder, lambda batch, step: (steps.append(step), inner(batch, step))[1], schedule=RISING)
    assert equal(whole, resumed) and steps == list(range(steps[0], 20))
    assert {path.name for path in folder.iterdir()} == {"metrics.jsonl", "student.safetensors", "stage.json"}
    return steps[0]


@pytest.mark.parametrize(
    ("moment", "there", "first"),
    [
        ("best-15 is complete", {"checkpoint-5", "best-5", "checkpoint-10", "best-10", "best-15"}, 10),
        (
            "checkpoint-15 is complete",
            {"checkpoint-5", "best-5", "checkpoint-10", "best-10", "checkpoint-15", "best-15"},
            15,
        ),
        ("checkpoint-5 is gone", {"best-5", "checkpoint-10", "best-10", "checkpoint-15", "best-15"}, 15),
    ],
)
def test_a_stage_that_is_killed_within_a_save_ends_equal(tmp_path, monkeypatch, moment, there, first):
    filling, remove = store.filling, store.remove

    def reached(path: Path, how: str) -> None:
        if f"{path.name} is {how}" == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def filling_until(path: Path) -> Iterator[Path]:
        with filling(path) as staged:
            yield staged
        reached(path, "complete")

    def remove_until(path: Path) -> None:
        remove(path)
        reached(path, "gone")

    with monkeypatch.context() as patch:
        patch.setattr(store, "filling", filling_until)
        patch.setattr(store, "remove", remove_until)
        child = forked(lambda: run(toy(dropout=0.3), tmp_path / "broken", schedule=RISING))
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert {path.name for path in (tmp_path / "broken").iterdir()} == {*there, "metrics.jsonl"}
    assert went_on_from(tmp_path / "broken") == first


@pytest.mark.parametrize(("missing", "first"), [(["best-10"], 5), (["best-5", "best-10"], 0)])
def test_a_checkpoint_without_its_best_weights_is_not_used(tmp_path, missing, first):
    broken = toy(dropout=0.3)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path / "broken", supervised(broken, fail_at=12), schedule=RISING)
    for name in missing:
        store.remove(tmp_path / "broken" / name)
    assert went_on_from(tmp_path / "broken") == first


def test_best_weights_are_written_once(tmp_path):
    stage, written = Stage(), []
    state = stage.train_to(5)
    for step in (5, 10, 15):
        state.progress.step = step  # the dev score of step 5 remains the best
        checkpoint.save(tmp_path, stage.module, stage.optimizer, state)
        written.append((tmp_path / "best-5" / "module.safetensors").stat().st_ino)
        assert (tmp_path / "best-5").is_dir() and len(list(tmp_path.glob("best-*"))) == 1
    assert len(set(written)) == 1
    for step in (20, 25):
        checkpoint.save(tmp_path, stage.module, stage.optimizer, stage.train_to(step))
        assert (tmp_path / "best-5").exists() is (step == 20)  # checkpoint-15 names it


def cut_save(tmp_path: Path, lost: int) -> dict[str, int]:
    folder = tmp_path / "stage"
    stage = saved(folder)
    state = stage.train_to(NEW)
    with failing(Disk(folder)) as disk:
        checkpoint.save(folder, stage.module, stage.optimizer, state)
    counts = {"tried": 0, "old": 0, "new": 0}
    for end, content in power_cuts(disk, lost):
        counts["tried"] += 1
        place = put(tmp_path / f"cut{counts['tried']}", content)
        step = read_back(place, stage)
        counts["old" if step == OLD else "new"] += 1
        assert step != BEFORE and (step == NEW or end < len(disk.trace)), "what save() has returned from is on the disk"
        store.remove(place)
    return counts


@pytest.mark.parametrize("lost", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_power_cut_leaves_a_whole_checkpoint(tmp_path, capsys, lost):
    counts = cut_save(tmp_path, lost)
    assert counts["tried"] > 100 and counts["old"] and counts["new"]
    with capsys.disabled():
        print(f"\npower cuts in a save, up to {lost} operations lost or cut: {counts}, 0 unreadable")


@pytest.mark.parametrize("what", ["files", "folder", "parent"])
def test_the_power_cuts_find_a_sync_that_is_missing(tmp_path, monkeypatch, what):
    """Each kind of sync in the store is needed: without it a state is found that must not be."""
    real = store._sync

    def some(path: Path) -> None:
        kind = "files" if path.is_file() else "folder" if path.name.endswith(".part") else "parent"
        if kind != what:
            real(path)

    monkeypatch.setattr(store, "_sync", some)
    with pytest.raises(AssertionError):
        cut_save(tmp_path, 1)


@pytest.mark.parametrize(
    "number", ["ENOSPC", *(pytest.param(name, marks=pytest.mark.slow) for name in ("EIO", "EACCES", "EMFILE"))]
)
def test_a_save_that_the_system_refuses_leaves_the_old_one(tmp_path, capsys, number):
    old = 0
    for k in range(1, 1000):
        folder = tmp_path / str(k)
        stage = saved(folder)
        state = stage.train_to(NEW)
        with failing(Disk(folder, refuse_at=k, refusal=getattr(errno, number))) as disk:
            try:
                checkpoint.save(folder, stage.module, stage.optimizer, state)
            except store.StoreError as error:
                assert str(folder) in str(error) and "intact" in str(error) and "repeat the command" in str(error)
        if disk.count < k:
            break
        old += read_back(folder, stage) == OLD
        again(folder, stage, state)
        assert read_back(folder, stage) == NEW
    assert k > 50 and old > 20
    with capsys.disabled():
        print(f"\n{number} at each operation of a save: {k - 1} tried, 0 unexplained, 0 lost")


def test_a_death_at_each_operation_of_the_result_leaves_all_or_nothing(tmp_path, capsys):
    for k in range(1, 1000):
        folder = tmp_path / str(k)
        with store.filling(folder / "model") as staged:
            (staged / "config.json").write_text("{}")
        store.write_text(folder / "config.yaml", "seed: 0\n")
        with failing(Disk(folder, die_at=k)):
            try:
                write_result(folder, {"schema": 1, "id": "0123abcd"})
                break
            except Death:
                pass
        assert verify_run(folder) in (None, {"schema": 1, "id": "0123abcd"})
    assert verify_run(folder) == {"schema": 1, "id": "0123abcd"}
    with capsys.disabled():
        print(f"\ndeath at each operation of writing results: {k - 1} tried, 0 half")


def test_a_folder_that_is_replaced_is_not_lost(tmp_path, capsys):
    """An export in the place of an earlier one: old or new after a refusal; neither only if killed between renames."""

    def fill(text: str) -> None:
        with store.filling(folder) as staged:
            (staged / "a").write_text(text)
            (staged / "b").write_text(text)

    def found() -> str:
        if not folder.exists():
            return "missing"
        store.verify(folder / store.MANIFEST)
        return (folder / "a").read_text()

    counts: dict[str, list[str]] = {"die_at": [], "refuse_at": []}
    for how, states in counts.items():
        for k in range(1, 1000):
            folder = tmp_path / how / str(k) / "export"
            fill("old")
            disk = Disk(folder.parent, **cast(dict[str, Any], {how: k}), refusal=errno.EIO)
            with failing(disk), contextlib.suppress(Death, store.StoreError):
                fill("new")
            if disk.count < k:
                break
            states.append(found())
            fill("new")
            assert found() == "new" and len(list(folder.parent.iterdir())) == 1
    assert counts["die_at"].count("missing") == 1 and "missing" not in counts["refuse_at"]
    with capsys.disabled():
        print(f"\na folder is replaced: {sum(map(len, counts.values()))} deaths and refusals tried, 0 lost")
