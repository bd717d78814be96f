"""The study: its plan, its runner, and tables, pictures and pages made from a small tree of runs."""

import copy
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

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from matplotlib.container import ErrorbarContainer
from PIL import Image

from kdbench.cli import main as cli
from kdbench.runs.identity import run_id
from kdbench.training.hardware import Hardware
from kdbench.validation.load import load
from scripts.study import page, pictures, rows, run, tables, write
from scripts.study.finished import Finished, composed
from scripts.study.plan import Plan, Step, data_of, load_plan, name_of
from scripts.study.tables import COLUMNS, Evidence
from tests.compare.test_compare_runs import TAUGHT
from tests.compare.test_compare_runs import student as add_student
from tests.compare.test_compare_runs import write as add_run
from tests.compare.test_tests import predict

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/study"
PLAN = load_plan()
SAID = tables.read(DOCS, PLAN.questions)
TWEETS = page.TWEETS

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


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher, direct fine-tunes of both budgets, Theseus of three seeds, Bernoulli at one of its three rates."""
    root = tmp_path_factory.mktemp("study") / "outputs"
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
        "teacher": {"id": TEACHER, "seed": 0, "metrics": scores} | TAUGHT,
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
def outputs(tree: Path, tmp_path: Path) -> Path:
    """A copy of the tree, to be changed."""
    return Path(shutil.copytree(tree, tmp_path / "outputs"))


@pytest.fixture(scope="module")
def document(tree: Path) -> dict[str, Any]:
    return rows.document(STUDY, "theseus", Finished(tree))


@pytest.fixture
def theseus(document: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(document)


def evidence(**documents: Any) -> Evidence:
    """The tables, with no rows for the other questions."""
    none = {"rows": [], "details": {}}
    return Evidence({question: documents.get(question, none) for question in PLAN.questions}, [])


def test_rows_have_their_names_figures_and_origin(theseus: dict[str, Any]) -> None:
    found = {row["row"]: row for row in theseus["rows"]}
    assert set(found) == {
        "teacher",
        "direct layers 3",
        "direct_longer",
        "theseus",
        "theseus_bernoulli replace_rate 0.5",
    }
    row = found["theseus"]
    assert row["score_points"] == pytest.approx(94.0) and row["score_n"] == 3
    assert row["difference_points"] == pytest.approx(2.0) and row["total_difference_points"] == pytest.approx(2.0)
    assert row["seeds"] == "0 1 2" and row["config_digest"] == THESEUS and row["form"] is None
    assert row["runs"].split()[0] == f"reuters_r52/theseus/bert_3l-{THESEUS}/seed0" and row["commits"] == "abc"
    assert row["scores_points"] == "93 93 96"


def test_a_student_that_teaches_keeps_its_name_and_the_teacher_is_in_every_table(outputs: Path) -> None:
    for path in outputs.glob(f"*/theseus/*{THESEUS}/seed*/results.json"):
        made = json.loads(path.read_text(encoding="utf8"))
        made["teacher"] |= {"id": DIRECT}
        path.write_text(json.dumps(made), encoding="utf8")
    roles = {row["row"]: row["role"] for row in rows.document(STUDY, "theseus", Finished(outputs))["rows"]}
    assert roles["direct layers 3"] == "teacher" and "teacher" in roles


def test_times_are_those_that_the_plans_command_measured(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compare-runs outputs/reuters_r52 --latency` keeps them in its first folder."""
    asked = []
    monkeypatch.setattr("scripts.study.rows.with_speed", lambda table, root, *_: asked.append(root) or table)
    rows.document(STUDY, "direct", Finished(tree))
    assert set(asked) == {tree / "reuters_r52"}


