"""Several runs as one model: kdbench-export --average."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet
import pytest
import torch
import yaml
from transformers import AutoTokenizer

import kdbench
from kdbench.cli import export, predict
from kdbench.compare.cli import main as compare
from kdbench.inference.average import Average
from kdbench.inference.forms import FORMS
from kdbench.models import students
from kdbench.models.network import view
from kdbench.storage import files as store
from tests.models.test_graph import NARROW, batch, model

ONE = "student.layers=1"
TEXTS = ["apple near the old pear", "a big lead", "river of gold is one lake", ""]


@pytest.fixture
def seeds(configure, execute, capsys) -> list[Path]:
    """Two seeds of one setting, of one layer: the exporter's time is that of its layers."""
    words = ["method=finetune", ONE, "dataset.language=en", "teacher.license=mit", "teacher.base_model=org/base"]
    found = [Path(execute(configure(*words, f"seed={seed}"))["folder"]) for seed in (0, 1)]
    capsys.readouterr()
    return found


def test_the_mean_of_the_logits_is_one_graph(seeds, capsys):
    assert export.main([*map(str, seeds), "--average", "--int8", "--json", "--quiet"]) == 0
    (folder,) = map(Path, json.loads(capsys.readouterr().out)["folders"])
    assert folder.parent.parent == seeds[0].parent and folder.parent.name.startswith("average-")
    store.verify(folder / "MANIFEST.json")
    assert not (folder / "model.safetensors").exists() and (folder / "config.json").is_file()

    result = json.loads((folder.parent / "forms" / "onnx" / "results.json").read_text())
    entry = result["reported"]["average"]["calibration"]
    temperature = entry["temperature"] if entry["kept"] else 1.0
    expected = sum(kdbench.load_classifier(run).logits(TEXTS) for run in seeds) / 2 / temperature
    for where in (folder, folder / FORMS["onnx"].file):
        torch.testing.assert_close(kdbench.load_classifier(where).logits(TEXTS), expected, rtol=1e-4, atol=1e-5)
    int8 = kdbench.load_classifier(folder / FORMS["int8"].file).logits(TEXTS)
    torch.testing.assert_close(int8, expected, rtol=0.2, atol=0.2)
    given = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="np")
    plain = onnxruntime.InferenceSession(folder / FORMS["onnx"].file).run(["logits"], dict(given))[0]
    np.testing.assert_allclose(plain, expected, rtol=1e-4, atol=1e-5)

    # its figures are those of the mean of the predictions
    rows = [pyarrow.parquet.read_table(run / "predictions.parquet").to_pylist() for run in seeds]
    tests = [[row for row in one if row["split"] == "test"] for one in rows]
    scales = [json.loads((run / "results.json").read_text())["calibration"] for run in seeds]
    each = [
        np.array([row["logits"] for row in one]) / (scale["temperature"] if scale["kept"] else 1)
        for one, scale in zip(tests, scales, strict=True)
    ]
    labels = np.array([row["label"] for row in tests[0]])
    right = (np.mean(each, axis=0).argmax(-1) == labels).mean()
    assert result["metrics"]["test"]["accuracy"] == pytest.approx(right)
    assert result["calibration"] is None and result["baseline_id"] is None
    parameters = json.loads((seeds[0] / "results.json").read_text())["parameters"]["total"]
    assert result["parameters"]["total"] == 2 * parameters

    card = (folder / "README.md").read_text()
    header = next(yaml.safe_load_all(card))
    assert header["license"] == "mit" and header["language"] == ["en"] and header["base_model"] == ["org/base"]
    assert "# The average of 2 models for topics" in card and "| ONNX, int8" in card
    assert str(seeds[0].parents[3]) not in card
    capsys.readouterr()
    assert predict.main([str(folder), "--text", TEXTS[0], "--min-confidence", "0.99"]) == 0
    assert capsys.readouterr().out.endswith(f"{TEXTS[0]}\n")
    assert compare([str(seeds[0].parents[2]), "--json", "--quiet"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    forms = {row["form"]: row for row in table["rows"]}
    assert forms.keys() == {"null", "average_onnx", "average_int8"}
    assert forms["average_onnx"]["score_points"] == pytest.approx(100 * right) and forms["null"]["score_n"] == 2

    before = (folder / "MANIFEST.json").read_bytes()
    assert export.main([*map(str, seeds), "--average", "--quiet"]) == 0  # in its place
    assert capsys.readouterr().out == f"{folder}\n" and (folder / "MANIFEST.json").read_bytes() != before
    assert not (folder / FORMS["int8"].file).exists() and not (folder.parent / "forms" / "int8").exists()


def test_what_cannot_be_averaged_says_why(seeds, configure, execute, capsys):
    first, second = map(str, seeds)
    tfidf = execute(configure("method=tfidf"))["folder"]
    short = execute(configure("method=finetune", ONE, "dataset.max_length=12", "schedule.steps=1"))["folder"]
    capsys.readouterr()
    for words, problem in (
        ([first], "needs two or more RUNs"),
        ([first, first], "one is named twice"),
        ([first, tfidf], "TF-IDF is the same with every seed"),
        ([first, short], "must have the same dataset.max_length"),
        ([first, second, "--qat"], "--qat excludes --average"),
        ([first, second, "--best-int8"], "--best-int8 excludes --average"),
    ):
        assert export.main([*words, "--average"]) == 2, words
        out, err = capsys.readouterr()
        assert out == "" and problem in err and "Traceback" not in err
    assert not list(seeds[0].parent.glob("average-*"))


def test_members_may_be_of_several_architectures() -> None:
    members = [model("bert"), model("ib_bert", **NARROW)]
    average, given = Average(members), batch(3, 7, pairs=True)
    module, further, outputs = average.traced()
    with torch.inference_mode():
        expected = sum(students.forward(one, given) for one in members) / 2
        torch.testing.assert_close(average.forward(given), expected)
        torch.testing.assert_close(module(**given), expected)
        average.divide_logits(2.0)
        torch.testing.assert_close(average.at_speed(given, 0.0), expected / 2)
    assert further == {} and outputs == ["logits"] and average.token_types == view(members[0]).token_types
