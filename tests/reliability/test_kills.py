"""Real tiny runs, killed without a word at random moments, alone and side by side: what they end with is bit-equal.

Processes are forked from this one, which has torch loaded, so that a kill costs a second and not ten.
"""

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench import store, train
from kdbench.results import RESULTS, verify_run
from tests.test_methods import METHODS

EVERY = 5  # checkpoint_every of the tiny runs
KEPT = ("model.safetensors", "student.safetensors", "extra.safetensors", "predictions.parquet", "metrics.jsonl")


def forked(work: Callable[[], object]) -> int:
    """A process that does `work`; its exit status is 0 if that ended well."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def content(outputs: Path) -> dict[str, bytes]:
    """All weights, predictions and logged losses below a folder."""
    return {str(p.relative_to(outputs)): p.read_bytes() for p in sorted(outputs.rglob("*")) if p.name in KEPT}


def metrics(outputs: Path) -> dict[str, object]:
    results = [store.read_record(path) for path in sorted(outputs.rglob(RESULTS))]
    return {f"{result['id']} {result['seed']}": result.get("metrics") for result in results}


def whole_stages(outputs: Path) -> set[str]:
    found = set()
    for path in outputs.rglob(train.STAGE):
        store.verify(path)
        found.add(str(path.parent))
    return found


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Every optimiser step of every process, as a line of a file: (process, stage's folder, step)."""
    path = tmp_path / "steps"
    step = train._Trainer._step

    def noted(self, batch):
        with path.open("a") as file:
            file.write(json.dumps([os.getpid(), str(self.folder), self.progress.step]) + "\n")
        step(self, batch)

    monkeypatch.setattr(train._Trainer, "_step", noted)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    return path


def steps_of(path: Path, process: int | None = None) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(folder, step) for pid, folder, step in lines if process in (None, pid)]


def kill_chain(do: Callable[[], object], outputs: Path, steps: Path, seconds: float, draw: random.Random) -> int:
    """The same command again and again, killed at random moments, until it ends; how often it was killed.

    The kernel kills it when it has used so much CPU time, of `seconds` for a whole run: a busy machine moves nothing.
    """

    def work(limit: float) -> None:
        signal.setitimer(signal.ITIMER_PROF, limit)  # SIGPROF: without a handler it ends a process as SIGKILL does
        do()

    kills = 0
    while True:
        done_before = whole_stages(outputs)
        limit = draw.uniform(0.01, seconds / 2) if kills < 6 else 100 * seconds
        child = forked(lambda limit=limit: work(limit))
        status = os.waitpid(child, 0)[1]
        assert not {folder for folder, _ in steps_of(steps, child)} & done_before, "a finished stage was repeated"
        if status == 0:
            return kills
        assert os.WTERMSIG(status) == signal.SIGPROF
        kills += 1


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("method", "chains"),
    [("theseus", 1), *(pytest.param(method, 12, marks=pytest.mark.slow) for method in METHODS)],
)
def test_killed_at_any_moment_it_ends_equal(configure, execute, counted, tmp_path, capsys, method, chains):
    whole = tmp_path / "whole"
    execute(configure(f"method={method}", f"outputs={whole}", f"cache_dir={tmp_path / 'cache_of_whole'}"))
    before = cpu_of_children()
    again = configure(f"method={method}", f"outputs={tmp_path / 'again'}", f"cache_dir={tmp_path / 'cache_of_again'}")
    os.waitpid(forked(lambda: execute(again)), 0)
    seconds, kills, draw = cpu_of_children() - before, 0, random.Random(method)
    for number in range(chains):
        place = tmp_path / str(number)
        config = configure(f"method={method}", f"outputs={place / 'outputs'}", f"cache_dir={place / 'cache'}")
        counted.unlink(missing_ok=True)
        here = kill_chain(lambda config=config: execute(config), place / "outputs", counted, seconds, draw)
        assert here > 0
        taken = steps_of(counted)
        assert len(taken) - len(set(taken)) <= here * EVERY
        kills += here
        assert content(place / "outputs") == content(whole) and metrics(place / "outputs") == metrics(whole)
        assert not list(place.rglob("*.part")) and not list(place.rglob(".tmp*"))
    with capsys.disabled():
        print(f"\nkilled, {method}: {kills} tried in {chains} chains, {kills} survived, 0 different")


@pytest.mark.parametrize(
    ("processes", "rounds"), [(4, 1), pytest.param(16, 25, marks=pytest.mark.slow)], ids=["fast", "full"]
)
def test_side_by_side_with_kills_nothing_is_lost_doubled_or_half(
    configure, execute, counted, tmp_path, capsys, processes, rounds
):
    """The same run twice, runs that share a teacher, one cache; some are killed, then all are started again."""
    lines = (["method=logit_kd"], ["method=logit_kd"], ["method=finetune"], ["method=logit_kd", "seed=1"])
    whole = {}
    for number, line in enumerate(lines):
        place = [f"outputs={tmp_path / 'whole'}", f"cache_dir={tmp_path / 'whole_cache'}"]
        whole[number] = execute(configure(*line, *place))
    draw, kills = random.Random(0), 0
    for number in range(rounds):
        place = tmp_path / str(number)
        shared = [f"outputs={place / 'outputs'}", f"cache_dir={place / 'cache'}"]
        configs = [configure(*lines[i % len(lines)], *shared) for i in range(processes)]
        counted.unlink(missing_ok=True)
        children = [forked(lambda config=config: execute(config)) for config in configs]
        for child in draw.sample(children, processes // 2):
            time.sleep(draw.uniform(0, 1))
            os.kill(child, signal.SIGKILL)
            kills += 1
        for child in children:
            os.waitpid(child, 0)
        survivors = [forked(lambda config=config: execute(config)) for config in configs]
        assert {os.waitpid(child, 0)[1] for child in survivors} == {0}
        assert content(place / "outputs") == content(tmp_path / "whole")
        results = [path.parent for path in (place / "outputs").rglob(RESULTS)]
        assert len(results) == 4 and all(verify_run(folder) for folder in results)  # three and their teacher
        taken = steps_of(counted)
        assert len(taken) - len(set(taken)) <= processes // 2 * EVERY, "a stage was trained twice"
        assert not list(place.rglob("*.part"))
    with capsys.disabled():
        print(f"\nside by side: {processes} processes, {rounds} rounds, {kills} kills, 0 lost, 0 doubled, 0 half")
