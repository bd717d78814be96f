"""The words of the plan are words of kdbench, and the teacher's run is the one that its students ask for."""

import csv
from dataclasses import replace

import pytest

from kdbench.best.plan import encoders
from kdbench.best.work import configured
from kdbench.runs.identity import run_id
from kdbench.runs.related import teacher_run
from kdbench.training.hardware import settle
from tests.best.test_plan import LOOK, WISH, Board, plan


@pytest.fixture
def candidates(tmp_path):
    path = tmp_path / "year 2024.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["body", "stars"], *([f"text {at}", at % 3] for at in range(60))])
    wish = replace(WISH, file=path, outputs=tmp_path / "a b", seconds=600.0)
    look = replace(LOOK, rows={name: LOOK.rows[name] for name in ("train", "dev", "test")})
    return [*plan(wish, look, tuple(encoders())).candidates(Board())]


def test_every_candidate_is_a_command_of_kdbench(candidates):
    for candidate in candidates:
        config, choices = configured(candidate.words)
        assert config.dataset.text == "body"
        assert config.outputs.endswith("a b")
        assert choices["dataset"] == "files"
        assert not candidate.steps or config.schedule.steps == candidate.steps


def test_the_students_ask_for_the_teacher_that_was_trained_before_them(candidates):
    teacher, _ = configured(next(one for one in candidates if "the teacher" in one.name).words)
    taught, _ = configured(next(one for one in candidates if "taught by" in one.name).words)
    hardware = settle(teacher.hardware)
    assert run_id(teacher, hardware) == run_id(teacher_run(taught), hardware)
    assert teacher.seed == teacher_run(taught).seed