def test_a_run_counts_by_its_settings_in_whatever_words(tree: Path) -> None:
    finished = Finished(tree)
    step = next(step for step in STUDY.steps if step.preset == "study/theseus_bernoulli")
    rates = {name_of(words): finished.ids(words) for words in step.configurations}
    assert rates["theseus_bernoulli replace_rate 0.5"] == {DRAWN}
    assert len(frozenset().union(*rates.values())) == 3  # another rate is another run
    other = Plan(
        STUDY.questions, [Step("pkd", "reuters_r52", ("method=theseus", "schedule=study", "seed=0,1,7"), 60)], 1
    )
    made = rows.document(other, "pkd", finished)  # this plan has study/theseus without its preset
    assert [(row["config_digest"], row["seeds"]) for row in made["rows"] if row["role"] == "method"] == [
        (THESEUS, "0 1 2")
    ]


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
    (folder / "forms/int8").mkdir(parents=True)
    (folder / "forms/int8/results.json").write_text(json.dumps(made), encoding="utf8")
    found = {row["row"]: row for row in rows.document(STUDY, "theseus", Finished(outputs))["rows"]}
    assert found["theseus int8"]["form"] == "int8" and found["theseus int8"]["commits"] == "abc"
    assert found["theseus"]["score_n"] == 3


def test_all_together_has_a_row_a_preset_the_best_on_dev(outputs: Path) -> None:
    """Whatever its seeds: the page says n, and of how many it was the best."""
    preset = "experiment=study/theseus_bernoulli"
    for rate, seeds, dev in ((0.3, (0, 1), 0.6), (0.7, (0,), 0.7)):  # the other rate has 0.5
        id_ = id_of(preset, f"method.replace_rate={rate}")
        for seed in seeds:
            more = {"baseline_id": DIRECT, "metrics__dev__accuracy": dev}
            recorded(outputs, add_student, "theseus", id_, seed, 90.0, **more)
    finished = Finished(outputs)
    made = rows.document(STUDY, "together", finished)
    tried = {row["row"]: row["best_on_dev_of"] for row in made["rows"]}
    assert tried == {
        "teacher": 1, "direct layers 3": 1, "direct_longer": 1, "theseus": 1, "theseus_bernoulli replace_rate 0.7": 3,
    }  # fmt: skip
    every = rows.rows_of(STUDY, rows.tables(STUDY, "theseus", finished), finished)
    assert len(every) == 7
    assert tables.with_kept(made, made | {"rows": every}, finished.folders) == made  # none of them is gone
    assert "| theseus_bernoulli replace_rate 0.7 (best of 3 on dev) |" in page.table(
        evidence(together=made), "together", "reuters_r52"
    )


