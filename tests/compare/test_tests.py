"""The tests in the table: which runs they compare, and what they say."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from kdbench.compare.cli import main
from kdbench.storage import predictions
from tests.compare.test_compare_runs import SCORES, document, make_tree, notes, row, student

N = 400


def predict(folder: Path, points: float, order: int, ids: np.ndarray | None = None) -> None:
    """Predictions of N test examples, of which `points` % are right; `order` says which."""
    ids = np.arange(N) if ids is None else ids
    labels = np.arange(len(ids)) % 3
    right = np.random.default_rng(order).permutation(len(ids)) < round(points / 100 * len(ids))
    said = np.where(right, labels, (labels + 1) % 3)
    logits = np.eye(3, dtype=np.float32)[said]
    shuffled = np.random.default_rng(order + 100).permutation(len(ids))  # files need not be in order
    table: dict[str, Any] = {"split": ["test"] * len(ids), "id": ids[shuffled], "label": labels[shuffled]}
    table["logits"] = list(logits[shuffled])
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "predictions.parquet")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = make_tree(tmp_path / "outputs")
    for id_, points in (
        ("aaaa1111", SCORES["direct"]),
        ("bbbb2222", SCORES["longer"]),
        ("eeee5555", SCORES["theseus"]),
    ):
        for seed in range(3):
            (folder,) = root.glob(f"r52/*/bert_3l-{id_}/seed{seed}")
            predict(folder, points[seed], seed)
    for id_, score in (("cccc3333", 97.0), ("dddd4444", 91.5)):
        (folder,) = root.glob(f"r52/*/bert_3l-{id_}/seed0")
        predict(folder, score, 7)
    return root


def test_a_row_has_its_tests(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = row(document(capsys, tree), "eeee5555")
    assert found["difference_low_points"] < 3.0 < found["difference_high_points"]
    assert 0 < found["difference_p"] < 1
    assert found["difference_permutation_p"] == pytest.approx(0.25)
    assert len(found["difference_mcnemar_p"].split()) == 3
    assert found["score_low_points"] < 94.0 < found["score_high_points"]
    base = row(document(capsys, tree), "aaaa1111")
    assert base["difference_p"] is None and base["score_low_points"] < 91.0


def test_pairs_are_by_seed_and_example(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = row(document(capsys, tree), "eeee5555")
    for seed in range(3):
        (folder,) = tree.glob(f"r52/*/bert_3l-aaaa1111/seed{seed}")
        predict(folder, SCORES["direct"][seed], seed + 50)  # wrong about others than the student
    wide = row(document(capsys, tree), "eeee5555")
    ps = [[float(p) for p in one["difference_mcnemar_p"].split()] for one in (narrow, wide)]
    assert max(ps[0]) < 0.02 < min(ps[1])  # the same scores, other examples


def test_nobody_is_the_best_where_nothing_can_be_told(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, tree)
    assert (row(found, "eeee5555")["rank_low"], row(found, "eeee5555")["rank_high"]) == (1, 4)
    assert row(found, "bbbb2222")["tied_with_best"] is True and row(found, "cccc3333")["rank_low"] is None
    assert "No significant difference from the best, theseus (eeee5555): " in notes(found)
    assert "All students had the same teacher" in notes(found)


def test_a_clear_best_is_said_to_be_it(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        student(tree, "pkd", "ffff0001", seed, 50.0 + 0.5 * seed)
        (folder,) = tree.glob(f"r52/*/bert_3l-ffff0001/seed{seed}")
        predict(folder, 50.0 + 0.5 * seed, seed)
    found = document(capsys, tree)
    assert row(found, "ffff0001")["tied_with_best"] is False and row(found, "ffff0001")["rank_low"] > 1
    assert row(found, "ffff0001")["difference_p"] < 0.05
    assert "TF-IDF + linear SVM (91.50) is significantly better than pkd (ffff0001)." in notes(found)
    assert "TF-IDF + linear SVM (91.50) has a higher mean than finetune (bbbb2222), finetune (" in notes(found)
    assert main([str(tree)]) == 0
    shown = capsys.readouterr().out
    assert "*" in next(line for line in shown.splitlines() if line.startswith("pkd"))


def test_an_export_is_no_test_of_its_own(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = row(document(capsys, tree), "eeee5555")
    for seed in range(3):
        student(tree, "theseus", "eeee000a", seed, SCORES["theseus"][seed], form="int8")
        (folder,) = tree.glob(f"r52/*/bert_3l-eeee000a/seed{seed}")
        predict(folder, SCORES["theseus"][seed], seed)
    found = document(capsys, tree)
    export = row(found, "eeee000a")
    assert export["difference_p"] is None and export["difference_low_points"] is None
    assert export["difference_points"] == pytest.approx(before["difference_points"])
    assert export["score_low_points"] < 94 < export["score_high_points"] and export["tied_with_best"] is True
    assert row(found, "eeee5555")["difference_p"] == before["difference_p"]


def test_all_answers_right_are_not_certain(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        for id_ in ("eeee5555", "aaaa1111"):
            (folder,) = tree.glob(f"r52/*/bert_3l-{id_}/seed{seed}")
            predict(folder, 100.0, seed)
    for metric in ("accuracy", "macro_f1"):
        found = row(document(capsys, tree, "--metric", metric), "eeee5555")
        assert found["score_low_points"] < 99.5 and found["score_high_points"] == 100
        assert found["difference_low_points"] < 0 < found["difference_high_points"]


def test_one_seed_has_no_p(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student(tree, "pkd", "ffff0001", 0, 50.0)
    (folder,) = tree.glob("r52/*/bert_3l-ffff0001/seed0")
    predict(folder, 50.0, 0)
    found = row(document(capsys, tree), "ffff0001")
    assert found["difference_p"] is None and found["difference_high_points"] < -30 and found["rank_low"] is None
    assert main([str(tree)]) == 0
    assert "One seed cannot separate a difference from seed noise" in capsys.readouterr().out


def test_only_rows_shown_are_read(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    whole = predictions.read
    monkeypatch.setattr(
        "kdbench.compare.testing.read",
        lambda path, split: (read.append(path.parent.parent.name), whole(path, split))[1],
    )
    document(capsys, tree, "--method", "theseus")
    needed = {"eeee5555", "aaaa1111", "bbbb2222", "cccc3333"}  # the row, its baselines and its teacher, once each
    assert set(read) == {f"bert_3l-{id_}" for id_ in needed} and len(read) == 10
    read.clear()
    document(capsys, tree, "--no-tests")
    assert read == []


@pytest.mark.parametrize("kind", ["missing", "torn", "others"])
def test_predictions_that_cannot_be_used_are_named(tree: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    (folder,) = tree.glob("r52/*/bert_3l-eeee5555/seed1")
    path = folder / "predictions.parquet"
    if kind == "missing":
        path.unlink()
    elif kind == "torn":
        path.write_bytes(path.read_bytes()[:100])
    else:
        predict(folder, 90, 0, np.arange(7))
    assert main([str(tree), "--json"]) == 0
    shown = capsys.readouterr()
    assert f"{folder}" in shown.err and "left out of the tests" in shown.err
    assert main([str(tree), "--json", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_share_of_the_gap_has_an_interval_where_there_is_a_gap(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = tree.glob("r52/*/bert_3l-cccc3333/seed0")
    predict(folder, 100.0, 7)
    for seed in range(3):
        (own,) = tree.glob(f"r52/*/bert_3l-aaaa1111/seed{seed}")
        predict(own, 79.0 + seed, 3)
        (own,) = tree.glob(f"r52/*/bert_3l-eeee5555/seed{seed}")
        predict(own, 89.5 + seed / 2, 3)
    found = document(capsys, tree)
    assert row(found, "eeee5555")["gap_closed_low"] < 0.5 < row(found, "eeee5555")["gap_closed_high"]
    assert row(found, "aaaa1111")["gap_closed_low"] is None and "may be zero" not in notes(found)
    predict(folder, 80.2, 7)  # a teacher that may be no better than the baseline
    found = document(capsys, tree)
    assert row(found, "eeee5555")["gap_closed"] is None and row(found, "eeee5555")["gap_closed_low"] is None
    assert "The gap to the teacher may be zero, so no share of it is shown: theseus (eeee5555)." in notes(found)
    assert main([str(tree), "--format", "markdown"]) == 0
    assert "| 50 |" not in capsys.readouterr().out  # in neither of the sheets
    (folder / "predictions.parquet").unlink()
    assert row(document(capsys, tree, "--method", "theseus"), "eeee5555")["gap_closed_low"] is None


def printed(capsys: pytest.CaptureFixture[str], tree: Path, form: str) -> str:
    assert main([str(tree), "--format", form]) == 0
    return capsys.readouterr().out


def summary(page: str) -> str:
    (found,) = re.findall('<div class="summary">(.*?)</div>', page)
    return found


def test_rows_of_one_seed_have_neither_ranks_nor_a_best(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in tree.glob("r52/*/bert_3l-*/seed[12]"):
        shutil.rmtree(folder)
    found = document(capsys, tree)
    assert {(one["rank_low"], one["tied_with_best"]) for one in found["tables"][0]["rows"]} == {(None, None)}
    assert "the best" not in notes(found) and "significantly better" not in notes(found)
    assert "TF-IDF + linear SVM (91.50) has a higher mean than finetune (bbbb2222), finetune (" in notes(found)
    assert printed(capsys, tree, "table").count("seed noise") == 1
    assert re.findall(r"\\textbf{(.*?)}", printed(capsys, tree, "latex")) == ["93.00"]
    assert re.findall(r"\*\*(.*?)\*\*", printed(capsys, tree, "markdown")) == ["93.00"]
    page = printed(capsys, tree, "html")
    assert re.findall('data-row="(.*?)" class="bold"', page) == ["eeee5555"]
    assert "No other row could be tested against it" in page and "significant" not in summary(page)


def test_a_row_of_one_seed_is_not_ranked_with_those_of_several(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student(tree, "pkd", "ffff0001", 0, 99.0)
    (folder,) = tree.glob("r52/*/bert_3l-ffff0001/seed0")
    predict(folder, 99.0, 0)
    found = document(capsys, tree)
    assert row(found, "ffff0001")["tied_with_best"] is None and row(found, "ffff0001")["rank_low"] is None
    assert row(found, "eeee5555")["tied_with_best"] is True and row(found, "eeee5555")["rank_high"] == 4
    assert "No significant difference from the best row with a rank, theseus (eeee5555): " in notes(found)
    assert notes(found).count("seed noise") == 1
    assert len(re.findall(r"\\textbf", printed(capsys, tree, "latex"))) == 4  # all that are tied, not the highest
    page = printed(capsys, tree, "html")
    assert "Highest mean: pkd" in page and "The highest mean of the tested rows: theseus" in page
    assert "The other 4 rows: 3 not significantly different, 1 not tested against it." in page


@pytest.mark.parametrize("dataset", ["a", "z"])  # its table comes before the tested one, or after it
def test_a_table_without_tests_has_the_same_columns(
    tree: Path, capfdbinary: pytest.CaptureFixture[bytes], dataset: str
) -> None:
    student(tree, "pkd", "ffff0001", 0, 92.0, identity__dataset=dataset, identity__test_id="0a0a0a0a")
    for form in ("csv", "parquet"):
        assert main([str(tree), "--format", form]) == 0
        out = capfdbinary.readouterr().out
    rows = {one["id"]: one for one in pyarrow.parquet.read_table(pyarrow.BufferReader(out)).to_pylist()}
    assert rows["ffff0001"]["score_low_points"] is None and rows["eeee5555"]["score_low_points"] < 94.0


def test_hidden_seeds_are_in_no_test(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = row(document(capsys, tree, "--where", "seed > 0"), "eeee5555")
    assert found["difference_n"] == 2 and len(found["difference_mcnemar_p"].split()) == 2
    assert found["difference_permutation_p"] == pytest.approx(0.5)  # 2 / 2^2


def test_rows_that_share_no_two_seeds_are_not_tested(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (5, 6):
        student(tree, "pkd", "ffff0001", seed, 99.0)
        (folder,) = tree.glob(f"r52/*/bert_3l-ffff0001/seed{seed}")
        predict(folder, 99.0, 0)
    found = document(capsys, tree)
    assert row(found, "ffff0001")["tied_with_best"] is True and row(found, "eeee5555")["tied_with_best"] is None
    assert "Not tested against pkd (ffff0001), because they share fewer than two seeds: " in notes(found)
