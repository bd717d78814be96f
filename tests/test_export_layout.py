"""What an export contains, by the names that other programs look for, and what it must not contain."""

import getpass
import json
import os
import platform
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from transformers import AutoTokenizer, pipeline

import kdbench
from kdbench.cli import export as export_command
from kdbench.cli import predict
from kdbench.errors import Code, UserError
from kdbench.inference import openvino as ov
from kdbench.inference.int8 import AWARE, WAYS, to_int8
from kdbench.shipping import best_int8
from kdbench.shipping.best_int8 import Tried, choose
from kdbench.shipping.portable import portable_command, portable_settings, portable_text
from tests.conftest import ROOT
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("taught")

LICENSED = ["dataset.language=en", "teacher.license=mit", "teacher.base_model=org/base"]
TEXTS = ["apple near the old pear", "a big lead", "river of gold is one lake"]


@pytest.fixture
def exported(configure, execute, capsys, monkeypatch) -> Path:
    """The folder of an export with all its graphs. Each way to quantise was used once: what was tried is exported."""
    made: list[str] = []
    monkeypatch.setattr(best_int8, "to_int8", lambda *given: made.append(given[2]) or to_int8(*given))
    report = "openvino_telemetry.Telemetry.start_session"  # to Google, from openvino.convert_model
    monkeypatch.setattr(report, lambda *given, **more: pytest.fail("the use of OpenVINO is reported"))
    folder = Path(execute(configure("method=logit_kd", "student.layers=1", *LICENSED))["folder"])
    capsys.readouterr()
    forms = ["--best-int8", "--max-loss", "100", "--fp16", "--openvino"]
    assert export_command.main([str(folder), *forms, "--quiet"]) == 0
    assert capsys.readouterr().out == f"{folder / 'export'}\n"
    assert sorted(made) == sorted({*WAYS} - {AWARE})
    return folder / "export"


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_an_export_is_what_others_load_and_no_more(exported, capsys, data_folder, tmp_path):
    """One export and all that is asked of it: it takes a while to make."""
    check_clients(exported)
    check_a_copy_without_graphs(exported, tmp_path, capsys)
    check_what_is_not_in_it(exported, data_folder, tmp_path)


def check_clients(exported: Path) -> None:
    """Other programs find their files, and give the same probabilities."""
    openvino = pytest.importorskip("openvino")
    labels = ["fruit", "metal", "water"]
    found = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert found == {
        "MANIFEST.json", "README.md", "config.json", "config.yaml", "model.safetensors", "special_tokens_map.json",
        "tokenizer.json", "tokenizer_config.json", "onnx/model.onnx", "onnx/model_quantized.onnx",
        "onnx/model_fp16.onnx", "openvino/openvino_model.xml", "openvino/openvino_model.bin",
    }  # fmt: skip
    record = json.loads((exported.parent / "forms/int8/results.json").read_text())["quantisation"]
    assert {one["name"] for one in record["tried"]} == {*WAYS, "pytorch", "onnx", "openvino", "openvino_int8"} - {AWARE}
    (best,) = (one for one in record["tried"] if one["name"] == record["way"])
    ways = [one for one in record["tried"] if one["name"] in WAYS]
    assert best["batch_1_ms"] * best["batch_32_ms"] == min(one["batch_1_ms"] * one["batch_32_ms"] for one in ways)
    content = (exported / "README.md").read_text()
    assert "Of 5 ways it was the fastest that loses at most 100 points on dev" in content
    card = next(yaml.safe_load_all(content))
    assert card["license"] == "mit" and card["language"] == ["en"] and card["pipeline_tag"] == "text-classification"
    assert card["base_model"] == ["org/base"]
    assert "datasets" not in card  # a file of the user's own

    classify = pipeline("text-classification", str(exported), device="cpu", top_k=None)
    expected = np.array(
        [[{one["label"]: one["score"] for one in row}[name] for name in labels] for row in classify(TEXTS)]
    )
    inputs = dict(AutoTokenizer.from_pretrained(exported)(TEXTS, padding=True, return_tensors="np"))
    answers = {}
    for name in ("model", "model_quantized"):
        session = onnxruntime.InferenceSession(exported / f"onnx/{name}.onnx")
        answers[name] = softmax(session.run(["logits"], inputs)[0])
    compiled = openvino.Core().compile_model(exported / "openvino/openvino_model.xml", "CPU")
    answers["openvino"] = softmax(compiled(inputs)["logits"])
    for name, tolerance in {"model": 1e-3, "model_quantized": 2e-2, "openvino": 1e-3}.items():
        np.testing.assert_allclose(answers[name], expected, atol=tolerance, err_msg=name)
    for graph in ("onnx", "onnx/model.onnx", "openvino", "openvino/openvino_model.xml"):
        told = kdbench.load_classifier(exported / graph)(TEXTS)
        mine = [[answer.probabilities[name] for name in labels] for answer in told]
        np.testing.assert_allclose(mine, expected, atol=1e-5, err_msg=graph)


