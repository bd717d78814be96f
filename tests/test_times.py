"""How fast models are: measured together when a command ends, and believed where the machine was quiet."""

import json
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from kdbench.cli import main as cli
from kdbench.compare import cli as compare_runs
from kdbench.inference import latency, measure, quiet
from kdbench.runs import times
from kdbench.storage.files import Damaged
from kdbench.storage.results import amend_result, read_result, verify_run
from kdbench.training.interrupts import Stopped

CALM = quiet.Load(others=0.01, own=1.0, processors=2)


@pytest.fixture
def measured(monkeypatch) -> list[list[object]]:
    """What each measurement was of, on a machine that is quiet."""
    calls: list[list[object]] = []
    monkeypatch.setattr(measure, "is_quiet", lambda load, figures: True)
    own = measure.measured
    monkeypatch.setattr(measure, "measured", lambda given, **more: calls.append([*given]) or own(given, **more))
    return calls


@pytest.fixture
def command(command_line, monkeypatch):
    """A command in this process; returns the results of its outputs, by method and seed."""

    def do(*words: str) -> dict[tuple[str, int], dict]:
        plain = command_line(*(word for word in words if word != "-m"))
        monkeypatch.setattr(sys, "argv", ["kdbench", *(["-m"] if "-m" in words else []), *plain])
        cli.main()
        outputs = Path(next(word for word in plain if word.startswith("outputs=")).removeprefix("outputs="))
        found = [json.loads(path.read_text()) | {"folder": path.parent} for path in outputs.rglob("results.json")]
        names = {4: "teacher"}
        return {(names.get(one["identity"]["layers"], one["identity"]["method"]), one["seed"]): one for one in found}

    return do


