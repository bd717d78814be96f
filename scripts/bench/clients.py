"""An exported run in programs of others: do they give kdbench's labels and probabilities?

    kdbench-export RUN --int8 --openvino --demo
    scripts/test --browser              # installs the programs: Debian's chromium, and .clients
    python scripts/bench/clients.py RUN

It prints the table of docs/shipping.md. Each program answers TEXTS test texts of the run, one at a time: with dynamic
quantisation, an answer depends a little on the other texts of its batch. tests/test_clients.py uses the same functions
on tiny models.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from playwright.sync_api import Page

TEXTS = 200
ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".clients"
OPTIMUM = CLIENTS / "optimum"
TRANSFORMERS_JS = CLIENTS / "node_modules/@huggingface/transformers"
NODE, CHROMIUM = shutil.which("node"), shutil.which("chromium")
FP32, INT8, OPENVINO = "onnx/model.onnx", "onnx/model_quantized.onnx", "openvino/openvino_model.xml"

Answer = dict[str, float]  # label -> probability


def by_kdbench(model: Path, texts: Sequence[str], batch: int = 1) -> list[Answer]:
    import kdbench

    classify, starts = kdbench.load_classifier(model), range(0, len(texts), batch)
    return [one.probabilities for at in starts for one in classify(texts[at : at + batch])]


def by_pipeline(export: Path, texts: Sequence[str]) -> list[Answer]:
    from transformers import pipeline

    classify = pipeline("text-classification", str(export), device="cpu", top_k=None)
    found = classify(list(texts), truncation=True)
    return [{one["label"]: one["score"] for one in row} for row in found]


def by_onnxruntime(export: Path, file: str, texts: Sequence[str]) -> list[Answer]:
    import onnxruntime

    session = onnxruntime.InferenceSession(export / file)
    return tokenized(export, texts, lambda given: session.run(["logits"], given)[0])


def by_openvino(export: Path, texts: Sequence[str]) -> list[Answer]:
    import openvino

    model = openvino.Core().compile_model(export / OPENVINO, "CPU")
    return tokenized(export, texts, lambda given: model(given)["logits"])


def by_optimum(export: Path, file: str, texts: Sequence[str]) -> list[Answer]:
    """In a process of its own, because it brings packages of its own."""
    places = os.environ | {"PYTHONPATH": str(OPTIMUM), "HF_HUB_OFFLINE": "1"}
    return answered([sys.executable, str(ROOT / "tests/clients/classify.py"), str(export), file], texts, places)


def by_transformers_js(export: Path, dtype: str, texts: Sequence[str]) -> list[Answer]:
    """In Node, by the WebAssembly that runs in browsers."""
    script = ROOT / "tests/clients/classify.mjs"
    return answered([str(NODE), str(script), str(CLIENTS), str(export), dtype], texts, dict(os.environ))


@contextmanager
def demo(file: Path) -> "Iterator[tuple[Page, list[str]]]":
    """Yield a demo in Chromium, from disk and offline, and a list that gets its errors and requests to a network."""
    from playwright import sync_api

    faults: list[str] = []
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium refuses its own as root
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        page = browser.new_context(offline=True).new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        own = ("file:", "blob:", "data:")
        page.on("request", lambda one: None if one.url.startswith(own) else faults.append(one.url))
        page.set_default_timeout(300_000)  # of a busy machine
        page.goto(file.as_uri())
        page.wait_for_selector("textarea:enabled")
        yield page, faults
        browser.close()


def by_demo(page: "Page", texts: Sequence[str]) -> list[Answer]:
    found = []
    for text in texts:
        page.locator("textarea").fill(text)
        found.append(shown(page))
    return found


def shown(page: "Page") -> Answer:
    """Return the answer of a demo to the text that it has, best label first."""
    page.wait_for_selector("#answers[aria-busy=false]", state="attached")
    found = page.locator("#answers tr").evaluate_all("rows => rows.map(row => [row.dataset.label, row.dataset.score])")
    return {label: float(score) for label, score in found}


def tokenized(export: Path, texts: Sequence[str], logits: Any) -> list[Answer]:
    """Answer with a function that gets what the tokenizer of an export returns."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(export)
    names = json.loads((export / "config.json").read_text())["id2label"]
    found = []
    for text in texts:
        powers = np.exp(logits(dict(tokenizer([text], truncation=True, return_tensors="np")))[0].astype(float))
        found.append({names[str(at)]: float(one) for at, one in enumerate(powers / powers.sum())})
    return found


