"""compare-runs --gate: the verdict and its exit code, the interval, what would decide, what got worse, refusals."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from scipy import stats

from kdbench.compare import gate, statistics
from kdbench.compare.cli import main
from kdbench.compare.collect import read_runs
from kdbench.compare.keys import Wanted
from kdbench.errors import Code, UserError
from tests.compare.test_compare_runs import student, write

N = 1000
BASE, CANDIDATE = "aaaa1111", "eeee5555"
LABELS = np.arange(N) % 4


def answers(wrong: Sequence[int]) -> np.ndarray:
    """Right answers but for the places of `wrong`, where the next class is said."""
    said = LABELS.copy()
    said[list(wrong)] = (said[list(wrong)] + 1) % 4
    return said


def save(folder: Path, said: np.ndarray) -> None:
    table = pyarrow.table(
        {"split": ["test"] * N, "id": 30 + np.arange(N), "label": LABELS, "logits": list(np.eye(4, dtype="f4")[said])}
    )
    names = json.dumps(["earn", "acq", "crude", "grain"])
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"task": "classification", "labels": names}), folder / "predictions.parquet"
    )


def make(root: Path, id_: str, every: dict[int, Sequence[int]], **changes: Any) -> Path:
    """Runs of one setting with these wrong answers by seed; return the setting's folder."""
    method = changes.pop("method", "theseus" if id_ == CANDIDATE else "finetune")
    for seed, wrong in every.items():
        points = 100 * (1 - len(wrong) / N)
        (student if id_ == CANDIDATE else write)(root, method, id_, seed, points, **changes)
        save(root / "r52" / method / f"bert_3l-{id_}" / f"seed{seed}", answers(wrong))
    return root / "r52" / method / f"bert_3l-{id_}"


@pytest.fixture
def judge(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """The exit code and the `gate` of the JSON."""

    def run(base: Path | str, candidate: Path | str, margin: float = 1.0, *more: object) -> tuple[int, Any]:
        words = ["--gate", base, candidate, "--margin", margin, "--json", *more]
        code = main([*map(str, words)])
        return code, json.loads(capsys.readouterr().out)["gate"]

    return run


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code: object
    try:
        code = main([*map(str, words)])
    except SystemExit as left:
        code = left.code
    out, error = capsys.readouterr()
    assert (code, out) == (2, "") and error.count("\n") == 1, error
    return error


def test_each_verdict_has_its_exit_code(tmp_path: Path, judge: Any) -> None:
    base = make(tmp_path, BASE, {seed: range(seed, 60 + seed) for seed in range(3)})
    for wrong, margin, verdict, code in ((62, 1.0, "passed", 0), (100, 1.0, "failed", 1), (67, 1.0, "cannot tell", 3)):
        shutil.rmtree(tmp_path / "r52/theseus", ignore_errors=True)
        candidate = make(tmp_path, CANDIDATE, {seed: range(seed, wrong + seed) for seed in range(3)})
        found = judge(base, candidate, margin)
        assert (found[0], found[1]["verdict"], found[1]["exit_code"]) == (code, verdict, code), found
        assert found[1]["difference_points"] == pytest.approx((60 - wrong) / 10)
        assert (found[1]["low_points"] > -margin) == (code == 0) and (found[1]["high_points"] < -margin) == (code == 1)
        assert (found[1]["would_decide"] is not None) == (code == 3)


def test_the_interval_of_two_models_is_the_z_interval_with_one_text_for_each_side(tmp_path: Path, judge: Any) -> None:
    base = make(tmp_path, BASE, {0: range(40)})
    candidate = make(tmp_path, CANDIDATE, {0: range(30, 90)})
    _, found = judge(base / "seed0", candidate / "seed0")
    differences = np.zeros(N + 2)
    differences[:30], differences[40:90] = 100, -100
    differences[-2:] = 100, -100
    half = stats.norm.ppf(0.95) * differences.std() / (N + 2) ** 0.5
    assert (found["low_points"], found["high_points"]) == pytest.approx(
        (differences.mean() - half, differences.mean() + half), rel=1e-4
    )


def test_the_interval_of_seeds_alone_is_that_of_the_paired_t_test() -> None:
    differences = np.array([1.0, 2.0, 4.5, 0.5])
    found = statistics.paired(np.repeat(differences[:, None], 100_000, 1))
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.9)
    assert found.interval(0.1) == pytest.approx((low, high), rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize(("seeds", "least"), [(2, 2.4), (3, 4.3), (5, 4.8), (10, 4.9)])
def test_an_end_of_the_interval_errs_in_at_most_5_percent(seeds: int, least: float, share: float) -> None:
    """Exact but for the grid: the seeds' variance is a chi-square, the examples' as good as known."""
    factor = stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, seeds - 1) / (seeds - 1)
    variance = share * factor + 1 - share
    degrees = [statistics.degrees_of_freedom(part, seeds) for part in share * factor / variance]
    error = 100 * float(np.mean(stats.norm.sf(stats.t.ppf(0.95, degrees) * np.sqrt(variance))))
    assert least <= error <= 5.03


