"""The plan of kdbench-best: what is tried, in which order, within limits and time."""

from dataclasses import replace
from pathlib import Path

import pytest

from kdbench.best import plan as plan_module
from kdbench.best.look import Look, share_of
from kdbench.best.machine import Machine
from kdbench.best.plan import ALONE, ANSWERS, FROZEN, LEAST, RATES, SHARE, Candidate, Encoder, Plan
from kdbench.best.wish import Wish, quantity
from kdbench.errors import Code, UserError

WISH = Wish(
    file=Path("reviews.csv"), text="body", label=("stars",), pair=None, unlabelled=None, task="classification",
    metric=None, latency=None, size=None, seconds=3600.0, seed=0, name="reviews", outputs=Path("outputs"),
    out=Path("best/reviews"),
)  # fmt: skip


def wish(folder: Path) -> Wish:
    """Return a wish whose answer is below `folder`."""
    return replace(WISH, out=folder / "best")


LOOK = Look(
    {"train": 1000, "dev": 200, "test": 200, "unlabelled": 9000},
    ("dataset.max_length=64",),
    30.0,
    foreign=False,
    lines=(),
)
SMALL = Encoder("small", 6, 384, 1536, 2e-4, 3e-4, 30_000)
LARGE = Encoder("large", 12, 768, 3072, 2e-5, 1e-4, 30_000)
MACHINE = Machine(training=5e-12, answering=2e-11)


class Board(plan_module.Board):
    """Scores by the place of a candidate, so that the plan can be followed without a run."""

    def __init__(self, scores: dict[str, float] | None = None, left: float = 3600.0) -> None:
        super().__init__(left)
        self.scores = scores or {}

    def score(self, candidate: Candidate) -> float | None:
        return next((score for part, score in self.scores.items() if part in candidate.name), 50.0)


def plan(wish: Wish = WISH, look: Look = LOOK, encoders: tuple[Encoder, ...] = (LARGE, SMALL)) -> Plan:
    return Plan(wish, look, MACHINE, [*encoders])


def words(candidates: list[Candidate]) -> list[str]:
    return [next(word for word in one.words if word.startswith("method=")).partition("=")[2] for one in candidates]


def test_what_is_cheap_comes_first_and_the_teacher_before_its_students():
    found = [*plan().candidates(Board())]
    assert words(found)[:4] == ["tfidf", "tfidf", "static", "frozen"]
    order = [next(at for at, one in enumerate(found) if part in one.name) for part in ("the teacher", "taught by")]
    assert order == sorted(order)
    assert all(word in one.words for one in found for word in WISH.words)


def test_the_largest_teacher_that_the_time_allows_is_taken():
    def teachers(seconds: float) -> list[str]:
        found = plan(replace(WISH, seconds=seconds)).candidates(Board(left=seconds))
        return [one.name.partition(",")[0] for one in found if one.name.endswith("the teacher")]

    assert teachers(36_000) == ["large"]
    assert teachers(600) == ["small"]
    assert teachers(20) == []


def test_with_raw_texts_the_hard_answers_are_tried_too():
    found = [*plan(look=replace(LOOK, rows=LOOK.rows | {"unlabelled": 9_000})).candidates(Board())]
    assert words(found).count("pseudo_label") == 1
    rows = {name: count for name, count in LOOK.rows.items() if name != "unlabelled"}
    assert "pseudo_label" not in words([*plan(look=replace(LOOK, rows=rows)).candidates(Board())])


def test_without_time_for_a_teacher_the_rest_of_it_goes_to_schedules():
    found = [*plan(replace(WISH, seconds=20.0)).candidates(Board(left=20.0))]
    assert not any("taught" in one.name or "the teacher" in one.name for one in found)
    assert sum("learning rate" in one.name for one in found) == len(RATES) - 1 + 2 + 1


def test_in_a_short_time_a_network_makes_fewer_updates_and_keeps_their_number():
    def steps(board: Board) -> dict[str, int]:
        found = plan(replace(WISH, seconds=80.0)).candidates(board)
        return {one.name: one.steps for one in found if one.steps and "learning rate" not in one.name}

    long, short = steps(Board(left=1e6)), Board(left=80.0)
    first = steps(short)
    assert first.keys() == long.keys()
    assert all(first[name] <= long[name] and first[name] >= LEAST for name in first)
    teacher = "small, all 6 layers: the teacher"
    assert first[teacher] > LEAST and first[teacher] < long[teacher]
    run = next(one for one in plan(replace(WISH, seconds=80.0)).candidates(short) if one.name == teacher)
    assert run.seconds == pytest.approx(SHARE * 80, rel=0.02)
    short.pace = 3.0
    assert steps(short) == first


