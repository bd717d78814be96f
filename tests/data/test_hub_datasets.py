"""The hub's data sets by their own YAMLs, read from small folders of the same schema."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from omegaconf import OmegaConf

from kdbench.data.datasets import Split, TextData, load_dataset
from kdbench.data.stored import stored_dataset
from kdbench.data.unlabelled import Unlabelled, stored_unlabelled
from kdbench.errors import Code
from kdbench.schema import DatasetConfig
from kdbench.sources.sources import unlabelled_identity
from tests.data.test_datasets import config as local_config
from tests.refusals import refused

CONF = Path(__file__).parents[2] / "conf" / "dataset"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config(name: str, source: object, **keys: Any) -> DatasetConfig:
    """conf/dataset/<name>.yaml, from another place."""
    merged: Any = OmegaConf.merge(OmegaConf.structured(DatasetConfig), OmegaConf.load(CONF / f"{name}.yaml"))
    return OmegaConf.to_object(OmegaConf.merge(merged, {"source": str(source), **keys}))  # type: ignore[return-value]


def parquet(path: Path, text: str, labels: list[int], names: list[str]) -> None:
    """A split as the hub has it: `text` column, ClassLabel `label`, `idx`; row k of split s reads "s k"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    split, rows = path.stem.split("-")[0], range(len(labels))
    columns = {text: [f"{split} {row}" for row in rows], "label": labels, "idx": list(rows)}
    Dataset.from_dict(columns).cast_column("label", ClassLabel(names=names)).to_parquet(path)


def benchmark(root: Path, subsets: dict[str, list[str]]) -> Path:
    """CLUE's and GLUE's layout: a README that lists configurations, a folder for each; test labels are -1."""
    card = ["---", "configs:"]
    for subset, names in subsets.items():
        card += [f"- config_name: {subset}", "  data_files:"]
        card += [f"  - split: {split}\n    path: {subset}/{split}-*" for split in ("test", "train", "validation")]
        labels = list(range(len(names)))
        for split, found in {"train": labels * 50, "validation": labels[::-1], "test": [-1, -1]}.items():
            parquet(root / subset / f"{split}-00000-of-00001.parquet", "sentence", found, names)
    (root / "README.md").write_text("\n".join([*card, "---", "# Benchmark"]))
    return root


IFLYTEK = [str(number) for number in range(119)]
TNEWS = ["100", "101", "102", "103", "104", "106", "107", "108", "109", "110", "112", "113", "114", "115", "116"]
SST2 = ["negative", "positive"]


def labelled(data: TextData, split: Split) -> list[tuple[str, str]]:
    return [(text, data.label_names[label]) for text, label in zip(split.texts, split.labels, strict=True)]


@pytest.mark.parametrize(("name", "names"), [("iflytek", IFLYTEK), ("tnews", TNEWS), ("sst2", SST2)])
def test_hidden_test_labels_make_the_official_dev_the_test(tmp_path: Path, name: str, names: list[str]) -> None:
    folder = benchmark(tmp_path / "hub", {"other": ["x", "y"], name: names})
    data = load_dataset(config(name, folder), tmp_path)
    assert data.label_names == names, "in the source's order"
    assert labelled(data, data.test) == [(f"validation {row}", label) for row, label in enumerate(names[::-1])]
    assert len(data.train) + len(data.dev) == 50 * len(names)
    assert all(text.startswith("train ") for text in data.dev.texts) and set(data.dev.labels) == set(range(len(names)))
    assert data.test_is == "dev" and any("official dev split (validation)" in note for note in data.notes)


@pytest.mark.parametrize(
    ("name", "place", "names"),
    [("ag_news", "data", ["World", "Sports", "Business", "Sci/Tech"]), ("imdb", "plain_text", ["neg", "pos"])],
)
def test_an_official_test_is_kept_and_dev_is_cut(tmp_path: Path, name: str, place: str, names: list[str]) -> None:
    labels = list(range(len(names)))
    for split, found in {"train": labels * 20, "test": labels, "unsupervised": [-1, -1]}.items():
        parquet(tmp_path / "hub" / place / f"{split}-00000-of-00001.parquet", "text", found, names)
    data = load_dataset(config(name, tmp_path / "hub"), tmp_path)
    assert labelled(data, data.test) == [(f"test {row}", label) for row, label in enumerate(names)]
    assert len(data.train) + len(data.dev) == 20 * len(names) and len(data.dev) >= len(names)
    assert data.test_is == "test"