def limits(repeats: int) -> tuple[float, float]:
    """What 99.9 % of samples are within whose rate is 5 %."""
    low, high = stats.binom(repeats, 0.05).interval(0.999)
    return 100 * low / repeats, 100 * high / repeats


def test_a_candidate_that_is_worse_by_the_margin_passes_in_5_percent(study: ModuleType) -> None:
    """A sample of scripts/study/error_rates.py."""
    passed, failed, _ = study.gate_rates(study.REGIMES["like reuters_r52"], 3, 400)
    assert passed <= limits(400)[1] and failed <= limits(400)[1]
    passed, failed, _ = study.gate_rates((0.3, 0.0, 0.0), 1, 400, one_model=True)
    assert limits(400)[0] <= passed <= limits(400)[1] and limits(400)[0] <= failed <= limits(400)[1]


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["examples only", "seeds small", "like reuters_r52", "seeds large"])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_error_rates_of_the_gate_in_full(study: ModuleType, regime: str, seeds: int) -> None:
    passed, failed, _ = study.gate_rates(study.REGIMES[regime], seeds, 2_000)
    assert 1 <= passed <= limits(2_000)[1] and 1 <= failed <= limits(2_000)[1]


def test_one_seed_of_a_setting_is_no_evidence_but_two_models_can_be_judged(tmp_path: Path, judge: Any) -> None:
    base, candidate = make(tmp_path, BASE, {0: range(60)}), make(tmp_path, CANDIDATE, {0: range(30)})
    code, found = judge(base, candidate)
    assert code == 3 and found["low_points"] > -1 and found["would_decide"] is None
    assert any("one seed says nothing about others" in note for note in found["notes"])
    code, found = judge(base / "seed0", candidate / "seed0")
    assert code == 0 and found["models_only"] is True
    assert any("two models only" in note for note in found["notes"])


def test_one_model_is_compared_with_every_seed_of_a_setting(tmp_path: Path, judge: Any) -> None:
    base = make(tmp_path, BASE, {7: range(60)})
    candidate = make(tmp_path, CANDIDATE, {seed: range(seed, 60 + seed) for seed in range(3)})
    code, found = judge(base / "seed7", candidate)
    assert (code, found["seeds"], found["models_only"]) == (0, [0, 1, 2], False)
    tfidf = make(tmp_path, "dddd4444", {0: range(60)}, method="tfidf", identity__student=None, precision=None)
    code, found = judge(tfidf, candidate)
    assert (code, found["seeds"]) == (0, [0, 1, 2])  # TF-IDF has no seed


def test_seeds_that_are_not_used_are_named(tmp_path: Path, judge: Any, capsys: pytest.CaptureFixture[str]) -> None:
    base = make(tmp_path, BASE, {seed: range(60) for seed in range(4)})
    candidate = make(tmp_path, CANDIDATE, {seed: range(60) for seed in (1, 2)})
    (candidate / "seed0").mkdir()
    _, found = judge(base, candidate)
    assert found["seeds"] == [1, 2]
    assert any("Seeds of BASE that were not used" in note and "0, 3" in note for note in found["notes"])
    main(["--gate", str(base), str(candidate), "--margin", "1"])
    out, error = capsys.readouterr()
    assert "seed0: left out, it is not finished" in error and " 1, 2 " in out


