"""compare-runs --watch: what it reads from the files of a sweep."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from kdbench.compare.cli import main
from kdbench.compare.watch import states
from kdbench.training.interrupts import Stopped
from kdbench.training.progress import log, logged_to
from tests.compare.test_compare_runs import make_tree


def begun(root: Path, seed: int, *lines: str) -> Path:
    """A run that has done 40 of 100 steps in 80 seconds."""
    folder = root / "r52" / "pkd" / "bert_3l-ffff0001" / f"seed{seed}"
    (folder / "00_training").mkdir(parents=True)
    (folder / "config.yaml").touch()
    stamp = f"{datetime.now() - timedelta(seconds=80):%Y-%m-%d %H:%M:%S},000"
    text = [f"{stamp} INFO run: {folder}", f"{stamp} INFO stage training: 100 steps", *lines]
    (folder / "run.log").write_text("\n".join(text) + "\n")
    steps = [json.dumps({"step": step, "losses": {"ce": 0.5, "kd": 0.25}}) for step in (20, 40)]
    (folder / "00_training/metrics.jsonl").write_text("\n".join(steps) + '\n{"step": 60, "los')  # being written
    return folder


def test_a_running_run_tells_how_far_it_is(tmp_path: Path) -> None:
    folder = begun(tmp_path, 0)
    with FileLock(folder.parent / ".seed0.lock"):
        (found,) = states([tmp_path])
    assert (found.state, found.stage, found.step, found.steps, found.loss) == ("running", "training", 40, 100, 0.75)
    assert found.seconds_left == pytest.approx(120, abs=5)


def test_watching_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    folder = begun(tmp_path, 0)
    lock = FileLock(folder.parent / ".seed0.lock")
    with lock:
        pass
    assert states([tmp_path])[0].state == "stopped"
    with lock.acquire(timeout=0):
        assert states([tmp_path])[0].state == "running"


def test_a_run_that_trains_its_teacher_first_waits_for_it(tmp_path: Path) -> None:
    stamp = f"{datetime.now():%Y-%m-%d %H:%M:%S},000"
    teacher = tmp_path / "r52" / "finetune" / "bert_6l-cccc3333" / "seed0"
    folder = begun(tmp_path, 0, f"{stamp} INFO run: {teacher}", f"{stamp} INFO stage training: 20 steps")
    (folder / "00_training/metrics.jsonl").unlink()
    (folder / "00_training").rmdir()
    with FileLock(folder.parent / ".seed0.lock"):
        (found,) = states([tmp_path])
        assert (found.state, found.stage, found.steps, found.waits_for) == ("running", None, None, str(teacher))
        (folder / "00_training").mkdir()  # its own turn
        with (folder / "run.log").open("a") as log_file:
            log_file.write(f"{stamp} INFO stage training: 60 steps\n")
        (found,) = states([tmp_path])
        assert (found.stage, found.steps, found.waits_for) == ("training", 60, None)


def test_a_failure_has_its_reason_and_a_resumed_run_none(tmp_path: Path) -> None:
    begun(tmp_path, 0, "2026-01-01 00:00:00,000 ERROR failed: RuntimeError: loss is nan")
    folder = begun(
        tmp_path, 1, "2026-01-01 00:00:00,000 ERROR failed: OSError: disk full", "2026-01-01 00:00:01,000 INFO run: x"
    )
    found = states([tmp_path])
    assert [(one.state, one.reason) for one in found] == [
        ("failed", "failed: RuntimeError: loss is nan"),
        ("stopped", "killed or interrupted: the same command goes on"),
    ]
    assert found[1].folder == str(folder)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ERROR failed: Stopped: stopped and saved in a: the same command goes on", "stopped and saved in a: the same"),
        ("ERROR failed: KeyboardInterrupt: ", "killed or interrupted: the same command goes on"),
        ("INFO stopped and saved in a: the same command goes on", "stopped and saved in a: the same command goes on"),
        ("INFO stopped; the same command goes on from what is saved", "stopped; the same command goes on from what"),
    ],
)
def test_a_stopped_run_has_not_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, reason: str
) -> None:
    begun(tmp_path, 0, f"2026-01-01 00:00:00,000 {line}")
    (found,) = states([tmp_path])
    assert found.state == "stopped" and (found.reason or "").startswith(reason) and found.step == 40
    assert main([str(tmp_path), "--watch"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1 stopped") and "failed" not in shown and "Stopped" not in shown


def test_a_run_writes_why_it_failed_into_its_log(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with pytest.raises(RuntimeError), logged_to(path, True):
        log.info("run: x")
        raise RuntimeError("loss is nan\nand more")
    assert path.read_text().splitlines()[-1].endswith("ERROR failed: RuntimeError: loss is nan")


def test_a_run_that_was_stopped_has_not_failed(tmp_path: Path) -> None:
    words = "stopped and saved in stage training, step 3 of 9: the same command goes on from there"
    folder = begun(tmp_path, 0)
    with pytest.raises(Stopped), logged_to(folder / "run.log", True):
        log.info("run: x")
        raise Stopped(words, 143)
    assert (folder / "run.log").read_text().endswith(f" INFO {words}\n")
    assert [(one.state, one.reason) for one in states([tmp_path])] == [("stopped", words)]


def test_a_pipe_gets_the_states_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path)
    begun(tmp_path, 0, "2026-01-01 00:00:00,000 ERROR failed: RuntimeError: loss is nan")
    assert main([str(tmp_path), "--watch"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1 failed, 11 done") and "RuntimeError: loss is nan" in shown and "40/100" in shown
    assert main([str(tmp_path), "--watch", "--json"]) == 0
    assert [one["state"] for one in json.loads(capsys.readouterr().out)["runs"]].count("done") == 11


def test_the_table_says_which_runs_have_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tree(tmp_path)
    assert main([str(tmp_path)]) == 0
    before = capsys.readouterr()
    for seed in range(10, 17):
        begun(tmp_path, seed, "2026-01-01 00:00:00,000 ERROR failed: RuntimeError: loss is nan")
    begun(tmp_path, 20)
    folder = begun(tmp_path, 21)
    with FileLock(folder.parent / ".seed21.lock"):
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
