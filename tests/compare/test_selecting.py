"""What compare-runs selects, groups and tells apart."""

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet
import pytest

import kdbench
from kdbench.compare.cli import main
from kdbench.compare.printing import latex
from kdbench.compare.where import ConditionError, condition
from tests.compare.test_compare_runs import document, make_tree, notes, row, student, write


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = make_tree(tmp_path / "outputs")
    for seed in range(2):
        student(root, "pkd", "ffff0001", seed, 92.0, identity__parameters={"alpha": 0.5}, tag="mine")
        student(root, "pkd", "ffff0002", seed, 95.0, identity__parameters={"alpha": 0.7})
    better = {"n": 662, "accuracy": 0.6, "macro_f1": 0.6}
    for folder in sorted(root.glob("r52/pkd/bert_3l-ffff0001/*")):
        raw = json.loads((folder / "results.json").read_text())
        raw["metrics"]["dev"] = better
        (folder / "results.json").write_text(json.dumps(raw))
        (folder / "config.yaml").write_text("method: {name: pkd, alpha: 0.5}\nschedule: {lr: 0.0003}\nseed: 0\n")
        (folder / "env.json").write_text(json.dumps({"command": "kdbench -m method=pkd schedule.lr=3e-4 seed=0,1"}))
    return root


def ids(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    return [row["id"] for table in document(capsys, *arguments)["tables"] for row in table["rows"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('method == "pkd" and method.alpha > 0.5', ["ffff0002"]),
        ("schedule.lr == 0.0003", ["ffff0001"]),  # config.yaml only
        ('like(method, "th*") or tag == "mine"', ["eeee5555", "ffff0001"]),
        ("not (method.alpha in [0.5, 0.7]) and teacher.id != null", ["eeee5555"]),
        ("94 < accuracy < -1", []),
        ("0.91 < accuracy <= .92 and method == 'pkd'", ["ffff0001"]),
        ("method.alpha < 'x' and method == 'pkd'", []),  # a number is not smaller than a text
    ],
)
def test_where(tree: Path, capsys: pytest.CaptureFixture[str], text: str, expected: list[str]) -> None:
    if expected:
        assert sorted(ids(capsys, tree, "--where", text)) == expected
    else:
        assert main([str(tree), "--where", text]) == 1
        assert "is true for none of the" in capsys.readouterr().err


def test_where_may_choose_seeds_and_baselines_stay(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = row(document(capsys, tree, "--where", "seed > 0 and method == 'theseus'"), "eeee5555")
    assert list(found["seeds"]) == ["1", "2"] and found["difference_n"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('id')",
        "().__class__",
        "[x for x in seed]",
        "(lambda: 1)()",
        "seed + 1 == 2",
        "method is null",
        "like(method, student)",
        "f'{seed}'",
        "seed ==",
        "((" * 500,
        "a" * 3000,
        "",
        "x := 1",
        "seed == 1j",
        "method[0]",
        "open('x')",
    ],
)
def test_nothing_but_a_condition_is_read(text: str) -> None:
    with pytest.raises(ConditionError):
        condition(text)


def test_an_unknown_key_names_the_nearest(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--where", "methd.alpha == 1"], ["--group-by", "methd.alpha"], ["--pivot", "methd.alpha"]):
        with pytest.raises(SystemExit, match="2"):
            main([str(tree), *arguments])
        assert "no run has the key methd.alpha; did you mean method.alpha?" in capsys.readouterr().err


def test_student_and_tag(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ids(capsys, tree, "--tag", "mine,yours") == ["ffff0001"]
    assert ids(capsys, tree, "--student", "bert_3l", "--method", "tfidf,theseus") == ["eeee5555"]


def test_best_on_dev_is_reported_on_test(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, tree, "--best-on-dev")
    best = row(found, "ffff0001")  # dev 60 against 50, though test says 92 against 95
    assert best["score_points"] == pytest.approx(92.0) and best["best_on_dev_of"] == 2
    assert "ffff0002" not in [row["id"] for row in found["tables"][0]["rows"]]
    assert "Chosen on dev, reported on test: " in notes(found) and "pkd (ffff0001) of 2" in notes(found)
    both = ids(capsys, tree, "--best-on-dev", "method,method.alpha")
    assert {"ffff0001", "ffff0002"} <= set(both)


def test_groups_and_pivot(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tree, "pkd", "ffff0003", 0, 70.0, identity__dataset="thucnews", identity__test_id="0a0a0a0a")
    assert main([str(tree), "--group-by", "method", "--pivot", "dataset", "--json"]) == 0
    groups = {(one["by.method"], one["by.dataset"]): one for one in json.loads(capsys.readouterr().out)["groups"]}
    pkd = groups["pkd", "r52"]
    assert (pkd["mean_points"], pkd["n"], pkd["configurations"]) == (pytest.approx(93.5), 4, 2)
    assert pkd["sd_points"] == pytest.approx(3**0.5) and groups["pkd", "thucnews"]["n"] == 1
    assert main([str(tree), "--pivot", "dataset"]) == 0
    shown = capsys.readouterr().out
    assert "93.50 ± 1.73 (4) ×2" in shown and "thucnews: test 0a0a0a0a" in shown


def test_a_teacher_is_a_group_of_its_own(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tree), "--group-by", "method", "--pivot", "dataset", "--json"]) == 0
    groups = {one["by.method"]: one for one in json.loads(capsys.readouterr().out)["groups"]}
    assert groups["teacher (finetune)"]["mean_points"] == pytest.approx(97.0)
    assert groups["finetune"]["n"] == 6 and groups["finetune"]["configurations"] == 2
    assert main([str(tree), "--group-by", "student", "--pivot", "method"]) == 0
    assert "method=teacher (finetune)" in capsys.readouterr().out


def test_a_group_never_mixes_data(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tree, "pkd", "ffff0003", 0, 70.0, identity__test_id="0a0a0a0a")
    assert main([str(tree), "--group-by", "method", "--json"]) == 0
    found = [one for one in json.loads(capsys.readouterr().out)["groups"] if one["by.method"] == "pkd"]
    assert [(one["examples_id"], one["n"]) for one in found] == [("0a0a0a0a", 1), ("7e577e57", 4)]
    assert main([str(tree), "--pivot", "dataset"]) == 0
    shown = capsys.readouterr().out
    assert "r52 0a0a0a0a" in shown and "r52 7e577e57" in shown  # a column each


def test_diff_shows_what_differs_and_where_it_came_from(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tree / "r52/pkd/bert_3l-ffff0002/seed0"
    (folder / "config.yaml").write_text("method: {name: pkd, alpha: 0.7}\nschedule: {lr: 0.0002}\nseed: 0\n")
    assert main([str(tree), "--json", "--diff", "ffff0001", str(folder)]) == 0
    found = {one["key"]: one for one in json.loads(capsys.readouterr().out)["differences"]}
    assert list(found) == ["method.alpha", "schedule.lr"]
    assert found["schedule.lr"] == {
        "key": "schedule.lr",
        "a": 0.0003,
        "b": 0.0002,
        "a_from": "command line",
        "b_from": "conf/schedule/default.yaml",
    }
    with pytest.raises(SystemExit, match="2"):
        main([str(tree), "--diff", "ffff", "eeee"])
    assert "ffff: it fits ffff0001, ffff0002" in capsys.readouterr().err


def test_diff_says_nothing_of_what_stages_have_from_the_schedule(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = "{lr: 0.0003, steps: 3, epochs: 4}"
    stages = {
        "ffff0001": f"one: {schedule}, two: {{lr: 0.0003, steps: 3, epochs: 2}}",
        "ffff0002": f"three: {schedule}",
    }
    for id_, said in stages.items():
        (folder,) = tree.glob(f"r52/pkd/bert_3l-{id_}/seed0")
        (folder / "config.yaml").write_text(f"method: {{name: pkd, stages: {{{said}}}}}\nschedule: {schedule}\n")
    assert main([str(tree), "--json", "--diff", "ffff0001", "ffff0002"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["differences"]
    assert (found["key"], found["a"], found["b"], found["b_from"]) == ("method.stages.two.epochs", 2, None, "–")


def test_diff_knows_that_stages_have_the_schedule(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"ffff0001": ("{steps: 3, lr: 0.0005}", ""), "ffff0002": ("{steps: 5, lr: 0.0003}", "steps=5")}
    for id_, (stage, typed) in texts.items():
        (folder,) = tree.glob(f"r52/pkd/bert_3l-{id_}/seed0")
        text = f"method: {{name: pkd, stages: {{training: {stage}}}}}\nschedule: {{steps: 3, lr: 0.0003}}\n"
        (folder / "config.yaml").write_text(text)
        command = f"kdbench method=pkd schedule=smoke schedule.lr=3e-4 method.stages.training.{typed}"
        (folder / "env.json").write_text(json.dumps({"command": command}))
        raw = json.loads((folder / "results.json").read_text())
        raw["identity"]["choices"] = {"schedule": "smoke", "method": "pkd"}
        (folder / "results.json").write_text(json.dumps(raw))
    assert main([str(tree), "--json", "--diff", "ffff0001", "ffff0002"]) == 0
    found = {one["key"]: one for one in json.loads(capsys.readouterr().out)["differences"]}
    origins = {key.rpartition(".")[2]: (one["a_from"], one["b_from"]) for key, one in found.items()}
    assert origins["steps"] == ("conf/schedule/smoke.yaml", "command line")
    assert origins["lr"] == ("conf/method/pkd.yaml", "command line, schedule.lr")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads": 4}, "Rows differ in threads: do not compare their times"),
        ({"machine": "another"}, "Rows differ in machine: do not compare their times"),
        ({"device": "cuda"}, "Rows differ in device: do not compare their times"),
        ({"precision": "bf16"}, "Rows differ in precision (ran on)"),
        ({"latency__length": 128}, "Rows differ in length (ran on)"),
    ],
)
def test_what_was_made_otherwise_is_said(
    tree: Path, capsys: pytest.CaptureFixture[str], changes: dict, said: str
) -> None:
    assert said not in notes(document(capsys, tree))
    student(tree, "pkd", "ffff0009", 0, 94.0, **changes)
    assert said in notes(document(capsys, tree))


def test_every_format_has_the_same_figures(tree: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([str(tree), "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capfdbinary.readouterr().out.decode())))
    assert main([str(tree), "--format", "parquet"]) == 0
    table = pyarrow.parquet.read_table(io.BytesIO(capfdbinary.readouterr().out)).to_pylist()
    frame = kdbench.load_runs(tree)
    assert len(lines) == len(table) == len(frame) == 7 and list(frame) == list(lines[0]) == list(table[0])
    for csv_row, parquet_row, (_, frame_row) in zip(lines, table, frame.iterrows(), strict=True):
        assert csv_row["id"] == parquet_row["id"] == frame_row["id"]
        assert float(csv_row["score_points"]) == parquet_row["score_points"] == frame_row["score_points"]
    assert list(kdbench.load_runs(tree, where="method == 'pkd'").tag.isna()) == [True, False]


def test_latex_escapes_what_latex_reads(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert latex(r"50% of a_b & $x^2$ {~} \n ±") == (
        r"50\% of a\_\allowbreak{}b \& \$x\textasciicircum{}2\$ \{\textasciitilde{}\} \textbackslash{}n $\pm$"
    )
    assert main([str(tree), "--format", "latex"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(r"\\") == 8 and r"94.00 $\pm$ 1.73" in shown and r"bert\_\allowbreak{}3l" in shown
    assert {line.count("&") for line in shown.splitlines() if line.endswith(r"\\")} == {12}


def test_quiet_prints_the_data_alone(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "odd").mkdir()
    (tree / "odd/results.json").write_text("{")
    assert main([str(tree), "--quiet"]) == 0
    shown = capsys.readouterr()
    assert (
        shown.err == ""
        and "has a higher mean" not in shown.out
        and "sample s.d." not in shown.out
        and "theseus" in shown.out
    )
