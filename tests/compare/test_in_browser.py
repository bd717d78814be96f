"""The page in Debian's chromium, from disk, without a network: scripts/test --browser."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from kdbench.compare.cli import main
from tests.compare.test_compare_runs import SCORES, make_tree, student
from tests.compare.test_pictures import epochs
from tests.compare.test_tests import predict

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]
DESKTOP: "ViewportSize" = {"width": 1280, "height": 900}
PHONE: "ViewportSize" = {"width": 390, "height": 844}

# The least contrast (WCAG 2) of all words with what is behind them, and these words.
CONTRAST = """() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((part, at) => part * a + under[at] * (1 - a));
  const behind = one => one ? over(numbers(getComputedStyle(one).backgroundColor), behind(one.parentElement))
                            : [255, 255, 255];
  const light = color => color.map(part => part / 255).map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
  const worst = { ratio: 21, words: "" };
  for (const one of document.body.querySelectorAll("*:not(script):not(svg *)")) {
    const words = [...one.childNodes].filter(node => node.nodeType === 3).map(node => node.data.trim()).join("");
    if (!words || !one.checkVisibility()) continue;
    const under = behind(one), ink = light(over(numbers(getComputedStyle(one).color), under));
    const [low, high] = [ink, light(under)].sort((a, b) => a - b), ratio = (high + .05) / (low + .05);
    if (ratio < worst.ratio) Object.assign(worst, { ratio, words });
  }
  return worst;
}"""


def page_of(tree: Path, file: Path) -> Path:
    """The page of a tree, as a file."""

    with file.open("w", encoding="utf8") as out, contextlib.redirect_stdout(out):
        assert main([str(tree), "--format", "html"]) == 0
    return file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of five rows with predictions, learning curves and configs."""
    root = make_tree(tmp_path_factory.mktemp("site") / "outputs")
    points: dict[str, tuple[float, ...]] = {
        "aaaa1111": SCORES["direct"],
        "bbbb2222": SCORES["longer"],
        "eeee5555": SCORES["theseus"],
    }
    points |= {"cccc3333": (97.0,), "dddd4444": (91.5,)}
    for id_, scores in points.items():
        for seed, score in enumerate(scores):
            (folder,) = root.glob(f"r52/*/bert_3l-{id_}/seed{seed}")
            predict(folder, score, seed)
            (folder / "config.yaml").write_text(f"method: {{name: {folder.parents[1].name}}}\nseed: {seed}\n")
            raw = json.loads((folder / "results.json").read_text())
            raw["stages"] = [{"name": "training", "steps": 30, "epochs": epochs(50, 80, score)}]
            (folder / "results.json").write_text(json.dumps(raw))
    return page_of(root, root.parent / "page.html")


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium refuses its own as root
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def shown(chromium: "Browser", file: Path) -> Iterator["Page"]:
    """The page on a desktop; whatever it asks of the network or complains of fails the test."""
    faults: list[str] = []
    context = chromium.new_context(viewport=DESKTOP, offline=True)
    page = context.new_page()
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else faults.append(one.url))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert faults == []


def ids(page: "Page") -> list[str]:
    """Of the rows that are to be seen, in their order."""
    return page.locator("#table-0 tbody tr:visible").evaluate_all(
        "rows => rows.map(row => row.dataset.row.slice(0, 4))"
    )


def test_heads_sort_by_mouse_and_by_key(shown: "Page") -> None:
    assert ids(shown) == ["cccc", "dddd", "bbbb", "aaaa", "eeee"]
    head = shown.locator("#table-0 th", has_text="accuracy")
    head.locator("button").click()
    assert ids(shown) == ["aaaa", "bbbb", "dddd", "eeee", "cccc"]  # 91.00, 91.33, 91.50, 94.00, 97.00
    assert head.get_attribute("aria-sort") == "ascending"
    shown.keyboard.press("Enter")  # the focus is still there
    assert ids(shown) == ["cccc", "eeee", "dddd", "bbbb", "aaaa"]
    shown.keyboard.press("Shift+Tab")
    shown.keyboard.press("Shift+Tab")
    shown.keyboard.press("Space")
    assert ids(shown) == ["aaaa", "bbbb", "cccc", "dddd", "eeee"]  # as words: 7e30 and 9e13 are no numbers
    assert head.get_attribute("aria-sort") is None


