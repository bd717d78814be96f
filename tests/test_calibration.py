"""Calibrated probabilities are the same by all ways: predict, classifier, export, ONNX, int8, plain transformers."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from scipy.special import log_softmax, softmax
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import kdbench
from kdbench.cli import predict
from kdbench.inference import calibration
from kdbench.inference.calibration import CALIBRATION, Calibration, calibrate, calibration_of, in_words
from kdbench.inference.classifier import UNSURE, model_digest
from kdbench.inference.forms import FORMS
from kdbench.models import students
from kdbench.models.network import view
from kdbench.schema import ExportConfig
from kdbench.shipping.export import export_run, into_weights
from kdbench.storage import files as store
from kdbench.tasks import probabilities
from kdbench.tasks.probabilities import Temperature, figures
from tests.models.test_graph import NARROW, SHAPE, model

TEXTS = ["apple near the old pear", "a big lead", "river of gold is one lake", ""]


@pytest.fixture
def cooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide all logits by 0.5, whatever dev says."""
    entry = calibration._temperature

    def half(asked):
        record, _ = entry(asked)
        after = {name: figures(one.divided(0.5)) for name, one in asked.items()}
        changes = {"temperature": 0.5, "low": 0.4, "high": 0.6, "dev_cross_fitted": after["dev"]["nll"]}
        return record | changes | {"kept": True, "why_not": None, "after": after}, 0.5

    monkeypatch.setattr(calibration, "_temperature", half)


@pytest.mark.usefixtures("cooled")
def test_the_same_probabilities_by_all_ways(configure, execute, capsys, tmp_path):
    result = execute(configure("method=finetune", "student.layers=1"))  # so that it is soon exported
    folder = Path(result["folder"])
    store.verify(folder / "model" / "MANIFEST.json")
    assert calibration_of(folder / "model") == Calibration(0.5)

    # metrics are those of the divided logits, and predictions.parquet has the others
    rows = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()
    for name in ("dev", "test"):
        own = [row for row in rows if row["split"] == name]
        logs = log_softmax(np.array([row["logits"] for row in own], np.float64) / 0.5, -1)
        nll = -np.mean([line[row["label"]] for line, row in zip(logs, own, strict=True)])
        assert result["metrics"][name]["nll"] == pytest.approx(nll) == result["calibration"]["after"][name]["nll"]
        assert result["metrics"][name]["brier"] != result["calibration"]["before"][name]["brier"]

    exported = export_run(folder, ExportConfig(onnx=True, int8=True))
    store.verify(exported / "MANIFEST.json")
    assert not (exported / CALIBRATION).exists() and calibration_of(exported) == Calibration()
    inputs = AutoTokenizer.from_pretrained(exported)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        plain = AutoModelForSequenceClassification.from_pretrained(exported).eval()(**inputs).logits
        raw = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()(**inputs).logits
    torch.testing.assert_close(plain, raw / 0.5, rtol=1e-4, atol=1e-5)
    graphs = [exported / FORMS[name].file for name in ("onnx", "int8")]
    for where in (folder, exported, *graphs):
        found = kdbench.load_classifier(where).logits(TEXTS)
        rtol, atol = (0.2, 0.1) if where == graphs[1] else (1e-4, 1e-5)
        torch.testing.assert_close(found, plain, rtol=rtol, atol=atol)
    capsys.readouterr()
    for where in (folder, exported):
        assert predict.main([str(where), "--text", TEXTS[0], "--json"]) == 0
        (answer,) = json.loads(capsys.readouterr().out)["answers"]
        assert list(answer["probabilities"].values()) == pytest.approx(plain[0].softmax(-1).tolist(), abs=1e-5)
    card = (exported / "README.md").read_text()
    assert (
        "| test | 0.5 | " in card and "(95 % interval 0.4 to 0.6)" in card and "calibrated on this data alone" in card
    )
    forms_record = [json.loads(path.read_text()) for path in folder.rglob("results.json") if path.parent != folder]
    assert forms_record and all(one["calibration"] is None for one in forms_record)
    assert forms_record[0]["metrics"]["test"]["nll"] == pytest.approx(result["metrics"]["test"]["nll"], abs=0.05)

    before = model_digest(folder)  # another temperature is another model
    (folder / "model" / CALIBRATION).write_bytes(Calibration(2.0).content)
    assert model_digest(folder) != before