def test_a_table_stays_until_a_new_one_has_all_its_runs(theseus: dict[str, Any]) -> None:
    def before(*runs: str, **more: Any) -> dict[str, Any]:
        row = scored("old", 80.0, machine="AMD EPYC, 2 cores", **more) | {"runs": " ".join(runs)}
        return {"rows": [row], "details": {"runs": [{"data": data_of(row), "row": "old"}], "gone": []}}

    def kept(made: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        return tables.with_kept(made, before, tables.runs(theseus))

    def places(made: dict[str, Any]) -> list[str]:
        return list(dict.fromkeys(data_of(row) for row in made["rows"]))

    here, elsewhere = f"reuters_r52/theseus/bert_3l-{THESEUS}/seed", "reuters_r52/theseus/bert_3l-0a1b2c3d/seed0"
    assert kept(theseus, before(f"{here}0", f"{here}2")) == theseus
    stale = theseus | {"rows": [row | {"score_points": 0.0} for row in theseus["rows"]]}
    assert kept(theseus, stale) == theseus
    made = kept(theseus, before(f"{here}0", elsewhere))  # side by side, never one table
    assert places(made) == ["reuters_r52", "reuters_r52, AMD EPYC"]
    assert made["rows"][:-1] == theseus["rows"] and made["rows"][-1]["row"] == "old"
    assert made["details"]["runs"][-1] == {"data": "reuters_r52, AMD EPYC", "row": "old"}
    assert made["details"]["epochs"] == theseus["details"]["epochs"]
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


def test_details_are_what_the_stages_logged(theseus: dict[str, Any]) -> None:
    first = [one for one in theseus["details"]["epochs"] if one["row"] == "theseus" and one["seed"] == 0]
    assert [one["least_drawn"] for one in first] == pytest.approx([2.0, 6.0])
    assert [one["successor_dev_points"] for one in first] == pytest.approx([70.0, 80.0])
    run_ = theseus["details"]["runs"][0]
    assert run_["graft_dev_points"] == pytest.approx(95.0) and run_["predecessor_dev_points"] == pytest.approx(97.0)
    assert run_["second_stage_best_step"] == 5 and run_["replacing_best_dev_points"] == pytest.approx(80.0)


def test_details_of_early_exit_are_what_the_run_reports() -> None:
    point = {"speed": 0.5, "n": 9, "accuracy": 0.8, "exit_shares": [0.75, 0.25]}
    raw = {
        "latency": {"by_speed": {"0.5": {"batch_1": {"median_ms": 3.0}}}},
        "reported": {"curve_test": [point, point | {"speed": 0.6}], "layers_test": [0.6, 0.8], "break_even_share": 0.1},
    }
    timed, untimed = rows.speeds(raw)
    assert (timed["latency_batch_1_ms"], untimed["latency_batch_1_ms"]) == (3.0, None)
    assert timed["latency_batch_32_ms"] is None and timed["exit_shares"] == "0.75 0.25"
    assert [(one["layer"], one["points"], one["share_of_last"]) for one in rows.layers(raw)] == [
        (1, 60.0, pytest.approx(0.75)), (2, 80.0, 1.0),
    ]  # fmt: skip


def test_tables_are_read_as_they_were_written(theseus: dict[str, Any], tmp_path: Path) -> None:
    tables.write_question(tmp_path, "theseus", theseus)
    read = tables.read(tmp_path, PLAN.questions).documents["theseus"]
    assert len(read["rows"]) == len(theseus["rows"]) > 4
    for mine, theirs in zip(read["rows"], theseus["rows"], strict=True):
        assert {name: tables.text_of(mine[name]) for name in COLUMNS} == {
            name: tables.text_of(theirs[name]) for name in COLUMNS
        }
        assert mine["parameters"] == theirs["parameters"] and mine["total_difference_p"] is None
    assert read["details"]["runs"] == theseus["details"]["runs"]
    told = {path.name: path.read_text(encoding="utf8") for path in tmp_path.iterdir()}
    tables.write_question(tmp_path, "theseus", read)
    assert {path.name: path.read_text(encoding="utf8") for path in tmp_path.iterdir()} == told


def test_a_run_is_done_where_a_table_has_its_name_data_and_seed(theseus: dict[str, Any]) -> None:
    drawn = Step("theseus", "reuters_r52", ("experiment=study/theseus_bernoulli", "seed=0,1,2"), 900)
    cut = Step("theseus", "reuters_r52", ("experiment=study/theseus", "dataset.max_train_samples=9", "seed=0"), 60)
    small = Step("insides", "reuters_r52", ("experiment=study/tinybert", "seed=0"), 60)  # its preset has the limit
    plan = Plan(PLAN.questions, [*STUDY.steps[:-1], drawn, cut, small], 1)
    found = evidence(theseus=theseus, insides={"rows": [scored("tinybert", 80.0, seeds="0", max_train_samples=8000)]})
    assert found.not_run(plan) == [0, 0, 0, 0, 7, 1, 0]
    text = page.not_run(found, plan)
    assert (
        "| 5 | 7 of 9 | 1.75 | `kdbench -m experiment=study/theseus_bernoulli seed=0,1,2 dataset=reuters_r52` |" in text
    )
    assert "| 2. Does Theseus close the gap | 13 | 5 | 3.0 |" in page.summary(found, plan)
    twice = Step("pkd", "reuters_r52", ("experiment=study/theseus", "seed=0"), 60)
    assert evidence(pkd={"rows": [scored("other", 90.0, seeds="0")]}).not_run(
        Plan({}, [twice], 1, same={"theseus": "other"})
    ) == [0]


def test_a_page_has_the_rows_that_its_markers_name(theseus: dict[str, Any]) -> None:
    said = evidence(theseus=theseus)
    text = page.fill("x\n<!-- table theseus / reuters_r52 / theseus.* -->\nold\n<!-- end -->\ny", said, PLAN)
    assert "old" not in text and text.startswith("x\n") and text.endswith("\ny")
    assert "| theseus | 3 | 94.00 | +2.00 | 40 | 3.0 |" in text and "| teacher |" not in text
    assert page.fill(text, said, PLAN) == text
    with pytest.raises(LookupError, match=r"theseus\.csv has no row nobody of reuters_r52"):
        page.table(said, "theseus", "reuters_r52", "nobody")


def test_a_page_has_the_share_of_the_gap_to_the_better_ceiling(theseus: dict[str, Any]) -> None:
    row = next(row for row in theseus["rows"] if row["row"] == "theseus")  # 94, direct 92, teacher 97
    asked = ("theseus", "theseus", "gap", "reuters_r52")
    assert page.figure(evidence(theseus=theseus), *asked) == "40"
    teacher = next(one for one in theseus["rows"] if one["row"] == "teacher")
    full = row | {"row": "direct layers 6", "score_points": 100.0, "dev_score_points": 2 * teacher["dev_score_points"]}
    said = evidence(theseus=theseus, direct={"rows": [full], "details": {}})
    assert page.figure(said, *asked) == "25"
    assert "| theseus | 3 | 94.00 | +2.00 | 25 | 3.0 |" in page.table(said, "theseus", "reuters_r52")


def test_a_share_of_the_gap_has_fiellers_interval_from_the_predictions(outputs: Path) -> None:
    for id_, points in ((TEACHER, [99.0]), (DIRECT, [79.0, 80.0, 81.0]), (THESEUS, [89.5, 90.0, 90.5])):
        for seed, score in enumerate(points):
            (folder,) = outputs.glob(f"*/*/*{id_}/seed{seed}")
            predict(folder, score, 3)
    found = {row["row"]: row for row in rows.document(STUDY, "theseus", Finished(outputs))["rows"]}
    row = found["theseus"]
    assert row["gap_closed_low"] < 10 / 19 < row["gap_closed_high"] and row["correction"] == "largest statistic"
    assert found["direct layers 3"]["gap_closed_low"] is None


def test_pages_are_made_anew_of_the_tables_that_are_kept(theseus: dict[str, Any], tmp_path: Path) -> None:
    docs = tmp_path / "docs/study"
    docs.mkdir(parents=True)
    tables.write_question(docs, "theseus", theseus)
    told = {path.name: path.read_text(encoding="utf8") for path in docs.iterdir()}
    page_ = docs / "README.md"
    page_.write_text("<!-- figure theseus / theseus / score / reuters_r52 -->1.00<!-- end -->", encoding="utf8")
    write.main(["--kept", "--root", str(tmp_path), "--outputs", str(tmp_path / "none")])
    assert "94.00" in page_.read_text(encoding="utf8")
    page_.unlink()
    assert {path.name: path.read_text(encoding="utf8") for path in docs.iterdir()} == told  # and no picture


def test_a_figure_in_a_sentence_comes_from_its_row(theseus: dict[str, Any]) -> None:
    said = evidence(theseus=theseus, pkd={"rows": [scored("a", 80.0, max_train_samples=8000)], "details": {}})
    text = (
        "Up by <!-- figure theseus / theseus / difference / reuters_r52 -->9.99<!-- end -->,"
        " of <!-- figure theseus / theseus / score_n / reuters_r52 --><!-- end -->."
    )
    filled = page.fill(text, said, PLAN)
    assert filled.split("-->")[1] == "+2.00<!-- end " and filled.split("-->")[3] == "3<!-- end "
    assert page.fill(filled, said, PLAN) == filled
    assert page.figure(said, "pkd", "a", "score", "reuters_r52, 8,000 train texts") == "80.00"
    with pytest.raises(LookupError, match="no rows of reuters_r52"):
        page.figure(said, "pkd", "a", "score", "reuters_r52")
    with pytest.raises(LookupError, match=r"theseus\.csv has no row nobody of reuters_r52"):
        page.fill(text.replace("/ theseus /", "/ nobody /"), said, PLAN)


def prose(text: str) -> list[str]:
    """The paragraphs of the findings, answers and caveats, without what is between markers."""
    found = re.findall(r"^## Findings\n(.*?)(?=^## )|^(Answer.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    return [one for pair in found for part in pair for one in page.MARKED.sub("", part).split("\n\n")]


def bare_figures(text: str) -> list[str]:
    """Decimals that come from no table, but for settings."""
    plain = [re.sub(r"!\[.*?\]\(.*?\)", "", page.FIGURE.sub("", one), flags=re.DOTALL) for one in prose(text)]
    return [found for one in plain for found in re.findall(r"\d+\.\d+", one) if found not in SETTINGS]


SETTINGS = {"0.3", "0.5", "1.5"}  # speeds and rates, the longer budget


def test_a_sentence_about_a_row_that_is_gone_is_told(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "load_plan", lambda: STUDY)
    docs = tmp_path / "docs/study"
    docs.mkdir(parents=True)
    (docs / "README.md").write_text("<!-- figure theseus / theseus_gone / score / reuters_r52 -->1.00<!-- end -->")
    (docs / "plan.md").write_text("<!-- headline reuters_r52 -->\n<!-- end -->")
    with pytest.raises(SystemExit, match="2"):
        write.main(["--outputs", str(outputs), "--root", str(tmp_path)])
    assert "docs/study/README.md: theseus.csv has no row theseus_gone of reuters_r52" in capsys.readouterr().err
    assert "teacher, 6 layers" in (docs / "plan.md").read_text()  # the other pages are written
    assert (docs / "together.csv").is_file() and (docs / "times.csv").is_file()


def test_sentences_have_no_figures_of_their_own() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf8")
    assert text.count("\nAnswer") >= len(PLAN.questions) and bare_figures(text) == []
    marked = "\nAnswer: up <!-- figure theseus / theseus / difference -->+0.91<!-- end --> or"
    assert bare_figures(f"{marked} more\n## 3.1 x") == [] and bare_figures(f"{marked} 0.92\n") == ["0.92"]
    assert bare_figures("## Findings\n- 0.93\n## x\n") == ["0.93"]


def unnamed_single_runs(text: str, said: Evidence) -> list[str]:
    """Figures of one seed in paragraphs that do not say so; of TF-IDF there is but one."""
    found = []
    for paragraph in prose(text):
        for _, figure, _ in page.FIGURE.findall(paragraph):
            question, name, _, *data = figure.split(" / ")
            alone = said.row(question, name, data[0] if data else TWEETS)["score_n"] == 1 and name != "tfidf"
            if alone and not re.search(r"\bn 1\b|one\s+seed|one\s+run|[Ss]ingle\s+run|this\s+run", paragraph):
                found.append(figure)
    return found


def test_a_single_run_is_called_one(theseus: dict[str, Any]) -> None:
    assert unnamed_single_runs((DOCS / "README.md").read_text(encoding="utf8"), SAID) == []
    lone = [row | {"score_n": 1 if row["row"] == "theseus" else 3} for row in theseus["rows"]]
    said = evidence(theseus={"rows": lone, "details": {}})
    alone = "theseus / theseus / score / reuters_r52"
    text = f"\nAnswer: it has <!-- figure {alone} -->94.00<!-- end -->"
    assert unnamed_single_runs(f"{text} or so.\n\nOne seed.\n", said) == [alone]
    assert unnamed_single_runs(f"{text} (one\nseed).\n", said) == []


def scored(row: str, points: float, **more: Any) -> dict[str, Any]:
    figures = dict.fromkeys(COLUMNS) | {"dataset": "reuters_r52", "data_id": "d", "examples": 10, "role": "method"}
    return (
        figures | {"row": row, "score_n": 1, "score_points": points, "latency_batch_1_ms": 5.0, "parameters": 9} | more
    )


@pytest.mark.parametrize(("dataset", "epochs", "both"), [("reuters_r52", 15, 23), ("tweet_sentiment", 3, 5)])
def test_the_study_s_schedule_is_the_students_alone(dataset: str, epochs: int, both: int) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        words = ["experiment=study/direct_longer", f"dataset={dataset}"]
        config, plain = (load(compose("config", overrides=given)) for given in (words, [words[1]]))
    assert (config.schedule.epochs, config.schedule.lr) == (epochs, 1.5e-4)
    assert config.method.stages["training"].epochs == both
    assert config.teacher == plain.teacher


@pytest.mark.parametrize(("name", "kind", "of"), [
    ("docs/study/README", "table", set(PLAN.questions) - {"together"}),
    ("docs/study/README", "headline", {TWEETS, "reuters_r52, AMD EPYC", "newsgroups20"}),
    ("docs/study/README", "claims", {""}),
    ("docs/study/README", "rules", {""}),
    ("docs/study/plan", "plan", {""}),
    ("docs/study/plan", "not", {"run"}),
])  # fmt: skip
def test_the_pages_have_their_parts(name: str, kind: str, of: set[str]) -> None:
    text = (ROOT / f"{name}.md").read_text(encoding="utf8")
    found = [block.partition(" ") for _, block, _ in page.MARKED.findall(text)]
    assert {what.split(" / ")[0] for start, _, what in found if start == kind} == of


@pytest.mark.parametrize("name", ["docs/study/README", "docs/study/plan"])
def test_the_pages_are_what_the_tables_say(name: str) -> None:
    text = (ROOT / f"{name}.md").read_text(encoding="utf8")
    assert page.fill(text, SAID, PLAN) == text, "python -m scripts.study.write --kept"


def test_a_headline_row_is_named_in_short(theseus: dict[str, Any]) -> None:
    said = evidence(together=theseus)
    found = [line.strip("| ").split(" | ") for line in page.headline(said, "reuters_r52").splitlines()[2:]]
    assert [row[0] for row in found] == [
        "teacher, 6 layers", "direct, first 3 layers", "direct, 1.5 times the updates", "BERT-of-Theseus",
    ]  # fmt: skip
    told = next(row for row in theseus["rows"] if row["row"] == "theseus")
    figures = [cell.split()[0] for cell in found[3][1:4]]  # without their intervals
    forms = {"score_n": "", "score_points": ".2f", "difference_points": "+.2f"}
    assert figures == [format(told[key], form) for key, form in forms.items()]
    with pytest.raises(LookupError, match="no rows of newsgroups20"):
        page.headline(said, "newsgroups20")


def test_the_headline_has_both_ceilings() -> None:
    """The teacher, which has its own schedule, and the same layers by the students'."""
    names = [name for name, _ in page.headline_rows(SAID, TWEETS)]
    assert {"teacher, 6 layers", "direct, all 6 layers"} <= set(names)


def test_every_headline_row_is_on_the_page() -> None:
    """A row that is called otherwise would be left out without a word."""
    text = (DOCS / "README.md").read_text(encoding="utf8")
    assert [name for name in page.HEADLINE.values() if f"| {name} " not in text] == []
    shown = {name.partition(" (best")[0] for name, _ in page.headline_rows(SAID, TWEETS, pictures.GAINS)}
    assert shown == set(pictures.GAINS.values())


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_shows_its_rows_is_small_and_has_a_text_beside_it(name: str) -> None:
    figure, text = pictures.PICTURES[name](SAID)
    with Image.open(DOCS / f"{name}.png") as image:
        assert image.info["Description"] == text, "python -m scripts.study.write --kept"
    assert (DOCS / f"{name}.png").stat().st_size <= 60_000
    assert re.search(rf"!\[[^\]]{{60,}}\]\({name}\.png\)", (DOCS / "README.md").read_text(encoding="utf8"))
    cells = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    bars = [one for axes in figure.axes for one in axes.containers if isinstance(one, ErrorbarContainer)]
    drawn = [np.asarray(one.lines[0].get_xydata())[0] for one in bars]
    if name == "headline":
        assert [f"{accuracy:.2f}" for _, accuracy in drawn] == [line[-1].split()[0] for line in cells]
    else:
        assert [f"{gain:+.2f}" for gain, _ in drawn] == [line[-1].split()[0] for line in cells]


def test_the_study_keeps_pages_tables_and_four_pictures() -> None:
    names = {path.name for path in DOCS.iterdir() if not path.name.startswith("second")}
    csvs = {f"{question}.csv" for question in PLAN.questions} | {
        f"{question}_{name}.csv" for question, found in tables.DETAILS.items() for name in found
    }
    drawn = {f"{name}.png" for name in pictures.PICTURES}
    assert names == {"README.md", "plan.md", "iflytek.md", "times.csv"} | csvs | drawn
    assert len([*DOCS.glob("*.png")]) <= 4
    text = (DOCS / "README.md").read_text(encoding="utf8")
    assert [name for name in csvs if f"]({name})" not in text] == []


@pytest.mark.parametrize("question", PLAN.questions)
def test_every_row_says_where_it_comes_from(question: str) -> None:
    found = SAID.documents[question]["rows"]
    assert found and all(set(row) == set(COLUMNS) for row in found)
    for row in found:
        assert row["commits"] and row["config_digest"] and row["machine"]
        assert len(row["seeds"].split()) == len(row["runs"].split()) == row["score_n"]
        assert row["score_n"] > 1 or float(row["scores_points"]) == row["score_points"]


def test_the_plan_knows_its_presets_and_counts_no_run_twice() -> None:
    presets = {f"study/{path.stem}" for path in (ROOT / "conf/experiment/study").glob("*.yaml")}
    presets -= {"study/labels", "study/labels_raw", "study/twelve"}  # of the second study
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
    """Steps that differ in their seeds alone are checked once."""
    plain = lambda step: (step.dataset, *(word for word in step.words if not word.startswith("seed=")))  # noqa: E731
    for step in {plain(step): step for step in PLAN.steps}.values():
        words = [word for word in step.words if not word.startswith(("teacher=run", "teacher.path="))]
        # In the place of the finished run a teacher of its depth.
        words += [f"teacher.layers={depth}" for depth in re.findall(r"[{,]student\.layers=(\d)", step.command)]
        assert cli.refuse(["-m", *words, f"dataset={step.dataset}"]) == [], step.command


@pytest.mark.slow
def test_no_run_of_the_plan_is_another_ones_in_other_words() -> None:
    every = {words for step in PLAN.steps for words in step.configurations if "{" not in " ".join(words)}
    hardware = Hardware("cpu", "fp32", "eager", 1)
    names: dict[str, set[str]] = {}
    for words in every:
        names.setdefault(run_id(composed(words), hardware), set()).add(name_of(words))
    assert {frozenset(found) for found in names.values() if len(found) > 1} == {
        frozenset(pair) for pair in PLAN.same.items()
    }
    assert len(every) == len(names) + len(PLAN.same)


def test_a_run_is_found_for_the_step_that_needs_it(tree: Path) -> None:
    word = "teacher.path={experiment=study/direct,student.layers=3}"
    found = Finished(tree).folder_of(word, "dataset=reuters_r52")
    assert found == (tree / f"reuters_r52/finetune/bert_3l-{DIRECT}/seed0").resolve()
    step = Step("pkd", "reuters_r52", ("experiment=x", word), 1.0)
    assert f"teacher.path={found}" in run.arguments(step, tree)
    with pytest.raises(LookupError, match="no finished run of experiment=study/direct"):
        Finished(tree).folder_of(word, "dataset=tweet_sentiment")


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
    pause = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: pause(seconds / 50))  # the runner looks at it once a second
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
        until = time.monotonic() + 60
        while not program.exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    made = runner(tmp_path / "outputs", "a=waits", "b=2")
    before = signal.signal(signal.SIGTERM, made.on_signal)
    stopping = threading.Thread(target=stop)
    try:
        stopping.start()
        assert made.run() == 128 + signal.SIGTERM
    finally:
        stopping.join()  # the signal would end this process if it came after the next line
        signal.signal(signal.SIGTERM, before)
    assert program.read_text().splitlines()[1:] == ["saved"]  # and the next step was not begun


def test_a_run_that_starts_while_the_runner_is_stopped_is_told_once(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, begin = runner(tmp_path / "outputs", "a=waits", "b=2"), run.subprocess.Popen

    def stopped_meanwhile(*words: Any, **more: Any) -> Any:
        process = begin(*words, **more)
        while not program.exists():
            time.sleep(1)
        made.on_signal(signal.SIGTERM, None)
        return process

    monkeypatch.setattr(run.subprocess, "Popen", stopped_meanwhile)
    assert made.run() == 128 + signal.SIGTERM
    assert program.read_text().splitlines()[1:] == ["saved"]


def test_a_question_without_runs_has_no_rows_and_no_picture(tmp_path: Path) -> None:
    made = rows.document(Plan({"pkd": {"number": 5}}, [PLAN.steps[0]], 1), "pkd", Finished(tmp_path))
    assert made == {"rows": [], "details": {}}
    pictures.draw(evidence(pkd=made), tmp_path)
    assert not list(tmp_path.glob("*.png"))