def check_a_copy_without_graphs(exported: Path, tmp_path: Path, capsys: Any) -> None:
    """Each missing graph is named, with the option that writes it."""
    shutil.copytree(exported, tmp_path / "copy")
    (tmp_path / "copy/onnx/model.onnx").unlink()
    shutil.rmtree(tmp_path / "copy/openvino")
    for graph, option in (
        ("onnx", "--onnx"),
        ("openvino", "--openvino"),
        ("openvino/openvino_model.xml", "--openvino"),
    ):
        assert predict.main([str(tmp_path / "copy" / graph), "--text", "a"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and "KD071 not-a-run" in err and f"RUN {option}" in err and "Traceback" not in err
    (tmp_path / "model.onnx").write_bytes(b"")
    assert predict.main([str(tmp_path / "model.onnx"), "--text", "a"]) == 2
    assert "is no graph of an export" in capsys.readouterr().err


def check_what_is_not_in_it(exported: Path, data_folder: Path, tmp_path: Path) -> None:
    """Nothing of the texts or the machine."""
    config = yaml.safe_load((exported.parent / "config.yaml").read_text())
    texts = [line.rpartition(",")[0] for name in ("train", "test")
             for line in (data_folder / f"{name}.csv").read_text().splitlines()[1:]]  # fmt: skip
    places = {config["outputs"], config["cache_dir"], config["dataset"]["source"], config["teacher"]["source"]}
    places |= {str(tmp_path), str(ROOT), str(Path.home()), sys.prefix, os.getcwd(), "site-packages", ".py"}
    for path in (one for one in exported.rglob("*") if one.is_file()):
        content = path.read_bytes()
        for secret in [*places, *texts]:
            assert secret.encode() not in content, f"{path.relative_to(exported)} has {secret}"
        if path.suffix in (".md", ".json", ".yaml"):
            for name in {socket.gethostname(), platform.node(), getpass.getuser()}:
                assert not re.search(rf"\b{re.escape(name)}\b", content.decode()), f"{path.name} has {name}"
    kept = yaml.safe_load((exported / "config.yaml").read_text())
    assert kept["dataset"] == config["dataset"] | {"source": data_folder.name}
    assert kept["method"] == config["method"] and not kept.keys() & {"outputs", "cache_dir"}


def tried(name: str, loss: float, batch_1: float, batch_32: float) -> Tried:
    return Tried(name, 90 - loss, loss, 1.0, batch_1, batch_32, True)


def test_the_fastest_int8_within_the_loss_is_taken():
    rows = [tried("onnx", 0, 1, 1), tried("dynamic", 0.4, 4, 40), tried("static", 0.6, 2, 20),
            tried("static_channel", 0.5, 3, 50), tried("openvino_int8", 0, 1, 1)]  # fmt: skip
    assert [choose(rows, loss).name for loss in (0.4, 0.5, 0.6)] == ["dynamic", "static_channel", "static"]
    with refused(Code.UNSUPPORTED_EXPORT, "--max-loss 0.3", "0.40 points", "dynamic", kind=UserError):
        choose(rows, 0.3)
    assert export_command.main(["a", "--best-int8", "--max-loss", "-1"]) == 2


def test_sources_that_others_can_fetch_stay():
    settings = {
        "outputs": "/home/ann/outputs", "cache_dir": None,
        "teacher": {"source": "hub:org/name@1", "path": "/home/ann lee/run", "members": ["a/seed0", "b/seed0"]},
        "dataset": {"source": "pypi:x==1", "unlabelled": "~/raw.txt", "delimiter": "/", "splits": {"train": "x/y.csv"}},
    }  # fmt: skip
    assert portable_settings(settings) == {
        "teacher": {"source": "hub:org/name@1", "path": "run", "members": ["seed0", "seed0"]},
        "dataset": {"source": "pypi:x==1", "unlabelled": "raw.txt", "delimiter": "/", "splits": {"train": "x/y.csv"}},
    }
    command = "kdbench dataset=files 'dataset.source=/home/ann lee/my data.csv' outputs=/tmp/o -m seed=0,1"
    assert portable_command(command) == "kdbench dataset=files 'dataset.source=my data.csv' -m seed=0,1"
    sentence = "3 rows of /home/ann/x.csv dropped; see https://a.org/b/c, 1/2, C:\\Users\\ann\\y.csv and ../ann/z.csv"
    assert portable_text(sentence) == "3 rows of x.csv dropped; see https://a.org/b/c, 1/2, y.csv and z.csv"


def test_without_openvino_one_line_says_how_to_install_it(configure, execute, monkeypatch):
    folder = Path(execute(configure("method=tfidf"))["folder"])
    monkeypatch.setattr(ov, "find_spec", lambda name: None)
    with refused(Code.NOT_INSTALLED, "kdbench[openvino]", kind=UserError):
        ov.require_openvino()
    assert export_command.main([str(folder), "--openvino"]) == 2  # TF-IDF has no such form
    assert not (folder / "export").exists()
