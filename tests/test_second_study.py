"""The second study: its plan, the lines that it keeps of each run, and the verdicts that follow from them."""

import json
import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from PIL import Image

from kdbench.runs.identity import id_without_teacher_seed, run_id
from kdbench.storage.predictions import predictions_file
from kdbench.training.hardware import Hardware
from scripts.study import second
from scripts.study.finished import composed
from scripts.study.run import arguments
from scripts.study.tables import read_csv
from tests.compare.test_compare_runs import write as add_run

STUDY = second.load()
ROWS = [(question, row) for question, about in STUDY.questions.items() for row in about["rows"]]
TEXTS = 400


def lines(**rows: list[int]) -> second.Kept:
    """Return rows of `twelve` in which seed s gets the first rows[s] of 400 texts right, by one line for each seed."""
    every = [{"question": "twelve", "row": second.LABELS, "seed": 0, "answers": "1" * TEXTS}]
    for row, rights in rows.items():
        for seed, right in enumerate(rights):
            answers = "1" * right + "0" * (TEXTS - right)
            every.append({"question": "twelve", "row": row, "seed": seed, "answers": answers, "score_points": right / 4,
                          "dev_points": 50.0, "training_seconds": 60.0})  # fmt: skip
    return second.Kept(every)


def test_every_row_is_a_legal_command_and_none_is_another_one() -> None:
    hardware, seen = Hardware("cpu", "fp32", "eager", 1), {}
    for question, row in ROWS:
        config = composed((*STUDY.words(question, row), f"dataset={second.DATASET}", "seed=3"))
        assert config.teacher.seed == 3  # a teacher of its own
        assert config.dataset.max_train_samples == (8000 if question == "twelve" else int(question.partition("_")[2]))
        id_ = id_without_teacher_seed(config, hardware)
        assert seen.setdefault(id_, row) == row


def test_the_order_has_every_row_and_no_run_twice() -> None:
    runs = [(question, row, seed) for _, question, row, seeds in STUDY.order for seed in seeds]
    assert len(set(runs)) == len(runs)
    assert {run[:2] for run in runs} == set(ROWS)


def test_claims_and_baselines_are_about_rows() -> None:
    for claim in STUDY.claims:
        names = [claim["share"], *claim["over"]] if "share" in claim else claim["difference"]
        assert {(claim["question"], name) for name in names} <= set(ROWS)
        assert len({"above", "below"} & claim.keys()) == 1
        assert claim["expected"] and claim["source"]
    for question, about in STUDY.questions.items():
        assert set(about.get("int8", ())) <= about["rows"].keys()
        assert {(question, base) for bases in about["against"].values() for base in bases} <= set(ROWS)
        assert about["against"].keys() - {"others"} <= about["rows"].keys()


def test_a_run_that_is_kept_is_not_run_again() -> None:
    steps = STUDY.steps(lines(direct_3=[300, 301]))
    seeds = [step.seeds for step in steps if step.words[:2] == ("experiment=study/twelve", "student.layers=3")
             and len(step.words) == 3]  # fmt: skip
    assert seeds == [[2], [3, 4]]
    assert len(STUDY.steps(second.Kept([]))) == len(STUDY.order)


def test_the_runner_leaves_a_reference_to_hydra(tmp_path: Path) -> None:
    step = STUDY.steps(second.Kept([]))[0]
    assert arguments(step, tmp_path)[:3] == ["-m", "experiment=study/twelve", "student=full"]
    assert "schedule.lr=${teacher.schedule.lr}" in arguments(step, tmp_path)


@pytest.mark.parametrize(
    ("rights", "verdict"),
    [([300, 302, 301], "held"), ([180, 182, 181], "not held"), ([201, 203, 199], "not shown"), ([300], "not shown")],
)
def test_a_verdict_follows_from_the_whole_interval(rights: list[int], verdict: str) -> None:
    kept = lines(longer_3=[200, 201, 199], theseus_posts_3=rights)
    claim = {"question": "twelve", "difference": ["theseus_posts_3", "longer_3"], "above": 0}
    found, figure = second.judge(kept, claim)
    assert found == verdict
    mean = np.mean([right - base for right, base in zip(rights, [200, 201, 199], strict=False)]) / TEXTS * 100
    assert figure.startswith(f"{mean:+.2f} (") and figure.endswith(f"n {len(rights)}")
    other_side = {"held": "not held", "not held": "held", "not shown": "not shown"}[verdict]
    del claim["above"]
    assert second.judge(kept, claim | {"below": 0})[0] == other_side


def test_a_share_is_of_the_seeds_that_all_three_rows_have() -> None:
    kept = lines(direct_3=[200, 204, 196, 100], teacher=[320, 324, 316], kd_3=[300, 304, 296, 300])
    found = second.share(*kept.aligned("twelve", ("kd_3", "direct_3", "teacher")))
    assert found is not None
    assert found.mean == pytest.approx(100 / 120)
    assert found.low < found.mean < found.high < 1
    claim = {"question": "twelve", "share": "kd_3", "over": ["direct_3", "teacher"], "above": 0.5}
    verdict, figure = second.judge(kept, claim)
    assert verdict == "held" and figure.endswith("n 3")
    flat = lines(direct_3=[200, 204, 196], teacher=[201, 203, 197], kd_3=[300, 304, 296])
    assert second.judge(flat, claim) == ("not shown", "the gap may be zero")


