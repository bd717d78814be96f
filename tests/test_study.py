"""The study: its plan, its runner, and tables, pictures and pages made from a small tree of runs."""

import csv
import json
import os
import re
import shutil
import signal
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from kdbench.cli import main as cli
from kdbench.runs.identity import run_id
from kdbench.training.hardware import Hardware
from kdbench.validation.load import load
from scripts.study import keep, page, pictures, run, write
from scripts.study.finished import Finished, composed
from scripts.study.plan import Plan, Step, data_of, load_plan
from scripts.study.rows import COLUMNS, name_of, rows_of, tables
from tests.compare.test_compare_runs import student as add_student
from tests.compare.test_compare_runs import write as add_run
from tests.compare.test_tests import predict

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/study"
PLAN = load_plan()


STUDY = Plan(
    PLAN.questions,
    [
        Step(question, "reuters_r52", (f"experiment=study/{preset}", *words.split()), seconds)
        for question, preset, words, seconds in (
            ("together", "teacher", "seed=0", 1430),
            ("direct", "direct", "student.layers=3 seed=0,1,2", 470),
            ("direct", "direct_longer", "seed=0,1,2", 720),
            ("theseus", "theseus", "export.int8=true seed=0,1,2", 870),
            ("theseus", "theseus_bernoulli", "seed=0,1,2", 900),
        )
    ],
    1,
)


def id_of(*words: str) -> str:
    return run_id(composed((*words, "dataset=reuters_r52")), Hardware("cpu", "fp32", "eager", 1))


TEACHER, DIRECT = id_of("experiment=study/teacher"), id_of("experiment=study/direct", "student.layers=3")
LONGER, THESEUS = id_of("experiment=study/direct_longer"), id_of("experiment=study/theseus")
# As nobody's preset has it: study/theseus_bernoulli method.replace_rate=0.5
DRAWN = id_of("method=theseus", "schedule=study", "student=bert_3l", "method.variant=bernoulli",
              "method.replace_rate=0.5")  # fmt: skip


def recorded(root: Path, add: Any, method: str, id_: str, seed: int, points: float, **changes: Any) -> None:
    """A run with its env.json, on reuters_r52."""
    add(root, method, id_, seed, points, identity__dataset="reuters_r52", **changes)
    folder = root / "reuters_r52" / method / f"bert_3l-{id_}" / f"seed{seed}"
    environment = {"precision": "fp32", "attention": "eager", "commit": "abc"}
    (folder / "env.json").write_text(json.dumps(environment), encoding="utf8")


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
    scores = {split: {"n": 2568, "accuracy": 0.97, "macro_f1": 0.9} for split in ("dev", "test")}
    more = {
        "stages": stages,
        "reported": {"predecessor_encoder_successor_head": {"accuracy": 0.95}},
        "teacher": {"id": TEACHER, "seed": 0, "metrics": scores},
        "baseline_id": DIRECT,
        "total_baseline_id": LONGER,
    }
    recorded(root, add_run, "finetune", TEACHER, 0, 97.0)
    for seed, points in enumerate((93.0, 93.0, 96.0)):
        recorded(root, add_run, "finetune", DIRECT, seed, 91.0 + seed, identity__layers=3)
        recorded(root, add_run, "finetune", LONGER, seed, 92.0)
        recorded(root, add_student, "theseus", THESEUS, seed, points, **more)
    for seed in (0, 1):
        recorded(root, add_student, "theseus", DRAWN, seed, 92.0 + 2 * seed, **more)
    return root


@pytest.fixture
def theseus(outputs: Path) -> dict[str, Any]:
    return write.document(STUDY, "theseus", Finished(outputs))


def test_rows_have_their_names_figures_and_origin(theseus: dict[str, Any]) -> None:
    rows = {row["row"]: row for row in theseus["rows"]}
    assert set(rows) == {"teacher", "direct layers 3", "direct_longer", "theseus", "theseus_bernoulli replace_rate 0.5"}
    row = rows["theseus"]
    assert row["score_points"] == pytest.approx(94.0) and row["score_n"] == 3
    assert row["difference_points"] == pytest.approx(2.0) and row["total_difference_points"] == pytest.approx(2.0)
    assert row["seeds"] == "0 1 2" and row["config_digest"] == THESEUS and row["form"] is None
    assert row["runs"].split()[0] == f"reuters_r52/theseus/bert_3l-{THESEUS}/seed0" and row["commits"] == "abc"


