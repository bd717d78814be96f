"""The study's claims, judged by rows made up here, and those in docs/study by the study's own."""

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from scripts.study import claims
from scripts.study.rows import name_of
from tests.test_study import DOCS, PLAN, ROOT, scored


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
    figures = "reuters_r52: 98.9 % of the score, 45.0 % of the parameters, 2.00 times as fast"
    assert verdicts(tmp_path, theseus=[teacher, scored("theseus", 94.0)])[claim] == ("held", figures)
    assert verdicts(tmp_path, theseus=[teacher, scored("theseus", 90.0)])[claim][0] == "not held"
    assert verdicts(tmp_path, theseus=[scored("theseus", 94.0)])[claim][0] == "not run yet"  # no teacher
    claim = "PKD's speed is linear in the number of layers"
    depth = [scored(f"direct layers {k}", 90.0, latency_batch_1_ms=2.0 * k) for k in (2, 3, 6)]
    assert verdicts(tmp_path, direct=depth)[claim] == (
        "held",
        "reuters_r52: 2 and 3 of 6 layers take 0.33 and 0.50 of the time",
    )
    depth[0]["latency_batch_1_ms"] = 9.0
    assert verdicts(tmp_path, direct=depth)[claim][0] == "not held"
    claim = "The constant mix is steadier than Bernoulli"
    names = ("theseus_epsilon variant mix", "theseus_bernoulli replace_rate 0.5")
    for sds, expected in (((0.1, 2.0), "held"), ((0.5, 0.6), "not told apart"), ((0.6, 0.5), "not held")):
        rows = [scored(name, 94.0, score_n=5, score_sd_points=sd) for name, sd in zip(names, sds, strict=True)]
        assert verdicts(tmp_path, theseus=rows)[claim][0] == expected
    claim = "Without replacement (two stages) nothing beats the direct fine-tune"
    for points, p, count, expected in (
        (1.0, 0.01, 2, "not held"),
        (1.0, 0.4, 6, "not told apart"),
        (-0.1, 0.9, 6, "held"),
        (-0.1, 0.9, 5, "not run yet"),
    ):
        tested = {"difference_points": points, "difference_p_holm": p}
        rows = [scored(f"two_stage {at}", 94.0, **tested) for at in range(count)]
        assert verdicts(tmp_path, replacement=rows)[claim][0] == expected


def test_a_claim_is_judged_on_each_data_set_that_has_its_rows(tmp_path: Path) -> None:
    claim = "Theseus closes more than half of the gap between the direct 3 layers and the teacher"
    cut = {"dataset": "tweets", "max_train_samples": 8000}

    def closed(share: float, **more: Any) -> dict[str, Any]:
        """Of a gap of two points, give or take a tenth of it."""
        difference = {"difference_points": 2 * share, "difference_low_points": 2 * share - 0.2,
                      "difference_high_points": 2 * share + 0.2}  # fmt: skip
        return scored("theseus", 90.0, gap_closed=share, **difference | more)

    for share, verdict in (
        (0.7, "held"),
        (0.55, "held (reuters_r52); not told apart (tweets, 8,000 train texts)"),
        (0.3, "held (reuters_r52); not held (tweets, 8,000 train texts)"),
    ):
        found = verdicts(tmp_path, theseus=[closed(0.7), closed(share, **cut)])[claim]
        spread = f"{100 * share:.0f} % of the gap closed ({100 * share - 10:.0f} to {100 * share + 10:.0f} %)"
        first = "reuters_r52: 70 % of the gap closed (60 to 80 %)"
        assert found == (verdict, f"{first}; tweets, 8,000 train texts: {spread}")
    alone = verdicts(tmp_path, theseus=[closed(0.7, difference_low_points=None, difference_high_points=None)])[claim]
    assert alone == ("not told apart", "reuters_r52: 70 % of the gap closed")  # one seed


def test_rows_whose_intervals_meet_are_not_told_apart(tmp_path: Path) -> None:
    def at(name: str, points: float) -> dict[str, Any]:
        return scored(name, points, score_low_points=points - 1, score_high_points=points + 1)

    claim = "Attention matters more than hidden states"
    for attention, hidden, expected in ((90, 93, "held"), (91, 92, "not told apart"), (93, 90, "not held")):
        rows = [at("tinybert", 94), at("tinybert attention false", attention), at("tinybert hidden false", hidden)]
        assert verdicts(tmp_path, insides=rows)[claim][0] == expected
    claim = "PKT is ahead of JKT, JKT of AKT, by at most half a point in all"
    names = ("mobilebert", "mobilebert strategy jkt", "mobilebert strategy akt steps 450")
    for points, expected in (
        ((90, 90.1, 90), "not told apart"),
        ((90, 93, 89), "not held"),
        ((95, 94, 90), "not held"),
    ):
        rows = [at(name, score) for name, score in zip(names, points, strict=True)]
        assert verdicts(tmp_path, insides=rows)[claim][0] == expected
    claim = "A better teacher is not always better; better students can't use the same teacher"
    for large, expected in ((93, "not held"), (90.5, "not told apart"), (87, "held")):
        rows = [
            at("pkd_teacher weights pretrained teacher minilm_l6", large),
            at("pkd_teacher weights pretrained teacher run", 90),
        ]
        assert verdicts(tmp_path, pkd=rows)[claim][0] == expected
    claim = "A student of its teacher's size beats it"
    for points, expected in ((96, "held"), (94.5, "not told apart"), (90, "not held")):
        rows = [at("teacher", 93), at("same_size method logit_kd", points)]
        assert verdicts(tmp_path, same_size=rows)[claim][0] == expected
    rows = [scored("teacher", 93), scored("same_size method logit_kd", 96)]
    assert verdicts(tmp_path, same_size=rows)[claim][0] == "not run yet"  # no predictions, no interval


def test_the_rows_that_claims_read_are_in_the_plan() -> None:
    names = {name_of(words) for step in PLAN.steps if step.preset for words in step.configurations}
    asked = {
        "pkd_teacher weights pretrained teacher run", "mobilebert strategy akt steps 450", "mobilebert strategy jkt",
        "tinybert attention false", "bilstm augment true", "direct layers 6", "same_size method logit_kd", "theseus",
        "theseus_epsilon variant mix", "theseus_bernoulli replace_rate 0.5", "distilbert",
    }  # fmt: skip
    assert asked <= names, asked - names


def test_every_claim_has_a_check_and_the_other_way_round() -> None:
    named = [one["check"] for one in yaml.safe_load((ROOT / "scripts/study/claims.yaml").read_text(encoding="utf8"))]
    assert sorted(named) == sorted(claims.CHECKS)


def test_claims_are_those_of_the_rows() -> None:
    with (DOCS / "claims.csv").open(encoding="utf8", newline="") as file:
        assert list(csv.DictReader(file)) == claims.judge(DOCS)