def answered(command: list[str], texts: Sequence[str], environment: dict[str, str]) -> list[Answer]:
    """Run a program that gets texts and gives answers as JSON, in its last line."""
    done = subprocess.run(
        command, input=json.dumps(list(texts)), capture_output=True, text=True, check=True, env=environment
    )
    found: list[Answer] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(mine: Sequence[Answer], theirs: Sequence[Answer]) -> tuple[int, float]:
    """Return how many texts have the same label, and the largest difference of a probability."""
    one, other = (array(answers, list(mine[0])) for answers in (mine, theirs))
    return int((one.argmax(-1) == other.argmax(-1)).sum()), float(np.abs(one - other).max())


def array(answers: Sequence[Answer], labels: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[answer[label] for label in labels] for answer in answers])


def main() -> None:
    from kdbench.inference.finished_run import open_run
    from kdbench.storage.provenance import instructions, machine

    run = Path(sys.argv[1])
    export = run / "export"
    inputs = open_run(run).data.test.texts
    texts = [inputs[at] for at in np.sort(np.random.default_rng(0).permutation(len(inputs))[:TEXTS])]
    js = f"transformers.js {json.loads((TRANSFORMERS_JS / 'package.json').read_text())['version']}"
    node = subprocess.run([str(NODE), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    (onnx,) = OPTIMUM.glob("optimum_onnx-*.dist-info")
    runtime, in_optimum = f"onnxruntime {version('onnxruntime')}", f"Optimum-ONNX {onnx.name.split('-')[1][:-10]}"
    exact, int8 = by_kdbench(run, texts), by_kdbench(export / INT8, texts)

    def row(name: str, form: str, answers: Sequence[Answer]) -> None:
        cells = [compared(exact, answers), *([compared(int8, answers)] if form == "int8" else [])]
        told = [cell for same, most in cells for cell in (str(same), f"{most:.1e}")]
        print(f"| {' | '.join([name, form, *told, *['–', '–'] * (2 - len(cells))])} |", flush=True)

    print(f"{len(texts)} texts, {machine()} ({instructions()})\n")
    print("| program | form | same label as PyTorch | largest difference | same label as int8 | largest difference |")
    print("|---|---|---:|---:|---:|---:|")
    row(f"`transformers.pipeline` {version('transformers')}", "PyTorch", by_pipeline(export, texts))
    row(runtime, "fp32", by_onnxruntime(export, FP32, texts))
    row(in_optimum, "fp32", by_optimum(export, FP32, texts))
    row(f"OpenVINO {version('openvino')}", "fp32", by_openvino(export, texts))
    row(f"{js}, Node {node}", "fp32", by_transformers_js(export, "fp32", texts))
    row("kdbench", "int8", int8)
    row("kdbench, batches of 32", "int8", by_kdbench(export / INT8, texts, 32))
    row(runtime, "int8", by_onnxruntime(export, INT8, texts))
    row(in_optimum, "int8", by_optimum(export, INT8, texts))
    row(f"{js}, Node {node}", "int8", by_transformers_js(export, "q8", texts))
    with demo(run / "demo.html") as (page, faults):
        browser = page.context.browser
        assert browser is not None
        row(f"the demo page, Chromium {browser.version}", "int8", by_demo(page, texts))
    assert faults == [], faults


if __name__ == "__main__":
    main()