def test_a_claim_without_its_rows_is_not_run() -> None:
    with pytest.raises(LookupError):
        second.judge(lines(direct_3=[200]), {"question": "twelve", "difference": ["kd_3", "direct_3"], "above": 0})
    assert "| not run |" in second.claims(STUDY, lines(direct_3=[200]))


def test_a_table_has_each_row_beside_its_baselines() -> None:
    kept = lines(direct_3=[200, 204, 196], longer_3=[202, 203, 204], teacher=[320, 324, 316], kd_3=[300, 304, 296])
    found = [line.split(" | ") for line in second.table(STUDY, kept, "twelve").splitlines()]
    row = next(at for at, line in enumerate(found) if "`kd_3`" in line[0])
    assert found[row][3].strip() == "`direct_3`" and found[row][4].startswith("+25.00 (")
    assert found[row][5].startswith("83 (")
    assert found[row + 1][3].strip() == "`longer_3`"
    alone = second.table(STUDY, lines(kd_3=[300]), "twelve").splitlines()  # nothing else is run
    assert [line.split(" | ")[3:6] for line in alone[2:]] == [["`direct_3`", "", ""], ["`longer_3`", "", ""]]
    assert second.progress(STUDY, kept).splitlines()[2].split(" | ")[2] == "12"


SMALL = replace(STUDY, order=[line for line in STUDY.order if line[2] in ("direct_3", "direct_6")])  # for speed


def run_of(
    root: Path, row: str, seed: int, labels: list[int], answers: list[int], form: str | None = None, **changes: Any
) -> None:
    """Add a run of a row of `twelve`, or its export in a `form`, with its predictions."""
    config = composed((*STUDY.words("twelve", row), f"dataset={second.DATASET}"))
    run = run_id(config, Hardware("cpu", "fp32", "eager", 1))
    id_ = f"{run}-{form}" if form else run
    points = 100 * float(np.mean(np.array(labels) == np.array(answers)))
    more = {"form": form, "exported_from": run} if form else {}
    add_run(root, "finetune", id_, seed, points, identity__dataset=second.DATASET, **more, **changes)
    folder = root / second.DATASET / "finetune" / f"bert_3l-{id_}" / f"seed{seed}"
    logits = np.eye(3, dtype=np.float32)[answers]
    splits = {"test": (np.arange(len(labels)), np.array(labels), logits)}
    (folder / "predictions.parquet").write_bytes(predictions_file("classification", ["a", "b", "c"], splits))
    about = {"precision": "fp32", "attention": "eager", "commit": "abc", "machine": "here"}
    (folder / "env.json").write_text(json.dumps(about), encoding="utf8")


def test_a_line_has_the_answers_of_its_run(tmp_path: Path) -> None:
    labels, outputs = [0, 1, 2, 1], tmp_path / "outputs"
    run_of(outputs, "direct_3", 0, labels, [0, 1, 2, 0])
    run_of(outputs, "direct_3", 1, labels, [0, 0, 0, 0])
    assert len(second.keep(SMALL, outputs, tmp_path)) == 2
    kept = second.read(tmp_path)
    assert [one.mean() for one in kept.scores("twelve", "direct_3").by_seed.values()] == [75.0, 25.0]
    assert kept.lines["twelve", "direct_3", 1]["machine"] == "here"
    before = read_csv(tmp_path / "second.csv")
    assert second.keep(SMALL, outputs, tmp_path) == [] and read_csv(tmp_path / "second.csv") == before


def test_an_export_is_a_row_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = STUDY.questions["twelve"] | {"int8": ["direct_3"]}
    study = replace(SMALL, questions={**STUDY.questions, "twelve": about})
    run_of(tmp_path / "outputs", "direct_3", 1, [0, 1, 2, 1], [0, 1, 2, 0])
    run_of(tmp_path / "outputs", "direct_3", 1, [0, 1, 2, 1], [0, 1, 2, 1], form="int8")
    run_of(tmp_path / "outputs", "direct_3", 2, [0, 1, 2, 1], [0, 1, 2, 0])
    second.keep(study, tmp_path / "outputs", tmp_path)
    kept = second.read(tmp_path)
    assert kept.score("twelve", "direct_3 int8").mean == 100 and kept.score("twelve", "direct_3").mean == 75
    step = next(step for step in study.steps(kept) if step.words[1] == "student.layers=3" and len(step.words) == 4)
    assert step.words[-2:] == ("export.int8=true", "seed=0,2")  # seed 1 has both, seed 2 no export


