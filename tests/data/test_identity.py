"""What of a data set enters a run's id: its content, wherever it lies."""

from pathlib import Path

from kdbench.errors import Code
from kdbench.schema import DatasetConfig, DatasetSplits
from kdbench.sources.sources import dataset_identity
from tests.refusals import refused


def table(source: str | Path, train: str = ".", **splits: str) -> DatasetConfig:
    return DatasetConfig(name="tiny", source=str(source), splits=DatasetSplits(train, **splits))


def test_downloads_count_by_what_pins_them(tmp_path: Path) -> None:
    wheel = table("pypi:a==1", "a.csv")
    wheel.sha256 = "0" * 64
    assert dataset_identity(wheel, tmp_path) == {"source": "pypi:a==1", "sha256": "0" * 64}
    commit = "0123456789abcdef0123456789abcdef01234567"
    pinned = table(f"hub:some/data@{commit}", "train")
    assert dataset_identity(pinned, tmp_path) == {"source": f"hub:some/data@{commit}"}


def test_local_tables_count_by_content_and_by_split(tmp_path: Path) -> None:
    for name, text in {"a.csv": "x", "same.csv": "x", "b.csv": "y"}.items():
        (tmp_path / name).write_text(text)
    one = dataset_identity(table(tmp_path / "a.csv"), tmp_path)
    assert (
        one
        == dataset_identity(table(tmp_path / "same.csv"), tmp_path)
        == dataset_identity(table(tmp_path, "a.csv"), tmp_path)
    )
    assert one != dataset_identity(table(tmp_path / "b.csv"), tmp_path)
    test, dev = table(tmp_path, "a.csv", test="b.csv"), table(tmp_path, "a.csv", dev="b.csv")
    assert dataset_identity(test, tmp_path) != dataset_identity(dev, tmp_path)
    with refused(Code.MISSING_FILE, "dataset.splits.test=c.csv: ", tmp_path / "c.csv", "a.csv, b.csv, same.csv"):
        dataset_identity(table(tmp_path, "a.csv", test="c.csv"), tmp_path)


def test_a_hub_folder_counts_by_its_visible_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "train.jsonl").write_text("{}")
    (tmp_path / "two" / ".cache").mkdir()
    (tmp_path / "two" / ".cache" / "when").write_text("2024")
    one, two = (table(tmp_path / name, "train") for name in ("one", "two"))
    assert dataset_identity(one, tmp_path) == dataset_identity(two, tmp_path)
    (tmp_path / "two" / "data" / "train.jsonl").write_text("{ }")
    assert dataset_identity(one, tmp_path) != dataset_identity(two, tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.docx").write_text("")
    with refused(Code.INVALID_SOURCE, "(.csv, ", ".xlsx"):
        dataset_identity(table(tmp_path / "x.docx"), tmp_path)
