"""The texts of examples in the page: from the cache, escaped, cut; and why there are none."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from kdbench.compare.collect import read_runs
from kdbench.compare.keys import Wanted
from kdbench.compare.rows import build_tables
from kdbench.compare.table import Table
from kdbench.compare.texts import texts
from kdbench.data.stored import kept_split, stored_dataset
from kdbench.schema import DatasetConfig, DatasetSplits
from tests.compare.test_page import page
from tests.compare.test_tests import N, predict, tree

__all__ = ["tree"]  # the fixture

EVIL = "<script>alert(1)</script>"
LONG = "長い" * 400  # without a space


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetConfig:
    """A table whose test rows, after two of train, have the labels of `predict`."""
    source = tmp_path / "texts"
    source.mkdir()
    (source / "train.tsv").write_text("text\tlabel\n" + "".join(f"train {at}\t{at % 3}\n" for at in range(30)))
    kinds = (EVIL, LONG, "two   spaces", "test")
    lines = [f"{at} {kinds[at % 4]}\t{(30 + at) % 3}\n" for at in range(N)]
    (source / "test.tsv").write_text("text\tlabel\n" + "".join(lines), encoding="utf8")
    return DatasetConfig(
        name="own", source=str(source), splits=DatasetSplits("train.tsv", None, "test.tsv"), text="text",
        label="label", dev_fraction=0.2, test_fraction=0.2, split_seed=0, max_length=16,
        max_train_samples=None, max_dev_samples=None, max_test_samples=None, epochs=1, classes=3,
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, dataset: DatasetConfig) -> Path:
    stored_dataset(dataset, tmp_path / "cache")
    return tmp_path / "cache"


def score_of(results: Path) -> float:
    return 100 * float(json.loads(results.read_text())["metrics"]["test"]["accuracy"])


@pytest.fixture
def runs(tree: Path, tmp_path: Path, dataset: DatasetConfig) -> Path:
    """The runs of a tree, each with a config.yaml that says that they read this data set."""
    for at, path in enumerate(sorted(tree.rglob("results.json"))):
        record = {"dataset": dataclasses.asdict(dataset), "cache_dir": str(tmp_path / "cache")}
        path.with_name("config.yaml").write_text(OmegaConf.to_yaml(record), encoding="utf8")
        predict(path.parent, score_of(path), at, 30 + np.arange(N))  # ids count on from train
    return tree


def test_a_page_shows_texts_escaped_and_cut(runs: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page(capsys, runs)
    assert "Without their texts" not in text
    shown = dict(
        re.findall(r"<tr><td>(\d+)</td>[^\n]*<td class=\"left text\" dir=\"auto\">(\d+ [^\n]*)</td></tr>", text)
    )
    assert len(shown) > 20 and all(int(number) == 30 + int(words.split()[0]) for number, words in shown.items())
    found = {words.split(" ", 1)[1] for words in shown.values()}
    assert {"&lt;script&gt;alert(1)&lt;/script&gt;", "two spaces", "test"} <= found and EVIL not in text
    assert {len(words) for words in shown.values() if "長" in words} == {300}  # with the ellipsis
    assert not list(runs.rglob("*.arrow"))  # the texts are in the page alone


def table_of(runs: Path) -> Table:
    return build_tables(read_runs([runs], "accuracy", "test", Wanted())[0], lambda run: True)[0]


def test_why_there_are_no_texts(runs: Path, tmp_path: Path, dataset: DatasetConfig) -> None:
    table = table_of(runs)

    def why_not() -> str:
        return texts(run for row in table.rows for run in row.runs).why_not

    assert f"own is not in this machine's cache, {tmp_path / 'cache'}; any run on it" in why_not()
    assert not (tmp_path / "cache").exists()
    stored_dataset(dataset, tmp_path / "cache")
    assert why_not() == ""
    (kept,) = (tmp_path / "cache/splits").glob("*/test.arrow")
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + b"x")
    assert f"{kept}" in why_not()
    kept.write_bytes(content)
    (tmp_path / "cache").chmod(0o777)
    assert "others can write to it" in why_not()
    (tmp_path / "cache").chmod(0o700)
    for path in runs.rglob("results.json"):
        predict(path.parent, 90.0, 0)  # other examples
    assert "has other examples of own than the runs had" in why_not()
    shutil.rmtree(tmp_path / "texts")
    assert "no such file" in why_not()
    for path in runs.rglob("config.yaml"):
        path.write_text("dataset: 3")
    assert "config.yaml cannot be used: " in why_not()
    for path in runs.rglob("config.yaml"):
        path.unlink()
    assert "no run here has the config.yaml" in why_not()


def test_the_hub_is_not_asked(tmp_path: Path, dataset: DatasetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbench.sources.fetch.ask_hub", lambda *_: pytest.fail("asked"))
    elsewhere = dataclasses.replace(dataset, source="hub:somebody/texts")
    assert kept_split(elsewhere, tmp_path, "test") is None
