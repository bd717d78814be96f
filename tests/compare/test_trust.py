"""Probabilities in compare-runs: columns, pictures and the page, from the figures and the predictions of the seeds."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from kdbench.compare.cli import main
from kdbench.compare.collect import read_runs
from kdbench.compare.keys import Wanted
from kdbench.compare.pictures import save
from kdbench.compare.rows import build_tables
from kdbench.compare.trust import LEAST, columns, mean_coverage, trust
from tests.compare.test_page import page
from tests.compare.test_tests import N, tree

__all__ = ["tree"]  # the fixture

T = 0.25  # of the seeds of theseus


@pytest.fixture
def judged(tree: Path) -> Path:
    """Give the rows of direct fine-tuning and of theseus their probabilities, and theseus a temperature."""
    for path in (*tree.glob("r52/finetune/bert_3l-aaaa1111/*/*.json"), *tree.glob("r52/theseus/*/*/*.json")):
        raw = json.loads(path.read_text())
        seed, kept = raw["seed"], raw["identity"]["method"] == "theseus"
        for split in ("dev", "test"):
            raw["metrics"][split] |= {"nll": 0.3 + seed / 10, "brier": 0.2, "ece": 0.05}
        raw["calibration"] = {"kept": kept, "temperature": T if kept else 1.3}
        path.write_text(json.dumps(raw))
    return tree


def test_further_columns_are_means_over_seeds(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--show", "nll,ece,macro_f1,cost.seconds", "--no-tests"]
    assert main([str(judged), *asked, "--format", "csv"]) == 0
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    found = rows["eeee5555"]
    assert [float(found[key]) for key in ("nll", "ece", "cost.seconds")] == pytest.approx([0.4, 0.05, 301.0])
    assert float(found["brier"]) == pytest.approx(0.2) and rows["dddd4444"]["nll"] == ""  # TF-IDF
    assert main([str(judged), *asked, "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    head, line = (next(row for row in shown.splitlines() if word in row) for word in ("method", "eeee5555"))
    cells = dict(zip(head.split("|"), line.split("|"), strict=True))
    cells = {key.strip(): value.strip() for key, value in cells.items()}
    assert cells["NLL"] == "0.400 ± 0.100" and cells["ECE"] == "0.050 ± 0.000" and cells["cost.seconds"] == "301"
    assert any("macro-F1" in key for key in cells)
    assert main([str(judged), "--no-tests", "--format", "json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert {row["id"]: row["nll"] for row in table["rows"]}["eeee5555"] == pytest.approx(0.4)


def test_without_the_option_the_table_is_as_wide_as_before(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(judged), "--no-tests", "--format", "markdown"]) == 0
    assert "NLL" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "problem"),
    [(["--show", "nlll"], "no run has the key nlll"), (["--show", "nll", "--pivot", "dataset"], "leave out --diff")],
)
def test_columns_that_cannot_be(judged: Path, capsys: pytest.CaptureFixture[str], asked: list, problem: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(judged), *asked])
    assert end.value.code == 2 and problem in capsys.readouterr().err


def test_the_page_says_what_a_confidence_leaves(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys, judged, "--method", "theseus,finetune")
    assert text.count("Probabilities over 3 seeds") == 2 and "--min-confidence" in text
    assert "accuracy if unsure texts are not answered" in text and "theseus: test accuracy against probability" in text
    runs, _ = read_runs([judged], None, "test", Wanted())
    (table,) = build_tables(runs, lambda run: True)
    rows = {row.id: row for row in table.rows}
    assert trust(rows["dddd4444"], "test") is None and trust(rows["bbbb2222"], "test") is None
    found = trust(rows["eeee5555"], "test")
    assert found is not None and found.divided and len(found.after) == 3
    # Each text's logits are 1 for its answer and 0 for two others, so all have one probability.
    top = softmax(np.array([1.0, 0, 0]) / T).max()
    bins = [one for one in found.bins()[1] if one.size]
    assert [(one.size, one.confidence) for one in bins] == [(3 * N, pytest.approx(top))]
    assert bins[0].accuracy == pytest.approx(0.94)  # 93, 93 and 96 %
    answered = columns(found)[1].cells
    assert answered == ["100.0" if top >= least else "0.0" for least in LEAST]
    assert mean_coverage(found, np.array([1.0]))[0] == pytest.approx(0.94)
    plain = trust(rows["aaaa1111"], "test")
    assert plain is not None and not plain.divided


def test_pictures_are_saved(judged: Path, tmp_path: Path) -> None:
    runs, _ = read_runs([judged], None, "test", Wanted())
    files = {path.name for path in save(build_tables(runs, lambda run: True), tmp_path / "drawn")}
    assert {"r52_reliability.png", "r52_coverage.svg"} <= files
