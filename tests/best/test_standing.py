"""Which model leads, and how sure that is: from files of predictions that are made here."""

import json
from pathlib import Path

import numpy as np
import pytest

from kdbench.best import answer
from kdbench.best.plan import Candidate
from kdbench.best.standing import Clock, Entry, Form, Standing, standard_error
from kdbench.storage.files import write_bytes, write_json
from kdbench.storage.predictions import predictions_file
from tests.best.test_plan import WISH, plan

N = 400


@pytest.fixture
def standing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Standing(plan(), Clock(WISH), Path("log"))


def add(standing: Standing, name: str, wrong: set[int], ms: float | None, size: float | None = 10.0) -> Form:
    """Add a model that is wrong on these of N dev texts."""
    labels = np.arange(N) % 2
    logits = np.zeros((N, 2), np.float32)
    answers = np.array([label ^ (at in wrong) for at, label in enumerate(labels)])
    logits[np.arange(N), answers] = 1
    folder = Path(name)
    folder.mkdir()
    result = {
        "metrics": {"dev": {"accuracy": 1 - len(wrong) / N, "n": N}, "test": {"accuracy": 0.5, "n": N}},
        "identity": {"metric": "accuracy"},
        "latency": {"batch_1": ms and {"median_ms": ms}},
        "bytes": size and size * 1e6,
    }
    write_json(folder / "results.json", result)
    split = (np.arange(N), labels, logits)
    write_bytes(
        folder / "predictions.parquet", predictions_file("classification", ["a", "b"], {"dev": split, "test": split})
    )
    form = Form(folder, "pytorch", folder / "results.json", result)
    standing.entries.append(Entry(Candidate(name, ("method=x",), 1.0), "done", forms=[form]))
    return form


def test_the_error_of_a_difference_is_that_of_paired_texts(standing):
    a, b = add(standing, "a", set(range(40)), 5.0), add(standing, "b", set(range(10, 70)), 1.0)
    apart = np.zeros(N)
    apart[:10], apart[40:70] = -100, 100  # only a is wrong, only b is wrong
    assert standard_error(a, b) == pytest.approx(apart.std(ddof=1) / N**0.5)


def test_the_best_on_dev_leads_and_of_equal_ones_the_fastest(standing):
    slow = add(standing, "slow", set(range(40)), 9.0)
    add(standing, "near", set(range(42)), 1.0)
    assert standing.leading == slow
    quick = add(standing, "quick", set(range(50, 90)), 1.0)
    assert standing.leading == quick


def test_the_second_sentence_names_the_fastest_of_those_that_may_be_as_good(standing):
    best = add(standing, "best", set(range(40)), 9.0)
    add(standing, "near", set(range(2, 44)), 1.0)  # 4 texts of 400 apart
    add(standing, "poor", set(range(100)), 0.1)
    said = answer.sentences(standing, best)[1]
    assert "Of 2 other models" in said and "1 are worse" in said and "is near (dev 89.50, 1 ms a text" in said


def test_a_model_beyond_a_limit_does_not_lead(tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)
    wish = replace(WISH, latency=2.0, size=20.0)
    made = Standing(plan(wish), Clock(wish), Path("log"))
    slow, large = add(made, "slow", set(), 3.0), add(made, "large", set(range(3)), 1.0, 50.0)
    assert made.leading is None
    assert made.nearest == slow  # 1.5 times its limit, the other 2.5 times
    add(made, "untimed", set(range(5)), None)
    assert made.leading is None
    small = add(made, "small", set(range(50)), 1.0)
    assert made.leading == small
    assert large in [form for entry in made.entries for form in entry.forms]


def test_the_same_command_goes_on_with_the_time_that_is_left(tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)
    Path("best").mkdir()
    first = Clock(WISH)
    first.used, first.decided["a teacher"] = 1000.0, 77
    first.save()
    assert Clock(WISH).left == pytest.approx(2600, abs=5)
    assert Clock(replace(WISH, seconds=7200.0)).left == pytest.approx(6200, abs=5)  # more time for the same wish
    assert Clock(replace(WISH, latency=1.0)).left == pytest.approx(3600, abs=5)  # another wish
    first.close()
    assert Clock(WISH).left == pytest.approx(3600, abs=5)
    assert Clock(WISH).decided == {"a teacher": 77}  # after the end, the same command finds the same runs
    assert Clock(replace(WISH, seconds=7200.0)).decided == Clock(replace(WISH, latency=1.0)).decided == {}
    assert json.loads(json.dumps(first.what))
