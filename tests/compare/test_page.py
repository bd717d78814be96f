"""The page: self-contained, escaped, and with the table's figures."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kdbench.compare.cli import main
from tests.compare.test_compare_runs import student
from tests.compare.test_tests import predict, tree

__all__ = ["tree"]  # the fixture


class Parsed(HTMLParser):
    """Tags with their attributes, and the cells of the first table's rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[str]] = {}
        self.row: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.row = dict(attrs).get("data-row")
        elif tag == "td" and self.row:
            self.rows.setdefault(self.row, []).append("")

    def handle_data(self, data: str) -> None:
        if self.row and self.row in self.rows:
            self.rows[self.row][-1] += data.strip()


def page(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments), "--format", "html"]) == 0
    return capsys.readouterr().out


def test_a_page_is_whole_and_has_the_tables_figures(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys, tree)
    found = Parsed(text)
    assert found.rows["eeee5555"][0] == "theseus" and "94.00 ± 1.73" in found.rows["eeee5555"]
    assert (
        "No significant difference from the best" in text and "The other 3 rows: 3 not significantly different." in text
    )
    assert 'id="point-eeee5555"' in text  # what hovering looks for
    assert "Settings that differ from finetune (aaaa1111)" in text and "Confusions over 3 seeds" in text
    assert "examples right where its baseline is wrong" in text
    assert "Without their texts: no run here has the config.yaml" in text
    for tag, attributes in found.tags:
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(http" not in text and "@import" not in text and "fetch(" not in text


def test_what_users_wrote_is_escaped(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "<script>alert(1)</script>"
    for seed in range(2):
        names = {f"identity__{name}": evil for name in ("student", "method", "teacher")}
        student(tree, "pkd", "ffff0001", seed, 92.0, identity__parameters={"a": evil}, tag=evil, **names)
        (folder,) = tree.glob(f"r52/pkd/*/seed{seed}")
        predict(folder, 92.0, seed)
        (folder / "model").mkdir()
        (folder / "model/config.json").write_text(json.dumps({"id2label": {"0": evil}}))
    text = page(capsys, tree)
    assert evil not in text and "&lt;script&gt;alert(1)" in text
    assert len(re.findall("<script", text)) == 1


def test_what_was_read_is_shown_once_with_its_warnings_and_escaped(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "<b>evil</b>"
    counts = {"texts": 4, "cut": 1, "pieces": 10, "unknown": 5, "examples": [evil]}
    data = {
        "name": "r52",
        "files": [{"split": "train", "file": f"{evil}.csv", "format": "csv", "separator": ";", "encoding": "cp1252",
                   "unit": "line", "dropped": [], "notes": []}],
        "splits": {"train": {"rows": 4, "cut": None, "empty": 0, "repeated": 2}},
        "class_count": 1, "classes": {evil: {"train": 4}}, "range": None, "unlabelled": None,
        "notes": [f"train: {evil}"],
        "pieces": [{"tokenizer": "small", "pretrained": True, "max_length": 32, "splits": {"train": counts}}],
    }  # fmt: skip
    for seed in range(2):
        student(tree, "pkd", "ffff0001", seed, 92.0, data=data)
        student(tree, "pkd", "ffff0002", seed, 92.0, data=data)
    text = page(capsys, tree)
    assert evil not in text and text.count("&lt;b&gt;evil&lt;/b&gt;.csv (csv, separator &#34;;&#34;, cp1252)") == 1
    assert text.count("cut to 32 pieces") == 1 and text.count("50.0 % of train") == 1
    assert "What was read" in text and "evil" not in page(capsys, tree, "--method", "theseus")  # that of shown rows


def test_an_exported_form_has_its_labels_names(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = tree.glob("r52/theseus/*/seed0")
    form = run / "forms" / "int8"
    form.mkdir(parents=True)
    raw = json.loads((run / "results.json").read_text()) | {"id": "ffff0001", "form": "int8"}
    (form / "results.json").write_text(json.dumps(raw))
    (run / "model").mkdir(exist_ok=True)
    (run / "model/config.json").write_text(json.dumps({"id2label": {"0": "crude", "1": "grain", "2": "trade"}}))
    predict(form, 92.0, 0)
    assert '<th scope="row">grain</th>' in page(capsys, tree)


def test_a_page_of_other_arrangements_is_refused(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tree), "--format", "html", "--group-by", "method"])
    assert "leave out --diff, --gate, --group-by and --pivot" in capsys.readouterr().err
