"""The real command, mostly in processes of its own: killed with SIGKILL, and side by side on one outputs tree."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdbench.cli import main as cli

ROOT = Path(__file__).parents[1]
BUSY = 600  # seconds for a command beside much other work


@pytest.fixture
def words(teacher_folder, data_folder, tmp_path):
    def make(outputs: str) -> list[str]:
        return [
            "teacher=local", f"teacher.source={teacher_folder}", "dataset=files", "dataset.name=topics",
            f"dataset.source={data_folder}", "dataset.splits.train=train.csv", "dataset.splits.test=test.csv",
            "dataset.max_length=16", "student.layers=2", "hardware=cpu_fp32", "schedule.batch_size=8",
            "teacher.schedule.epochs=2", "schedule.epochs=4", "schedule.lr=1e-2", "checkpoint_every=3",
            f"outputs={tmp_path / outputs}", f"cache_dir={tmp_path / outputs / 'cache'}",
        ]  # fmt: skip

    return make


@pytest.fixture
def start(words):
    def begin(outputs: str, *overrides: str, threads: str = "1") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kdbench", *words(outputs), *overrides],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": threads}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    return begin


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=BUSY)
    assert process.returncode == 0, output[-2000:]
    return output


def content(folder: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "predictions.parquet", "metrics.jsonl")
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.name in names}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["theseus", "logit_kd", "two_stage"])
def test_sigkill_at_any_moment_changes_nothing(start, tmp_path, method):
    finish(start("whole", f"method={method}"))
    draw = random.Random(method)
    for _ in range(6):
        process = start("killed", f"method={method}")
        time.sleep(draw.uniform(3, 9))
        process.kill()
        process.communicate()
    finish(start("killed", f"method={method}"))
    whole, killed = content(tmp_path / "whole"), content(tmp_path / "killed")
    assert len(whole) > 4
    assert killed == whole


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_its_own_exit_code(start, number, code):
    process = start("signalled", "method=finetune", "schedule.epochs=400")
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 2" in line:
            process.send_signal(number)
            break
    output, _ = process.communicate(timeout=BUSY)
    assert process.returncode == code
    assert "stopped and saved in stage training, step" in output and "Traceback" not in output


@pytest.mark.slow
def test_parallel_runs_share_one_teacher(start, tmp_path):
    processes = [start("shared", f"method={method}") for method in ("theseus", "logit_kd", "theseus")]
    outputs = [finish(process) for process in processes]
    trained = [output for output in outputs if "stage training" in output and "finetune" in output]
    teachers = list((tmp_path / "shared").glob("topics/finetune/bert_4l-*/seed0/results.json"))
    assert len(teachers) == 1
    log = (teachers[0].parent / "run.log").read_text()
    assert log.count("done: ") == 1 and log.count("stage training: needs") == 1
    assert trained
    assert len(list((tmp_path / "shared").rglob("results.json"))) == 3  # the second theseus found the first one's


def test_a_parallel_sweep_shares_the_cores_and_lists_every_failure(words, tmp_path, monkeypatch, capfd):
    sweep = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "method=finetune", "-m"]
    rates = ["schedule.epochs=1", "method.stages.training.lr=1e-2,1e30,1e31"]
    monkeypatch.setattr(sys, "argv", ["kdbench", *words("both"), *rates, *sweep])
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # the jobs are processes of their own, and share what there is
    with pytest.raises(SystemExit) as end:
        cli.main()
    output = "".join(capfd.readouterr())
    assert end.value.code == 1, output[-2000:]
    assert "kdbench: 2 of 3 jobs failed" in output and "Traceback" not in output
    for rate in ("1e+30", "1e+31"):
        job = f"method.stages.training.lr={rate}"
        assert f"  {job}: KD081 loss-not-finite  stage training, step 2: the loss is not finite" in output
    records = [json.loads(path.read_text()) for path in (tmp_path / "both").rglob("env.json")]
    assert [record["threads"] for record in records] == [max(1, (os.cpu_count() or 1) // 2)] * 3
    assert len(list((tmp_path / "both").rglob("results.json"))) == 1


def test_a_key_of_the_command_takes_the_place_of_the_presets_sweep_over_it(words, tmp_path, monkeypatch, capsys):
    """Hydra alone would sweep over both: four jobs, two of them the same."""
    (tmp_path / "own/experiment").mkdir(parents=True)
    grid = "# @package _global_\nhydra: {sweeper: {params: {method.c: '1.0,2.0', seed: '0,1'}}}\n"
    (tmp_path / "own/experiment/grid.yaml").write_text(grid)
    sweep = ["method=tfidf", "-m", "-cd", str(tmp_path / "own"), "experiment=grid", "seed=1"]
    monkeypatch.setattr(sys, "argv", ["kdbench", *words("grid"), *sweep])
    cli.main()
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")] == [
        "[1/2] method.c=1.0",
        "[2/2] method.c=2.0",
    ]
    assert len(list((tmp_path / "grid").rglob("seed1/results.json"))) == 2
