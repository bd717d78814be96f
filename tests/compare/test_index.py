"""The index beside many runs: the same figures with it as without it, whatever happened to the runs or to the index."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.compare import collect, index
from kdbench.compare.collect import Run, read_runs
from kdbench.compare.keys import Wanted
from kdbench.storage.cache import locked
from kdbench.storage.files import write_record
from kdbench.storage.results import read_result
from tests.compare.test_compare_runs import make_tree, student

Found = tuple[list[Run], list[str], list[Path]]
DIRECT = "r52/finetune/bert_3l-aaaa1111/seed1"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(index, "MANY", 1)
    monkeypatch.setattr(index, "RECENT", 0)
    root = make_tree(tmp_path / "outputs")
    for seed in range(2):  # one row of two teachers
        student(root, "pkd", f"ffff000{seed}", seed, 92.0, id_without_teacher_seed="ffffffff", teacher__seed=seed)
    general = root / "r52/finetune/general-99999999/seed0"
    shutil.copytree(root / DIRECT, general)
    rewrite(general, lambda text: text.replace('{"schema"', '{"phase": "general", "schema"', 1))
    time.sleep(0.02)  # longer than a tick of the file system's clock
    return root


def read(root: Path, keys: tuple[str, ...] = (), metric: str | None = None, split: str = "test") -> Found:
    others: list[Path] = []
    wanted = Wanted(keys)
    runs, warnings = read_runs([root], metric, split, wanted, others)
    wanted.check()
    return runs, warnings, others


def without_index(root: Path, *keys: str) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "FOLDER", ".none")
        patch.setattr(index, "MANY", 10**9)
        return read(root, keys)


def rewrite(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "results.json"
    path.write_text(change(path.read_text(encoding="utf8")), encoding="utf8")


def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that gets the folder of each results.json that is read from now on."""
    found: list[Path] = []

    def counted(folder: Path) -> object:
        found.append(folder)
        return read_result(folder)

    monkeypatch.setattr(collect, "read_result", counted)
    return found


@pytest.mark.parametrize(
    "request_", [{}, {"metric": "macro_f1"}, {"split": "dev"}, {"keys": ("method", "cost.seconds")}]
)
def test_a_second_call_reads_no_run_and_finds_the_same(tree, monkeypatch, request_):
    first = read(tree, **request_)
    seen = opened(monkeypatch)
    assert read(tree, **request_) == first and len(first[0]) == 13 and not seen
    assert first[0][0].path.is_relative_to(tree)


def test_requests_do_not_disturb_each_other(tree, monkeypatch):
    test, dev = read(tree), read(tree, split="dev")
    seen = opened(monkeypatch)
    assert read(tree) == test and read(tree, split="dev") == dev and test != dev and not seen