def test_a_setting_may_be_named_by_its_id(tmp_path: Path, judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for id_ in (BASE, CANDIDATE):
        make(Path("outputs"), id_, {seed: range(60) for seed in range(3)})
    assert judge(BASE, CANDIDATE)[1]["seeds"] == [0, 1, 2]
    assert judge(f"{BASE}/seed1", f"{CANDIDATE}/seed1")[1]["models_only"] is True


def test_what_would_decide() -> None:
    """Of two models the half width falls with the root of the texts, so that their number can be solved for."""
    values = np.zeros((1, 2000))
    values[0, :40], values[0, 40:70] = -100, 100
    found = statistics.paired(values)
    assert gate.judged(found, 1.0, True) == gate.CANNOT_TELL
    needed = (stats.norm.ppf(0.95) / (found.centre + 1)) ** 2 * found.of_examples
    texts, seeds, both = gate.deciding(found, 1.0)
    assert needed <= texts <= needed * 1.05 * 1.1 and (seeds, both) == (None, None)
    assert gate.deciding(found, -found.centre) == (None, None, None)  # at the margin no number decides


def test_what_would_decide_with_seeds() -> None:
    rng = np.random.default_rng(0)
    values = 100.0 * rng.choice([-1, 0, 1], (3, 2000), p=[0.03, 0.94, 0.03]) + np.array([[-1.2], [0.0], [1.2]])
    found = statistics.paired(values)
    texts, seeds, _ = gate.deciding(found, 1.0)
    assert texts is None and seeds is not None  # the spread between seeds alone is too large
    low, high = found.interval(0.1, seeds)
    before = found.interval(0.1, seeds - 1)
    assert (low > -1 or high < -1) and before[0] <= -1 <= before[1]
    assert f"about {seeds} seeds on the same texts" in gate.Deciding(texts, seeds).sentence(found)
    assert "too close to the margin" in gate.Deciding().sentence(found)


def test_classes_that_got_worse_and_texts_that_flipped(tmp_path: Path, judge: Any) -> None:
    base = make(tmp_path, BASE, {seed: [1, 5] for seed in range(3)})
    lost = list(range(2, 200, 4))  # 50 of the 250 of class 2, crude
    candidate = make(tmp_path, CANDIDATE, {seed: [*lost, 7][: 51 - (seed == 2)] for seed in range(3)})
    code, found = judge(base, candidate)
    assert code == 1
    crude, grain = found["worse_classes"]
    assert crude == {"label": "crude", "texts": 250, "base": 100.0, "candidate": 80.0, "sure": True}
    assert grain["label"] == "grain" and grain["sure"] is False
    assert [(one["id"], one["seeds"]) for one in found["gained_texts"]] == [(31, 3), (35, 3)]
    assert {one["id"] for one in found["lost_texts"]} == {30 + at for at in [*lost, 7]}
    assert found["lost_texts"][0] == {
        "id": 32,
        "label": "crude",
        "answer": "grain",
        "seeds": 3,
        "text": None,
        "pair": None,
    }
    assert found["lost_texts"][-1]["seeds"] == 2
    assert any("texts cannot be shown" in note for note in found["notes"])


def test_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make(tmp_path, BASE, {seed: [1] for seed in range(3)})
    candidate = make(tmp_path, CANDIDATE, {seed: range(2, 200, 4) for seed in range(3)})
    words = ["--gate", str(base), str(candidate), "--margin", "1"]
    for form in ("table", "markdown", "latex"):
        assert main([*words, "--format", form]) == 1
        out = capsys.readouterr().out
        assert "failed: CANDIDATE is more than 1 point worse than BASE" in out and "crude" in out
    assert main([*words, "--format", "csv"]) == 1
    (one,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (one["verdict"], one["lost_texts"], one["base_id"], one["seeds"]) == ("failed", "50", BASE, "0 1 2")
    assert main([*words, "--quiet"]) == 1
    assert "interval for" not in capsys.readouterr().out
    assert "leave out" in refusal(capsys, *words, "--format", "html")


def test_a_terminal_obeys_no_text() -> None:
    assert "\x1b" not in gate._cell("a\x1b[31mred\x07 b") and gate._cell("x" * 100) == "x" * 59 + "…"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--gate", "{base}", "{candidate}"], "--margin"),
        (["--gate", "{base}", "{candidate}", "--margin", "-1"], "-1"),
        (["--gate", "{base}", "{candidate}", "--margin", "nan"], "nan"),
        (["--margin", "1"], "--gate"),
        (["--must-stay", "x.csv"], "--gate"),
        (["--gate", "{base}", "{candidate}", "--margin", "1", "--where", "seed > 0"], "--where"),
        (["--gate", "{base}", "{base}", "--margin", "1"], "same runs"),
        (["--gate", "{base}", "nowhere", "--margin", "1"], "nowhere"),
        (["--gate", "{base}", "{root}", "--margin", "1"], "neither"),
        (["--gate", "{base}", "{candidate}", "--margin", "1"], "KD007 incomparable-runs  --gate: BASE and"),
        (["--gate", "{base}/seed0", "{candidate}/seed5", "--margin", "1"], "share no seed"),
        (["--gate", "{base}", "{other}", "--margin", "1"], "different test"),
        (["--gate", "{base}", "{metric}", "--margin", "1"], "--metric"),
        (["--gate", "{base}", "{silent}", "--margin", "1"], "predictions"),
        (["--gate", "{base}", "{part}", "--margin", "1"], "of 9000 test texts"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    places = {
        "root": tmp_path,
        "base": make(tmp_path, BASE, {0: [1], 1: [2]}),
        "candidate": make(tmp_path, CANDIDATE, {5: [1], 6: [2]}),
        "other": make(tmp_path, "eeee0001", {0: [1], 1: [2]}, identity__test_id="00000000"),
        "metric": make(tmp_path, "eeee0002", {0: [1], 1: [2]}, identity__metric="macro_f1"),
        "silent": make(tmp_path, "eeee0003", {0: [1], 1: [2]}),
        "part": make(tmp_path, "eeee0004", {0: [1], 1: [2]}, reported={"answered": {"test": {"of": 9000}}}),
    }
    (places["silent"] / "seed1/predictions.parquet").unlink()
    assert named in refusal(capsys, *(word.format(**places) for word in words))


class Stub:
    """A classifier that knows its answers by the text."""

    labels = ("earn", "acq", "crude", "grain")
    pairs = False

    def __init__(self, folder: Path) -> None:
        self.seed = int(folder.name[-1])

    def __call__(self, texts: list[str], pairs: None) -> list[Any]:
        return [SimpleNamespace(label="acq" if text == "hard" and self.seed == 2 else "earn") for text in texts]


def test_texts_that_must_stay_right(
    tmp_path: Path, judge: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kdbench.inference.classifier.load_classifier", Stub)
    base = make(tmp_path, BASE, {seed: range(60) for seed in range(3)})
    candidate = make(tmp_path, CANDIDATE, {seed: range(60) for seed in range(3)})
    stay = tmp_path / "stay.csv"
    stay.write_text("label,text,why\nearn,easy,\nearn,hard,a customer's\n", encoding="utf-8-sig")
    code, found = judge(base, candidate, 1.0, "--must-stay", stay)
    assert (code, found["verdict"], found["verdict_by_scores"]) == (1, "failed", "passed")
    wrong = {"text": "hard", "pair": None, "label": "earn", "answers": {"2": "acq"}}
    assert found["must_stay"] == {"file": str(stay), "checked": 2, "wrong": [wrong]}
    assert main(["--gate", str(base), str(candidate), "--margin", "1", "--must-stay", str(stay)]) == 1
    assert "wrong about 1 of the 2 texts" in capsys.readouterr().out
    stay.write_text("text,label\neasy,earn\n")
    assert judge(base, candidate, 1.0, "--must-stay", stay)[0] == 0
    stay.write_text("text,label\neasy,sports\n")
    assert "no class sports" in refusal(capsys, "--gate", base, candidate, "--margin", 1, "--must-stay", stay)


def test_an_exported_form_answers_with_its_own_graph(tmp_path: Path) -> None:
    write(tmp_path, "finetune", BASE, 0, 90.0)
    run = tmp_path / "r52/finetune" / f"bert_3l-{BASE}" / "seed0"
    (run / "forms").mkdir()
    write(tmp_path / "int8", "finetune", "eeee0001", 0, 89.0, form="int8")
    shutil.move(tmp_path / "int8/r52/finetune/bert_3l-eeee0001/seed0", run / "forms/int8")
    runs, _ = read_runs([tmp_path], None, "test", Wanted())
    assert {gate._model(one) for one in runs} == {run, run / "export/onnx/model_quantized.onnx"}


@pytest.mark.parametrize(
    ("content", "code", "named"),
    [
        (None, Code.MISSING_FILE, "stay.csv"),
        (b"", Code.MISSING_COLUMN, "text"),
        (b"text,label\n", Code.UNREADABLE_TABLE, "no rows"),
        (b"text,class\na,b\n", Code.MISSING_COLUMN, "label"),
        (b"text,label\na\n", Code.INVALID_TEXT, "line 2"),
        (b"text,label\n  ,b\n", Code.INVALID_TEXT, "text is empty"),
        (b"text,label\n\xff\xfe,b\n", Code.UNREADABLE_TABLE, "UTF-8"),
        (b'text,label\n"a,b\n', Code.UNREADABLE_TABLE, "CSV"),
    ],
)
def test_faults_of_the_file_of_texts_that_must_stay(
    tmp_path: Path, content: bytes | None, code: Code, named: str
) -> None:
    path = tmp_path / "stay.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=named) as caught:
        gate.read_must_stay(path, pairs=False)
    assert caught.value.code == code


def test_pairs_that_must_stay_have_two_texts(tmp_path: Path) -> None:
    path = tmp_path / "stay.csv"
    path.write_text("text,pair,label\na,b,c\n")
    assert gate.read_must_stay(path, pairs=True) == [("a", "b", "c")]
    path.write_text("text,label\na,c\n")
    with pytest.raises(UserError, match="pair"):
        gate.read_must_stay(path, pairs=True)