def newsgroups(folder: Path, word: str) -> TextData:
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        rows = [{"text": f"{word} {row}", "label": row % 20, "label_text": f"g{row % 20:02}"} for row in range(60)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_dataset(config("newsgroups20_hub", folder), folder.parent)


def test_newsgroups_are_named_by_label_text_and_read_anew_when_the_folder_changes(tmp_path: Path) -> None:
    assert newsgroups(tmp_path / "hub", "one").label_names == [f"g{row:02}" for row in range(20)]
    assert newsgroups(tmp_path / "hub", "other").test.texts[0] == "other 0"


def test_hidden_labels_wrong_splits_subsets_and_columns_are_explained(tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "hub", {"iflytek": IFLYTEK, "other": ["x", "y"]})
    for keys, code, *named in [
        (
            {"splits": {"test": "test"}},
            Code.MISSING_LABELS,
            "dataset.splits.test=test ",
            "dataset.splits.test=validation dataset.splits.dev=null",
        ),
        ({"splits": {"dev": "dev"}}, Code.MISSING_COLUMN, "dataset.splits.dev=dev: ", "validation"),
        ({"subset": "cola"}, Code.UNREADABLE_TABLE, "dataset.subset=cola ", "iflytek"),
        ({"subset": None}, Code.UNREADABLE_TABLE, "dataset.subset=None ", "iflytek"),
        ({"text": "text"}, Code.MISSING_COLUMN, "dataset.text=text: ", "sentence, label, idx"),
        ({"classes": 3}, Code.MISMATCHED_CLASSES, "dataset.classes=3", "iflytek has 119"),
    ]:
        with refused(code, *named):
            load_dataset(config("iflytek", folder, **keys), tmp_path)  # type: ignore[arg-type]


class Hub:
    """A hub of one repository, the folder, which can be put out of reach."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded: list[tuple[str, str | None, str]] = []  # repository, subset, revision
        self.monkeypatch = monkeypatch
        real = datasets.load_dataset

        def load(path: str, subset: str | None, *, revision: str, **keys: Any) -> Any:
            self.loaded.append((path, subset, revision))
            return real(str(folder), subset, **keys)

        monkeypatch.setattr(datasets, "load_dataset", load)
        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: SimpleNamespace(sha=COMMIT))

    def cut_off(self) -> None:
        def offline(*_: Any, **__: Any) -> Any:
            raise ConnectionError("no route to host")

        self.monkeypatch.setattr(datasets, "load_dataset", offline)
        self.monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", offline)


def test_a_repository_is_loaded_once_at_its_commit_and_then_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(benchmark(tmp_path / "hub", {"sst2": SST2, "cola": SST2}), monkeypatch)
    wanted = config("sst2", "hub:nyu-mll/glue")
    first = load_dataset(wanted, tmp_path / "cache")
    assert hub.loaded == [("nyu-mll/glue", "sst2", COMMIT)] and first.label_names == SST2
    hub.cut_off()
    assert labelled(first, load_dataset(wanted, tmp_path / "cache").test) == labelled(first, first.test)
    with refused(Code.UNREACHABLE_SOURCE, "no route to host", "dataset=reuters_r8"):
        load_dataset(wanted, tmp_path / "empty")


WORDS = ["alpha", "bravo", "delta", "echo", "golf", "hotel", "india", "kilo", "lima", "mike", "oscar", "papa"]


def sentence(number: int) -> str:
    return " ".join(np.random.default_rng(number).choice(WORDS, 8))


def repository(root: Path, column: str, **splits: list[str | None]) -> Path:
    """A repository of texts with an id, in one Parquet file for each split."""
    for name, texts in splits.items():
        path = root / "data" / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({"id": [*range(len(texts))], column: texts}).to_parquet(path)
    return root


def labelled_rows(tmp_path: Path, **keys: Any) -> DatasetConfig:
    """A local data set of 40 train, 10 dev and 10 test rows, whose text column is `body`."""
    for name, numbers in {"train": range(40), "dev": range(40, 50), "test": range(50, 60)}.items():
        lines = [f"{sentence(number)},{'ab'[number % 2]}" for number in numbers]
        (tmp_path / f"{name}.csv").write_text("\n".join(["body,label", *lines]) + "\n")
    return local_config(tmp_path, "train.csv", "dev.csv", "test.csv", **{"text": "body", **keys})


def transfer(wanted: DatasetConfig, cache: Path) -> Unlabelled:
    return stored_unlabelled(wanted, stored_dataset(wanted, cache), cache)


def test_texts_without_labels_come_from_a_split_at_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The column is that of the data set; nothing is asked of the network again, and another commit is another set."""
    raw: list[str | None] = [sentence(100), None, " ", sentence(101), sentence(3), sentence(55).upper(), sentence(100)]
    hub = Hub(repository(tmp_path / "hub", "body", train=[sentence(200)], unsupervised=raw), monkeypatch)
    wanted = labelled_rows(tmp_path, unlabelled="hub:org/name@v2:unsupervised")
    found = transfer(wanted, tmp_path / "cache")
    assert list(found.split.texts) == [sentence(100), sentence(101)]
    dropped = {"blank": 2, "repeated": 1, "in_train": 1, "in_dev_or_test": 1, "near_dev_or_test": 0}
    assert found.report["dropped"] == dropped and found.report["source"] == "hub:org/name@v2:unsupervised"
    assert hub.loaded == [("org/name", None, COMMIT)]
    assert unlabelled_identity(wanted, tmp_path / "cache")["source"] == f"hub:org/name@{COMMIT}:unsupervised"
    hub.cut_off()
    assert list(transfer(wanted, tmp_path / "cache").split.texts) == list(found.split.texts)
    pinned = dataclasses.replace(wanted, unlabelled=f"hub:org/name@{COMMIT}:unsupervised")
    assert unlabelled_identity(pinned, tmp_path / "cache") == unlabelled_identity(wanted, tmp_path / "cache")
    main = dataclasses.replace(wanted, unlabelled="hub:org/name:unsupervised")
    with refused(Code.UNREACHABLE_SOURCE, "org/name@main", "no route to host"):
        transfer(main, tmp_path / "cache")


def test_another_split_of_the_data_set_s_own_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As imdb's `unsupervised`: of the same subset, and the repository is loaded once."""
    labels, root = [0, 1], tmp_path / "hub"
    card = ["---", "configs:", "- config_name: plain_text", "  data_files:"]
    for split, given in {"train": labels * 20, "test": labels, "unsupervised": [-1, -1]}.items():
        parquet(root / "plain_text" / f"{split}-00000-of-00001.parquet", "text", given, ["neg", "pos"])
        card += [f"  - split: {split}", f"    path: plain_text/{split}-*"]
    (root / "README.md").write_text("\n".join([*card, "---", "# Reviews"]))
    hub = Hub(root, monkeypatch)
    wanted = config("imdb", "hub:stanfordnlp/imdb", unlabelled="hub:stanfordnlp/imdb:unsupervised")
    found = transfer(wanted, tmp_path / "cache")
    # "unsupervised 0" and "unsupervised 1" are one text: digits make no difference
    assert list(found.split.texts) == ["unsupervised 0"] and len(hub.loaded) == 1


def test_a_split_or_column_that_the_repository_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(repository(tmp_path / "hub", "text", train=[sentence(100)]), monkeypatch)
    for given, named in {"hub:org/name:test": "the splits train", "hub:org/name:train": "no column body"}.items():
        with refused(Code.MISSING_COLUMN, f"dataset.unlabelled={given}", named):
            transfer(labelled_rows(tmp_path, unlabelled=given), tmp_path / "cache")


def test_a_repository_that_cannot_be_read_is_named_by_the_key_that_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub(benchmark(tmp_path / "hub", {"one": SST2, "two": SST2}), monkeypatch)
    given = "hub:org/name:train"  # which of its two configurations?
    with refused(Code.UNREADABLE_TABLE, f"dataset.unlabelled={given}", "one", "two"):
        transfer(labelled_rows(tmp_path, unlabelled=given), tmp_path / "cache")
