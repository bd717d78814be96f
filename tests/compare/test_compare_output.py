"""What compare-runs prints, warns of and refuses."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.compare.cli import main
from tests.compare.test_compare_runs import make_tree, student, write


@pytest.fixture(autouse=True)
def pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "outputs")


def text(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_missing_baselines_and_their_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "finetune", "aaaa1111", 0, 90.0, baseline_id="aaaa1111")
    for seed in (0, 1, 2):
        student(tmp_path, "theseus", "eeee5555", seed, 94.0 + seed)
    shown = text(capsys, tmp_path)
    command = "  kdbench -m method=finetune student.layers=3 teacher.seed=0 {}dataset=r52 dataset.max_length=64 seed={}"
    assert command.format("", "1,2") in shown.splitlines()
    assert command.format("schedule.steps=3680 ", "0,1,2") in shown.splitlines()
    assert "  kdbench method=tfidf dataset=r52 dataset.max_length=64" in shown.splitlines()
    assert "kdbench -m" not in text(capsys, tmp_path, "--method", "finetune")  # only for the rows shown
    line = next(line for line in shown.splitlines() if line.startswith("theseus"))
    assert "95.00 ± 1.00" in line and "+4.00 (1)" in line and "no baseline" in line


def test_a_pipe_gets_every_column_and_no_colour(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = text(capsys, tree)
    assert "\x1b" not in shown and "Left out" not in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("theseus")]
    cells = re.split(r"  +", line)
    assert cells == ["theseus", "bert_3l", "eeee5555", "3", "94.00 ± 1.73", "+3.00 ± 1.00", "+2.67 ± 1.15", "50",
                     "17.3", "3.00 ± 0.100", "60.0", "4.00", "301"]  # fmt: skip
    (teacher,) = [line for line in shown.splitlines() if line.startswith("teacher (finetune)")]
    assert "97.00" in teacher


@pytest.mark.parametrize("width", [40, 80, 100, 120])
def test_no_figure_is_cut(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    student(tree, "logit_kd", "ffff0001", 0, 91.0, identity__parameters={"alpha": 0.5, "temperature": 10})
    student(tree, "logit_kd", "ffff0002", 0, 91.0, identity__parameters={"alpha": 0.7, "temperature": 20})
    monkeypatch.setenv("COLUMNS", str(width))
    shown = text(capsys, tree)
    assert "…" not in shown
    assert "94.00±1.73  +3.00±1.00  +2.67±1.15" in shown  # closer together before a column is left out
    if width >= 80:
        assert max(map(len, shown.splitlines())) <= width
        assert "times" in shown  # the speed-up still fits
    assert ("Left out at this width: student" in shown) == (width <= 100)


def test_colour_only_where_wanted(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert "\x1b[32m" in text(capsys, tree)  # +3.00 ± 1.00 is green
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in text(capsys, tree)


def test_another_test_is_named_in_the_heading(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a table of its own" not in text(capsys, tree)
    student(tree, "theseus", "eeee9991", 0, 50.0, identity__test_id="00000000")
    shown = text(capsys, tree)
    assert "(a table of its own: test 00000000)" in shown and "(a table of its own: test 7e577e57)" in shown


def test_markdown_has_as_many_cells_in_each_line(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in text(capsys, tree, "--format", "markdown").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 5
    assert len({line.count("|") for line in lines}) == 1
    assert "| 94.00 ± 1.73 |" in lines[-1]


def test_csv_keeps_full_precision(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(text(capsys, tree, "--format", "csv"))))
    assert [row["role"] for row in rows] == ["teacher", "tfidf", "baseline", "baseline", "method"]
    assert float(rows[-1]["score_sd_points"]) == pytest.approx(3**0.5, rel=1e-12)
    assert rows[-1]["seeds"] == "0 1 2" and rows[1]["student"] == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is damaged: expected its own SHA-256 at its end, found '{'"),
        ("\xff", "is damaged"),
        ("[]", "is damaged"),
        ('{"schema": 1, "files": {}}', "is damaged"),
        ('{"schema": 2}', "its schema is 2, this compare-runs reads 1"),
        ('{"schema": 1}', "it has no id"),
        ('{"schema": 1, "id": 7}', "its id is '7', which is no str"),
    ],
)
def test_unusable_files_are_named(tree: Path, capsys: pytest.CaptureFixture[str], content: str, reason: str) -> None:
    (tree / "odd").mkdir()
    (tree / "odd/results.json").write_text(content, encoding="latin-1")
    assert main([str(tree)]) == 0
    shown = capsys.readouterr()
    assert "left out" in shown.err and "odd/results.json" in shown.err and reason in shown.err
    assert "theseus" in shown.out


def test_a_score_that_is_no_number_is_refused(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tree, "pkd", "ffff0001", 0, 94.0, metrics__test={"n": 2568, "accuracy": float("nan")})
    assert main([str(tree)]) == 0
    assert "its metrics.test.accuracy is 'nan', which is no float" in capsys.readouterr().err


def test_a_run_counts_once(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = text(capsys, tree)
    assert main([str(tree), str(tree / "r52"), str(tree / "r52" / "theseus")]) == 0
    assert capsys.readouterr() == (once, "")
    shutil.copytree(tree / "r52/theseus", tree / "copy")
    assert main([str(tree)]) == 0
    shown = capsys.readouterr()
    assert shown.out == once and shown.err.count("it is the same run (id and seed) as") == 3


def test_stage_folders_hold_no_runs(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = tree / "r52/theseus/bert_3l-eeee5555/seed0"
    shutil.copytree(seed, seed / "00_replacing")
    assert main([str(tree)]) == 0
    assert capsys.readouterr().err == ""


def test_nothing_to_compare_is_exit_1(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree.parent / "empty").mkdir()
    monkeypatch.chdir(tree.parent / "empty")
    assert main([]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "make some with kdbench" in shown.err
    assert main([str(tree), "--dataset", "sst2"]) == 1
    assert "there are runs on r52" in capsys.readouterr().err
    assert main([str(tree), "--method", "pdk"]) == 1
    assert "there are runs of finetune, tfidf, theseus" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nowhere"], ["--sort", "beauty"], ["--metric", "bleu"], ["--colour"]])
def test_a_wrong_command_line_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    said = capsys.readouterr().err
    assert said.startswith("compare-runs: ") and said.endswith(" (compare-runs --help)\n") and said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--formt", "csv"], ["--formt=csv"]])
def test_an_option_that_is_none_names_the_nearest(
    tree: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tree), *arguments])
    assert capsys.readouterr().err == (
        "compare-runs: there is no option --formt; did you mean --format? (compare-runs --help)\n"
    )


def test_help_is_light_and_survives_ascii() -> None:
    code = """if 1:
        import sys
        from kdbench.compare.cli import main
        try:
            main(["--help"])
        except SystemExit as end:
            heavy = {"torch", "numpy", "scipy", "transformers", "hydra", "omegaconf", "rich"} & set(sys.modules)
            sys.exit(f"{end.code} {sorted(heavy)}")
    """
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "0 []" and "exit codes: 0" in done.stdout


def test_a_closed_pipe_is_no_failure(tree: Path) -> None:
    code = "import sys; from kdbench.compare.cli import main; sys.exit(main(sys.argv[1:]))"
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code, tree], stdout=written, stderr=subprocess.PIPE, check=False)
    os.close(written)
    assert (done.returncode, done.stderr) == (0, b"")
