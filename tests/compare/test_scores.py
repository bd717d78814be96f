"""Points of examples: their mean is the metric, their spread that of leaving examples out."""

import numpy as np
import pytest

from kdbench.compare.statistics import crossed
from kdbench.schema import TASKS
from kdbench.storage.predictions import Predictions
from kdbench.tasks import kind, traits
from kdbench.tasks.token_classification import ragged

METRICS = [(task, metric) for task in TASKS for metric in traits(task).metrics]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def predictions(task: str, metric: str, n: int = 400, seed: int = 0) -> Predictions:
    """Labels, and answers that are right more often than not."""
    draw = np.random.default_rng(seed)
    names = {"token_classification": TAGS, "regression": ["score"]}.get(
        task, ["a", "b"] if metric == "f1" else [*"abc"]
    )
    if task == "regression":
        labels = draw.integers(0, 11, n) / 2  # with ties
        predicted = labels + draw.normal(0, 1.5, n)
    elif task == "multi_label":
        labels = (draw.random((n, 3)) < [0.5, 0.2, 0.1]).astype(np.int8)
        predicted = np.where(draw.random((n, 3)) < 0.8, labels, 1 - labels).astype(np.int8)
    elif task == "token_classification":
        labels = ragged([draw.choice(5, draw.integers(1, 9), p=[0.5, 0.2, 0.1, 0.1, 0.1]) for _ in range(n)])
        predicted = ragged(
            [np.where(draw.random(len(one)) < 0.8, one, draw.integers(-1, 5, len(one))) for one in labels]
        )
    else:
        shares = [0.7, 0.3] if len(names) == 2 else [0.5, 0.3, 0.2]
        labels = draw.choice(len(names), n, p=shares)  # type: ignore[assignment]
        predicted = np.where(draw.random(n) < 0.7, labels, draw.integers(0, len(names), n))
    return Predictions(np.arange(n), labels, predicted, task, names)


def measured(one: Predictions, rows: np.ndarray, metric: str) -> float:
    return 100 * kind(one.task).figures(one.labels[rows], one.predicted[rows], one.names)[metric]


def scores(metric: str, one: Predictions) -> np.ndarray:
    return kind(one.task).points(metric, one.labels, one.predicted, one.names)


@pytest.mark.parametrize(("task", "metric"), METRICS)
def test_points_are_those_of_leaving_one_example_out(task, metric):
    one = predictions(task, metric, 60)
    every, whole = np.arange(60), measured(one, np.arange(60), metric)
    found = scores(metric, one)
    assert found.mean() == pytest.approx(whole)
    # Tukey's pseudo-values: what example i adds, times n
    left_out = np.array([60 * whole - 59 * measured(one, np.delete(every, i), metric) for i in every])
    assert np.corrcoef(found, left_out)[0, 1] > 0.99
    assert found.std() == pytest.approx(left_out.std(), rel=0.12)


@pytest.mark.parametrize(("task", "metric"), [("regression", "spearman"), ("multi_label", "micro_f1")])
def test_the_interval_is_that_of_a_bootstrap_over_examples(task, metric):
    one, draw = predictions(task, metric), np.random.default_rng(1)
    drawn = [measured(one, draw.integers(0, 400, 400), metric) for _ in range(200)]
    assert crossed(scores(metric, one)[None]).error == pytest.approx(np.std(drawn), rel=0.15)


@pytest.mark.parametrize(("task", "metric"), METRICS)
def test_answers_that_are_all_alike_have_points_too(task, metric):
    one = predictions(task, metric, 20)
    alike = ragged([0 * row for row in one.predicted]) if task == "token_classification" else 0 * one.predicted
    one = Predictions(one.ids, one.labels, alike, task, one.names)
    assert scores(metric, one).mean() == pytest.approx(measured(one, np.arange(20), metric))
