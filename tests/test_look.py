"""What a run read is told before it trains: in every run's log, once on the console, in results.json, by inspect."""

import json
import logging
from pathlib import Path

import pytest

from kdbench.compare.cli import main
from kdbench.training import progress
from kdbench.validation.values import faults

SHORT = ["schedule.steps=1", "teacher.schedule.steps=1", "schedule.epochs=1"]


@pytest.fixture(autouse=True)
def new_console(monkeypatch):
    monkeypatch.setattr(progress, "_shown", set())


@pytest.fixture
def foreign(tmp_path):
    """Texts in a made-up script of which the tests' tokenizer knows the digits' words alone."""
    rows = [f"{'瓦乐' if n % 2 else '布卡'}{'丁'.join('甲乙丙'[: n % 3 + 1])} one two,{'ab'[n % 2]}" for n in range(40)]
    path = tmp_path / "foreign.csv"
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf8")
    return [f"dataset.source={tmp_path}", "dataset.splits.train=foreign.csv", "dataset.splits.test=null"]


def block(folder):
    return [line for line in (Path(folder) / "run.log").read_text(encoding="utf8").splitlines() if "data: " in line]


def test_every_run_tells_what_it_read_and_a_console_shows_it_once(configure, execute, capsys):
    folders = [execute(configure("method=logit_kd", *SHORT, f"seed={seed}"))["folder"] for seed in (0, 1)]
    teacher = next(Path(folders[0]).parents[2].glob("finetune/*/seed0"))
    blocks = [block(folder) for folder in (*folders, teacher)]
    assert all(len(one) == len({*one}) >= 5 for one in blocks), "each line once, though the teacher read the same"
    first, *others = ([line.partition("data: ")[2] for line in one] for one in blocks)
    assert all(other == first for other in others)
    shown = capsys.readouterr().out
    assert all(shown.count(f"data: {line}") == 1 for line in first)
    log = (Path(folders[0]) / "run.log").read_text(encoding="utf8")
    assert log.index("data: ") < log.index("stage training")


def test_another_length_is_told_anew_with_its_cuts(configure, execute, capsys):
    results = [execute(configure("method=finetune", *SHORT, f"dataset.max_length={length}")) for length in (16, 4)]
    cut = [one["data"]["pieces"][0]["splits"]["train"]["cut"] for one in results]
    assert cut == [0, 60]
    shown = capsys.readouterr().out
    assert shown.count("data: rows: ") == 1 and "cut to 16" in shown and "train 60 (100.0 %)" in shown


def test_the_record_has_it(configure, execute, data_folder):
    data = execute(configure("method=bilstm", *SHORT))["data"]
    assert [one["file"] for one in data["files"]] == [str(data_folder / f"{name}.csv") for name in ("train", "test")]
    assert sum(one["train"] for one in data["classes"].values()) == data["splits"]["train"]["rows"] == 60
    assert [(one["tokenizer"], one["pretrained"]) for one in data["pieces"]] == [
        ("the words of train", False), ("local", True),
    ]  # fmt: skip
    assert execute(configure("method=tfidf"))["data"]["pieces"] == []


def test_unknown_pieces_are_warned_of_in_log_record_and_page(configure, execute, foreign, capsys, tmp_path):
    result = execute(configure("method=finetune", *SHORT, "dataset.metric=null", *foreign))
    (pieces,) = result["data"]["pieces"]
    train = pieces["splits"]["train"]
    assert train["unknown"] / train["pieces"] > 0.5 and len(train["examples"]) == 3
    log = (Path(result["folder"]) / "run.log").read_text(encoding="utf8")
    (warning,) = [line for line in log.splitlines() if " WARNING " in line]
    assert ", ".join(train["examples"]) in warning and "teacher=local" in warning and "method=tfidf" in warning
    capsys.readouterr()
    assert main([str(tmp_path / "outputs"), "--format", "html"]) == 0
    page = capsys.readouterr().out
    assert "pieces are unknown to local" in page and "foreign.csv" in page


def test_inspect_shows_five_rows_and_leaves_nothing(configure, execute, foreign, capsys, tmp_path):
    result = execute(configure("method=logit_kd", "inspect=true", *foreign))
    assert result.keys() == {"data"} and result["data"]["splits"]["train"]["rows"] == 28
    assert not (tmp_path / "outputs").exists()
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if line.startswith("  ")]
    assert len(rows) == 5 and all(json.loads(row.split(" | ")[0]) in ("a", "b") for row in rows)
    assert "data: WARNING" in shown and "stage" not in shown


@pytest.mark.parametrize(
    ("task", "rows", "label"),
    [
        ("multi_label", ["x,a|b", "y,a"] * 8, '["a", "b"]'),
        ("regression", ["x,1.5", "y,2"] * 8, "1.5"),
    ],
)
def test_inspect_shows_labels_as_a_file_has_them(configure, execute, capsys, tmp_path, task, rows, label):
    path = tmp_path / "own.csv"
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    one_file = [f"dataset.source={tmp_path}", "dataset.splits.train=own.csv", "dataset.splits.test=null"]
    execute(configure("method=finetune", "inspect=true", f"dataset.task={task}", *one_file))
    assert f"  {label} | " in capsys.readouterr().out


def test_inspect_is_of_a_data_set(configure):
    from omegaconf import OmegaConf

    config = configure("method=minilm", "phase=general", "student.layers=2", "inspect=true")
    (fault,) = faults(OmegaConf.structured(config))
    assert fault.key == "inspect"


def test_a_dry_run_tells_all_that_it_read(configure, execute, capsys):
    execute(configure("method=logit_kd", "dry_run=true", "schedule.batch_size=4"))
    shown = capsys.readouterr().out
    assert "data: rows: train 60, dev 20, test 40" in shown and shown.count("data: rows: ") == 1
    assert "unknown pieces: train 0.0 %" in shown


def test_what_is_said_once_is_said_once_by_each_handler(capsys, tmp_path):
    progress.show_log()
    log = logging.getLogger("kdbench")
    for name in "ab":
        with progress.logged_to(tmp_path / name, True):
            for _ in range(2):
                log.info("once", extra=progress.ONCE)
                log.info("often")
    progress.hide_log()
    shown = capsys.readouterr().out
    assert (shown.count("once"), shown.count("often")) == (1, 4)
    for name in "ab":
        text = (tmp_path / name).read_text()
        assert (text.count("once"), text.count("often")) == (1, 2)
