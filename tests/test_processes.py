"""Two processes end with one process's weights, and end together: the real command under torchrun, gloo on loopback.

One process is this one.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file

from kdbench.cli import main as cli
from kdbench.storage.results import read_result
from tests.hosts import LOCAL, ended, finished, on_host, two_hosts
from tests.reliability.forks import forked

ROOT = Path(__file__).parents[1]
METHODS = sorted(path.stem for path in (ROOT / "kdbench/methods").glob("*.py") if path.stem[0] != "_")
Run = Callable[..., subprocess.Popen[str]]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def words(command_line) -> Callable[..., list[str]]:
    """`words(folder, "method=theseus", ...)` -> the words of a tiny run's command."""

    def make(outputs: Path, *overrides: str) -> list[str]:
        smooth = ["schedule.batch_size=9", "schedule.lr=1e-3", "teacher.schedule.lr=1e-3"]
        return command_line(*smooth, *overrides, f"outputs={outputs}")

    return make


@pytest.fixture
def start(words) -> Run:
    """`start(folder, "method=theseus", ...)` -> the command by two processes, begun."""

    def begin(outputs: Path, *overrides: str) -> subprocess.Popen[str]:
        launcher = ["--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
        environment = os.environ | LOCAL
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "kdbench", *words(outputs, *overrides)],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return begin


def result_of(outputs: Path, method: str) -> Path:
    """The one finished run of the method at its student's size."""
    (folder,) = {path.parent for path in outputs.rglob(f"topics/{method}/*/seed0/results.json")}
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "model" / "model.safetensors"
    return load_file(path) if path.is_file() else {}  # tfidf and cascade keep none


def logits(folder: Path) -> np.ndarray:
    return np.stack(pandas.read_parquet(folder / "predictions.parquet")["logits"].to_list())


def by_torchrun(start, words, outputs: Path, *overrides: str) -> str:
    return finished(start(outputs, *overrides))


def by_fork(start, words, outputs: Path, *overrides: str) -> str:
    """The same without the launcher and without loading torch again: what both print."""
    port, said = free_port(), outputs.with_suffix(".txt")

    def worker(rank: int) -> None:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # this and the log's handlers are of earlier runs
        logging.getLogger("kdbench").handlers.clear()
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **LOCAL}
        with said.open("a", buffering=1) as sys.stdout:
            sys.stderr = sys.stdout
            sys.argv = ["kdbench", *words(outputs, *overrides)]
            cli.main()

    workers = [forked(partial(worker, rank)) for rank in (0, 1)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
    assert codes == [0, 0], said.read_text()
    return said.read_text()


def by_hosts(start, words, outputs: Path, *overrides: str) -> str:
    """torchrun on two hosts that share a folder."""
    meeting = ["--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29500", "--rdzv-id=kdbench"]
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *meeting]

    def host(number: int) -> subprocess.Popen[str]:
        own = [f"--local-addr=10.77.0.{number}", f"--rdzv-conf=is_host={int(number == 1)}"]  # no server knows the names
        return on_host(number, [*launcher, *own, "-m", "kdbench", *words(outputs, *overrides)])

    with two_hosts():
        hosts = [host(1), host(2)]
        return "".join(finished(host) for host in hosts)


@pytest.mark.parametrize(
    ("method", "together", "raw"),
    [
        ("theseus", by_fork, False),
        ("logit_kd", by_fork, True),
        pytest.param("logit_kd", by_hosts, True, marks=pytest.mark.slow),
        *(pytest.param(name, by_torchrun, False, marks=pytest.mark.slow) for name in METHODS),
    ],
)
@pytest.mark.usefixtures("taught")
def test_two_processes_equal_one(start, words, data_folder, tmp_path, monkeypatch, capsys, method, together, raw):
    """`raw`: the teacher is found, and half of the texts have no label, so that a batch's share has few or none."""
    size = {"finetune": ["student=full"], "bilstm": ["student.layers=1", "schedule.dropout=0"]}.get(
        method, []
    )  # full: the teacher's as well
    outputs = [tmp_path / "1", tmp_path / "2"]
    if raw:
        size = [f"dataset.unlabelled={data_folder / 'corpus.txt'}", "method.unlabelled_share=0.5"]
        size += ["teacher.schedule.lr=1e-2"]
        for tree in outputs:
            shutil.copytree(tmp_path / "outputs", tree)
    overrides = [[f"method={method}", *size, f"cache_dir={tmp_path / f'cache{number}'}"] for number in (1, 2)]
    monkeypatch.setattr(sys, "argv", ["kdbench", *words(outputs[0], *overrides[0])])
    cli.main()
    said = [capsys.readouterr().out, together(start, words, outputs[1], *overrides[1])]
    for out, tree in zip(said, outputs, strict=True):
        assert out.count("done: ") == len(list(tree.rglob("results.json"))) - raw  # said and written by one process
    folders = [result_of(tree, method) for tree in outputs]
    one, two = (weights(folder) for folder in folders)
    assert one.keys() == two.keys()
    differences = {name: float((one[name] - two[name]).abs().max()) for name in one}
    answers = float(np.abs(logits(folders[0]) - logits(folders[1])).max())
    print(f"{method}: weights differ by {max(differences.values(), default=0):.1e}, logits by {answers:.1e}")
    for name, tensor in one.items():
        if not name.endswith("key.bias"):  # no score depends on it: its gradient is rounding, which AdamW scales up
            torch.testing.assert_close(tensor, two[name], rtol=1e-4, atol=2e-6, msg=name)
    np.testing.assert_allclose(logits(folders[0]), logits(folders[1]), rtol=1e-4, atol=1e-5)
    results = [read_result(folder) or {} for folder in folders]
    assert bool(results[1]["data"]["unlabelled"]) == raw
    for split, found in results[0]["metrics"].items():  # those of probabilities change with the last digit of a logit
        assert found == pytest.approx(results[1]["metrics"][split], abs=1e-5)
    assert results[0]["id"] == results[1]["id"]
    assert [stage["steps"] for stage in results[0]["stages"]] == [stage["steps"] for stage in results[1]["stages"]]


def workers(launcher: int) -> list[int]:
    """The processes that torchrun has started."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


@pytest.mark.slow
def test_one_is_killed_then_the_other_ends_with_a_message_and_the_same_command_goes_on(start, tmp_path):
    long = ["method=finetune", "student=full", "schedule.steps=3000", "checkpoint_every=20"]
    outputs = tmp_path / "killed"
    run = start(outputs, *long)
    while not list(outputs.rglob("checkpoint-*/MANIFEST.json")):
        assert run.poll() is None
        time.sleep(0.1)
    os.kill(workers(run.pid)[1], signal.SIGKILL)
    code, _, err = ended(run)
    assert code != 0 and "another process of this run has ended" in err, err[-3000:]
    assert not list(outputs.rglob("results.json"))
    short = [*long, "schedule.steps=60"]
    unbroken = tmp_path / "unbroken"
    finished(start(unbroken, *short))
    broken = tmp_path / "broken"
    assert ended(start(broken, *short, "preempt_at=33"))[0] != 0
    assert "resumes at step 33" in finished(start(broken, *short))
    a, b = (weights(result_of(folder, "finetune")) for folder in (unbroken, broken))
    assert all(torch.equal(a[name], b[name]) for name in a)