def test_a_teacher_that_is_shipped_and_answers_no_raw_texts_may_take_most_of_the_time():
    look = replace(LOOK, rows=LOOK.rows | {"unlabelled": 0})
    found = plan(replace(WISH, seconds=60.0), look).candidates(Board(left=60.0))
    run = next(one for one in found if one.name.endswith("the teacher"))
    assert run.seconds == pytest.approx(ALONE * 60, rel=0.02)


def test_a_frozen_encoder_is_for_few_texts():
    many = replace(LOOK, rows=LOOK.rows | {"train": 200_000})
    assert "frozen" not in words([*plan(look=many).candidates(Board())])
    (frozen,) = (one for one in plan().candidates(Board()) if one.words[0] == "method=frozen")
    assert frozen.seconds <= FROZEN * WISH.seconds


@pytest.mark.parametrize(("rows", "share"), [(1125, 0.2), (2000, 0.15), (6000, 0.1), (40_000, 0.05), (10**6, 0.01)])
def test_dev_and_test_are_a_tenth_of_the_file_but_neither_few_rows_nor_many(rows, share):
    assert share_of(rows) == share


def test_in_a_short_time_the_teacher_answers_a_part_of_the_raw_texts():
    look = replace(LOOK, rows=LOOK.rows | {"unlabelled": 10**6})
    found = [*plan(replace(WISH, seconds=300.0), look).candidates(Board(left=300.0))]
    limited = {word for one in found for word in one.words if word.startswith("dataset.max_unlabelled_samples=")}
    (number,) = (int(word.partition("=")[2]) for word in limited)
    taught = [one for one in found if "raw texts" in one.name]
    assert len(taught) > 3 and all(limited <= {*one.words} for one in taught)
    assert number * 6 * SMALL.layer * LOOK.tokens * MACHINE.training * 1.5 == pytest.approx(ANSWERS * 300, rel=0.01)
    assert not any("dataset.max_unlabelled" in word for one in plan().candidates(Board()) for word in one.words)


def test_students_that_cannot_keep_a_limit_are_not_trained():
    ms = MACHINE.ms(3 * SMALL.layer, LOOK.tokens)  # so that 6 layers take twice as long, and are just left out
    found = [*plan(replace(WISH, latency=0.95 * ms)).candidates(Board())]
    layers = {word for one in found for word in one.words if word.startswith("student.layers=")}
    assert layers == {"student.layers=5", "student.layers=3"}
    assert not any(one.ships for one in found if "the teacher" in one.name)


def test_texts_that_the_encoder_cannot_read_are_left_to_tfidf():
    assert words([*plan(look=replace(LOOK, foreign=True)).candidates(Board())]) == ["tfidf"]


def test_schedules_are_halved_by_their_scores_on_dev():
    found = [
        one for one in plan().candidates(Board({"learning rate 0.0006": 60.0, "0.0001": 55.0})) if "rate" in one.name
    ]
    first, second = found[: len(RATES) - 1], found[len(RATES) - 1 :]
    assert len({one.steps for one in first}) == 1
    assert [one.steps // first[0].steps for one in second] == [2, 2, 4]
    assert [one.name.rpartition(" ")[2] for one in second] == ["0.0006", "0.0001", "0.0006"]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("time", "60m", 3600),
        ("time", "1.5h", 5400),
        ("latency", "2ms", 2),
        ("latency", "500us", 0.5),
        ("size", "30 MB", 30),
    ],
)
def test_quantities_have_units(kind, text, value):
    assert quantity(kind, text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["60", "0m", "-1m", "m", "1e3m", "5 parsecs"])
def test_other_quantities_are_refused(text):
    with pytest.raises(UserError) as caught:
        quantity("time", text)
    assert caught.value.code == Code.OUT_OF_RANGE
    assert f"--time {text}" in str(caught.value)
