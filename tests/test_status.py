"""status.json of a run: what it says at each moment, and that nothing depends on it."""

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest

from kdbench.compare.watch import states
from kdbench.errors import Code, UserError
from kdbench.storage.results import RESULTS, verify_run
from kdbench.storage.status import STATUS, StatusFile, read_status
from kdbench.training import interrupts
from kdbench.training import loop as train
from tests.reliability.faults import Disk, failing
from tests.reliability.forks import forked

SHORT = ("method=logit_kd", "schedule.epochs=2", "teacher.schedule.epochs=1", "checkpoint_every=1000")


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(n, do)`: after the n-th optimiser step of each stage of a student, do that."""

    def patch(number, do):
        step = train._Trainer._step

        def stepped(self, batch):
            step(self, batch)
            if self.progress.step == number and "logit_kd" in str(self.folder):
                do()

        monkeypatch.setattr(train._Trainer, "_step", stepped)

    return patch


def test_it_is_written_once_a_second_and_when_it_matters(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    file = StatusFile(tmp_path, writes=True)
    file.begin_stage("training", 100, 0, 0)
    file.tell(step=1)
    clock[0] = 0.9
    file.tell(step=2)
    assert read_status(tmp_path).step == 0
    clock[0] = 1.0
    file.tell(step=3)
    assert read_status(tmp_path).step == 3
    file.tell(now=True, step=4, dev_score=0.5)
    assert (read_status(tmp_path).step, read_status(tmp_path).dev_score) == (4, 0.5)
    file.end("failed", "first\nsecond")
    assert (read_status(tmp_path).state, read_status(tmp_path).reason) == ("failed", "first")
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_the_others_write_nothing(tmp_path):
    file = StatusFile(tmp_path, writes=False)
    file.begin_stage("training", 100, 0, 0)
    file.end("failed", "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENAMETOOLONG])
def test_a_write_that_is_refused_neither_stops_the_run_nor_leaves_a_file(tmp_path, number):
    for k in range(1, 10):
        (folder := tmp_path / str(k)).mkdir()
        file = StatusFile(folder, writes=True)
        with failing(Disk(folder, refuse_at=k, refusal=number)) as disk:
            file.tell(now=True)
        if disk.count < k:
            break
        assert {path.name for path in folder.iterdir()} <= {STATUS}
    assert k > 2


def test_a_folder_that_was_removed_is_not_made_again(tmp_path):
    StatusFile(tmp_path / "gone", writes=True).end("failed", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_run_tells_where_it_is_and_leaves_no_status(configure, execute, tmp_path, at_step):
    seen, statuses = [], []
    file = StatusFile.tell

    def look():
        seen.extend(states([tmp_path / "outputs"]))

    def tell(self, now=False, **changes):
        file(self, now, **changes)
        if "logit_kd" in str(self.path):
            statuses.append(self.status)

    at_step(3, look)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StatusFile, "tell", tell)
        folder = Path(execute(configure(*SHORT))["folder"])
    (student,) = [one for one in seen if "logit_kd" in one.folder]
    assert (student.state, student.folder, student.stage) == ("running", str(folder), "training")
    assert student.pid == os.getpid() and student.steps and student.epoch == 0
    assert not list((tmp_path / "outputs").rglob(f"*{STATUS}*"))
    assert STATUS not in (folder / RESULTS).read_text() and verify_run(folder)
    last = statuses[-1]
    assert last.step == last.steps and last.epoch == 2 and last.losses and 0 <= last.dev_score <= 1
    (teacher,) = {one.waits_for for one in statuses if one.waits_for}
    assert (folder / teacher / RESULTS).is_file() and "finetune" in teacher


def test_a_killed_run_is_stopped_and_goes_on_to_equal_files(configure, execute, tmp_path, at_step):
    def config(name):
        return configure(*SHORT, f"outputs={tmp_path / name}")

    execute(config("whole"))
    killing = [signal.SIGKILL]
    at_step(3, lambda: killing and os.kill(os.getpid(), *killing))
    child = forked(lambda: execute(config("killed")))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (found,) = [one for one in states([tmp_path / "killed"]) if one.state != "done"]
    assert (found.state, found.pid, found.stage) == ("stopped", child, "training")
    killing.clear()
    execute(config("killed"))
    assert {one.state for one in states([tmp_path / "killed"])} == {"done"}
    assert not list((tmp_path / "killed").rglob(f"*{STATUS}*"))
    whole, again = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "topics/logit_kd").rglob("*.safetensors")}
        for name in ("whole", "killed")
    )
    assert whole and whole == again


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (RuntimeError("out of memory\nand more"), "failed", "RuntimeError: out of memory"),
        (UserError(Code.INVALID_LABEL, "bad data\nand more"), "failed", "KD055 invalid-label  bad data"),
        (interrupts.Stopped("stopped and saved", 143), "stopped", "stopped and saved"),
        (interrupts.Pruned("below the median"), "stopped", "below the median"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
    ],
)
def test_how_a_run_ended_is_kept(configure, execute, tmp_path, at_step, error, state, reason):
    def end():
        raise error

    at_step(2, end)
    with pytest.raises(type(error)):
        execute(configure(*SHORT))
    found = {Path(one.folder).parts[-3]: one for one in states([tmp_path / "outputs"])}
    assert found["finetune"].state == "done"
    assert found["logit_kd"].state == state and found["logit_kd"].reason.startswith(reason)
    assert "\n" not in found["logit_kd"].reason and found["logit_kd"].seconds_left is None


def test_what_fails_in_the_teacher_fails_the_student(configure, execute, tmp_path, monkeypatch):
    def bad(self, batch):
        raise RuntimeError("no memory")

    monkeypatch.setattr(train._Trainer, "_step", bad)
    with pytest.raises(RuntimeError):
        execute(configure(*SHORT))
    found = states([tmp_path / "outputs"])
    assert len(found) == 2
    assert {(one.state, one.reason, one.waits_for) for one in found} == {("failed", "RuntimeError: no memory", None)}


def test_a_status_next_to_results_changes_nothing(configure, execute):
    """As a process leaves it that is killed between the two."""
    result = execute(configure(*SHORT))
    folder = Path(result["folder"])
    (folder / STATUS).write_text(json.dumps({"schema": 1, "state": "running"}))
    assert execute(configure(*SHORT)) == result and verify_run(folder)
    assert [one.state for one in states([folder])] == ["done"]