def replaced_in_place(tree: Path) -> None:
    """The same size, and the time of before."""
    path = tree / DIRECT / "results.json"
    before = path.stat()
    rewrite(tree / DIRECT, lambda text: text.replace('"accuracy": 0.91,', '"accuracy": 0.81,'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def replaced_by_another(tree: Path) -> None:
    path = tree / DIRECT / "results.json"
    write_record(path, json.loads(path.read_text()) | {"seed": 7}, [])


def damaged(tree: Path) -> None:
    rewrite(tree / DIRECT, lambda text: text.replace('"schema"', '"schemi"', 1))


def begun(tree: Path) -> None:
    folder = tree / "r52/theseus/bert_3l-eeee5555/seed9"
    folder.mkdir()
    (folder / "status.json").write_text("{}")


def measured_in_another_form(tree: Path) -> None:
    folder = tree / DIRECT / "forms/int8"
    shutil.copytree(tree / DIRECT, folder)
    rewrite(folder, lambda text: text.replace("aaaa1111", "aaaa1188"))


CHANGES: dict[str, Callable[[Path], object]] = {
    "in place": replaced_in_place,
    "by another file": replaced_by_another,
    "damaged": damaged,
    "begun": begun,
    "another form": measured_in_another_form,
    "a run more": lambda tree: student(tree, "theseus", "eeee5555", 3, 90.0),
    "a data set more": lambda tree: student(tree, "theseus", "eeee5556", 3, 90.0, identity__dataset="other"),
    "a run less": lambda tree: shutil.rmtree(tree / DIRECT),
    "a result less": lambda tree: (tree / DIRECT / "results.json").unlink(),
    "a method less": lambda tree: shutil.rmtree(tree / "r52/theseus"),
    "moved": lambda tree: (tree / "r52/theseus").rename(tree / "r52/theseus2"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_a_run_is_noticed(tree, monkeypatch, change):
    before = read(tree)
    change(tree)
    expected = without_index(tree)
    assert expected != before
    seen = opened(monkeypatch)
    assert read(tree) == expected and len(seen) <= 6
    assert read(tree) == expected


def test_a_change_of_the_settings_is_noticed_if_they_were_asked_for(tree):
    config = tree / DIRECT / "config.yaml"
    config.write_text("dataset: {max_length: 64, when: 2026-11-30}\n")
    keys = ("dataset.max_length", "dataset.when")  # a date has no JSON
    before = read(tree, keys)
    assert [run.values["dataset.max_length"] for run in before[0] if run.path.parent == tree / DIRECT] == [64]
    assert read(tree, keys) == before
    time.sleep(0.02)
    config.write_text("dataset: {max_length: 32, when: 2026-11-30}\n")
    assert read(tree, keys) == without_index(tree, *keys) != before


def test_what_has_just_been_written_is_not_trusted(tree, monkeypatch):
    """It may be written again at the same time, by a clock that ticks 250 times a second."""
    monkeypatch.setattr(index, "RECENT", 2_000_000_000)
    read(tree)
    seen = opened(monkeypatch)
    read(tree)
    assert len(seen) == 14


@pytest.mark.parametrize("name", ["runs.arrow", "MANIFEST.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_index_is_made_again(tree, monkeypatch, name, how):
    before = read(tree)
    (path,) = tree.glob(f".compare-runs/*/{name}")
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    assert read(tree) == before
    seen = opened(monkeypatch)
    assert read(tree) == before and not seen


def test_other_code_makes_another_index(tree, monkeypatch):
    read(tree)
    monkeypatch.setattr(index, "CODE", b"another")
    seen = opened(monkeypatch)
    read(tree)
    assert len(seen) == 14 and len([*tree.glob(".compare-runs/*/")]) == 2


def test_few_indexes_are_kept(tree, monkeypatch):
    monkeypatch.setattr(index, "KEPT", 2)
    for metric in ("accuracy", "macro_f1", None):
        read(tree, metric=metric)
    assert len([*tree.glob(".compare-runs/*/")]) == 2


def test_a_root_that_cannot_be_written_has_none(tree, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    expected = without_index(tree)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refused)
        assert read(tree) == expected
    assert not (tree / ".compare-runs").exists()


def test_while_another_call_writes_the_index_none_is_written(tree):
    expected = without_index(tree)
    with locked(tree / ".compare-runs/index"):
        assert read(tree) == expected
    assert not [*tree.glob(".compare-runs/*/")]


def test_few_runs_have_no_index(tree, monkeypatch):
    monkeypatch.setattr(index, "MANY", 15)
    read(tree)
    assert not (tree / ".compare-runs").exists()


def test_only_runs_of_the_named_data_sets_are_made(tree):
    student(tree, "theseus", "eeee5556", 3, 90.0, identity__dataset="other")
    every, _ = read_runs([tree], None, "test", Wanted())
    for _ in range(2):  # without and with the index
        assert read_runs([tree], None, "test", Wanted(), datasets=["other"])[0] == [
            run for run in every if run.dataset == "other"
        ]
        assert read_runs([tree], None, "test", Wanted(), datasets=["none"])[0] == every


def test_a_root_that_is_a_run_of_another_root_is_read_once(tree):
    expected = without_index(tree)[0]
    assert read_runs([tree, tree / DIRECT], None, "test", Wanted()) == (expected, [])