def test_times_are_added_as_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in ("direct_3", "direct_6"):
        network = 100 * (row == "direct_6")  # direct_3 kept none, so it has the time of its run
        run_of(tmp_path / "outputs", row, 0, [0, 1], [0, 1], parameters__embeddings=network)
    one = {"real": {"batch_1": {"median_ms": 4.0}, "batch_32": {"median_ms": 90.0}, "quiet": True}}

    def measured(folders: dict[str, Path]) -> dict[str, Any]:
        return {"when": "now", "machine": "here", "threads": 1, "rows": dict.fromkeys(folders, one)}

    monkeypatch.setattr("kdbench.inference.latency.measure_folders", measured)
    for _ in range(2):
        second.measure(SMALL, tmp_path / "outputs", tmp_path)
    lines_ = read_csv(tmp_path / "second_times.csv")
    assert [(line["measurement"], line["row"]) for line in lines_] == [
        (at, row) for at in (1, 2) for row in ("direct_3", "direct_6")
    ]
    assert second.latencies("twelve", lines_) == {"direct_3": 3.0, "direct_6": 4.0}


def test_runs_of_other_texts_are_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "outputs", "direct_3", 0, [0, 1, 2, 1], [0, 1, 2, 0])
    run_of(tmp_path / "outputs", "direct_6", 0, [0, 1, 2, 2], [0, 1, 2, 0])
    with pytest.raises(ValueError, match="other texts"):
        second.keep(SMALL, tmp_path / "outputs", tmp_path)
    assert not (tmp_path / "second.csv").exists()


def test_the_pages_are_what_the_csvs_say() -> None:
    times = read_csv(second.DOCS / "second_times.csv")
    for page in second.PAGES:
        text = page.read_text(encoding="utf8")
        assert second.fill(text, STUDY, second.read(), times) == text, "python -m scripts.study.second write"
    found = {page: re.findall(r"<!-- (.+?) -->\n\|", page.read_text(encoding="utf8")) for page in second.PAGES}
    own, *others = (set(found[page]) for page in second.PAGES)
    assert own == {"claims", "progress", *(f"table {question}" for question in STUDY.questions)}
    assert others == [{"few labels"}] * 2
    with Image.open(second.DOCS / "second.png") as image:
        assert image.info["Description"] == second.headline(second.read(), times)


@pytest.mark.parametrize("page", second.PAGES[:2])
def test_a_figure_in_a_sentence_is_of_two_rows(page: Path) -> None:
    """A sentence goes stale if more runs are kept."""
    kept = second.read()
    known = {
        second.shown(second.between(kept.differences(question, a, b)), "+")
        for question in STUDY.questions
        for a, b in permutations([name for name in STUDY.names(question) if kept.of(question, name)], 2)
        if kept.scores(question, a).by_seed.keys() & kept.scores(question, b).by_seed.keys()
    }
    prose = re.sub(r"<!-- .+? -->.*?<!-- end -->", "", page.read_text(encoding="utf8"), flags=re.DOTALL)
    told = re.findall(r"[+-]?\d+\.\d\d \([+-]?\d+\.\d\d to [+-]?\d+\.\d\d\)", prose)
    assert len(told) >= 2
    assert [one for one in told if one not in known and one not in {text.replace("+", "") for text in known}] == []


def test_the_runner_gets_the_steps_that_are_left(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(second, "read", lambda: lines(direct_3=[200, 201, 202]))
    assert second.main(["run", "--dry"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(STUDY.order) - 1
    assert not any("study/twelve student.layers=3 seed=0,1,2 " in line for line in printed)


@pytest.mark.parametrize("what", ["keep", "measure"])
def test_a_folder_that_is_not_there_is_refused(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        second.main([what, "--outputs", str(tmp_path / "none")])
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_the_picture_has_each_row_at_its_time_and_score() -> None:
    rights = {("labels_300", "direct"): 200, ("labels_1000", "direct"): 240, ("labels_1000", "teacher"): 300,
              ("labels_1000", "kd_raw_base int8"): 296, ("labels_8000", "direct"): 280}  # fmt: skip
    every = [
        {"question": question, "row": row, "seed": 0, "answers": "1" * right + "0" * (TEXTS - right)}
        for (question, row), right in rights.items()
    ]
    labels = [{"question": of, "row": second.LABELS, "seed": 0, "answers": "1" * TEXTS} for of, _ in rights]
    measured = (("direct", 5.0), ("direct", 7.0), ("teacher", 12.0), ("kd_raw_base int8", 3.0))
    times = [{"question": "labels_1000", "row": row, "batch_1_ms": ms} for row, ms in measured]

    def drawn(lines: list[dict[str, Any]]) -> list[list[Any]]:
        return [
            [np.asarray(one.lines[0].get_xydata()).tolist() for one in axes.containers
             if isinstance(one, ErrorbarContainer)]
            for axes in second.picture(STUDY, second.Kept(lines + labels), times).axes
        ]  # fmt: skip

    by_time = [[[6, 60]], [[3, 74]], [[12, 75]]]
    assert drawn(every) == [by_time, [[[1000, 75]], [[300, 50], [1000, 60], [8000, 70]]]]
    assert drawn(every[:-1]) == [by_time]  # two numbers make no curve
