"""Runs whose teachers differ in the seed: which of them are one row, and what its figures cover."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from scipy import stats

from kdbench.compare.cli import main
from kdbench.compare.collect import read_runs
from kdbench.compare.diff import named
from kdbench.compare.keys import Wanted
from kdbench.compare.statistics import degrees_of_freedom
from tests.compare.test_compare_runs import SCORES, TAUGHT, document, make_tree, notes, row, student, write
from tests.compare.test_tests import N, predict

ROW = "f00df00d"
TEACHERS = (97.0, 95.0, 98.5)


def taught(root: Path, id_: str, seed: int, points: float, teacher_seed: int, **changes: Any) -> None:
    """A run of logit_kd under the teacher of this seed; `id_` says the teacher as well."""
    metrics = {split: {"n": 2568, "accuracy": TEACHERS[teacher_seed] / 100} for split in ("dev", "test")}
    teacher = {"id": "cccc3333", "seed": teacher_seed, "metrics": metrics} | TAUGHT
    student(root, "logit_kd", id_, seed, points, teacher=teacher, id_without_teacher_seed=ROW, **changes)
    (folder,) = root.glob(f"r52/logit_kd/bert_3l-{id_}/seed{seed}")
    predict(folder, points, 10 + seed)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Teachers of three seeds, and direct fine-tuning, all with predictions."""
    root = make_tree(tmp_path / "outputs")
    for seed in (1, 2):
        write(root, "finetune", "cccc3333", seed, TEACHERS[seed], baseline_id="cccc3333")
    for id_, scores in (("aaaa1111", SCORES["direct"]), ("bbbb2222", SCORES["longer"]), ("cccc3333", TEACHERS)):
        for seed, score in enumerate(scores):
            (folder,) = root.glob(f"r52/*/bert_3l-{id_}/seed{seed}")
            predict(folder, score, seed)
    return root


def rows(tree: Path) -> dict[str, list[int]]:
    """The seeds of each row of logit_kd."""
    found: dict[str, list[int]] = {}
    for run in read_runs([tree], "accuracy", "test", Wanted())[0]:
        if run.method == "logit_kd":
            found.setdefault(run.row_id, []).append(run.seed)
    return {id_: sorted(seeds) for id_, seeds in found.items()}


