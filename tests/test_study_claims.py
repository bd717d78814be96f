"""The study's claims, judged by rows made up here, and those in docs/study by the study's own."""

from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from scripts.study import claims, page
from scripts.study.plan import name_of
from scripts.study.tables import TIMES, Evidence
from tests.test_study import PLAN, ROOT, SAID, evidence, scored

CLAIMS = yaml.safe_load((ROOT / "scripts/study/claims.yaml").read_text(encoding="utf8"))
CUT: dict[str, Any] = {"dataset": "tweets", "max_train_samples": 8000}
MACHINE = {"machine": "a"}


def verdicts(
    times: Sequence[tuple[str, int, str, float]] = (), **rows: list[dict[str, Any]]
) -> dict[str, tuple[str, str]]:
    """Verdict and figures by check, each on every data set. `times`: data, measurement, row, ms."""
    graft = rows.pop("graft", [])
    documents = {question: {"rows": own, "details": {"runs": graft}} for question, own in rows.items()}
    lines = [dict(zip(TIMES, (data, "a", at, row, ms), strict=True)) for data, at, row, ms in times]
    said = Evidence(evidence(**documents).documents, lines)
    return {one["check"]: together(one["judged"]) for one in claims.judge(said)}


def together(judged: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """One verdict where all data sets agree."""
    found = list(dict.fromkeys(verdict for verdict, _ in judged.values())) or ["not run yet"]
    if len(found) > 1:
        found = [f"{verdict} ({data})" for data, (verdict, _) in judged.items()]
    return "; ".join(found), "; ".join(f"{data}: {figures}" for data, (_, figures) in judged.items())


def at(name: str, points: float, half: float = 1.0, n: int = 3, **more: Any) -> dict[str, Any]:
    """A row with its interval."""
    interval = {"score_low_points": points - half, "score_high_points": points + half, "dev_score_points": points}
    return scored(name, points, **{**interval, "score_n": n, **MACHINE, **more})


def paired(name: str, gain: float, half: float, p: float | None = 0.5, **more: Any) -> dict[str, Any]:
    """A row with its difference to the direct fine-tune, which has 90 points."""
    interval = {"difference_low_points": gain - half, "difference_high_points": gain + half}
    return at(name, 90.0 + gain, **{"difference_points": gain, "difference_p": p, **interval, **more})


def timed(row: str, *ratios: float, data: str = "reuters_r52") -> list[tuple[str, int, str, float]]:
    """A row at 10 ms, its teacher at so many times as much, once a measurement."""
    return [one for number, ratio in enumerate(ratios, 1)
            for one in ((data, number, row, 10.0), (data, number, "teacher", 10.0 * ratio))]  # fmt: skip


def test_nothing_is_judged_without_rows() -> None:
    assert {verdict for verdict, _ in verdicts().values()} == {"not run yet"}


@pytest.mark.parametrize(
    ("points", "ratios", "n", "expected"),
    [
        (94.0, (1.88, 1.90, 1.96), 3, "held"),  # a measurement a digit below the claim is no refutation
        (94.0, (1.4, 1.42, 1.44), 3, "not held"),
        (94.0, (1.0, 2.0), 3, "not shown"),  # too wide to show anything
        (94.0, (1.95,), 3, "not shown"),  # measured once
        (93.3, (2.0, 2.1, 2.2), 3, "not shown"),  # 98 % of 95 is within the interval
        (88.0, (2.0, 2.1, 2.2), 3, "not held"),
        (94.0, (2.0, 2.1, 2.2), 1, "not shown"),
    ],
)
def test_theseus_keeps_its_score_and_is_faster(points: float, ratios: tuple[float, ...], n: int, expected: str) -> None:
    rows = [at("teacher", 95.0, 0.2, n=1), at("theseus", points, 0.4, n=n)]
    assert verdicts(timed("theseus", *ratios), theseus=rows)["theseus"][0] == expected
    assert verdicts(theseus=rows[1:])["theseus"][0] == "not run yet"  # no teacher


def test_linear_times_are_within_a_margin_over_measurements() -> None:
    rows = [at(f"direct layers {k}", 90.0) for k in (2, 3, 6)]
    for ms, expected in (((3.2, 5.0), "held"), ((3.2, 8.0), "not held"), ((3.2, 5.9), "not shown")):
        times = [("reuters_r52", number, f"direct layers {k}", (1 + number / 100) * one)
                 for number in (1, 2, 3) for k, one in ((2, ms[0]), (3, ms[1] + number / 10), (6, 10.0))]  # fmt: skip
        assert verdicts(times, direct=rows)["pkd_speed"][0] == expected
    assert verdicts(direct=rows)["pkd_speed"][0] == "not shown"


@pytest.mark.parametrize("sds", [((0.1, 2.0), "held"), ((0.3, 0.6), "not shown"), ((2.0, 0.1), "not held")])
def test_a_spread_is_judged_by_the_interval_of_its_ratio(sds: tuple[tuple[float, float], str]) -> None:
    names = ("theseus_epsilon variant mix", "theseus_bernoulli replace_rate 0.5")
    rows = [at(name, 94.0, n=5, score_sd_points=sd) for name, sd in zip(names, sds[0], strict=True)]
    assert verdicts(theseus=rows)["steadier_mix"][0] == sds[1]


@pytest.mark.parametrize(
    ("gains", "n", "expected"),
    [
        ([(-0.1, 0.4, 0.9)] * 6, 3, "held"),  # all leave out half a point
        ([(-0.1, 1.6, 0.9)] * 6, 3, "not shown"),  # a point near zero is no evidence of nothing
        ([(-0.1, 0.4, 0.9)] * 5 + [(1.0, 0.5, 0.01)], 3, "not held"),
        ([(-0.1, 0.4, 0.9)] * 5 + [(1.0, 0.5, 0.4)], 3, "not shown"),  # the best of six, not corrected
        ([(1.08, 0.53, 0.058)], 3, "not held"),  # one test: its own interval
        ([(1.08, 0.53, 0.058)], 1, "not run yet"),  # one seed shows nothing, and five combinations are missing
        ([(-0.1, 0.4, 0.9)] * 5, 3, "not run yet"),
        ([(-0.1, 0.4, 0.9)] * 6, 1, "not shown"),
    ],
)
def test_that_nothing_gains_needs_an_interval(gains: list[tuple[float, float, float]], n: int, expected: str) -> None:
    rows = [paired(f"two_stage {number}", *one, n=n) for number, one in enumerate(gains)]
    assert verdicts(replacement=rows)["two_stage"][0] == expected


def test_a_claim_is_judged_on_each_data_set_that_has_its_rows() -> None:
    gain = paired("two_stage head inherit", 1.0, 0.5)
    none = [paired(f"two_stage {number}", -0.2, 0.3, **CUT) for number in range(6)]
    found, figures = verdicts(replacement=[gain, *none])["two_stage"]
    assert found == "not held (reuters_r52); held (tweets, 8,000 train texts)"
    assert "reuters_r52: " in figures and "; tweets, 8,000 train texts: " in figures


@pytest.mark.parametrize(
    ("gain", "half", "expected"), [(3.0, 0.2, "held"), (2.2, 0.2, "not shown"), (-0.5, 0.9, "not held")]
)
def test_a_share_of_the_gap_is_to_the_better_ceiling(gain: float, half: float, expected: str) -> None:
    rows = [at("teacher", 92.0, 0.4, n=1), at("direct layers 3", 90.0, 0.4), paired("theseus", gain, half)]
    full = [at("direct layers 6", 94.0, 0.4)]
    found, figures = verdicts(theseus=rows, direct=full)["theseus_gap"]
    assert found == expected and f"{100 * gain / 4:.0f} % of the way to direct layers 6" in figures
    below = [at("direct layers 6", 94.0, 0.4, dev_score_points=91.0)]
    assert "the way to teacher" in verdicts(theseus=rows, direct=below)["theseus_gap"][1]
    lone = [*rows[:2], paired("theseus", gain, half, n=1)]
    assert verdicts(theseus=lone, direct=full)["theseus_gap"][0] == "not shown"


@pytest.mark.parametrize(("shallow", "expected"), [(92.4, "held"), (91.5, "not shown"), (88.0, "not held")])
def test_rows_that_need_all_layers_are_accuracy_lost_without_them(shallow: float, expected: str) -> None:
    """60.11 less 57.96 in the post; not the share that goes through all layers of a FastBERT."""
    rows = [at("teacher", 94.0, 0.4, n=1), at("direct layers 3", shallow, 0.9)]
    assert verdicts(theseus=rows)["need_all_layers"][0] == expected
    lone = [rows[0], at("direct layers 3", shallow, 0.9, n=1)]
    assert verdicts(theseus=lone)["need_all_layers"][0] == "not shown"


@pytest.mark.parametrize(
    ("lost", "expected"),
    [((1.9, 2.0, 2.1), "held"), ((0.1, 0.0, -0.1), "not held"), ((0.5, 2.0, 3.5), "not shown"), ((2.0,), "not shown")],
)
def test_a_graft_loses_two_points_within_a_margin(lost: tuple[float, ...], expected: str) -> None:
    graft = [
        {"data": "reuters_r52", "row": "theseus", "seed": seed, "predecessor_dev_points": 90.0,
         "graft_dev_points": 90.0 - points} for seed, points in enumerate(lost)
    ]  # fmt: skip
    assert verdicts(theseus=[at("theseus", 90.0)], graft=graft)["graft"][0] == expected


def test_rows_that_were_not_paired_are_judged_by_the_interval_of_their_difference() -> None:
    for attention, hidden, expected in ((90, 93, "held"), (91, 92, "not shown"), (93, 90, "not held")):
        rows = [at("tinybert", 94), at("tinybert attention false", attention), at("tinybert hidden false", hidden)]
        assert verdicts(insides=rows)["attention_over_hidden"][0] == expected
    names = ("mobilebert", "mobilebert strategy jkt", "mobilebert strategy akt steps 450")
    for points, half, expected in (
        ((90.4, 90.2, 90.0), 0.05, "held"),
        ((90, 90.1, 90), 1.0, "not shown"),
        ((90, 93, 89), 1.0, "not held"),
        ((95, 94, 90), 1.0, "not held"),
    ):
        rows = [at(name, score, half) for name, score in zip(names, points, strict=True)]
        assert verdicts(insides=rows)["transfer"][0] == expected
    for large, expected in ((93, "not held"), (90.5, "not shown"), (87, "held")):
        rows = [
            at("pkd_teacher weights pretrained teacher minilm_l6", large),
            at("pkd_teacher weights pretrained teacher run", 90),
        ]
        assert verdicts(pkd=rows)["larger_teacher"][0] == expected


def test_a_student_of_its_teachers_size_is_held_against_the_same_schedule_too() -> None:
    name, teacher = "same_size method logit_kd", at("teacher", 90.0, n=1)
    for gain, half, expected in ((3.0, 0.5, "held"), (3.0, 3.5, "not shown"), (-4.0, 0.5, "not held")):
        assert verdicts(same_size=[teacher, paired(name, gain, half)])["same_size"][0] == expected
    assert verdicts(same_size=[teacher, at(name, 96.0)])["same_size"][0] == "not shown"  # no baseline yet
    rows = [scored("teacher", 93), scored(name, 96)]
    assert verdicts(same_size=rows)["same_size"][0] == "not run yet"  # no predictions, no interval


def test_a_ratio_to_a_model_that_is_not_here_has_no_verdict() -> None:
    teacher, student = at("teacher", 90.0, n=1, parameters=1000), at("bilstm augment true", 90.0, parameters=1)
    found, figures = verdicts(timed("bilstm augment true", 20.0, 21.0, 22.0), bilstm=[teacher, student])["bilstm"]
    assert found == "can't be tested here" and "this teacher" in figures
    assert "ELMo" in next(one for one in CLAIMS if one["check"] == "bilstm")["claim"]


def test_one_seed_decides_nothing() -> None:
    """Over all claims of the study: where a verdict rests on intervals of one seed, it is no fact."""
    surest = (True, False, None)
    assert {claims.judged(holds, "x", scored("theseus", 90.0))[0] for holds in surest} == {"not shown"}
    more = scored("theseus", 90.0, score_n=2)
    assert [claims.judged(holds, "x", more, scored("teacher", 90.0))[0] for holds in surest] == [
        "held", "not held", "not shown",
    ]  # fmt: skip


def test_the_rows_that_claims_read_are_in_the_plan() -> None:
    names = {name_of(words) for step in PLAN.steps if step.preset for words in step.configurations}
    asked = {
        "pkd_teacher weights pretrained teacher run", "mobilebert strategy akt steps 450", "mobilebert strategy jkt",
        "tinybert attention false", "bilstm augment true", "direct layers 6", "same_size method logit_kd", "theseus",
        "theseus_epsilon variant mix", "theseus_bernoulli replace_rate 0.5", "distilbert",
    }  # fmt: skip
    assert asked <= names, asked - names


def test_every_claim_has_a_check_and_the_other_way_round() -> None:
    assert sorted(one["check"] for one in CLAIMS) == sorted(claims.CHECKS)


def test_every_verdict_has_its_rule_in_words_on_the_page() -> None:
    verdicts_ = [line.split(" | ") for line in page.verdicts(SAID).splitlines()[2:]]
    rules = [line.split(" | ") for line in page.rules(SAID).splitlines()[2:]]
    assert [line[0] for line in rules] == list(dict.fromkeys(line[0] for line in verdicts_))
    for claim, (_, tested, rule) in zip(CLAIMS, rules, strict=True):
        assert (tested, rule.removesuffix(" |")) == (claim["tested"], claim["rule"])
        assert rule.startswith(("no verdict: ", "each part by itself")) or ("held: " in rule and "not held: " in rule)


def test_a_claim_has_a_line_for_each_data_set_that_judges_it() -> None:
    lines = [line.split(" | ") for line in page.verdicts(SAID).splitlines()[2:]]
    judged = claims.judge(SAID)
    assert len(lines) == sum(len(one["judged"]) for one in judged) and all(one["judged"] for one in judged)
    assert [line[3] for line in lines] == [verdict for one in judged for verdict, _ in one["judged"].values()]
    assert page.verdicts(evidence()).count("not run yet") == len(CLAIMS)
