"""An export in programs of others that are not installed with kdbench: transformers.js (Node, Chromium) and Optimum.

They are installed beside the environment, in .clients, by `scripts/test --browser`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import kdbench
from kdbench.cli import export as export_command
from tests.conftest import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

CLIENTS = ROOT / ".clients"
NODE, CHROMIUM = shutil.which("node"), shutil.which("chromium")
TRANSFORMERS_JS = CLIENTS / "node_modules/@huggingface/transformers"
TEXTS = ["apple near the old pear", "a big lead", "river of gold is one lake"]
TOLERANCES = {"fp32": ("onnx/model.onnx", 1e-3), "q8": ("onnx/model_quantized.onnx", 2e-2)}

pytestmark = pytest.mark.usefixtures("taught")
needs_node = pytest.mark.skipif(
    NODE is None or not TRANSFORMERS_JS.is_dir(), reason=f"no node, or no {TRANSFORMERS_JS}: scripts/test --browser"
)


@pytest.fixture
def run(configure, execute) -> Path:
    """The folder of a tiny run."""
    return Path(execute(configure("method=logit_kd"))["folder"])


def probabilities(path: Path, texts: list[str]) -> list[dict[str, float]]:
    return [answer.probabilities for answer in kdbench.load_classifier(path)(texts)]


@pytest.mark.browser
@needs_node
def test_transformers_js_gives_the_same_probabilities(run):
    """In Node, by the WebAssembly that runs in browsers."""
    assert export_command.main([str(run), "--int8", "--quiet"]) == 0
    exported = run / "export"
    for dtype, (graph, tolerance) in TOLERANCES.items():
        script = str(ROOT / "tests/clients/classify.mjs")
        command = [str(NODE), script, str(CLIENTS), str(exported), dtype, json.dumps(TEXTS)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        for mine, theirs in zip(probabilities(exported, TEXTS), found, strict=True):
            assert theirs == pytest.approx(mine, abs=tolerance), dtype
        for mine, theirs in zip(probabilities(exported / graph, TEXTS), found, strict=True):  # of the same graph
            assert theirs == pytest.approx(mine, abs=1e-3), dtype


@pytest.fixture
def page(run) -> Iterator["Page"]:
    """The page of a run, from disk and offline; whatever it asks of the network or complains of fails the test."""
    playwright = pytest.importorskip("playwright.sync_api")
    assert export_command.main([str(run), "--demo", "--quiet"]) == 0
    faults: list[str] = []
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium refuses its own as root
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        context = browser.new_context(offline=True)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda one: one.url.startswith(("file:", "blob:", "data:")) or faults.append(one.url))
        page.goto((run / "demo.html").as_uri())
        yield page
        browser.close()
    assert faults == []


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None or shutil.which("npm") is None, reason="no chromium, or no npm")
def test_the_page_classifies_a_typed_sentence(page, run):
    page.wait_for_selector("textarea:enabled", timeout=120_000)
    (mine,) = probabilities(run / "export/onnx/model_quantized.onnx", TEXTS[:1])
    page.locator("textarea").press_sequentially(TEXTS[0])
    page.wait_for_function("() => /ms/.test(document.getElementById('state').textContent)")
    page.wait_for_timeout(1000)  # the last letter's answer
    rows = page.locator("#answers tr")
    found = rows.evaluate_all("rows => rows.map(row => [row.dataset.label, Number(row.dataset.score)])")
    assert dict(found) == pytest.approx(mine, abs=1e-3)
    assert [label for label, _ in found] == sorted(mine, key=lambda label: -mine[label])


@pytest.mark.browser
@pytest.mark.skipif(not (CLIENTS / "optimum").is_dir(), reason=f"no {CLIENTS / 'optimum'}: scripts/test --browser")
def test_optimum_gives_the_same_probabilities(run):
    """In a process of its own, because it brings packages of its own."""
    assert export_command.main([str(run), "--int8", "--quiet"]) == 0
    exported = run / "export"
    program = """
import json, sys
from optimum.onnxruntime import ORTModelForSequenceClassification as Model
from transformers import AutoTokenizer
folder, graph, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
print(json.dumps(Model.from_pretrained(folder, file_name=graph)(**inputs).logits.tolist()))
"""
    for graph, tolerance in TOLERANCES.values():
        command = [sys.executable, "-c", program, str(exported), graph, json.dumps(TEXTS)]
        places = os.environ | {"PYTHONPATH": str(CLIENTS / "optimum"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=places)
        found = torch.tensor(json.loads(done.stdout.splitlines()[-1])).softmax(-1)
        expected = torch.tensor([list(one.values()) for one in probabilities(exported, TEXTS)])
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
