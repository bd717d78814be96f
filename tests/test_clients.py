"""An export in programs of others that are not installed with kdbench: transformers.js (Node, Chromium) and Optimum.

They are installed beside the environment, in .clients, by `scripts/test --browser`.
"""

import shutil
from pathlib import Path

import pytest

from kdbench.cli import export as export_command
from scripts.bench import clients

TEXTS = ["apple near the old pear", "a big lead", "river of gold is one lake"]
TOLERANCES = {"fp32": (clients.FP32, 1e-3), "q8": (clients.INT8, 2e-2)}

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("taught")]


def needs(*programs: bool) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not all(programs), reason="a program is missing: scripts/test --browser installs it")


@pytest.fixture
def run(configure, execute) -> Path:
    """The folder of a tiny run."""
    return Path(execute(configure("method=logit_kd"))["folder"])


def check(found: list[clients.Answer], exported: Path, graph: str, tolerance: float) -> None:
    """The probabilities are those of PyTorch and of the same graph in kdbench.

    In int8, these differ too, where the processor has AVX2 but no VNNI: native products overflow, WebAssembly's do not.
    """
    for model in (exported, exported / graph):
        for mine, theirs in zip(clients.by_kdbench(model, TEXTS), found, strict=True):
            assert theirs == pytest.approx(mine, abs=tolerance), model.name


@needs(clients.NODE is not None, clients.TRANSFORMERS_JS.is_dir())
def test_transformers_js_gives_the_same_probabilities(run):
    assert export_command.main([str(run), "--int8", "--quiet"]) == 0
    for dtype, (graph, tolerance) in TOLERANCES.items():
        check(clients.by_transformers_js(run / "export", dtype, TEXTS), run / "export", graph, tolerance)


@needs(clients.OPTIMUM.is_dir())
def test_optimum_gives_the_same_probabilities(run):
    assert export_command.main([str(run), "--int8", "--quiet"]) == 0
    for graph, tolerance in TOLERANCES.values():
        check(clients.by_optimum(run / "export", graph, TEXTS), run / "export", graph, tolerance)


@needs(clients.CHROMIUM is not None, shutil.which("npm") is not None)
def test_the_page_classifies_a_typed_sentence(run):
    """From disk and offline, without an error."""
    pytest.importorskip("playwright.sync_api")
    assert export_command.main([str(run), "--demo", "--quiet"]) == 0
    with clients.demo(run / "demo.html") as (page, faults):
        page.locator("textarea").press_sequentially(TEXTS[0])
        found = [clients.shown(page), *clients.by_demo(page, TEXTS[1:])]
        assert clients.by_demo(page, ["  "]) == [{}]
    assert faults == []
    check(found, run / "export", clients.INT8, 2e-2)
    for answer in found:
        assert [*answer] == sorted(answer, key=lambda label: -answer[label])
