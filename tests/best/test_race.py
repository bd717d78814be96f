"""Runs within a time, in processes that can be stopped; and the folder of the answer."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.best import answer, race
from kdbench.best.cli import main
from kdbench.best.plan import Candidate
from kdbench.best.race import Race
from kdbench.best.show import Screen
from kdbench.best.standing import Clock, Standing
from kdbench.best.work import Ended, Workers, export, run
from kdbench.errors import Code, UserError
from tests.best.jobs import fails
from tests.best.test_plan import WISH, plan
from tests.best.test_standing import add
from tests.refusals import refused


class Script:
    """A plan whose candidates are given."""

    def __init__(self, *candidates: Candidate) -> None:
        self.given = candidates

    def candidates(self, board: Any) -> Any:
        yield from self.given


class Done:
    """Workers whose runs are there at once: `found` has the folder of each command."""

    def __init__(self, found: dict[tuple[str, ...], Path | None]) -> None:
        self.found, self.asked = found, []

    def do(self, job: Callable[..., Any], given: Any, *, seconds: float, meanwhile: Callable[[], None]) -> Ended:
        self.asked.append((job, given))
        return Ended(found=self.found[given] if job is run else given)


@pytest.fixture
def standing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Standing(plan(), Clock(WISH), Path("log"))


def candidate(name: str, seconds: float = 1.0) -> Candidate:
    return Candidate(name, (f"method={name}",), seconds)


def test_the_answer_is_written_for_each_better_model_and_what_has_no_time_is_not_begun(standing, monkeypatch):
    for name, wrong in (("a", 100), ("b", 40), ("c", 60)):
        add(standing, name, set(range(wrong)), 1.0)
    standing.entries.clear()
    monkeypatch.setattr(race, "read_result", lambda folder: json.loads((folder / "results.json").read_text()))
    script: Any = Script(*map(candidate, "abc"), candidate("late", 1e6), candidate("lost"))
    standing.plan = script
    standing.decided.update(b=7, late=60)
    found: dict[tuple[str, ...], Path | None] = {(f"method={name}",): Path(name) for name in "abc"}
    workers: Any = Done(found | {("method=lost",): None})
    written = []
    monkeypatch.setattr(answer, "write", lambda now, page: written.append(now.leading.run.name))
    Race(standing, workers, Screen(explain=False, as_json=False)).go()
    assert written == ["a", "b"]
    assert [entry.state for entry in standing.entries] == ["done", "done", "done", "no time", "failed"]
    assert standing.decided == {"b": 7}
    assert standing.clock.done == ["a", "b", "c"]
    assert ("method=late",) not in [given for _, given in workers.asked]
    exported = [given.name for job, given in workers.asked if job is export]
    assert exported == ["a", "b"]  # c is more than WORTH points below b


def test_the_first_model_is_made_however_late_it_is(standing, monkeypatch):
    add(standing, "a", set(), 1.0)
    standing.entries.clear()
    monkeypatch.setattr(race, "read_result", lambda folder: json.loads((folder / "results.json").read_text()))
    script: Any = Script(candidate("a", 1e6))
    standing.plan = script
    workers: Any = Done({("method=a",): Path("a")})
    monkeypatch.setattr(answer, "write", lambda now, page: None)
    Race(standing, workers, Screen(explain=False, as_json=False)).go()
    assert [entry.state for entry in standing.entries] == ["done"]


@pytest.mark.parametrize("found", [True, False])
def test_a_run_that_was_there_says_nothing_of_the_pace(standing, monkeypatch, found):
    form = add(standing, "a", set(), 1.0)
    standing.entries.clear()
    if found:
        os.utime(form.record, (1.0, 1.0))
    else:
        os.utime(form.record, (time.time() + 9, time.time() + 9))
    monkeypatch.setattr(race, "read_result", lambda folder: json.loads((folder / "results.json").read_text()))
    script: Any = Script(replace(candidate("a", 1e6), steps=5))
    standing.plan = script
    workers: Any = Done({("method=a",): Path("a")})
    monkeypatch.setattr(answer, "write", lambda now, page: None)
    Race(standing, workers, Screen(explain=False, as_json=False)).go()
    assert (standing.pace == 1.0) == found


def test_what_was_done_before_is_found_however_little_time_is_left(standing, monkeypatch):
    add(standing, "a", set(), 1.0)
    standing.entries.clear()
    standing.clock.done += ["b"]
    standing.decided.update(b=5)
    monkeypatch.setattr(race, "read_result", lambda folder: json.loads((folder / "results.json").read_text()))
    script: Any = Script(candidate("a"), candidate("b", 1e6), candidate("c", 1e6))
    standing.plan = script
    workers: Any = Done({("method=a",): Path("a"), ("method=b",): Path("a")})
    monkeypatch.setattr(answer, "write", lambda now, page: None)
    Race(standing, workers, Screen(explain=False, as_json=False)).go()
    assert [entry.state for entry in standing.entries] == ["done", "done", "no time"]
    assert standing.decided == {"b": 5}
    standing.clock.close()
    assert Clock(WISH).done == ["b", "a"]


def test_the_folder_has_the_model_its_commands_and_the_sentences(standing):
    best = add(standing, "best", set(range(40)), 1.0)
    (best.run / "model").mkdir()
    (best.run / "model" / "model.safetensors").write_text("weights")
    assert answer.write(standing, page=False) == best
    out = standing.wish.out
    assert {"README.md", "answer.json", "model"} <= {path.name for path in out.iterdir()}
    said = json.loads((out / "answer.json").read_text())
    assert said["commands"][0] == "kdbench method=x" and said["rows"][0]["dev"] == 90.0
    assert all(sentence in (out / "README.md").read_text() for sentence in said["sentences"])
    answer.require_place(out)  # its own answer may be replaced


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    answer.require_place(tmp_path / "mine")
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with refused(Code.WOULD_OVERWRITE, "--out", kind=UserError):
        answer.require_place(tmp_path / "mine")


def test_a_command_that_cannot_work_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none.csv")]) == 2
    (tmp_path / "a.csv").write_text("text,label\n")
    assert main([str(tmp_path / "a.csv"), "--latency", "2"]) == 2
    assert main([str(tmp_path / "a.csv"), "--text", "label"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and str(Code.MISSING_FILE) in lines[0]
    assert "--latency 2:" in lines[1] and "--label label" in lines[2]


def test_a_job_ends_with_what_it_found_or_why_not(tmp_path):
    workers = Workers()
    workers.context.set_forkserver_preload([])  # quicker than torch
    workers.log = tmp_path / "log"
    assert workers.do(divmod, 7, 2, seconds=60) == Ended(found=(3, 1))
    assert workers.do(fails, "user", seconds=60) == Ended(problem="no such column", code="MISSING_COLUMN")
    assert workers.do(fails, "bug", seconds=60).problem == "ValueError: a bug"
    assert "a bug" in workers.log.read_text()
    assert "-9" in (workers.do(fails, "killed", seconds=60).problem or "")
    began = time.monotonic()
    assert workers.do(fails, "slow", seconds=1).stopped
    assert time.monotonic() - began < 30
