"""The time that a stage still takes: after ten steps, on a slow machine and on a fast one, by a clock of the test."""

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from kdbench.storage.status import StatusFile, read_status
from kdbench.training.interrupts import Stopped
from kdbench.training.progress import Display, in_words, logged_to


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(monkeypatch):
    heard: list[str] = []
    monkeypatch.setattr(logging.getLogger("kdbench"), "info", lambda text, *values, **_: heard.append(text % values))
    return heard


def started(clock: Clock, steps: int, terminal: bool = True, step: int = 0) -> Display:
    status = StatusFile(Path("nowhere"), writes=False)
    display = Display(Console(file=io.StringIO(), force_terminal=terminal, width=200), 32, status, clock)
    display.start("training", steps, step, 0)
    return display


def shown(display: Display) -> str:
    (task,) = display.bar.tasks
    return task.fields["left"]


def run(display: Display, clock: Clock, first: int, last: int, seconds: float) -> None:
    for step in range(first, last + 1):
        clock.now += seconds
        display.taken(step)


@pytest.mark.parametrize("seconds", [0.01, 0.2, 3, 40])
def test_ten_steps_are_enough_on_any_machine(lines, seconds):
    clock = Clock()
    display = started(clock, 110)
    run(display, clock, 1, 10, seconds)
    expected = f"{in_words(100 * seconds)} left"
    assert shown(display) == expected
    assert lines[-1].endswith(expected) is (100 * seconds > 20), "a line is for what takes a while"
    count = len(lines)
    run(display, clock, 11, 100, seconds)
    assert len(lines) == count, "said once"
    assert shown(display) in {
        f"{in_words(n * seconds)} left" for n in range(10, 111) if n * seconds <= 10 * seconds + 1
    }
    display.finish()


def test_the_estimate_follows_the_machine_and_is_kept_through_an_evaluation(lines):
    clock = Clock()
    display = started(clock, 30)
    run(display, clock, 1, 10, 60)
    assert shown(display) == f"{in_words(20 * 60)} left"
    display.advance(10, {"ce": 1.0})
    clock.now += 600  # as long as ten steps
    display.epoch(0, {"student": {"accuracy": 0.5}}, "accuracy", {"ce": 1.0})
    assert lines[-1].endswith(f"{in_words(20 * (9 * 60 + 600) / 9)} left")
    display.finish()


def test_a_fast_machine_moves_the_bar_once_a_second(lines, monkeypatch):
    clock = Clock()
    display = started(clock, 10_000)
    moved: list[int] = []
    update = display.bar.update
    monkeypatch.setattr(
        display.bar, "update", lambda task, **new: (moved.append(new["completed"]), update(task, **new))
    )
    run(display, clock, 1, 5000, 0.001)
    assert len(moved) <= 7  # the first, the tenth, five seconds
    display.finish()


def test_lines_alone_where_there_is_no_terminal(lines):
    clock = Clock()
    display = started(clock, 120, terminal=False, step=100)
    run(display, clock, 101, 110, 9)
    assert display.bar is None and lines[-1].endswith(f"{in_words(90)} left")
    display.advance(120, {"ce": 1.0})
    display.epoch(0, {}, "accuracy", {"ce": 1.0})
    assert "left" not in lines[-1], "nothing is left at the end"


def test_only_several_scores_are_named(lines):
    clock = Clock()
    display = started(clock, 10, terminal=False)
    clock.now = 1
    display.advance(5, {})
    display.epoch(0, {"student": {"accuracy": 0.5}}, "accuracy", {})
    assert "student" not in lines[-1]
    display.epoch(0, {"student": {"accuracy": 0.5}, "predecessor": {"accuracy": 0.75}}, "accuracy", {})
    assert "student 50.00" in lines[-1] and "predecessor 75.00" in lines[-1]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "about 1 s"), (40, "about 40 s"), (200, "about 3 min"), (5000, "about 83 min"), (12_600, "about 3.5 h")],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (RuntimeError("loss is nan\nand more"), "ERROR failed: RuntimeError: loss is nan\n"),
        (Stopped("stopped and saved", 143), "INFO stopped and saved\n"),
    ],
)
def test_how_a_run_ended_is_the_last_line_of_its_log(tmp_path, error, end):
    with pytest.raises(type(error)), logged_to(tmp_path / "run.log", True):
        raise error
    assert (tmp_path / "run.log").read_text().endswith(end)


def test_the_status_of_a_run_has_the_estimate_in_seconds(tmp_path, lines):
    clock = Clock()
    display = Display(Console(quiet=True), 32, StatusFile(tmp_path, writes=True), clock)
    display.start("training", 110, 0, 0)
    assert read_status(tmp_path).seconds_left is None
    run(display, clock, 1, 10, 3)
    display.advance(10, {"ce": 1.0})
    display.epoch(0, {"student": {"accuracy": 0.5}}, "accuracy", {"ce": 1.0})
    found = read_status(tmp_path)
    assert (found.step, found.epoch, found.losses, found.dev_score) == (10, 1, {"ce": 1.0}, 0.5)
    assert found.seconds_left == pytest.approx(100 * 3)
