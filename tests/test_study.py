"""The study: its plan, its runner, and tables, pictures and pages made from a small tree of runs."""

import csv
import json
import os
import signal
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from kdbench import cli
from kdbench.config import load
from scripts.study import claims, page, run, write
from scripts.study.plan import Plan, Step, load_plan
from scripts.study.rows import COLUMNS, folder_of, name_of
from tests.compare.test_compare_runs import student as add_student
from tests.compare.test_compare_runs import write as add_run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/study"
PLAN = load_plan()


def of_preset(preset: str | None, **parameters: Any) -> dict[str, Any]:
    """What a run of a study's preset records of itself."""
    choices = {"schedule": "study", "experiment": preset, "method": None, "teacher": "minilm_l6"}
    return {"identity__choices": choices, "identity__parameters": parameters, "identity__dataset": "reuters_r52"}


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Teacher, direct fine-tunes of both budgets, Theseus of three seeds, Bernoulli at one of its three rates."""
    root = tmp_path / "outputs"
    epochs = [
        {"epoch": at, "step": 10 * (at + 1), "means": {"ce": 1.0, "replaced_0": 0.5, "replaced_1": 0.2 + at / 5},
         "dev": {"successor": {"accuracy": 0.7 + at / 10}, "hybrid": {"accuracy": 0.9}}} for at in range(2)
    ]  # fmt: skip
    stages = [
        {"name": "replacing", "steps": 20, "best_step": 20, "best_dev_accuracy": 0.8, "epochs": epochs},
        {"name": "successor", "steps": 10, "best_step": 5, "best_dev_accuracy": 0.9, "epochs": []},
    ]
    more = {"stages": stages, "reported": {"predecessor_encoder_successor_head": {"accuracy": 0.95}}}
    add_run(root, "finetune", "cccc3333", 0, 97.0, baseline_id="cccc3333", latency__batch_1={"median_ms": 12.0},
            **of_preset(None))  # fmt: skip
    for seed, points in enumerate((93.0, 93.0, 96.0)):
        add_run(root, "finetune", "aaaa1111", seed, 91.0 + seed, identity__layers=3, **of_preset("study_direct"))
        add_run(root, "finetune", "bbbb2222", seed, 92.0, **of_preset("study_direct_longer"))
        add_student(root, "theseus", "eeee5555", seed, points, **more, **of_preset("study_theseus"))
    drawn = of_preset("study_theseus_bernoulli", replace_rate=0.5)
    for seed in (0, 1):
        add_student(root, "theseus", "ffff6666", seed, 92.0 + 2 * seed, **more, **drawn)
    return root


@pytest.fixture
def theseus(outputs: Path) -> dict[str, Any]:
    return write.document(PLAN, "theseus", outputs)


def test_rows_have_their_names_figures_and_origin(theseus: dict[str, Any]) -> None:
    rows = {row["row"]: row for row in theseus["rows"]}
    assert set(rows) == {"teacher", "direct layers 3", "direct_longer", "theseus", "theseus_bernoulli replace_rate 0.5"}
    row = rows["theseus"]
    assert row["score_points"] == pytest.approx(94.0) and row["score_n"] == 3
    assert row["difference_points"] == pytest.approx(2.0) and row["total_difference_points"] == pytest.approx(2.0)
    assert row["seeds"] == "0 1 2" and row["config_digest"] == "eeee5555" and row["form"] is None
    assert row["runs"].split()[0] == "reuters_r52/theseus/bert_3l-eeee5555/seed0"
    assert rows["teacher"]["role"] == "teacher"  # of no preset: the run that needed it made it


def test_what_is_missing_is_listed_with_command_and_cost(theseus: dict[str, Any]) -> None:
    lacking = {one["command"]: one for one in theseus["missing"]}
    assert not any("study_theseus export" in command for command in lacking)  # all three seeds are there
    command = "kdbench -m experiment=study_theseus_bernoulli seed=0,1,2 dataset=reuters_r52"
    assert lacking[command] == {"runs": 7, "of": 9, "command": command, "core_hours": 1.75}
    assert sum(one["runs"] for one in theseus["missing"]) + 3 + 2 == sum(
        len(runs) for step, runs in zip(PLAN.steps, PLAN.new_runs, strict=True) if step.question == "theseus"
    )


def test_a_presets_own_row_is_not_that_of_its_ablation(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    add_student(
        root, "tinybert", "aaaa0001", 0, 90.0, **of_preset("study_tinybert", prediction=False, intermediate=False)
    )
    add_student(
        root, "tinybert", "aaaa0002", 0, 91.0, **of_preset("study_tinybert", prediction=False, intermediate=True)
    )
    made = write.document(PLAN, "insides", root)
    assert [row["row"] for row in made["rows"]] == [
        "tinybert prediction false", "tinybert intermediate false prediction false"
    ]  # fmt: skip
    lacking = {one["command"] for one in made["missing"]}
    assert "kdbench -m experiment=study_tinybert seed=0 dataset=reuters_r52" in lacking
    assert "kdbench -m experiment=study_tinybert method.prediction=false seed=0 dataset=reuters_r52" not in lacking


def test_details_are_what_the_stages_logged(theseus: dict[str, Any]) -> None:
    first = [one for one in theseus["details"]["starvation"] if one["row"] == "theseus" and one["seed"] == 0]
    assert [one["least_drawn"] for one in first] == pytest.approx([2.0, 6.0])
    assert [one["successor_dev_points"] for one in first] == pytest.approx([70.0, 80.0])
    graft = theseus["details"]["graft"][0]
    assert graft["graft_dev_points"] == pytest.approx(95.0) and graft["predecessor_dev_points"] == pytest.approx(97.0)
    assert theseus["details"]["successor_stage"][0]["best_step"] == 5


def test_a_page_has_the_csv_and_a_missing_run_its_command(theseus: dict[str, Any], tmp_path: Path) -> None:
    write.write_question(theseus, tmp_path)
    text = page.fill("x\n<!-- table theseus -->\nold\n<!-- end -->\ny", tmp_path, PLAN)
    assert "old" not in text and text.startswith("x\n") and text.endswith("\ny")
    assert "| theseus | reuters_r52 | 3 | 94.00 | +2.00 |" in text
    assert "`kdbench -m experiment=study_theseus_bernoulli seed=0,1,2 dataset=reuters_r52`" in text
    assert "![theseus_starvation](theseus_starvation.svg)" in text
    assert page.fill(text, tmp_path, PLAN) == text
    picture = (tmp_path / "theseus.svg").read_text(encoding="utf8")
    assert "theseus (n 3)" in picture and "test accuracy, %" in picture
    assert "updates in which" in (tmp_path / "theseus_starvation.svg").read_text(encoding="utf8")


def scored(row: str, points: float, **more: Any) -> dict[str, Any]:
    figures = dict.fromkeys(COLUMNS) | {"dataset": "reuters_r52", "data_id": "d", "examples": 10, "role": "method"}
    return (
        figures | {"row": row, "score_n": 1, "score_points": points, "latency_batch_1_ms": 5.0, "parameters": 9} | more
    )


def test_the_other_pictures_have_units_and_n(tmp_path: Path) -> None:
    cells = [scored(f"pkd_grid alpha {a} temperature {t} beta 10.0", 90 + a) for a in (0.2, 0.5) for t in (5.0, 10.0)]
    points = [
        {"dataset": "reuters_r52", "seed": 0, "speed": s, "accuracy": 0.9, "latency_batch_1_ms": 9 - s} for s in (0, 1)
    ]
    rows = [scored("a", 90.0), scored("b", 91.0, latency_batch_1_ms=7.0)]
    for question, found, details in (
        ("pkd", cells, {}),
        ("fastbert", rows, {"speeds": points}),
        ("together", rows, {}),
    ):
        write.write_question({"question": question, "rows": found, "missing": [], "details": details}, tmp_path)
    said = {path.stem: path.read_text(encoding="utf8") for path in tmp_path.glob("*.svg")}
    assert said.keys() == {"pkd", "pkd_grid", "fastbert", "fastbert_speeds", "together", "together_reuters_r52"}
    for name, words in {"pkd_grid": ["90.20", "n 1", "temperature"], "fastbert_speeds": ["ms", "(n 1)", "speed 1"],
                        "together_reuters_r52": ["ms (median", "b (n 1)", "10 examples"]}.items():  # fmt: skip
        assert all(word in said[name] for word in words), name


def verdicts(folder: Path, **rows: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    for question in PLAN.questions:
        made = {
            "question": question,
            "rows": rows.get(question, []),
            "missing": [],
            "details": {"graft": [], "speeds": []},
        }
        (folder / f"{question}.json").write_text(json.dumps(made), encoding="utf8")
    return {one["claim"]: (one["verdict"], one["figures"]) for one in claims.judge(folder)}


def test_a_claim_is_judged_by_the_rows_or_not_at_all(tmp_path: Path) -> None:
    assert {verdict for verdict, _ in verdicts(tmp_path).values()} == {"not run yet"}
    teacher = scored("teacher", 95.0, latency_batch_1_ms=10.0, parameters=20, role="teacher")
    claim = "Theseus keeps 98 % and is 1.94 times as fast"
    figures = "98.9 % of the score, 45.0 % of the parameters, 2.00 times as fast"
    assert verdicts(tmp_path, theseus=[teacher, scored("theseus", 94.0)])[claim] == ("held", figures)
    assert verdicts(tmp_path, theseus=[teacher, scored("theseus", 90.0)])[claim][0] == "not held"
    assert verdicts(tmp_path, theseus=[scored("theseus", 94.0)])[claim][0] == "not run yet"  # no teacher
    claim = "PKD's speed is linear in the number of layers"
    depth = [scored(f"direct layers {k}", 90.0, latency_batch_1_ms=2.0 * k) for k in (2, 3, 6)]
    assert verdicts(tmp_path, direct=depth)[claim] == ("held", "2 and 3 of 6 layers take 0.33 and 0.50 of the time")
    depth[0]["latency_batch_1_ms"] = 9.0
    assert verdicts(tmp_path, direct=depth)[claim][0] == "not held"
    claim = "The constant mix is steadier than Bernoulli"
    names = ("theseus_epsilon variant mix", "theseus_bernoulli replace_rate 0.5")
    for sds, expected in (((0.1, 2.0), "held"), ((0.5, 0.6), "not told apart"), ((0.6, 0.5), "not held")):
        rows = [scored(name, 94.0, score_n=5, score_sd_points=sd) for name, sd in zip(names, sds, strict=True)]
        assert verdicts(tmp_path, theseus=rows)[claim][0] == expected
    claim = "Without replacement (two stages) nothing beats the direct fine-tune"
    for points, p, expected in ((1.0, 0.01, "not held"), (1.0, 0.4, "not told apart"), (-0.1, 0.9, "held")):
        row = scored("two_stage head inherit", 94.0, difference_points=points, difference_p_holm=p)
        assert verdicts(tmp_path, replacement=[row])[claim][0] == expected


def test_the_rows_that_claims_read_are_in_the_plan() -> None:
    names = {name_of(step, settings) for step in PLAN.steps for settings in step.configurations}
    asked = {
        "pkd_teacher weights pretrained teacher run", "mobilebert strategy akt steps 1500", "mobilebert strategy jkt",
        "tinybert attention false", "bilstm augment true", "direct layers 6", "same_size method logit_kd", "theseus",
        "theseus_epsilon variant mix", "theseus_bernoulli replace_rate 0.5", "distilbert",
    }  # fmt: skip
    assert asked <= names, asked - names


def test_every_claim_has_a_check_and_the_other_way_round() -> None:
    import yaml

    named = [one["check"] for one in yaml.safe_load((ROOT / "scripts/study/claims.yaml").read_text(encoding="utf8"))]
    assert sorted(named) == sorted(claims.CHECKS)


@pytest.mark.parametrize(("dataset", "epochs", "both"), [("reuters_r52", 15, 23), ("tweet_sentiment", 3, 5)])
def test_the_study_s_schedule_is_the_students_alone(dataset: str, epochs: int, both: int) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        words = ["experiment=study_direct_longer", f"dataset={dataset}"]
        config, plain = (load(compose("config", overrides=given)) for given in (words, [words[1]]))
    assert (config.schedule.epochs, config.schedule.lr) == (epochs, 1.5e-4)
    assert config.method.stages["training"].epochs == both
    assert config.teacher == plain.teacher


@pytest.mark.parametrize("name", ["README", "plan"])
def test_the_pages_are_what_the_files_say(name: str) -> None:
    text = (DOCS / f"{name}.md").read_text(encoding="utf8")
    assert page.fill(text, DOCS, PLAN) == text, "python -m scripts.study.write"
    assert (
        set(PLAN.questions) == {kind.split()[1] for _, kind, _ in page.MARKED.findall(text) if "table" in kind}
        or name == "plan"
    )


@pytest.mark.parametrize("question", PLAN.questions)
def test_csv_and_json_agree(question: str) -> None:
    document = json.loads((DOCS / f"{question}.json").read_text(encoding="utf8"))
    with (DOCS / f"{question}.csv").open(encoding="utf8", newline="") as file:
        lines = list(csv.DictReader(file))
    texts = [{name: "" if row[name] is None else str(row[name]) for name in COLUMNS} for row in document["rows"]]
    assert lines == texts
    assert all(row["runs"] and row["commits"] and row["config_digest"] for row in document["rows"])


def test_claims_are_those_of_the_rows() -> None:
    with (DOCS / "claims.csv").open(encoding="utf8", newline="") as file:
        assert list(csv.DictReader(file)) == claims.judge(DOCS)


def test_the_plan_knows_its_presets_and_counts_no_run_twice() -> None:
    presets = {path.stem for path in (ROOT / "conf/experiment").glob("study_*.yaml")}
    assert {step.preset for step in PLAN.steps if step.preset} == presets
    assert {step.question for step in PLAN.steps} == set(PLAN.questions)
    every = [str(one) for runs in PLAN.new_runs for one in runs]
    assert len(every) == len(set(every)) > 250
    head = [step for step in PLAN.steps if step.preset == "study_two_stage"]
    assert len(head[0].runs) == 3 and len(PLAN.new_runs[PLAN.steps.index(head[2])]) == 5  # 6 cells, one done before


@pytest.mark.slow
def test_every_step_of_the_plan_is_a_legal_command() -> None:
    for step in PLAN.steps:
        words = [word for word in step.words if not word.startswith(("teacher=run", "teacher.path="))]
        assert cli.refuse(["-m", *words, f"dataset={step.dataset}"]) == [], step.command


def test_a_run_is_found_for_the_step_that_needs_it(outputs: Path) -> None:
    word = "teacher.path={experiment=study_direct,student.layers=3}"
    found = folder_of(word, "reuters_r52", outputs)
    assert found == (outputs / "reuters_r52/finetune/bert_3l-aaaa1111/seed0").resolve()
    step = Step("pkd", "reuters_r52", ("experiment=x", word), 1.0)
    assert f"teacher.path={found}" in run.arguments(step, outputs)
    with pytest.raises(LookupError, match="no finished run of experiment=study_direct"):
        folder_of(word, "tweet_sentiment", outputs)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of Python: notes its words, fails where they say so, waits where they say so until SIGTERM."""
    path = tmp_path / "program"
    path.write_text(
        f'#!/bin/sh\ntrap "echo saved >> {tmp_path}/said; exit 143" TERM\necho "$@" >> {tmp_path}/said\n'
        'case "$*" in *fails*) exit 1;; *waits*) sleep 60 & wait;; esac\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("sys.executable", str(path))
    return tmp_path / "said"


def runner(folder: Path, *words: str) -> run.Runner:
    steps = [(at, Step("direct", "reuters_r52", (word,), 1.0)) for at, word in enumerate(words, 1)]
    core = min(os.sched_getaffinity(0))
    return run.Runner(steps, folder, [run.Worker(core)], time.monotonic() + 60)


def test_the_runner_goes_on_after_a_failure(program: Path, tmp_path: Path) -> None:
    made = runner(tmp_path / "outputs", "a=1", "b=fails", "c=3")
    assert made.run() == 1 and made.failed == [2]
    lines = program.read_text().splitlines()
    assert [line.split()[3] for line in lines] == ["a=1", "b=fails", "c=3"]
    assert all("hardware.threads=1" in line and "dataset=reuters_r52" in line for line in lines)


def test_the_runner_lets_its_runs_save_when_it_is_stopped(program: Path, tmp_path: Path) -> None:
    def stop() -> None:
        while not program.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    made = runner(tmp_path / "outputs", "a=waits", "b=2")
    before = signal.signal(signal.SIGTERM, made.on_signal)
    try:
        threading.Thread(target=stop).start()
        assert made.run() == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert program.read_text().splitlines()[1:] == ["saved"]  # and the next step was not begun


def test_a_question_without_runs_is_only_listed(tmp_path: Path) -> None:
    made = write.document(Plan({"pkd": {"number": 5}}, [PLAN.steps[0]], 1), "pkd", tmp_path)
    assert made["rows"] == [] and made["missing"] == []
    write.write_question(made, tmp_path)
    assert not list(tmp_path.glob("*.svg")) and page.of_question(tmp_path, "pkd") == "Not run yet."