def test_a_student_that_teaches_keeps_its_name_and_the_teacher_is_in_every_table(outputs: Path) -> None:
    for path in outputs.glob(f"*/theseus/*{THESEUS}/seed*/results.json"):
        made = json.loads(path.read_text(encoding="utf8"))
        made["teacher"] |= {"id": DIRECT}
        path.write_text(json.dumps(made), encoding="utf8")
    roles = {row["row"]: row["role"] for row in write.document(STUDY, "theseus", Finished(outputs))["rows"]}
    assert roles["direct layers 3"] == "teacher" and "teacher" in roles


def test_times_are_those_that_the_plans_command_measured(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compare-runs outputs/reuters_r52 --latency` keeps them in its first folder."""
    asked = []
    monkeypatch.setattr("scripts.study.rows.with_speed", lambda table, root, *_: asked.append(root) or table)
    write.document(STUDY, "direct", Finished(outputs))
    assert set(asked) == {outputs / "reuters_r52"}


def test_a_run_counts_by_its_settings_in_whatever_words(outputs: Path) -> None:
    finished = Finished(outputs)
    step = next(step for step in STUDY.steps if step.preset == "study/theseus_bernoulli")
    rates = {name_of(words): finished.ids(words) for words in step.configurations}
    assert rates["theseus_bernoulli replace_rate 0.5"] == {DRAWN}
    assert len(frozenset().union(*rates.values())) == 3  # another rate is another run
    other = Plan(
        STUDY.questions, [Step("pkd", "reuters_r52", ("method=theseus", "schedule=study", "seed=0,1,7"), 60)], 1
    )
    made = write.document(other, "pkd", finished)  # this plan has study/theseus without its preset
    assert [(row["config_digest"], row["seeds"]) for row in made["rows"] if row["role"] == "method"] == [
        (THESEUS, "0 1 2")
    ]
    assert [one["runs"] for one in made["missing"]] == [1]  # seed 7


def test_the_hardware_is_that_of_the_runs(outputs: Path) -> None:
    """A tree from a GPU is read on a laptop: precision and attention are in an id."""
    (place,) = outputs.glob(f"*/theseus/*{THESEUS}/seed0")
    assert Finished(outputs).kinds == {("fp32", "eager", False)}
    words = ("experiment=study/theseus", "dataset=reuters_r52")
    (place / "env.json").write_text('{"precision": "bf16", "attention": "sdpa", "compile": true}', encoding="utf8")
    both = Finished(outputs)
    assert both.ids(words) == {THESEUS, run_id(composed(words), Hardware("cuda", "bf16", "sdpa", 4, True))}


def test_an_export_is_a_row_of_its_runs_configuration(outputs: Path) -> None:
    (folder,) = outputs.glob(f"*/theseus/*{THESEUS}/seed0")
    made = json.loads((folder / "results.json").read_text(encoding="utf8"))
    made |= {"id": "12345678", "form": "int8", "exported_from": THESEUS}
    (folder / "export/int8").mkdir(parents=True)
    (folder / "export/int8/results.json").write_text(json.dumps(made), encoding="utf8")
    rows = {row["row"]: row for row in write.document(STUDY, "theseus", Finished(outputs))["rows"]}
    assert rows["theseus int8"]["form"] == "int8" and rows["theseus int8"]["commits"] == "abc"
    assert rows["theseus"]["score_n"] == 3


def test_all_together_has_a_row_a_preset_the_best_on_dev(outputs: Path) -> None:
    """Whatever its seeds: the page says n, and of how many it was the best."""
    preset = "experiment=study/theseus_bernoulli"
    for rate, seeds, dev in ((0.3, (0, 1), 0.6), (0.7, (0,), 0.7)):  # the other rate has 0.5
        id_ = id_of(preset, f"method.replace_rate={rate}")
        for seed in seeds:
            more = {"baseline_id": DIRECT, "metrics__dev__accuracy": dev}
            recorded(outputs, add_student, "theseus", id_, seed, 90.0, **more)
    finished = Finished(outputs)
    made = write.document(STUDY, "together", finished)
    tried = {row["row"]: row["best_on_dev_of"] for row in made["rows"]}
    assert tried == {
        "teacher": 1, "direct layers 3": 1, "direct_longer": 1, "theseus": 1, "theseus_bernoulli replace_rate 0.7": 3,
    }  # fmt: skip
    every = rows_of(STUDY, "theseus", tables(STUDY, "theseus", finished), finished)
    assert len(every) == 7
    assert keep.with_kept(made, made | {"rows": every}, finished.folders) == made  # none of them is gone
    row = next(row for row in made["rows"] if row["best_on_dev_of"] == 3)
    assert page.cells({key: str(value) if value is not None else "" for key, value in row.items()})[0] == (
        "theseus_bernoulli replace_rate 0.7 (best of 3 on dev)"
    )


def test_what_is_missing_is_listed_with_command_and_cost(theseus: dict[str, Any]) -> None:
    lacking = {one["command"]: one for one in theseus["missing"]}
    assert not any("study/theseus export" in command for command in lacking)  # all three seeds are there
    command = "kdbench -m experiment=study/theseus_bernoulli seed=0,1,2 dataset=reuters_r52"
    assert lacking[command] == {"runs": 7, "of": 9, "command": command, "core_hours": 1.75}
    assert sum(one["runs"] for one in theseus["missing"]) + 3 + 2 == sum(
        len(runs) for step, runs in zip(STUDY.steps, STUDY.new_runs, strict=True) if step.question == "theseus"
    )


def test_a_table_stays_until_a_new_one_has_all_its_runs(theseus: dict[str, Any], tmp_path: Path) -> None:
    def before(*runs: str, **more: Any) -> dict[str, Any]:
        row = scored("old", 80.0, question="theseus", machine="AMD EPYC, 2 cores", **more) | {"runs": " ".join(runs)}
        graft = [{"data": data_of(row), "row": "old"}]
        return {"question": "theseus", "rows": [row], "missing": [], "details": {"graft": graft, "gone": []}}

    def kept(made: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        return keep.with_kept(made, before, keep.runs(theseus))

    def places(made: dict[str, Any]) -> list[str]:
        return list(dict.fromkeys(data_of(row) for row in made["rows"]))

    here, elsewhere = f"reuters_r52/theseus/bert_3l-{THESEUS}/seed", "reuters_r52/theseus/bert_3l-0a1b2c3d/seed0"
    assert kept(theseus, before(f"{here}0", f"{here}2")) == theseus
    stale = theseus | {"rows": [row | {"score_points": 0.0} for row in theseus["rows"]]}
    assert kept(theseus, stale) == theseus
    made = kept(theseus, before(f"{here}0", elsewhere))  # side by side, never one table
    assert places(made) == ["reuters_r52", "reuters_r52, AMD EPYC"] and made["missing"] == theseus["missing"]
    assert made["rows"][:-1] == theseus["rows"] and made["rows"][-1]["row"] == "old"
    assert made["details"]["graft"][-1] == {"data": "reuters_r52, AMD EPYC", "row": "old"}
    assert made["details"]["starvation"] == theseus["details"]["starvation"]
    assert kept(theseus, made) == made  # written again
    old = before(elsewhere)["rows"][0]
    nameless = {"rows": [old | {"machine": "unknown"}, old], "details": {}}  # runs of long ago do not tell theirs
    assert places(kept(theseus, nameless)) == places(made)
    third = made["rows"][0] | {"runs": "x-1/seed0", "machine": "AMD EPYC, 8 cores"}
    again = kept(theseus, made | {"rows": [third, made["rows"][-1]]})
    assert places(again) == ["reuters_r52", "reuters_r52, AMD EPYC", "reuters_r52, AMD EPYC 2"]
    whole = " ".join(folder for row in theseus["rows"] for folder in row["runs"].split())
    assert kept(theseus, before(whole, elsewhere))["rows"][0]["row"] == "old"  # nothing new, so no table
    students = " ".join(row["runs"] for row in theseus["rows"] if row["row"] != "teacher")
    assert len(kept(theseus, before(students, elsewhere))["rows"]) == 1
    other = kept(theseus, before(elsewhere, dataset="tweet_sentiment", max_train_samples=8000))
    assert places(other) == ["reuters_r52", "tweet_sentiment, 8,000 train texts"]
    (tmp_path / "theseus.json").write_text(json.dumps(before(elsewhere, f"{elsewhere}/export/int8")), encoding="utf8")
    assert keep.done_before(keep.written(tmp_path)) == {("0a1b2c3d", 0)}


def test_a_run_that_was_done_elsewhere_is_not_missing(outputs: Path) -> None:
    for folder in outputs.glob(f"*/*/*{DIRECT}"):
        shutil.rmtree(folder)
    lacking = write.document(STUDY, "direct", Finished(outputs, {(DIRECT, 0), (DIRECT, 1)}))["missing"]
    assert [one["runs"] for one in lacking] == [1]


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
    assert "`kdbench -m experiment=study/theseus_bernoulli seed=0,1,2 dataset=reuters_r52`" in text
    assert "![theseus_starvation_reuters_r52](theseus_starvation_reuters_r52.svg)" in text
    assert page.fill(text, tmp_path, PLAN) == text
    picture = (tmp_path / "theseus.svg").read_text(encoding="utf8")
    assert "theseus (n 3)" in picture and "test accuracy, %" in picture
    assert "updates in which" in (tmp_path / "theseus_starvation_reuters_r52.svg").read_text(encoding="utf8")


def test_a_page_has_the_share_of_the_gap_to_the_better_ceiling(theseus: dict[str, Any], tmp_path: Path) -> None:
    def cell() -> str:
        lines = page.of_question(tmp_path, "theseus").splitlines()
        line = next(line for line in lines if line.startswith("| theseus |"))
        return line.split(" | ")[page.HEADS.index("gap closed, %")]

    write.write_question(theseus, tmp_path)
    row = next(row for row in theseus["rows"] if row["row"] == "theseus")  # 94, direct 92, teacher 97
    assert cell() == page.figure(tmp_path, "theseus", "theseus", "gap") == "40"
    assert page.figure(tmp_path, "theseus", "theseus", "ceiling") == "97.00"
    teacher = next(one for one in theseus["rows"] if one["row"] == "teacher")
    full = row | {"row": "direct layers 6", "score_points": 100.0, "dev_score_points": 2 * teacher["dev_score_points"]}
    write.write_question({"question": "direct", "rows": [full], "missing": [], "details": {}}, tmp_path)
    assert cell() == page.figure(tmp_path, "theseus", "theseus", "gap") == "25"
    assert page.figure(tmp_path, "theseus", "theseus", "ceiling") == "100.00"


def test_a_share_of_the_gap_has_fiellers_interval_from_the_predictions(outputs: Path) -> None:
    for id_, points in ((TEACHER, [99.0]), (DIRECT, [79.0, 80.0, 81.0]), (THESEUS, [89.5, 90.0, 90.5])):
        for seed, score in enumerate(points):
            (folder,) = outputs.glob(f"*/*/*{id_}/seed{seed}")
            predict(folder, score, 3)
    rows = {row["row"]: row for row in write.document(STUDY, "theseus", Finished(outputs))["rows"]}
    row = rows["theseus"]
    assert row["gap_closed_low"] < 10 / 19 < row["gap_closed_high"]
    assert rows["direct layers 3"]["gap_closed_low"] is None


def test_pages_are_made_anew_of_the_tables_that_are_kept(theseus: dict[str, Any], tmp_path: Path) -> None:
    docs = tmp_path / "docs/study"
    docs.mkdir(parents=True)
    for question in PLAN.questions:
        rows = theseus["rows"] if question == "theseus" else []
        details = {key: [] for key in ("graft", "grid", "speeds", "starvation")}
        write.write_question({"question": question, "rows": rows, "missing": [], "details": details}, docs)
    tables = {path.name: path.read_text(encoding="utf8") for path in [*docs.glob("*.csv"), *docs.glob("*.json")]}
    (tmp_path / "README.md").write_text("<!-- figure theseus / theseus / score -->1.00<!-- end -->", encoding="utf8")
    write.main(["--kept", "--root", str(tmp_path), "--outputs", str(tmp_path / "none")])
    assert "94.00" in (tmp_path / "README.md").read_text(encoding="utf8")
    assert {name: (docs / name).read_text(encoding="utf8") for name in tables} == tables
    assert (docs / "claims.csv").is_file() and (docs / "times.csv").is_file()


def test_details_are_means_over_seeds(theseus: dict[str, Any], tmp_path: Path) -> None:
    write.write_question(theseus, tmp_path)
    text = page.fill("<!-- details theseus graft -->\n<!-- end -->", tmp_path, PLAN)
    assert "| data | row | n | graft dev points | predecessor dev points | successor dev points |" in text
    assert "| reuters_r52 | theseus | 3 | 95 | 97 | 50 |" in text
    assert page.mean([[0.5, 0.2], [0.7, 0.4]]) == "0.600 0.300"
    assert page.mean([None, 3.0]) == "3" and page.mean([None]) == ""


def test_a_figure_in_a_sentence_comes_from_the_csv(theseus: dict[str, Any], tmp_path: Path) -> None:
    write.write_question(theseus, tmp_path)
    text = (
        "Up by <!-- figure theseus / theseus / difference -->9.99<!-- end -->,"
        " of <!-- figure theseus / theseus / score_n --><!-- end -->."
    )
    filled = page.fill(text, tmp_path, PLAN)
    assert filled.split("-->")[1] == "+2.00<!-- end " and filled.split("-->")[3] == "3<!-- end "
    assert page.fill(filled, tmp_path, PLAN) == filled
    write.write_question({"question": "pkd", "rows": [scored("a", 80.0, max_train_samples=8000)], "missing": [],
                          "details": {"grid": []}}, tmp_path)  # fmt: skip
    assert page.figure(tmp_path, "pkd", "a", "score", "reuters_r52, 8,000 train texts") == "80.00"
    with pytest.raises(LookupError, match="no row a of reuters_r52"):
        page.figure(tmp_path, "pkd", "a", "score")
    with pytest.raises(LookupError, match=r"theseus\.csv has no row nobody of reuters_r52"):
        page.fill(text.replace("/ theseus /", "/ nobody /"), tmp_path, PLAN)


def bare_figures(text: str) -> list[str]:
    """Decimals in the readings that come from no file."""
    readings = re.findall(r"^Reading: (.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    plain = [page.FIGURE.sub("", page.MARKED.sub("", one)) for one in readings]
    return [found for one in plain for found in re.findall(r"\d+\.\d+", one)]


def test_a_sentence_about_a_row_that_is_gone_is_told(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = tmp_path / "docs/study"
    docs.mkdir(parents=True)
    (docs / "README.md").write_text("<!-- figure theseus / theseus_gone / score -->1.00<!-- end -->")
    (tmp_path / "README.md").write_text("<!-- headline reuters_r52 -->\n<!-- end -->")
    with pytest.raises(SystemExit, match="2"):
        write.main(["--outputs", str(outputs), "--root", str(tmp_path)])
    assert "docs/study/README.md: theseus.csv has no row theseus_gone of reuters_r52" in capsys.readouterr().err
    assert "teacher, 6 layers" in (tmp_path / "README.md").read_text()  # the other pages are written


def test_readings_have_no_figures_of_their_own() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf8")
    assert text.count("\nReading: ") == len(PLAN.questions) and bare_figures(text) == []
    marked = "\nReading: up <!-- figure theseus / theseus / difference -->+0.91<!-- end --> or"
    assert bare_figures(f"{marked} more\n## 3.1 x") == [] and bare_figures(f"{marked} 0.92\n") == ["0.92"]


def unnamed_single_runs(text: str, folder: Path) -> list[str]:
    """Figures of one seed in paragraphs of the readings that do not say so; of TF-IDF there is but one."""
    found = []
    for reading in re.findall(r"^Reading: (.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL):
        for paragraph in page.MARKED.sub("", reading).split("\n\n"):
            for _, figure, _ in page.FIGURE.findall(paragraph):
                question, name, _, *data = figure.split(" / ")
                rows = {(row["row"], data_of(row)): row for row in page.csv_rows(folder, question)}
                alone = rows[name, data[0] if data else "reuters_r52"]["score_n"] == "1" and name != "tfidf"
                if alone and not re.search(r"\bn 1\b|one\s+seed|one\s+run|[Ss]ingle\s+run", paragraph):
                    found.append(figure)
    return found


def test_a_single_run_is_called_one(theseus: dict[str, Any], tmp_path: Path) -> None:
    assert unnamed_single_runs((DOCS / "README.md").read_text(encoding="utf8"), DOCS) == []
    rows = [row | {"score_n": 1 if row["row"] == "theseus" else 3} for row in theseus["rows"]]
    write.write_question(theseus | {"rows": rows}, tmp_path)
    alone = "theseus / theseus / score"
    text = f"\nReading: it has <!-- figure {alone} -->94.00<!-- end -->"
    assert unnamed_single_runs(f"{text} or so.\n\nOne seed.\n", tmp_path) == [alone]
    assert unnamed_single_runs(f"{text} (one\nseed).\n", tmp_path) == []


def scored(row: str, points: float, **more: Any) -> dict[str, Any]:
    figures = dict.fromkeys(COLUMNS) | {"dataset": "reuters_r52", "data_id": "d", "examples": 10, "role": "method"}
    return (
        figures | {"row": row, "score_n": 1, "score_points": points, "latency_batch_1_ms": 5.0, "parameters": 9} | more
    )


def test_pkds_grid_has_the_cell_that_another_step_names(outputs: Path, tmp_path: Path) -> None:
    cut = "dataset.max_train_samples=8000"
    steps = [
        Step("pkd", "reuters_r52", (f"experiment=study/pkd_{one}", cut, "seed=0"), 1) for one in ("layers", "grid")
    ]
    given = {"method.alpha": 0.2, "method.temperature": 20.0, "method.beta": 10.0}
    other = id_of("experiment=study/pkd_grid", *(f"{key}={value}" for key, value in given.items()))
    skip = id_of("experiment=study/pkd_layers", "method.patient_layers=skip", cut)
    for id_, points in ((skip, 92.5), (other, 93.5)):
        recorded(outputs, add_student, "pkd", id_, 0, points, baseline_id=DIRECT)
    made = write.document(Plan(STUDY.questions, steps, 1), "pkd", Finished(outputs))
    cells = {one["row"]: (one["alpha"], one["temperature"], one["beta"]) for one in made["details"]["grid"]}
    assert cells == {
        "pkd_layers patient_layers skip": (0.5, 5.0, 100.0),
        "pkd_grid alpha 0.2 temperature 20.0 beta 10.0": (0.2, 20.0, 10.0),
    }
    write.write_question(made, tmp_path)
    assert {"92.50", "93.50"} <= set(re.findall(r"\d\d\.\d\d", (tmp_path / "pkd_grid_reuters_r52.svg").read_text()))


def test_the_other_pictures_have_units_and_n(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {"data": "reuters_r52", "row": f"{a} {t}", "alpha": a, "temperature": t, "beta": 10.0}
        for a in (0.2, 0.5)
        for t in (5.0, 10.0)
    ]
    points = [
        {"data": "reuters_r52", "seed": 0, "speed": s, "accuracy": 0.9, "latency_batch_1_ms": 9 - s} for s in (0, 1)
    ]
    rows = [
        scored("a", 92.0, method="pkd"),
        scored("b", 91.0, latency_batch_1_ms=7.0, method="pkd"),
        scored("c", 70.0, method="mobilebert"),
        scored("tfidf", 94.0, role="tfidf", latency_batch_1_ms=0.5),
    ]
    (tmp_path / "pkd_of_before.svg").write_text("old", encoding="utf8")
    for question, found, details in (
        ("pkd", [scored(one["row"], 90 + one["alpha"]) for one in cells], {"grid": cells}),
        ("fastbert", rows, {"speeds": points}),
        ("together", rows, {}),
    ):
        write.write_question({"question": question, "rows": found, "missing": [], "details": details}, tmp_path)
    said = {path.stem: path.read_text(encoding="utf8") for path in tmp_path.glob("*.svg")}
    assert said.keys() == {
        "pkd",
        "pkd_grid_reuters_r52",
        "fastbert",
        "fastbert_speeds",
        "together",
        "together_reuters_r52",
    }
    shown = {
        "pkd_grid_reuters_r52": ["90.20", "n 1", "temperature"],
        "fastbert_speeds": ["ms", "(n 1)", "speed 1"],
        "together_reuters_r52": [
            "ms (median", "a (n 1)", "10 examples", "pkd (2)", "1 rows further down", "TF-IDF + linear SVM, 0.5 ms",
        ],
    }  # fmt: skip
    for name, words in shown.items():
        assert all(word in said[name] for word in words), name


def test_each_method_has_a_look_and_each_of_its_forms_a_fill() -> None:
    rows = [
        scored("teacher", 95.0, role="teacher", method="finetune"),
        scored("teacher int8", 94.0, method="finetune", form="int8"),
        scored("direct layers 3", 93.0, role="baseline", method="finetune"),
        scored("direct_longer", 93.0, role="teacher", method="finetune"),
        scored("direct_random", 90.0, method="finetune"),
        scored("theseus onnx", 94.0, method="theseus", form="onnx"),
    ]
    kinds = {kind: [row["row"] for row in own] for kind, own in pictures.by_kind(rows).items()}
    assert kinds == {
        ("teacher", None): ["teacher"],
        ("teacher", "int8"): ["teacher int8"],
        ("direct", None): ["direct layers 3", "direct_longer", "direct_random"],
        ("theseus", "onnx"): ["theseus onnx"],
    }
    assert {form for _, form in kinds} == set(pictures.FILLS)


@pytest.mark.parametrize(("dataset", "epochs", "both"), [("reuters_r52", 15, 23), ("tweet_sentiment", 3, 5)])
def test_the_study_s_schedule_is_the_students_alone(dataset: str, epochs: int, both: int) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        words = ["experiment=study/direct_longer", f"dataset={dataset}"]
        config, plain = (load(compose("config", overrides=given)) for given in (words, [words[1]]))
    assert (config.schedule.epochs, config.schedule.lr) == (epochs, 1.5e-4)
    assert config.method.stages["training"].epochs == both
    assert config.teacher == plain.teacher


@pytest.mark.parametrize(("name", "kind", "of"), [
    ("docs/study/README", "table", set(PLAN.questions)),
    ("docs/study/README", "headline", {"reuters_r52, AMD EPYC", "newsgroups20"}),
    ("docs/study/plan", "plan", {""}),
    ("README", "headline", {page.IN_README}),
])  # fmt: skip
def test_the_pages_are_what_the_files_say(name: str, kind: str, of: set[str]) -> None:
    text = (ROOT / f"{name}.md").read_text(encoding="utf8")
    assert page.fill(text, DOCS, PLAN) == text, "python -m scripts.study.write"
    found = [block.partition(" ") for _, block, _ in page.MARKED.findall(text)]
    assert {what for start, _, what in found if start == kind} == of


def test_a_headline_row_is_named_in_short(theseus: dict[str, Any], tmp_path: Path) -> None:
    write.write_question(theseus | {"question": "together"}, tmp_path)
    rows = [line.strip("| ").split(" | ") for line in page.headline(tmp_path, "reuters_r52").splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "teacher, 6 layers", "direct, first 3 layers", "direct, 1.5 times the updates", "BERT-of-Theseus",
    ]  # fmt: skip
    told = next(row for row in theseus["rows"] if row["row"] == "theseus")
    figures = [cell.split()[0] for cell in rows[3][1:4]]  # without their intervals
    forms = {"score_n": "", "score_points": ".2f", "difference_points": "+.2f"}
    assert figures == [format(told[key], form) for key, form in forms.items()]
    with pytest.raises(LookupError, match="no rows of newsgroups20"):
        page.headline(tmp_path, "newsgroups20")


def test_the_headline_has_both_ceilings() -> None:
    """The teacher, which has its own schedule, and the same layers by the students'."""
    names = [name for name, _ in page.headline_rows(DOCS, page.IN_README)]
    assert {"teacher, 6 layers", "direct, all 6 layers"} <= set(names)


def test_every_headline_row_is_on_a_page() -> None:
    """A row that is called otherwise would be left out without a word."""
    texts = [path.read_text(encoding="utf8") for path in (ROOT / "README.md", DOCS / "README.md")]
    assert [name for name in page.HEADLINE.values() if not any(f"| {name} " in text for text in texts)] == []


def test_the_readmes_picture_shows_its_table(tmp_path: Path) -> None:
    table = page.headline(DOCS, page.IN_README)
    pictures.headline(page.headline_rows(DOCS, page.IN_README), table, tmp_path / "headline.png")
    for file in (tmp_path / "headline.png", DOCS / "headline.png"):
        with Image.open(file) as image:
            assert image.info["Description"] == table, "python -m scripts.study.write --kept"
        assert file.stat().st_size <= 60_000
    assert "](docs/study/headline.png)" in (ROOT / "README.md").read_text(encoding="utf8")


@pytest.mark.parametrize("question", PLAN.questions)
def test_csv_and_json_agree(question: str) -> None:
    document = json.loads((DOCS / f"{question}.json").read_text(encoding="utf8"))
    with (DOCS / f"{question}.csv").open(encoding="utf8", newline="") as file:
        lines = list(csv.DictReader(file))
    texts = [{name: "" if row[name] is None else str(row[name]) for name in COLUMNS} for row in document["rows"]]
    assert lines == texts
    assert all(row["runs"] and row["commits"] and row["config_digest"] for row in document["rows"])


def test_the_plan_knows_its_presets_and_counts_no_run_twice() -> None:
    presets = {f"study/{path.stem}" for path in (ROOT / "conf/experiment/study").glob("*.yaml")}
    assert len(presets) > 20
    assert {step.preset for step in PLAN.steps if step.preset} == presets
    assert {step.question for step in PLAN.steps} == set(PLAN.questions)
    every = [str(one) for runs in PLAN.new_runs for one in runs]
    assert len(every) == len(set(every)) > 250
    cell = ["experiment=study/two_stage", "method.head=inherit", "method.head_lr_multiplier=5.0", "seed=0,1"]
    whole = ["experiment=study/two_stage", "seed=0,1"]
    steps = [Step("replacement", "reuters_r52", tuple(words), 60) for words in (cell, whole)]
    assert list(map(len, Plan({}, steps, 1).new_runs)) == [2, 10]  # 6 cells of 2 seeds, one done before


@pytest.mark.slow
def test_every_step_of_the_plan_is_a_legal_command() -> None:
    for step in PLAN.steps:
        words = [word for word in step.words if not word.startswith(("teacher=run", "teacher.path="))]
        # In the place of the finished run a teacher of its depth.
        words += [f"teacher.layers={depth}" for depth in re.findall(r"[{,]student\.layers=(\d)", step.command)]
        assert cli.refuse(["-m", *words, f"dataset={step.dataset}"]) == [], step.command


@pytest.mark.slow
def test_no_run_of_the_plan_is_another_ones_in_other_words() -> None:
    every = {words for step in PLAN.steps for words in step.configurations if "{" not in " ".join(words)}
    every.remove(("method.patient_layers=skip", "experiment=study/pkd_layers", "dataset.max_train_samples=8000",
                  "dataset=tweet_sentiment"))  # also the cell of PKD's grid that has the defaults  # fmt: skip
    hardware = Hardware("cpu", "fp32", "eager", 1)
    assert len({run_id(composed(words), hardware) for words in every}) == len(every)


def test_a_run_is_found_for_the_step_that_needs_it(outputs: Path) -> None:
    word = "teacher.path={experiment=study/direct,student.layers=3}"
    found = Finished(outputs).folder_of(word, "dataset=reuters_r52")
    assert found == (outputs / f"reuters_r52/finetune/bert_3l-{DIRECT}/seed0").resolve()
    step = Step("pkd", "reuters_r52", ("experiment=x", word), 1.0)
    assert f"teacher.path={found}" in run.arguments(step, outputs)
    with pytest.raises(LookupError, match="no finished run of experiment=study/direct"):
        Finished(outputs).folder_of(word, "dataset=tweet_sentiment")


def test_steps_are_chosen_by_number_in_the_order_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--dry", "--steps", "11,9-10"]) == 0
    printed = [line.split(": ", 1) for line in capsys.readouterr().out.splitlines()]
    assert [int(words.split()[0]) for words, _ in printed] == [11, 9, 10]
    assert [command for _, command in printed] == [PLAN.steps[at - 1].command for at in (11, 9, 10)]
    for words, said in (
        ("0", "0 is none of the plan's, which are 1 to"),
        ("x", "--steps: invalid"),
        ("9-8", "--steps: invalid"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run.main(["--dry", "--steps", words])
        assert said in capsys.readouterr().err


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
    made = write.document(Plan({"pkd": {"number": 5}}, [PLAN.steps[0]], 1), "pkd", Finished(tmp_path))
    assert made["rows"] == [] and made["missing"] == []
    write.write_question(made, tmp_path)
    assert not list(tmp_path.glob("*.svg")) and page.of_question(tmp_path, "pkd") == "Not run yet."
