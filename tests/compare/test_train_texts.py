"""Runs on one test with other train texts: one table, which says in what they differ."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import kdbench
from kdbench.compare import pictures as compare_pictures
from kdbench.compare.cli import main
from kdbench.compare.collect import read_runs
from kdbench.compare.curves import detail
from kdbench.compare.keys import Wanted
from kdbench.compare.pictures import grids, labels, name_of
from kdbench.compare.rows import build_tables
from kdbench.compare.table import Table
from kdbench.compare.testing import with_tests
from tests.compare.test_compare_runs import SCORES, TAUGHT, document, make_tree, notes, row, student, write
from tests.compare.test_tests import predict


def splits(labelled: int, raw: int = 0) -> dict[str, Any]:
    """The changes of a run's record for its numbers of train texts."""
    counts = {"train": labelled} | ({"unlabelled": raw} if raw else {})
    found = {name: {"rows": rows, "cut": None, "empty": 0, "repeated": 0} for name, rows in counts.items()}
    return {"data__splits": found, "identity__data_id": f"{labelled:08d}"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """All have 5,000 labels, but one logit_kd has 1,000, without raw texts and with 700."""
    root = make_tree(tmp_path / "outputs")
    own = {"baseline_id": "aaaa2222", "total_baseline_id": "aaaa2222"}
    for seed in range(2):
        student(root, "logit_kd", "ffff0000", seed, 92.0 + seed)
        student(root, "logit_kd", "ffff0001", seed, 80.0 + seed, **splits(1000), **own)
        student(root, "logit_kd", "ffff0002", seed, 90.0 + seed, **splits(1000, 700), **own)
    return root


def table(tree: Path, *methods: str) -> Table:
    (found,) = build_tables(
        read_runs([tree], "accuracy", "test", Wanted())[0], lambda run: not methods or run.method in methods
    )
    return found


def heads(tree: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """The heading of the first table in Markdown, and the line of its columns."""
    assert main([str(tree), "--format", "markdown", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines[0], lines[2]


def test_what_differs_is_said_once_above_the_table_and_in_columns(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heading, line = heads(tree, capsys)
    assert heading.endswith(", trained on 1,000 or 5,000 labelled texts, and 0 or 700 raw texts")
    assert "| student | labelled | raw | id |" in line
    heading, line = heads(tree, capsys, "--where", "raw == 0")
    assert heading.endswith(", trained on 1,000 or 5,000 labelled texts") and "| labelled | id |" in line
    heading, line = heads(tree, capsys, "--where", "labelled == 1000")
    assert heading.endswith(", trained on 0 or 700 raw texts") and "| student | raw | id |" in line
    heading, line = heads(tree, capsys, "--where", "labelled > 1000")
    assert "trained on" not in heading and "| student | id |" in line


def test_programs_get_the_numbers(tree: Path) -> None:
    frame = kdbench.load_runs(tree, where="method == 'logit_kd'").set_index("id")
    assert frame.labelled.to_dict() == {"ffff0000": 5000, "ffff0001": 1000, "ffff0002": 1000}
    assert frame.raw.to_dict() == {"ffff0000": 0, "ffff0001": 0, "ffff0002": 700}
    assert set(frame.examples_id) == {"7e577e57"} and frame.data_id["ffff0002"] == "00001000"


def test_tf_idf_that_learned_a_teachers_answers_is_not_the_row_to_beat(tree: Path) -> None:
    student(tree, "tfidf", "ffff0003", 0, 99.0, **splits(5000, 700))
    found = table(tree)
    roles = {row.id: row.role for row in found.rows if row.runs[0].method == "tfidf"}
    assert roles.pop("ffff0003") == "method" and set(roles.values()) == {"tfidf"}
    floor = found.tfidf(5000)
    assert floor is not None and floor.id in roles


def test_a_direct_fine_tune_on_other_train_texts_is_no_baseline(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, tree)
    assert row(found, "ffff0000")["difference_n"] == 2
    assert row(found, "ffff0001")["difference_n"] == 0 and row(found, "ffff0001")["gap_closed"] is None
    write(tree, "finetune", "aaaa2222", 0, 79.0, **splits(1000))
    found = document(capsys, tree)
    assert row(found, "ffff0001")["difference_points"] == pytest.approx(1.0)
    assert row(found, "ffff0000")["difference_points"] == pytest.approx(2.0)


def test_tf_idf_is_that_of_as_many_labels(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "kdbench method=tfidf dataset=r52 dataset.max_train_samples=1000"
    for path in tree.glob("r52/logit_kd/*-ffff000[12]/*/results.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tfidf_command": command}))
    found = document(capsys, tree)
    assert found["tables"][0]["missing_tfidf"] == [command]
    assert "TF-IDF + linear SVM (91.50) on 5,000 labels has a higher mean than finetune" in notes(found)
    assert "ffff0001" not in "".join(note for note in found["tables"][0]["notes"] if "TF-IDF" in note)
    write(tree, "tfidf", "dddd5555", 0, 85.0, identity__student=None, **splits(1000))
    found = document(capsys, tree)
    assert found["tables"][0]["missing_tfidf"] == []
    assert "TF-IDF + linear SVM (85.00) on 1,000 labels has a higher mean than logit_kd (ffff0001)." in notes(found)


def test_a_teacher_that_saw_more_is_named(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "logit_kd (ffff0002), logit_kd (ffff0001): their teacher saw 5,000 labels, these runs 1,000." in notes(
        document(capsys, tree)
    )
    only = notes(document(capsys, tree, "--where", "labelled == 1000 and raw == 0"))
    assert "logit_kd (ffff0001): its teacher saw 5,000 labels, this run 1,000." in only
    assert "teacher saw" not in notes(document(capsys, tree, "--where", "labelled == 5000"))


def test_a_teacher_of_another_test_is_warned_of_and_makes_no_gap(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {split: {"n": 2568, "accuracy": 0.99} for split in ("dev", "test")}
    teacher = {"id": "cccc9999", "seed": 0, "metrics": scores} | TAUGHT
    assert row(document(capsys, tree), "eeee5555")["gap_closed"] is not None
    for seed in range(3):
        student(tree, "pkd", "ffff0009", seed, 94.0, teacher=teacher | {"test_id": "00000000"})
    found = document(capsys, tree)
    assert row(found, "ffff0009")["gap_closed"] is None and row(found, "ffff0009")["difference_n"] == 3
    (warning,) = [note for note in found["tables"][0]["notes"] if note.startswith("Warning: ")]
    assert "may have been trained on these test texts" in warning and warning.endswith(": pkd (ffff0009).")


def test_best_on_dev_is_chosen_among_runs_of_the_same_data(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, tree, "--best-on-dev", "--method", "logit_kd")
    assert {one["id"]: one["best_on_dev_of"] for one in found["tables"][0]["rows"]} == {
        "ffff0000": 1, "ffff0001": 1, "ffff0002": 1,
    }  # fmt: skip


def test_groups_are_apart_by_train_texts(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tree), "--group-by", "method", "--method", "logit_kd", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [(one["by.labelled"], one["by.raw"], one["mean_points"]) for one in groups] == [
        (5000, 0, pytest.approx(92.5)), (1000, 700, pytest.approx(90.5)), (1000, 0, pytest.approx(80.5)),
    ]  # fmt: skip
    assert main([str(tree), "--pivot", "labelled", "--where", "raw == 0"]) == 0
    shown = capsys.readouterr().out
    assert "labelled=1000" in shown and "labelled=5000" in shown and "80.50 ± 0.71 (2)" in shown


def test_pairs_are_by_place_whatever_the_ids(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids count on from train, so they differ between runs on one test whose train files differ."""
    for id_, points in (("aaaa1111", SCORES["direct"]), ("eeee5555", SCORES["theseus"])):
        for seed in range(3):
            (folder,) = tree.glob(f"r52/*/bert_3l-{id_}/seed{seed}")
            predict(folder, points[seed], seed)
    before = row(document(capsys, tree), "eeee5555")
    for seed in range(3):
        (folder,) = tree.glob(f"r52/theseus/*/seed{seed}")
        predict(folder, SCORES["theseus"][seed], seed, 70 + np.arange(400))
    after = row(document(capsys, tree), "eeee5555")
    assert before["difference_mcnemar_p"] == after["difference_mcnemar_p"] is not None


def test_legends_and_grids_tell_train_texts_apart(tree: Path) -> None:
    found = table(tree, "logit_kd")
    assert {row.id: name_of(row, found.rows) for row in found.rows} == {
        "ffff0000": "logit_kd labelled=5000 raw=0",
        "ffff0001": "logit_kd labelled=1000 raw=0",
        "ffff0002": "logit_kd labelled=1000 raw=700",
    }
    ((name, figure),) = grids(found)
    assert name == "grid_logit_kd" and {figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()} == {"labelled", "raw"}


def test_score_against_labels(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = table(tree, "logit_kd", "finetune")
    assert labels(found, {}) is None  # 1,000 and 5,000 make no curve
    for seed in range(2):
        student(tree, "logit_kd", "ffff0003", seed, 70.0 + seed, **splits(200))
        student(tree, "logit_kd", "ffff0004", seed, 85.0 + seed, **splits(200, 1500))
        for id_, points in (("ffff0001", 80), ("ffff0003", 70)):
            (folder,) = tree.glob(f"r52/logit_kd/bert_3l-{id_}/seed{seed}")
            predict(folder, points, seed)
    found = with_tests(table(tree, "logit_kd"), True)
    figure = labels(found, {row.id: detail(row) for row in found.rows})
    assert figure is not None
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    assert set(lines) == {"logit_kd", "logit_kd with raw texts"}  # whose number falls as that of the labels grows
    assert np.column_stack(lines["logit_kd"].get_data()).tolist() == [[200, 70.5], [1000, 80.5], [5000, 92.5]]
    assert np.column_stack(lines["logit_kd with raw texts"].get_data()).tolist() == [[200, 85.5], [1000, 90.5]]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["200", "1,000", "5,000"]
    assert figure.axes[0].get_xscale() == "log" and "95 % interval" in figure.axes[0].get_xlabel()
    band = np.array(figure.axes[0].collections[0].get_paths()[0].vertices)[:, 1]
    low, high = (getattr(row.tests.score, end) for row in found.rows if row.id == "ffff0003" for end in ("low", "high"))
    assert min(band) == pytest.approx(low) and high <= max(band)  # 5,000 labels have no predictions, so no band
    student(tree, "logit_kd", "ffff0005", 0, 86.0, **splits(200, 3000))
    figure = labels(table(tree, "logit_kd"), {})
    assert figure is not None and {str(line.get_label()) for line in figure.axes[0].lines} == {
        "logit_kd", "logit_kd with 700 raw texts", "logit_kd with 1,500 raw texts", "logit_kd with 3,000 raw texts",
    }  # fmt: skip
    assert main([str(tree), "--plots", str(tmp_path / "plots"), "--no-tests"]) == 0
    text = " ".join(ElementTree.parse(tmp_path / "plots/r52_labels.svg").getroot().itertext())
    assert "labelled train texts (log scale)" in text and "95 %" not in text
    capsys.readouterr()
    assert main([str(tree), "--format", "html", "--no-tests"]) == 0
    assert 'alt="r52: test accuracy against labels"' in capsys.readouterr().out


def test_a_curve_keeps_all_its_rows(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other pictures have a limit of rows, but a line has several."""
    student(tree, "logit_kd", "ffff0003", 0, 70.0, **splits(200))
    monkeypatch.setattr(compare_pictures, "ROWS", 2)
    figure = dict(compare_pictures.pictures(table(tree, "logit_kd")))["labels"]
    assert {np.size(line.get_xdata()) for line in figure.axes[0].lines} == {3, 1}


def test_a_record_without_the_digests_is_one_line(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tree, "pkd", "ffff0009", 0, 92.0, identity__test_id=None)
    assert main([str(tree)]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "ffff0009" in line]
    assert "left out, an older kdbench wrote it" in said and "rerun=true" in said
