"""Two processes end with one process's weights: the real command under torchrun, gloo on loopback."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def command(processes: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    launcher = [
        "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
        "--master-addr=127.0.0.1", f"--master-port={free_port()}",
    ] if processes > 1 else []  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [sys.executable, *launcher, "-m", "kdbench", *overrides],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
    )


@pytest.mark.parametrize("method", ["theseus"])
def test_two_processes_equal_one(teacher_folder, data_folder, tmp_path, method):
    weights, epochs = [], []
    for processes in (1, 2):
        outputs = tmp_path / str(processes)
        done = command(
            processes, f"method={method}", "teacher=local", f"teacher.source={teacher_folder}",
            "dataset=files", "dataset.name=topics", f"dataset.source={data_folder}", "dataset.splits.train=train.csv",
            "dataset.splits.test=test.csv", "dataset.max_length=16", "student.layers=2", "hardware=cpu_fp32",
            "schedule.batch_size=9", "schedule.steps=6", "teacher.schedule.steps=6", "schedule.lr=1e-3",
            "method.variant=bernoulli", f"outputs={outputs}", f"cache_dir={tmp_path / 'cache'}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        results = list(outputs.rglob("theseus/*/seed0/results.json"))
        assert len(results) == 1
        assert done.stdout.count("done: ") == 2  # teacher and student, said by one process
        weights.append(load_file(results[0].parent / "model" / "model.safetensors"))
        epochs.append((results[0].parent / "00_replacing" / "metrics.jsonl").read_text().count("dev"))
    assert epochs[0] == epochs[1]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=2e-6, msg=name)