def test_a_command_measures_all_its_models_together(command, measured, capsys):
    sweep = ("-m", "method=finetune,logit_kd", "schedule.epochs=1")
    found = command(*sweep)
    assert len(found) == 3 and len(measured) == 1  # at the end, once
    assert len(measured[0]) == 2  # of one shape one
    teacher, student = found["teacher", 0], found["logit_kd", 0]
    students = [one for (name, _), one in found.items() if name != "teacher"]
    assert len({json.dumps(one["latency"]["batch_1"]) for one in students}) == 1
    for one in found.values():
        assert one["latency"]["teacher"]["id"] == teacher["id"]
        assert one["latency"]["teacher"]["batch_1"] == teacher["latency"]["batch_1"]
        assert {"when", "load", "quiet", "device", "threads", "length"} <= one["latency"].keys()
        assert verify_run(one["folder"]) is not None  # still lists its files, which are whole
    capsys.readouterr()
    assert compare_runs.main([str(student["folder"].parents[3]), "--no-tests", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    ratio = teacher["latency"]["batch_1"]["median_ms"] / student["latency"]["batch_1"]["median_ms"]
    assert {row["speedup"] for row in rows} == {1.0, ratio}

    command(*sweep)
    assert len(measured) == 1  # found, with their times
    again = command("method=two_stage", "schedule.epochs=1")
    assert len(measured) == 2 and len(measured[1]) == 2  # the new one beside its teacher
    assert again["logit_kd", 0]["latency"] == student["latency"]
    assert again["two_stage", 0]["latency"]["teacher"]["id"] == teacher["id"]


def test_a_command_that_is_killed_before_it_measures_has_finished_runs(command, measured, monkeypatch, capsys):
    with monkeypatch.context() as killed:
        killed.setattr(times, "at_the_end", lambda runs: (_ for _ in ()).throw(Stopped("stopped", 130)))
        with pytest.raises(SystemExit, match="130"):
            command("method=logit_kd", "schedule.epochs=1")
    assert measured == []
    capsys.readouterr()
    found = command("method=logit_kd", "schedule.epochs=1")
    assert "stage training" not in capsys.readouterr().out  # both were done
    assert all(one["latency"]["when"] for one in found.values()) and len(measured) == 1


def test_runs_without_times_are_compared(configure, execute, capsys):
    folder = Path(execute(configure("method=logit_kd", "schedule.epochs=1"))["folder"])
    capsys.readouterr()
    assert compare_runs.main([str(folder.parents[2]), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    assert all(row["latency_batch_1_ms"] is row["latency_quiet"] is row["speedup"] is None for row in rows)
    for layout in ("table", "markdown", "latex", "html", "csv"):
        assert compare_runs.main([str(folder.parents[2]), "--format", layout]) == 0


@pytest.fixture
def run(configure, execute) -> Path:
    return Path(execute(configure("method=finetune", "schedule.epochs=1"))["folder"])


def test_who_does_not_measure(run, measured, monkeypatch, capsys):
    with monkeypatch.context() as second:
        second.setenv("RANK", "1")  # torchrun's second process
        times.at_the_end({run: None})
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(times, "machine", lambda: "another")
        times.at_the_end({run: None})
    with FileLock(run.parent / f".{run.name}.lock"):  # another command does it again
        times.at_the_end({run: None})
    assert (read_result(run) or {})["latency"]["when"] is None
    times.at_the_end({run: None})
    assert (read_result(run) or {})["latency"]["when"] is not None


def test_a_damaged_run_stays_damaged(run, measured, capsys):
    amend_result(run, {"tag": "later"})
    assert (verify_run(run) or {})["tag"] == "later"
    (run / "model" / "model.safetensors").write_bytes(b"damaged")
    times.at_the_end({run: None})  # says so, and does not fail
    assert "no times were measured" in capsys.readouterr().out
    amend_result(run, {"tag": "last"})
    with pytest.raises(Damaged):
        verify_run(run)


def test_a_fastbert_is_timed_at_its_speeds(configure, execute, measured):
    run = Path(execute(configure("method=fastbert", "schedule.epochs=1"))["folder"])
    found = latency.together({run: None})[run]
    assert set(found["by_speed"]) == {"0", "0.1", "0.5", "0.8"} and len(measured[0]) == 5
    assert all(one["batch_1"]["median_ms"] > 0 for one in found["by_speed"].values())


def test_a_dry_run_measures_nothing(command, measured):
    assert command("method=logit_kd", "dry_run=true") == {} and measured == []
    assert command("method=tfidf", "dry_run=true") == {} and measured == []


@pytest.mark.parametrize(
    ("load", "repeats", "expected"),
    [
        (CALM, [0.02, 0.09], True),
        (CALM, [0.02, 0.2], False),  # the same text took a fifth longer the next time
        (CALM._replace(others=0.3), [0.02], False),
        (CALM._replace(others=0.3, processors=8), [0.02], True),
        (CALM._replace(own=0.5), [0.02], False),  # a container's limit
        (CALM._replace(own=1.7), [0.02], True),  # two threads
    ],
)
def test_when_a_machine_is_quiet(load, repeats, expected):
    assert quiet.is_quiet(load, [{"repeat": one} for one in repeats]) is expected


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (CALM._replace(others=0.5), "other programs used 0.50 of 2 processors"),
        (CALM._replace(own=0.4), "this process got 0.40 of one processor"),
        (CALM, "timings of the same text differed by more than 10 %"),
    ],
)
def test_the_reason_of_a_noisy_machine_is_the_one_that_holds(load, said):
    assert quiet.noise(load.record()) == said


def test_other_work_is_all_that_is_not_our_own(monkeypatch):
    """Ten seconds in which this process has 9, all work together 13, of two processors; a third is not ours."""
    moments = iter([(0.0, 0.0, 0.0), (10.0, 9.0, 6.5)])

    class Cpu:
        def __init__(self, user: float) -> None:
            self.user = user

        def _asdict(self) -> dict[str, float]:
            return {"user": self.user, "idle": 5.0, "iowait": 1.0}

    def cpu_times(percpu: bool) -> list[Cpu]:
        now[0] = next(moments)
        return [Cpu(now[0][2]), Cpu(now[0][2]), Cpu(100 * now[0][2])]

    now = [(0.0, 0.0, 0.0)]
    monkeypatch.setattr(quiet, "processors", lambda: [0, 1])
    monkeypatch.setattr(psutil, "cpu_times", cpu_times)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0][0])
    monkeypatch.setattr(time, "process_time", lambda: now[0][1])
    load = quiet.Stopwatch().load()
    assert load == (pytest.approx(0.4), pytest.approx(0.9), 2)


def test_a_slow_call_is_made_no_more_than_it_must_be(monkeypatch):
    """An export on a busy machine took four and a half minutes."""
    monkeypatch.setattr(measure, "LONG", 0.001)
    made = []

    def slow(size: int, turn: int) -> None:
        time.sleep(0.002)
        made.append((size, turn))

    measure.latency({"slow": slow}, budget=0.001)
    assert made == [(1, 0), (1, 0), (32, 0), (32, 0)]