def test_a_teacher_of_the_runs_own_seed_makes_one_row(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = (91.0, 93.5, 93.0)
    for seed, score in enumerate(scores):
        taught(tree, f"ffff000{seed}", seed, score, seed)
    every = document(capsys, tree)
    found = row(every, ROW)
    assert found["seeds"] == {str(seed): pytest.approx(score) for seed, score in enumerate(scores)}
    assert [row(every, id_)["teachers"] for id_ in (ROW, "eeee5555", "aaaa1111")] == [3, 1, 0]
    assert found["score_sd_points"] == pytest.approx(np.std(scores, ddof=1))
    gains = np.subtract(scores, SCORES["direct"])  # with the direct fine-tune of the same seed
    assert (found["difference_points"], found["difference_n"]) == (pytest.approx(gains.mean()), 3)
    assert found["difference_sd_points"] == pytest.approx(gains.std(ddof=1)) and found["total_difference_n"] == 3
    gaps = np.subtract(TEACHERS, SCORES["direct"])  # each run's own teacher
    assert found["gap_closed"] == pytest.approx(gains.mean() / gaps.mean())
    assert found["difference_p"] is not None and found["rank_low"] is not None and found["gap_closed_low"] is not None
    said = notes(every)
    assert f"the intervals cover the teachers too: logit_kd ({ROW})." in said
    assert "so no interval covers the effect of another teacher seed: theseus (eeee5555)." in said
    assert main([str(tree), "--format", "markdown"]) == 0
    cells = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    at, id_at = cells[0].index(" teachers "), cells[0].index(" id ")
    assert {line[id_at].strip(): line[at].strip() for line in cells[2:8]} == {
        "aaaa1111": "–", "bbbb2222": "–", "cccc3333": "–", "dddd4444": "–", "eeee5555": "1", ROW: "3"
    }  # fmt: skip
    (folder,) = tree.glob("r52/logit_kd/bert_3l-ffff0001/seed1")
    assert named(f"{ROW}/seed1", read_runs([tree], None, "test", Wanted())[0])[0].path.parent == folder


def test_the_interval_is_that_of_seeds_and_examples(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The crossed model by its mean squares: the teachers are within the seeds."""
    for seed, score in enumerate((89.0, 93.5, 95.0)):
        taught(tree, f"ffff000{seed}", seed, score, seed)
    right = []
    for seed in range(3):
        (folder,) = tree.glob(f"r52/logit_kd/bert_3l-ffff000{seed}/seed{seed}")
        table = pyarrow.parquet.read_table(folder / "predictions.parquet").sort_by("id")
        right.append(100.0 * (np.argmax(np.stack(table["logits"].to_numpy()), 1) == table["label"].to_numpy()))
    values = np.stack(right)
    mean, of_seed, of_example = values.mean(), values.mean(1), values.mean(0)
    between_seeds = N * ((of_seed - mean) ** 2).sum() / 2
    between_examples = 3 * ((of_example - mean) ** 2).sum() / (N - 1)
    rest = ((values - of_seed[:, None] - of_example + mean) ** 2).sum() / (2 * (N - 1))
    variance = between_seeds / (3 * N) + max(between_examples - rest, 0) / (3 * N)
    t = stats.t.ppf(0.975, degrees_of_freedom(between_seeds / (3 * N) / variance, 3))
    z2 = stats.norm.ppf(0.975) ** 2 / N
    half = (t**2 * variance + (50 * z2) ** 2) ** 0.5 / (1 + z2)
    centre = (mean + 50 * z2) / (1 + z2)
    found = row(document(capsys, tree), ROW)
    assert found["score_low_points"] == pytest.approx(centre - half)
    assert found["score_high_points"] == pytest.approx(min(centre + half, 100))


def test_several_teachers_of_one_seed_stay_apart(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in question/teacher_seed, and where it has one more run, which could belong to either row."""
    for seed in range(3):
        taught(tree, f"ffff000{seed}", 0, 91.0 + seed, seed)
    found = document(capsys, tree)
    assert [row(found, f"ffff000{seed}")["settings"] for seed in range(3)] == [f"teacher.seed={n}" for n in range(3)]
    assert row(found, "ffff0001")["gap_closed"] == pytest.approx((92 - 90) / (TEACHERS[1] - 90))
    taught(tree, "ffff0003", 1, 91.0, 0)
    assert rows(tree) == {"ffff0000": [0], "ffff0001": [0], "ffff0002": [0], "ffff0003": [1]}


def test_seeds_under_one_teacher_stay_a_row(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        taught(tree, "ffff0000", seed, 91.0, 0)
    for seed in (1, 2):
        taught(tree, f"ffff000{seed}", seed, 92.0, seed)
    assert rows(tree) == {"ffff0000": [0, 1, 2], ROW: [1, 2]}
    found = document(capsys, tree)
    assert (row(found, "ffff0000")["settings"], row(found, ROW)["settings"]) == ("teacher.seed=0", "")
    assert (row(found, "ffff0000")["teachers"], row(found, ROW)["teachers"]) == (1, 2)


def test_a_longer_baseline_that_differs_is_none(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The teachers' thresholds keep other numbers of pseudo-labels, which make other numbers of updates."""
    for seed in range(3):
        taught(tree, f"ffff000{seed}", seed, 93.0, seed, total_baseline_id=f"bbbb000{seed}")
    found = row(document(capsys, tree), ROW)
    assert (found["difference_n"], found["total_difference_n"]) == (3, 0)


def test_a_group_has_one_configuration(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        taught(tree, f"ffff000{seed}", seed, 93.0 + seed, seed)
    (group,) = document(capsys, tree, "--group-by", "method", "--method", "logit_kd")["groups"]
    assert (group["n"], group["configurations"]) == (3, 1)


def test_a_gate_takes_the_row(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        taught(tree, f"ffff000{seed}", seed, 93.0 + seed, seed)
    main([str(tree), "--gate", "aaaa1111", ROW, "--margin", "5", "--format", "json"])
    side = json.loads(capsys.readouterr().out)["gate"]["candidate"]
    assert (side["id"], len(side["scores_points"])) == (ROW, 3)