def test_what_is_no_number_comes_last(shown: "Page") -> None:
    for expected in (["eeee"], ["eeee"]):  # either way
        shown.locator("#table-0 th", has_text="vs longer").locator("button").click()
        assert ids(shown)[:1] == expected


def test_typing_filters_and_counts(shown: "Page") -> None:
    shown.get_by_label("Show rows with").focus()
    shown.keyboard.type("FINE 91.")
    assert ids(shown) == ["bbbb", "aaaa"] and "2 of 5 rows." in shown.locator("section").inner_text()
    shown.keyboard.press("Control+a")
    shown.keyboard.press("Delete")
    assert len(ids(shown)) == 5


def test_rows_and_points_find_each_other(shown: "Page") -> None:
    row, point = shown.locator("tr[data-row=eeee5555]"), shown.locator("[id=point-eeee5555]")
    said, hint = shown.locator(".said"), shown.locator(".said").inner_text()
    row.hover()
    assert "at" in point.get_attribute("class") and "theseus · student bert_3l" in said.inner_text()
    point.hover()
    assert "at" in row.get_attribute("class") and "accuracy % 94.00 ± 1.73" in said.inner_text()
    shown.locator("h1").hover()
    assert said.inner_text() == hint and point.get_attribute("class") == ""
    shown.locator("#table-0 th button").last.focus()
    for _ in range(20):  # the rows come next
        shown.keyboard.press("Tab")
        if "eeee5555" in (shown.evaluate("document.activeElement.dataset.row") or ""):
            break
    assert "at" in point.get_attribute("class") and "94.00 ± 1.73" in said.inner_text()


def test_an_id_leads_to_all_that_is_known_of_a_row(shown: "Page") -> None:
    shown.locator("tr[data-row=eeee5555] a").focus()
    shown.keyboard.press("Enter")
    detail = shown.locator("[id=detail-eeee5555]")
    assert detail.is_visible() and not shown.locator("[id=detail-aaaa1111]").is_visible()
    words = detail.inner_text()
    for expected in ("Settings that differ from finetune (aaaa1111)", "method.name", "Learning curve",
                     "Confusions over 3 seeds", "examples right where its baseline is wrong",
                     "examples wrong where its baseline is right"):  # fmt: skip
        assert expected in words, words
    assert detail.locator("img").evaluate("one => one.decode().then(() => one.naturalWidth)") > 300
    shown.locator("summary", has_text="(bbbb2222)").focus()
    shown.keyboard.press("Enter")
    assert shown.locator("[id=detail-bbbb2222]").is_visible()


def test_a_phone_needs_no_scrolling_sideways(chromium: "Browser", file: Path) -> None:
    context = chromium.new_context(viewport=PHONE, is_mobile=True, has_touch=True, offline=True)
    page = context.new_page()
    page.goto(file.as_uri())
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator("#table-0 th", has_text="n").first.tap()
    page.locator("[id=point-eeee5555]").tap()
    assert "94.00 ± 1.73" in page.locator(".said").inner_text()
    context.close()


def test_words_stand_out_from_what_is_behind_them(shown: "Page") -> None:
    shown.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    shown.locator("tr[data-row=eeee5555]").hover()
    worst = shown.evaluate(CONTRAST)
    assert worst["ratio"] >= 4.5, worst


def test_ten_times_the_runs_open_in_at_most_five_times_the_time(chromium: "Browser", tmp_path: Path) -> None:
    """A thousand runs took 2.2 to 3.4 s of CPU on a slow machine, so no limit in seconds fits all."""

    def seconds(runs: int) -> float:
        """Return the CPU seconds that a page of so many runs takes."""
        for at in range(runs):
            student(tmp_path / f"{runs}", "pkd", f"{at:08x}", 0, 80 + at / 100, identity__parameters={"alpha": at})
        big = page_of(tmp_path / f"{runs}", tmp_path / f"{runs}.html")
        found = []
        for _ in range(3):
            page, before = chromium.new_page(), processor_seconds()
            page.goto(big.as_uri())
            page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")  # it has been drawn
            found.append(processor_seconds() - before)
            assert page.locator("#table-0 tbody tr").count() == runs
            page.close()
        return min(found)

    few, many = seconds(100), seconds(1000)
    assert many < 5 * few


def processor_seconds() -> float:
    """What chromium has used, all processes: no less than the wait on a free core, whoever else is at work."""
    below = psutil.Process().children(recursive=True)
    return sum(sum(one.cpu_times()[:2]) for one in below if "chrom" in one.name())