def test_what_dev_says_is_kept_or_not_with_the_reason(finished):
    result = finished("finetune")
    entry = result["calibration"]
    assert entry["dev_examples"] == 20 and entry["bins"] == 15 and entry["thresholds"] is None
    kept = calibration_of(Path(result["folder"]) / "model").temperature
    assert kept == (entry["temperature"] if entry["kept"] else 1.0)
    used = entry["after"] if entry["kept"] else entry["before"]
    assert {name: result["metrics"]["test"][name] for name in ("nll", "brier", "ece")} == used["test"]
    assert in_words(entry)[0].startswith(("temperature ", "no temperature was fitted: "))


def test_tf_idf_has_none(finished):
    result = finished("tfidf")
    assert result["calibration"] is None and "nll" not in result["metrics"]["test"]


def splits(labels: np.ndarray, logits: np.ndarray) -> dict:
    half = len(labels) // 2
    return {"dev": (labels[:half], logits[:half]), "test": (labels[half:], logits[half:])}


def test_one_class_in_dev_leaves_the_logits_as_they_are() -> None:
    z = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    entry, kept = calibrate("classification", ["a", "b"], "accuracy", splits(np.zeros(20, int), z))
    assert kept == Calibration() and entry is not None
    assert (entry["temperature"], entry["kept"], entry["why_not"]) == (None, False, "all dev texts have one class")
    assert entry["after"] == {} and entry["before"]["dev"]["nll"] > 0
    assert in_words(entry) == ["no temperature was fitted: all dev texts have one class"]


def test_thresholds_are_kept_where_they_help_texts_that_they_were_not_fitted_on() -> None:
    draw = np.random.default_rng(0)
    labels = (draw.uniform(size=(400, 3)) < [0.1, 0.5, 0.0]).astype(np.int8)
    logits = (labels + draw.normal(size=labels.shape) * 0.4 - 2).astype(np.float32)  # none is above 0
    entry, kept = calibrate("multi_label", ["rare", "half", "never"], "macro_f1", splits(labels, logits))
    assert entry is not None
    found = entry["thresholds"]
    assert found["kept"] and found["not_fitted"] == ["never"] and kept.thresholds["never"] == 0.5
    assert found["before"]["test"]["macro_f1"] < 0.1 < 0.4 < found["after"]["test"]["macro_f1"]
    assert found["before"]["dev"]["macro_f1"] < found["dev_cross_fitted"] <= found["after"]["dev"]["macro_f1"] + 0.02
    assert "one half for labels that all dev texts have, or none: never" in in_words(entry)[2]
    few = {name: (one[:8], other[:8]) for name, (one, other) in splits(labels, logits).items()}
    entry, kept = calibrate("multi_label", ["rare", "half", "never"], "macro_f1", few)
    assert entry is not None and kept.thresholds == {}
    assert entry["thresholds"]["why_not"] == "dev has 8 texts, and 10 are needed"


def test_other_tasks_have_no_probabilities() -> None:
    given = splits(np.ones(6, np.float32), np.zeros((6, 1), np.float32))
    assert calibrate("regression", ["x"], "pearson", given) == (None, Calibration())


BILSTM = {"embedding": 8, "multichannel": False, "pairs": False}
STATIC = {"pairs": False, "int8_table": True}
OF_FOLDERS = [("bert", {}), ("mobilebert", NARROW), ("ib_bert", NARROW), ("bilstm", BILSTM), ("static", STATIC)]


