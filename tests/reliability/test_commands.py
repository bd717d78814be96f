"""The whole command, stopped, killed or refused: its exit code, its words, and what the same command then does.

It runs in a process forked from this one; all but Python's own start is a user's.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.cli import main as cli
from kdbench.storage.results import RESULTS, verify_run
from kdbench.training import loop as train
from tests.reliability.forks import forked
from tests.reliability.test_forged import FORGED, seal

Command = Callable[..., tuple[int, str]]
OTHERS = ("moments narrowed", "state is a list", "no progress")


@pytest.fixture
def steps(monkeypatch, tmp_path) -> Callable[[], list[tuple[str, int]]]:
    """Every optimiser step that any process takes from now on."""
    path, step = tmp_path / "steps", train._Trainer._step

    def noted(self, batch):
        with path.open("a") as file:
            file.write(json.dumps([str(self.folder), self.progress.step]) + "\n")
        step(self, batch)

    monkeypatch.setattr(train._Trainer, "_step", noted)
    return lambda: [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def command(command_line, monkeypatch, tmp_path) -> Command:
    """`command("stop_after=1")` -> the exit code and all that was printed; `while_it_runs` gets the process id."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, while_it_runs: Callable[[int], object] = lambda process: None) -> tuple[int, str]:
        output = tmp_path / "output"

        def work() -> None:
            file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            sys.argv = ["kdbench", *command_line("method=finetune", "checkpoint_every=4", *words)]
            for descriptor, stream in ((1, "__stdout__"), (2, "__stderr__")):
                os.dup2(file, descriptor)
                setattr(sys, stream.strip("_"), getattr(sys, stream))
            try:
                cli.main()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()

        child = forked(work)
        while_it_runs(child)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output.read_text()

    return run


def result(tmp_path: Path) -> dict[str, Any]:
    (path,) = (tmp_path / "outputs").rglob(RESULTS)
    found = verify_run(path.parent)
    assert found is not None
    return found


def wait_for(steps: Callable[[], list[tuple[str, int]]], count: int) -> None:
    while len(steps()) < count:
        time.sleep(0.01)


@pytest.mark.slow
def test_a_faked_preemption_again_and_again_ends_as_one_command_does(command, steps, tmp_path):
    codes = []
    while not codes or codes[-1]:
        code, said = command("preempt_at=5")
        codes.append(code)
        assert code == 0 or re.search(r"stopped and saved in stage training, step \d+ of 16: the same command", said)
        assert "Traceback" not in said
    assert codes == [143, 143, 143, 0]
    assert [step for _, step in steps()] == list(range(16)), "no step twice"
    again = result(tmp_path)
    assert command(f"outputs={tmp_path / 'outputs' / 'whole'}")[0] == 0
    whole = next((tmp_path / "outputs" / "whole").rglob(RESULTS)).parent
    assert verify_run(whole)["metrics"] == again["metrics"]
    assert verify_run(whole)["stages"][0]["epochs"] == again["stages"][0]["epochs"]


@pytest.mark.parametrize(
    ("number", "expected"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_from_outside(command, steps, tmp_path, number, expected):
    def send(process: int) -> None:
        wait_for(steps, 3)
        os.kill(process, number)

    code, said = command("schedule.epochs=200", while_it_runs=send)
    assert code == expected and "Traceback" not in said
    (done,) = re.findall(r"stopped and saved in stage training, step (\d+) of 1600: the same command", said)
    assert len(steps()) == int(done) and not list((tmp_path / "outputs").rglob(RESULTS))
    code, said = command("schedule.epochs=200", f"preempt_at={3}")
    assert code == 143 and f"resumes at step {done}" in said
    assert [step for _, step in steps()] == list(range(int(done) + 3)), "no step twice"


@pytest.mark.slow
def test_a_second_interruption_stops_at_once_unharmed(command, steps, tmp_path, monkeypatch):
    step = train._Trainer._step

    def stuck(self, batch):
        step(self, batch)
        if self.progress.step == 9:
            time.sleep(60)

    monkeypatch.setattr(train._Trainer, "_step", stuck)

    def twice(process: int) -> None:
        wait_for(steps, 10)
        for _ in range(2):
            time.sleep(0.3)
            os.kill(process, signal.SIGINT)

    started = time.monotonic()
    code, said = command(while_it_runs=twice)
    assert code == 130 and time.monotonic() - started < 50 and "Traceback" not in said
    assert "stopping after this step; a second signal stops at once" in said
    assert len(steps()) == 10
    monkeypatch.setattr(train._Trainer, "_step", step)
    assert command()[0] == 0 and result(tmp_path)["stages"][0]["steps"] == 16
    assert [one for _, one in steps()] == [*range(10), *range(8, 16)], "from the last checkpoint"


@pytest.mark.slow
def test_a_time_limit(command, steps):
    code, said = command("stop_after=1e-6")
    assert code == 75 and "stopped and saved in stage training, step 1 of 16" in said
    assert len(steps()) == 1


@pytest.mark.parametrize("name", ["module renamed", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
def test_a_forged_checkpoint(command, steps, tmp_path, name):
    assert command("preempt_at=6")[0] == 143
    (checkpoint,) = (tmp_path / "outputs").rglob("checkpoint-6")
    file, forge = FORGED[name]
    forge(checkpoint / file)
    seal(checkpoint)
    code, said = command()
    assert code == 1 and f"{checkpoint} is intact, but not what belongs there" in said
    assert "Traceback" not in said and len(steps()) == 6
