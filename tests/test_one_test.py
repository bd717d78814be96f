"""The digests by which runs share a test, and what a run records of its teacher's data."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from kdbench.compare.cli import main
from kdbench.data.datasets import Split, load_dataset
from kdbench.runs.record import examples_id
from kdbench.schema import DatasetConfig, DatasetSplits

ROWS = [("red apple", "fruit"), ("old iron", "metal"), ("plum", "fruit"), ("the sea", "water")]


def files(folder: Path, test: list[tuple[str, str]], first: str = "water") -> DatasetConfig:
    """A data set of 30 train rows, whose first has the label `first`, and of `test`."""
    folder.mkdir(parents=True)
    names = [first, *("fruit", "metal", "water") * 10][:30]
    train = [(f"text {at}", name) for at, name in enumerate(names)]
    for name, rows in (("train", train), ("test", test)):
        lines = "".join(f"{text}\t{label}\n" for text, label in rows)
        (folder / f"{name}.tsv").write_text(f"text\tlabel\n{lines}", encoding="utf8")
    return DatasetConfig(
        name="tiny", source=str(folder), splits=DatasetSplits("train.tsv", None, "test.tsv"), text="text",
        label="label", dev_fraction=0.2, test_fraction=0.2, split_seed=0, max_length=16, classes=None,
        max_train_samples=None, max_dev_samples=None, max_test_samples=None, epochs=1,
    )  # fmt: skip


def ids(config: DatasetConfig) -> tuple[str, str]:
    data = load_dataset(config, Path(config.source))
    return examples_id(data.test, data.label_names), examples_id(data.dev, data.label_names)


def test_they_are_of_the_rows_alone(tmp_path: Path) -> None:
    config = files(tmp_path / "a", ROWS)
    test, dev = ids(config)
    assert test != dev
    assert ids(replace(config, max_train_samples=5, max_dev_samples=100)) == (test, dev)
    assert ids(replace(config, max_train_samples=5))[0] == test  # its dev is smaller, too
    assert ids(files(tmp_path / "elsewhere" / "b", ROWS)) == (test, dev)
    assert ids(replace(config, max_dev_samples=2))[0] == test != ids(replace(config, max_test_samples=3))[0]
    assert ids(replace(config, max_dev_samples=2))[1] != dev == ids(replace(config, max_test_samples=3))[1]
    for number, other in enumerate((
        [*ROWS[:3], ("the sea", "metal")], [*ROWS[:3], ("The sea", "water")], ROWS[::-1], ROWS[:3],
        [*ROWS, ROWS[0]],
    )):  # fmt: skip
        assert ids(files(tmp_path / f"c{number}", other))[0] != test


def of(labels: list[object], names: list[str], pairs: list[str] | None = None, dtype: type = np.int64) -> str:
    texts = [f"text {at}" for at in range(len(labels))]
    if dtype is object:
        rows = np.empty(len(labels), object)
        rows[:] = [np.array(one) for one in labels]
        return examples_id(Split(np.arange(len(labels)), texts, rows, pairs), names)
    return examples_id(Split(np.arange(len(labels)), texts, np.array(labels, dtype), pairs), names)


def test_classes_count_by_name_whatever_the_task() -> None:
    assert of([0, 1, 1], ["a", "b"]) == of([1, 0, 0], ["b", "a"]) == of([0, 2, 2], ["a", "c", "b"])
    assert of([0, 1, 1], ["a", "b"]) != of([0, 1, 1], ["b", "a"])
    assert of([[0, 1, 1], [1, 0, 0]], ["a", "b", "c"], dtype=np.int8) == of(
        [[1, 0, 1], [0, 1, 0]], ["c", "a", "b"], dtype=np.int8
    )
    assert of([[0, 1], [1]], ["O", "B"], dtype=object) == of([[1, 0], [0]], ["B", "O"], dtype=object)
    assert of([0.5, 1.0], [], dtype=np.float32) != of([0.5, 1.5], [], dtype=np.float32)


def test_a_second_sentence_counts_and_no_text_runs_into_the_next() -> None:
    assert len({of([0, 0], ["a"]), of([0, 0], ["a"], ["x", "y"]), of([0, 0], ["a"], ["x", "z"])}) == 3
    one, other = (
        examples_id(Split(np.arange(1), [first], np.array([0]), [second]), ["a"])
        for first, second in (("x", "yz"), ("xy", "z"))
    )
    assert one != other


SHORT = ("schedule.steps=2", "teacher.schedule.steps=2", "schedule.epochs=1")


def test_a_run_says_what_its_teacher_saw(configure, execute, tmp_path, capsys) -> None:
    assistant = execute(configure("method=finetune", "student.layers=3", *SHORT))
    few = ("dataset.max_train_samples=20", "teacher=run", f"teacher.path={assistant['folder']}")
    result = execute(configure("method=logit_kd", "student.layers=2", *SHORT, *few))
    assert assistant["data"]["splits"]["train"]["rows"] == result["teacher"]["labelled"] == 60
    for name in ("test_id", "dev_id"):
        assert result["teacher"][name] == assistant["identity"][name] == result["identity"][name]
    assert result["identity"]["data_id"] != assistant["identity"]["data_id"]
    assert main([str(tmp_path / "outputs"), "--no-tests", "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    assert "trained on 20 or 60 labelled texts\n" in out
    assert f"logit_kd ({result['id']}): its teacher saw 60 labels, this run 20." in out
    other = execute(configure("method=logit_kd", "student.layers=2", *SHORT, *few, "dataset.max_test_samples=9"))
    assert other["teacher"]["test_id"] == assistant["identity"]["test_id"] != other["identity"]["test_id"]
    capsys.readouterr()  # its log
    assert main([str(tmp_path / "outputs"), "--format", "json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert {table["examples"]: len(table["rows"]) for table in tables} == {40: 2, 9: 1}
    (alone,) = (table for table in tables if table["examples"] == 9)
    assert any(note.startswith("Warning: the teacher's run had another test split") for note in alone["notes"])