@pytest.mark.parametrize(("architecture", "changes"), OF_FOLDERS)
def test_a_folder_takes_the_temperature_into_its_weights(tmp_path: Path, architecture: str, changes: dict) -> None:
    view(model(architecture, **changes)).save(tmp_path)
    made = students.load(tmp_path)  # a static student's table is in 8 bits there
    batch = {"input_ids": torch.arange(1, 13).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    with torch.inference_mode():
        before = students.forward(made, batch)  # type: ignore[arg-type]
        (tmp_path / CALIBRATION).write_bytes(Calibration(4.0, {"a": 0.3, "b": 0.5, "c": 0.5}).content)
        into_weights(tmp_path)
        after = students.forward(students.load(tmp_path), batch)  # type: ignore[arg-type]
    torch.testing.assert_close(after, before / 4)
    assert calibration_of(tmp_path) == Calibration(1.0, {"a": 0.3, "b": 0.5, "c": 0.5})
    into_weights(tmp_path)  # nothing is left to do
    with torch.inference_mode():
        torch.testing.assert_close(students.forward(students.load(tmp_path), batch), after)  # type: ignore[arg-type]


def test_a_fastbert_exits_where_it_did() -> None:
    made = model("fastbert")
    ids, mask = torch.arange(24).reshape(4, 6), torch.ones(4, 6, dtype=torch.long)
    with torch.inference_mode():
        before, exits = made.early_exit(ids, mask, 0.999)
        view(made).divide_logits(2.0)
        after, others = made.early_exit(ids, mask, 0.999)
        traced, of_graph = view(made).traced()[0](ids, mask, torch.tensor(0.999))
    torch.testing.assert_close(after, before / 2)
    torch.testing.assert_close(traced, after)
    assert torch.equal(exits, others) and torch.equal(of_graph, exits) and SHAPE["layers"] == 2


def test_answers_below_a_confidence_are_unsure(finetuned, capsys, tmp_path, monkeypatch):
    (tmp_path / "texts.csv").write_text("text,label\n" + "".join(f"{text},x\n" for text in TEXTS[:3]))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:3]) + "\n")

    def lines(*words: str) -> list[list[str]]:
        assert predict.main([finetuned, *words, "--quiet"]) == 0
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    sure = lines("--file", str(tmp_path / "texts.txt"))
    shares = [float(line[1]) for line in sure]
    least = str(np.mean([min(shares), max(shares)]))
    expected = [label if float(share) >= float(least) else UNSURE for label, share, _ in sure]
    assert UNSURE in expected and set(expected) != {UNSURE}
    for source in ("texts.csv", "texts.txt"):
        told = lines("--file", str(tmp_path / source), "--min-confidence", least)
        assert [line[0] for line in told] == expected and [line[1] for line in told] == [line[1] for line in sure]
    stdin = type("Stdin", (), {"buffer": io.BytesIO((tmp_path / "texts.txt").read_bytes())})
    monkeypatch.setattr("sys.stdin", stdin)
    assert [line[0] for line in lines("--file", "-", "--min-confidence", least)] == expected
    assert predict.main([finetuned, "--file", str(tmp_path / "texts.txt"), "--min-confidence", least, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [answer["label"] for answer in answers] == expected
    assert max(answers[0]["probabilities"].values()) == pytest.approx(shares[0], abs=1e-4)
    out = tmp_path / "answers.csv"
    for given, labels in (([], [line[0] for line in sure]), (["--min-confidence", least], expected)):
        assert predict.main([finetuned, "--file", str(tmp_path / "texts.txt"), "--out", str(out), *given]) == 0
        rows = [line.split(",")[1].strip('"') for line in out.read_text().splitlines()[1:]]
        assert rows == labels
    assert "--min-confidence changed since" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "1", "80", "-1", "nan", "sure"])
def test_a_confidence_must_be_a_probability(capsys, given):
    with pytest.raises(SystemExit) as end:
        predict.main(["nowhere", "--text", "a", f"--min-confidence={given}"])
    assert end.value.code == 2
    assert f"{given} must be a probability, above 0 and below 1, such as 0.8" in capsys.readouterr().err


def test_where_nothing_can_be_unsure_it_is_refused(finished, capsys):
    folder = finished("tfidf")["folder"]
    assert predict.main([folder, "--text", "a", "--min-confidence", "0.8"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "needs a model that gives one class with a probability, and this one gives scores" in err


def test_a_temperature_that_does_not_help_other_texts_is_not_kept() -> None:
    """The logits are the right ones already, so what is fitted to few texts is their noise."""
    draw = np.random.default_rng(1)
    z = draw.normal(size=(60, 3)) * 2
    labels = np.array([draw.choice(3, p=row) for row in softmax(z, -1)])
    entry, kept = calibrate("classification", ["a", "b", "c"], "accuracy", splits(labels, z.astype(np.float32)))
    assert entry is not None and kept == Calibration() and not entry["kept"]
    before, after = entry["before"]["dev"]["nll"], entry["after"]["dev"]["nll"]
    assert after < before <= entry["dev_cross_fitted"]
    assert "not kept: the NLL of dev is not lower by temperatures of other dev texts" in in_words(entry)[0]


def test_the_interval_is_in_the_words(monkeypatch):
    for module in (calibration, probabilities):
        monkeypatch.setattr(module, "fit_temperature", lambda asked: Temperature(1.25, 1.1, 1.42))
    z = np.array([[3.0, 0], [0, 3], [3, 0], [3, 0], [0, 3], [3, 0]], np.float32)
    labels = np.array([0, 1, 1, 0, 1, 1])
    entry, kept = calibrate("classification", ["a", "b"], "accuracy", splits(labels, z))
    assert entry is not None and kept.temperature == 1.25
    assert in_words(entry)[0].startswith(
        "temperature 1.25 (95 % interval 1.1 to 1.42, from 3 dev texts): NLL of dev 1."
    )
