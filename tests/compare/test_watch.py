"""compare-runs --watch: what it reads from the files of a sweep."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kdbench.compare.cli import main
from kdbench.compare.watch import states
from kdbench.storage.status import SCHEMA, SILENT, STATUS, Status
from tests.compare.test_compare_runs import make_tree

HALF_WAY = Status(
    stage="training", step=40, steps=100, epoch=2, losses={"ce": 0.5, "kd": 0.25}, dev_score=0.75, seconds_left=120.0
)


def begun(root: Path, seed: int, student: str = "bert_3l-ffff0001", **changes: Any) -> Path:
    """A run of this process that has done 40 of 100 steps."""
    folder = root / "r52" / "pkd" / student / f"seed{seed}"
    folder.mkdir(parents=True)
    status = {"schema": SCHEMA} | asdict(HALF_WAY) | {"written": ago(0)} | changes
    (folder / STATUS).write_text(json.dumps(status))
    return folder


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def failed(root: Path, seed: int) -> Path:
    return begun(root, seed, state="failed", reason="RuntimeError: loss is nan")


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_a_running_run_tells_how_far_it_is(tmp_path: Path) -> None:
    folder = begun(tmp_path, 0)
    (found,) = states([tmp_path])
    assert (found.folder, found.state, found.stage, found.step, found.steps) == (
        str(folder), "running", "training", 40, 100,
    )  # fmt: skip
    assert (found.epoch, found.loss, found.losses, found.dev_score) == (2, 0.75, {"ce": 0.5, "kd": 0.25}, 75.0)
    assert (found.seconds_left, found.pid, found.host) == (120.0, HALF_WAY.pid, HALF_WAY.host)


def test_nothing_but_status_and_results_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "r52/pkd/bert_3l-ffff0001/seed0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "run.log").write_text("2026-01-01 00:00:00,000 ERROR failed: RuntimeError: loss is nan\n")
    assert states([tmp_path]) == []


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "running"),
        ({"pid": None}, "stopped"),  # dead
        ({"written": ago(10**9)}, "stopped"),  # by a process before this one, of the same number
        ({"host": "another"}, "running"),
        ({"host": "another", "pid": None}, "running"),  # its number says nothing here
        ({"host": "another", "written": ago(2 * SILENT)}, "stopped"),
    ],
)
def test_a_killed_run_is_told_by_its_process_or_by_its_silence(
    tmp_path: Path, changes: dict[str, Any], state: str
) -> None:
    if "pid" in changes:
        changes = changes | {"pid": dead_process()}
    begun(tmp_path, 0, **changes)
    (found,) = states([tmp_path])
    assert (found.state, found.step) == (state, 40)
    if state == "stopped":
        assert found.reason is not None and found.seconds_left is None


def test_a_zombie_does_not_run(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "print()"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()  # it ends, and nobody has waited for it
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        begun(tmp_path, 0, pid=process.pid)
        assert states([tmp_path])[0].state == "stopped"


def test_a_run_that_waits_for_its_teacher_lives_as_long_as_the_teacher(tmp_path: Path) -> None:
    """It writes nothing meanwhile, which on another machine is all that is seen of it."""
    begun(tmp_path, 0, host="another", written=ago(2 * SILENT), stage=None, waits_for="../../bert_6l-cccc3333/seed0")
    teacher = begun(tmp_path, 0, "bert_6l-cccc3333", host="another")
    assert [(one.state, one.waits_for) for one in states([tmp_path])] == [("running", str(teacher)), ("running", None)]
    status = json.loads((teacher / STATUS).read_text())
    (teacher / STATUS).write_text(json.dumps(status | {"state": "failed", "reason": "x"}))
    assert sorted(one.state for one in states([tmp_path])) == ["failed", "stopped"]


def test_a_finished_run_is_done_whatever_its_status_says(tmp_path: Path) -> None:
    make_tree(tmp_path)
    before = states([tmp_path])
    folder = Path(before[0].folder)
    (folder / STATUS).write_text(json.dumps({"schema": SCHEMA} | asdict(HALF_WAY)))
    assert states([tmp_path]) == before
    (folder / STATUS).write_text("")
    assert states([tmp_path]) == before


@pytest.mark.parametrize("text", ["", '{"schema": 1, "sta', "[]", "{}", f'{{"schema": {SCHEMA + 1}}}'])
def test_a_status_that_cannot_be_read_is_of_a_stopped_run(tmp_path: Path, text: str) -> None:
    folder = begun(tmp_path, 0)
    (folder / STATUS).write_text(text)
    (found,) = states([tmp_path])
    assert found.state == "stopped" and STATUS in (found.reason or "")


def test_keys_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    begun(tmp_path, 0, later=1)
    assert states([tmp_path])[0].state == "running"


def test_a_stopped_run_has_not_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path, 0, state="stopped", reason="stopped and saved in a: the same command goes on")
    (found,) = states([tmp_path])
    assert found.state == "stopped" and (found.reason or "").startswith("stopped and saved") and found.step == 40
    assert main([str(tmp_path), "--watch"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1 stopped") and "failed" not in shown


def test_a_pipe_gets_the_states_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path)
    failed(tmp_path, 0)
    assert main([str(tmp_path), "--watch"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1 failed, 11 done") and "RuntimeError: loss is nan" in shown and "40/100" in shown


def test_a_program_gets_one_json_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path)
    failed(tmp_path, 0)
    begun(tmp_path, 1)
    assert main([str(tmp_path), "--watch", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document["schema"], int)
    assert [one["state"] for one in document["runs"]] == ["failed", "running", *["done"] * 11]
    assert document["runs"] == [asdict(one) for one in states([tmp_path])]


def test_the_table_says_which_runs_have_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path)
    assert main([str(tmp_path)]) == 0
    before = capsys.readouterr()
    for seed in range(10, 17):
        failed(tmp_path, seed)
    begun(tmp_path, 20, pid=dead_process())
    begun(tmp_path, 21)
    assert main([str(tmp_path)]) == 0
    after = capsys.readouterr()
    assert after.out == before.out
    new = [line for line in after.err.splitlines() if line not in before.err]
    assert [("seed10" in line or "seed14" in line) and "loss is nan" in line for line in new] == [
        True, False, False, False, True, False, False, False,
    ]  # fmt: skip
    assert "2 more failed" in new[5] and "1 run" in new[6] and "stopped" in new[6] and "running" in new[7]
    assert main([str(tmp_path), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
