"""compare-runs on small trees of results.json files."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdbench.compare.cli import main
from kdbench.compare.notes import join_seeds
from kdbench.compare.options import parser
from kdbench.storage.files import write_record

SCORES = {"direct": (90.0, 91.0, 92.0), "longer": (91.0, 91.0, 92.0), "theseus": (93.0, 93.0, 96.0)}
QUIET = {"when": "now", "load": {"others": 0.01, "own": 1.0, "processors": 2}, "quiet": True}
TEACHER = {"id": "cccc3333", "batch_1": {"median_ms": 12.0}, "quiet": True}  # took turns with it
LATENCY = QUIET | {
    "batch_1": {"median_ms": 3.0, "iqr_ms": 0.2}, "batch_32": {"median_ms": 60.0}, "threads": 2, "length": 64,
    "teacher": TEACHER,
}  # fmt: skip
DATA = {
    "name": "r52", "files": [], "splits": {"train": {"rows": 5000, "cut": None, "empty": 0, "repeated": 0}},
    "class_count": 0, "classes": {}, "range": None, "unlabelled": None, "notes": [], "pieces": [],
}  # fmt: skip
TAUGHT = {"labelled": 5000, "test_id": "7e577e57", "dev_id": "de7de7de"}  # on the run's own data
NOISY = LATENCY | {"load": {"others": 1.2, "own": 1.0, "processors": 2}, "quiet": False}


def write(root: Path, method: str, id_: str, seed: int, points: float, **changes: Any) -> None:
    """One finished run; `changes` are dotted keys written with __, as in identity__data_id."""
    score = {"n": 2568, "accuracy": points / 100, "macro_f1": points / 200}
    run: dict[str, Any] = {
        "schema": 1,
        "id": id_,
        "seed": seed,
        "identity": {
            "dataset": "r52",
            "task": "classification",
            "metric": "accuracy",
            "teacher": None,
            "student": "bert_3l",
            "method": method,
            "choices": {"schedule": "default"},
            "parameters": {},
            "data_id": "9f8e7d6c",
            "test_id": "7e577e57",
            "dev_id": "de7de7de",
            "split": "official",
            "selected_on": "dev",
        },
        "precision": "fp32",
        "device": "cpu",
        "threads": 2,
        "machine": "this",
        "baseline_id": None,
        "total_baseline_id": None,
        "metrics": {"dev": score | {"accuracy": 0.5}, "test": score},
        "parameters": {"total": 17_300_000},
        "latency": copy.deepcopy(LATENCY),
        "cost": {"seconds": 300.0 + seed},
        "teacher": None,
        "data": copy.deepcopy(DATA),
        "stages": [],
        "reported": {},
        "dirty": False,
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        part = run
        for name in path:
            part = part[name]
        part[last] = value
    folder = root / run["identity"]["dataset"] / method / f"bert_3l-{id_}" / f"seed{seed}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(run), encoding="utf8")


def stages(**values: Any) -> dict[str, Any]:
    return {"stages": {"one": {"steps": None, "lr": 0.00002, **values}, "two": {"steps": None, "lr": 0.00002} | values}}


def student(root: Path, method: str, id_: str, seed: int, points: float, **changes: Any) -> None:
    """A distilled run: teacher 97 points and 12 ms, baselines aaaa1111 and bbbb2222."""
    metrics = {split: {"n": 2568, "accuracy": 0.97, "macro_f1": 0.9} for split in ("dev", "test")}
    teacher = {"id": "cccc3333", "seed": 0, "metrics": metrics} | TAUGHT
    command = f"kdbench method=finetune student.layers=3 teacher.seed=0 dataset=r52 dataset.max_length=64 seed={seed}"
    baselines = {
        "baseline_id": "aaaa1111",
        "baseline_command": command,
        "total_baseline_id": "bbbb2222",
        "tfidf_command": "kdbench method=tfidf dataset=r52 dataset.max_length=64",
        "total_baseline_command": command.replace("seed=0 dataset=", "seed=0 schedule.steps=3680 dataset="),
    }
    write(root, method, id_, seed, points, **{"teacher": teacher, **baselines, **changes})


def make_tree(root: Path) -> Path:
    """A teacher, TF-IDF, both direct baselines and one method, with three seeds."""
    write(root, "finetune", "cccc3333", 0, 97.0, baseline_id="cccc3333", latency__batch_1={"median_ms": 12.0})
    write(root, "tfidf", "dddd4444", 0, 91.5, identity__student=None, precision=None)
    for seed in range(3):
        write(root, "finetune", "aaaa1111", seed, SCORES["direct"][seed], identity__parameters=stages())
        write(root, "finetune", "bbbb2222", seed, SCORES["longer"][seed], identity__parameters=stages(steps=3680))
        student(root, "theseus", "eeee5555", seed, SCORES["theseus"][seed])
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "outputs")


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main([*map(str, arguments), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def row(found: Any, id_: str) -> Any:
    return next(row for table in found["tables"] for row in table["rows"] if row["id"] == id_)


def test_figures_of_a_method(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = row(document(capsys, tree), "eeee5555")
    assert found["score_points"] == pytest.approx(94.0) and found["score_sd_points"] == pytest.approx(3**0.5)
    assert found["difference_points"] == pytest.approx(3.0) and found["difference_n"] == 3  # 3, 2, 4
    assert found["difference_sd_points"] == pytest.approx(1.0)
    assert found["total_difference_points"] == pytest.approx(8 / 3)  # 2, 2, 4
    assert found["gap_closed"] == pytest.approx(0.5)  # 3 of 97 - 91
    assert found["speedup"] == pytest.approx(4.0)
    assert found["training_seconds"] == pytest.approx(301.0)
    assert found["seeds"] == {"0": pytest.approx(93.0), "1": pytest.approx(93.0), "2": pytest.approx(96.0)}


def test_a_baseline_is_not_compared_with_itself(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, tree)
    assert row(found, "aaaa1111")["difference_n"] == 0 and row(found, "aaaa1111")["speedup"] == pytest.approx(4.0)
    assert found["tables"][0]["missing_baselines"] == []


def test_order_and_labels(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student(tree, "logit_kd", "ffff6666", 0, 91.0, identity__parameters={"alpha": 0.5, "kd": {"t": 10}, "r": "mean"})
    student(tree, "logit_kd", "ffff7777", 0, 95.0, identity__parameters={"alpha": 0.7, "kd": {"t": 5}, "r": "mean"})
    rows = document(capsys, tree)["tables"][0]["rows"]
    assert [row["id"][3:5] for row in rows] == ["c3", "d4", "b2", "a1", "f7", "e5", "f6"]
    assert [row["settings"] for row in rows[2:]] == [
        "steps=3680",
        "",
        "alpha=0.7 kd.t=5",
        "",
        "alpha=0.5 kd.t=10",
    ]


def test_settings_tell_rows_apart_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = {"identity__choices": {"schedule": "quick"}, "identity__parameters": stages(lr=0.5) | {"a": False}}
    mixed = stages() | {"a": True}
    mixed["stages"]["two"]["lr"] = 0.00003
    student(tmp_path, "pkd", "00000001", 0, 94.0, identity__parameters=stages() | {"a": True})
    student(tmp_path, "pkd", "00000002", 0, 93.0, **quick)
    student(tmp_path, "pkd", "00000003", 0, 92.0, identity__parameters=mixed)
    settings = [row["settings"] for row in document(capsys, tmp_path)["tables"][0]["rows"]]
    assert settings == [
        "a=true schedule=default lr=2e-05",
        "a=false schedule=quick lr=0.5",
        "a=true schedule=default one.lr=2e-05 two.lr=3e-05",
    ]
    shutil.rmtree(tmp_path / "r52/pkd/bert_3l-00000003")
    settings = [row["settings"] for row in document(capsys, tmp_path)["tables"][0]["rows"]]
    assert settings == ["a=true schedule=default", "a=false schedule=quick"]  # the name tells the learning rate


def test_a_key_that_older_runs_lack_is_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = {"optimizer": "adamw"}
    student(tmp_path, "pkd", "00000001", 0, 94.0, identity__parameters=stages(epochs=15))
    student(tmp_path, "pkd", "00000002", 0, 93.0, identity__parameters=stages(epochs=23, **new) | {"shape": "cls"})
    settings = [row["settings"] for row in document(capsys, tmp_path)["tables"][0]["rows"]]
    assert settings == ["epochs=15", "epochs=23"]
    student(tmp_path, "pkd", "00000003", 0, 92.0, identity__parameters=stages(epochs=23, optimizer="sgd"))
    settings = [row["settings"] for row in document(capsys, tmp_path)["tables"][0]["rows"]]
    assert settings == ["epochs=15", "epochs=23 optimizer=adamw", "epochs=23 optimizer=sgd"]


@pytest.mark.parametrize(
    ("key", "first"), [("score", "cccc3333"), ("difference", "eeee5555"), ("latency", "aaaa1111"), ("gap", "eeee5555")]
)
def test_sort_puts_the_best_first(tree: Path, capsys: pytest.CaptureFixture[str], key: str, first: str) -> None:
    assert document(capsys, tree, "--sort", key)["tables"][0]["rows"][0]["id"] == first


def test_hidden_rows_still_are_baselines(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (table,) = document(capsys, tree, "--method", "theseus")["tables"]
    assert [row["difference_n"] for row in table["rows"]] == [3]
    assert table["missing_tfidf"] == []


def test_seeds_are_joined_in_numeric_order() -> None:
    commands = [f"kdbench method=finetune teacher.seed=3 seed={seed} student.layers=3" for seed in (10, 2, 2)]
    assert join_seeds(commands) == ["kdbench -m method=finetune teacher.seed=3 seed=2,10 student.layers=3"]
    assert join_seeds(["kdbench method=x seed=4", "kdbench method=y"]) == [
        "kdbench method=x seed=4",
        "kdbench method=y",
    ]


def test_runs_on_different_tests_never_meet(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student(tree, "theseus", "eeee9991", 0, 50.0, identity__test_id="00000000")
    student(tree, "theseus", "eeee9992", 0, 50.0, identity__dev_id="00000000")
    student(tree, "theseus", "eeee9993", 0, 50.0, identity__dataset="thucnews", identity__test_id="00000001")
    tables = document(capsys, tree)["tables"]
    assert [table["dataset"] for table in tables] == ["r52", "r52", "thucnews"]
    assert [len(table["rows"]) for table in tables] == [1, 6, 1]
    assert row({"tables": tables}, "eeee9991")["difference_n"] == 0  # the baseline has another test
    assert row({"tables": tables}, "eeee9992")["difference_n"] == 1
    assert "Rows differ in the dev split that chose their checkpoints." in tables[1]["notes"]
    of_dev = document(capsys, tree, "--split", "dev")["tables"]
    assert [(table["examples_id"], len(table["rows"])) for table in of_dev] == [("00000000", 1), ("de7de7de", 7)]
    assert of_dev[1]["dataset"] == "r52 and thucnews"
    assert [table["dataset"] for table in document(capsys, tree, "--dataset", "thucnews")["tables"]] == ["thucnews"]


def test_each_run_is_shown_by_the_metric_that_chose_it(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {split: {"n": 2568, "accuracy": 0.8, "macro_f1": 0.7, "matthews": 0.6} for split in ("dev", "test")}
    own = {"identity__metric": "matthews", "metrics": scores, "baseline_id": None, "total_baseline_id": None}
    write(tree, "finetune", "dddd9991", 0, 80.0, **own)
    tables = document(capsys, tree)["tables"]
    assert [(table["metric"], len(table["rows"])) for table in tables] == [("accuracy", 5), ("matthews", 1)]
    assert document(capsys, tree)["metric"] is None and row({"tables": tables}, "dddd9991")["score_points"] == 60.0
    (table,) = document(capsys, tree, "--metric", "accuracy")["tables"]
    assert len(table["rows"]) == 6 and row({"tables": [table]}, "dddd9991")["score_points"] == 80.0
    assert main([str(tree), "--metric", "matthews"]) == 0
    shown = capsys.readouterr()
    assert "Matthews" in shown.out and "× 100" in shown.out and "it has no metrics.test.matthews" in shown.err
    write(tree, "finetune", "dddd9992", 0, 80.0, identity__metric="bleu")
    assert "dddd9992" not in json.dumps(document(capsys, tree))


def test_metric_and_split_are_those_asked_for(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, tree, "--metric", "macro_f1", "--split", "test")
    assert row(found, "eeee5555")["score_points"] == pytest.approx(47.0)
    found = document(capsys, tree, "--split", "dev")
    assert row(found, "eeee5555")["score_points"] == pytest.approx(50.0)
    assert any("report --split test" in note for note in found["tables"][0]["notes"])


def notes(found: Any) -> str:
    return "\n".join(found["tables"][0]["notes"])


def test_rows_below_tfidf_are_named(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "(91.50) has a higher mean than finetune (bbbb2222), finetune (aaaa1111)." in notes(document(capsys, tree))
    assert "TF-IDF" not in notes(document(capsys, tree, "--method", "theseus"))


def test_what_makes_a_row_doubtful_is_said(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "seed noise" not in notes(document(capsys, tree))
    student(tree, "pkd", "ffff0001", 0, 94.0, identity__selected_on="test", dirty=True, threads=4)
    said = notes(document(capsys, tree))
    assert "One seed cannot separate a difference from seed noise (add -m seed=0,1,2): pkd (ffff0001)." in said
    assert "† Selected on the reported split, so too optimistic: pkd (ffff0001)." in said
    assert "‡ Ran from a checkout with uncommitted changes: pkd (ffff0001)." in said
    assert "Rows differ in threads: do not compare their times" in said


def test_the_direct_row_of_a_pruned_model_is_explained(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unpruned" not in notes(document(capsys, tree))
    student(tree, "prune", "ffff0001", 0, 94.0)
    said = notes(document(capsys, tree))
    assert "vs direct compares with all layers unpruned" in said and said.count("prune (ffff0001)") >= 1


def test_a_teacher_below_the_baseline_leaves_no_gap(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student(tree, "pkd", "ffff0001", 0, 94.0)
    path = tree / "r52/pkd/bert_3l-ffff0001/seed0/results.json"
    path.write_text(path.read_text().replace('"accuracy": 0.97', '"accuracy": 0.90'))
    found = document(capsys, tree)
    assert row(found, "ffff0001")["gap_closed"] is None
    assert "less than 1 point above direct fine-tuning, so no share of the gap is shown: pkd (ffff0001)." in notes(
        found
    )


def test_times_measured_together_are_against_the_teacher_that_is_shown(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"parameters": {"total": 9, "embeddings": 3}}
    root = tree.with_name("measured")
    write(root, "finetune", "cccc3333", 0, 97.0, **models)
    write(root, "finetune", "aaaa1111", 0, 91.0, **models)
    student(root, "theseus", "eeee5555", 0, 94.0, **models)
    student(root, "theseus", "eeee6666", 0, 94.0, **models)
    path = root / "r52" / "theseus" / "bert_3l-eeee6666" / "seed0" / "results.json"
    path.write_text(path.read_text(encoding="utf8").replace("cccc3333", "cccc4444"), encoding="utf8")
    write(root, "finetune", "cccc4444", 0, 96.0, **models)
    times = {"cccc3333": 20.0, "cccc4444": 30.0, "aaaa1111": 10.0, "eeee5555": 5.0, "eeee6666": 5.0}
    one = {
        id_: QUIET | {"batch_1": {"median_ms": ms, "iqr_ms": 1}, "batch_32": {"median_ms": ms, "iqr_ms": 1}}
        for id_, ms in times.items()
    }
    rows = {id_: {"real": one[id_], "fixed": one[id_], "memory_mb": 1} for id_ in times}
    about = {"when": "now", "machine": "m", "threads": 1, "fixed_length": 128, "versions": {}}
    write_record(root / "latency-7e577e57.json", {"schema": 2, "rows": rows} | about)
    shown = document(capsys, root, "--where", "id in ['cccc3333', 'aaaa1111', 'eeee5555', 'eeee6666']")
    faster = {id_: row(shown, id_)["speedup"] for id_ in ("cccc3333", "aaaa1111", "eeee5555", "eeee6666")}
    assert faster == {"cccc3333": 1, "aaaa1111": 2, "eeee5555": 4, "eeee6666": 6}
    assert row(document(capsys, root), "aaaa1111")["speedup"] is None  # of two teachers neither is its own


def test_only_quiet_times_make_a_ratio(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    student(tree, "pkd", "ffff0001", 0, 94.0, latency=NOISY)
    student(tree, "pkd", "ffff0002", 0, 94.0, latency=None, parameters=None)
    student(tree, "pkd", "ffff0003", 0, 94.0, latency=LATENCY | {"teacher": TEACHER | {"quiet": False}})
    student(tree, "pkd", "ffff0004", 0, 94.0, latency=LATENCY | {"teacher": None})  # measured without it
    student(tree, "pkd", "ffff0005", 0, 94.0, latency=LATENCY)
    for seed, one in enumerate((NOISY, LATENCY | {"batch_1": {"median_ms": 4.0}}, NOISY)):  # the quiet one is shown
        student(tree, "pkd", "ffff0006", seed, 94.0, latency=one)
    found = document(capsys, tree)
    assert {id_[-1]: row(found, id_)["speedup"] for id_ in (f"ffff000{n}" for n in range(1, 7))} == {
        "1": None, "2": None, "3": None, "4": None, "5": 4.0, "6": 3.0,
    }  # fmt: skip
    assert [row(found, f"ffff000{n}")["latency_quiet"] for n in (1, 2, 5, 6)] == [False, None, True, True]
    assert row(found, "ffff0001")["latency_batch_1_ms"] == 3.0 and row(found, "ffff0002")["parameters"] is None
    assert main([str(tree), "--sort", "latency"]) == 0
    out = capsys.readouterr().out
    lines = {id_: line for line in out.splitlines() for id_ in ("ffff0001", "ffff0005") if id_ in line.split()}
    assert "3.00 ± 0.100?" in lines["ffff0001"] and "3.00 ± 0.100 " in lines["ffff0005"]
    assert out.index("ffff0005") < out.index("ffff0001")
    notes = [line for line in out.splitlines() if "not quiet" in line or "Not timed" in line]
    assert "ffff0001" in notes[0] and "ffff0006" not in notes[0] and "ffff0002" in notes[1]


def test_a_mistyped_choice_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as end:
        parser().read(["--format", "markdwon"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "argument --format: there is no markdwon; did you mean markdown? choose from table, csv" in said
    with pytest.raises(SystemExit):
        parser().read(["--sort", "zzz"])
    assert "there is no zzz; choose from score" in capsys.readouterr().err
    assert parser().read(["--metric", "macro_f1"]).metric == "macro_f1"
