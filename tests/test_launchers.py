"""Sweeps in other processes, and searches: one teacher and one cache, every end told, nothing asked twice."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from kdbench.cli import main as cli
from kdbench.cli import sweep
from kdbench.cli.search import OfThisJob, Rules, Search, of_this_job
from kdbench.errors import Code
from kdbench.training.interrupts import Pruned

ROOT = Path(__file__).parents[1]
GRID = ["method=finetune,logit_kd", "schedule.lr=1e-2,1e30", "schedule.epochs=1"]
RULES = Rules(seed=0, prune=True, startup_trials=2, warmup_epochs=1)


def command(words: list[str]) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "kdbench", "-m", *words]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "package"),
    [
        (["parallel", "hydra.launcher.n_jobs=2"], "hydra_joblib_launcher"),
        (["slurm_local"], "hydra_submitit_launcher"),
        (["ray_cluster", "+hydra.launcher.ray.init.num_cpus=2"], "hydra_ray_launcher"),
    ],
)
def test_a_sweep_elsewhere_shares_one_teacher_and_one_cache_and_tells_every_failure(
    command_line, tmp_path, launcher, package
):
    if find_spec(f"hydra_plugins.{package}") is None:
        pytest.skip(f"{package} is not installed")
    done = command(command_line(f"hydra/launcher={launcher[0]}", *launcher[1:], *GRID))
    assert done.returncode == 1, done.stderr[-3000:]
    assert "kdbench: 2 of 4 jobs failed" in done.stderr
    for method in ("finetune", "logit_kd"):
        assert f"  schedule.lr=1e+30 method={method}: KD081 loss-not-finite  stage training, step" in done.stderr
    outputs = tmp_path / "outputs"
    assert len(list(outputs.rglob("results.json"))) == 3
    (teacher,) = outputs.glob("topics/finetune/bert_4l-*/seed0/run.log")
    assert teacher.read_text().count("stage training: needs") == 1
    assert len(list((tmp_path / "cache" / "teacher").glob("*/MANIFEST.json"))) == 1
    assert not list((outputs / ".sweeps").iterdir())


@pytest.mark.slow
def test_tasks_of_ray_share_the_rows_of_one_file(finetuned, tmp_path):
    """As docs/cluster.md says."""
    ray = pytest.importorskip("ray")
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"the {'old ' * (row % 9)}pear near a lake\n" for row in range(100_000)))
    predict = [str(Path(sys.executable).with_name("kdbench-predict")), finetuned, "--file", str(texts), "--out"]
    ray.init(num_cpus=2, include_dashboard=False)
    try:

        def answer() -> tuple[int, str]:
            done = subprocess.run([*predict, str(tmp_path / "answers.csv")], capture_output=True, text=True)
            return done.returncode, done.stderr

        task = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(answer)
        ends = ray.get([task.remote() for _ in range(2)])
    finally:
        ray.shutdown()
    assert [code for code, _ in ends] == [0, 0], ends
    assert sum("its work is shared" in said for _, said in ends) == 1
    subprocess.run([*predict, str(tmp_path / "alone.csv")], check=True)
    assert (tmp_path / "answers.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_a_launcher_that_is_not_installed_is_refused_with_its_extra(monkeypatch):
    monkeypatch.setattr("kdbench.cli.hydra_keys.find_spec", lambda package: None)
    (fault,) = cli.refuse(["-m", "hydra/launcher=slurm", "seed=0,1"])
    assert fault.code == Code.NOT_INSTALLED and "pip install 'kdbench[slurm]'" in fault.problem


@pytest.mark.parametrize(("flags", "limit"), [([], None), (["--fail-fast"], 1), (["--max-failures", "3"], 3)])
def test_the_flags_are_taken_out_and_the_rest_is_hydras(flags, limit):
    assert cli.own_flags(["-m", *flags, "seed=0,1"]) == (["-m", "seed=0,1"], limit, [])


def test_settings_may_stand_on_both_sides_of_a_flag():
    words = ["method=tfidf", "-m", "seed=0,1"]
    assert cli.gathered(words) == ["-m", "method=tfidf", "seed=0,1"]
    assert cli.refuse(cli.gathered(words)) == []


@pytest.mark.parametrize("given", ["0", "many", "-1"])
def test_a_wrong_limit_is_a_fault(given):
    _, _, (fault,) = cli.own_flags(["-m", f"--max-failures={given}", "seed=0,1"])
    assert "must be an integer (1 or more)" in str(fault)


def told(folder: Path, monkeypatch: pytest.MonkeyPatch, *states: str) -> None:
    monkeypatch.setenv(sweep.ENVIRONMENT, str(folder))
    for number, state in enumerate(states):
        job = sweep.Job(number, f"seed={number}")
        assert job.begin()
        job.tell(state, f"why {number}" if state == "failed" else "")


def test_after_so_many_failures_no_job_begins_and_a_killed_one_is_not_forgotten(tmp_path, monkeypatch):
    about = sweep.Sweep(["-m"], ["seed"], 5, "elsewhere:1", max_failures=2)
    with sweep.shared(about, tmp_path) as folder:
        assert folder.parent == tmp_path / ".sweeps"
        told(folder, monkeypatch, "failed", "done", "begun", "failed")
        assert not sweep.Job(4, "seed=4").begin()
        ends = sweep.told(folder, 5)
    assert [one.state for one in ends] == ["failed", "done", "begun", "failed"]
    labels = [label for label, _ in sweep.failures(ends, stopped=False)]
    assert labels == ["seed=0", "seed=2", "seed=3"]
    assert dict(sweep.failures(ends, stopped=False))["seed=2"] == sweep.LOST
    assert [label for label, _ in sweep.failures(ends, stopped=True)] == ["seed=0", "seed=3"]
    assert not folder.exists()


def test_jobs_that_outlive_their_command_still_find_it(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), sweep.shared(sweep.Sweep([], [], 2, "x:1"), tmp_path) as folder:
        raise KeyboardInterrupt
    told(folder, monkeypatch, "done")


@pytest.mark.slow
def test_fail_fast_begins_no_other_job(command_line, tmp_path):
    done = command(
        ["--fail-fast", *command_line("method=tfidf,finetune", "student.layers=2", "seed=1,0", "schedule.lr=1e30,1e-2")]
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert "kdbench: 1 of 8 jobs failed" in done.stderr and "of 8 jobs were not started" in done.stderr
    assert not list((tmp_path / "outputs").rglob("finetune/bert_2l-*/seed0/results.json"))


# --- search


def score(trial) -> float:
    return 1 - abs(trial.params["a"] - 0.7)


def space():
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {"a": FloatDistribution(0, 1), "b": CategoricalDistribution(["1", "[2,3]"])}


def do(file: Path, limit: int) -> list[dict]:
    """Ask and tell up to `limit` trials; the parameters of all."""
    one = Search(file, space(), RULES)
    with one.working():
        while (trial := one.ask(limit)) is not None:
            one.study.tell(trial, score(trial))
        return [trial.params for trial in one.asked()]


def test_a_search_that_goes_on_asks_what_it_would_have_asked(tmp_path):
    whole = do(tmp_path / "whole.journal", 14)
    do(tmp_path / "broken.journal", 6)
    assert do(tmp_path / "broken.journal", 14) == whole
    assert len({tuple(params.items()) for params in whole}) == 14
    assert do(tmp_path / "whole.journal", 14) == whole  # nothing is asked beyond the limit


def test_what_a_killed_command_left_is_asked_again_and_what_a_living_one_asked_is_not(tmp_path):
    whole = do(tmp_path / "whole.journal", 8)
    file = tmp_path / "broken.journal"
    killed = Search(file, space(), RULES)
    for _ in range(3):
        trial = killed.ask(8)
        assert trial is not None
        killed.study.tell(trial, score(trial))
    killed.ask(8)  # nothing holds its worker's lock
    assert do(file, 8) == whole
    living = Search(tmp_path / "shared.journal", space(), RULES)
    with living.working():
        asked = living.ask(8)
        other = Search(tmp_path / "shared.journal", space(), RULES)
        with other.working():
            assert other.ask(2).params != asked.params and other.ask(2) is None
        assert [trial.number for trial in other.asked()] == [0, 1]


def test_a_trial_below_the_median_is_pruned_by_its_dev_scores(tmp_path, monkeypatch):
    file = tmp_path / "study.journal"
    one = Search(file, space(), RULES)
    with one.working():
        for scores in ([0.5, 0.7, 0.8], [0.6, 0.8, 0.9], [0.1, 0.2, 0.9]):
            trial = one.ask(3)
            assert trial is not None
            monkeypatch.setenv(sweep.TRIAL, one.environment(trial))
            this = of_this_job()
            assert isinstance(this, OfThisJob)
            if scores[0] > 0.1:
                for epoch, value in enumerate(scores):
                    this.watch(epoch, value)
                this.done({"folder": "x", "identity": {}, "metrics": {"dev": {"accuracy": scores[-1]}}})
            else:
                this.watch(0, scores[0])  # its first epoch is not judged
                with pytest.raises(Pruned, match=r"after epoch 2: dev score 20\.00"):
                    this.watch(1, scores[1])
    assert [trial.state.name for trial in one.asked()] == ["COMPLETE", "COMPLETE", "PRUNED"]


@pytest.mark.slow
def test_a_search_by_the_command_is_of_ordinary_runs_and_reads_test_once(command_line, tmp_path):
    words = command_line(
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "method=logit_kd", "method.alpha=interval(0.1,0.9)",
        "method.temperature=1,5", "schedule.epochs=1", "hydra.sweeper.study=mine",
    )  # fmt: skip
    first = command(words)
    assert first.returncode == 0, first.stderr[-3000:]
    outputs = tmp_path / "outputs"
    results = [json.loads(path.read_text()) for path in outputs.rglob("logit_kd/*/seed0/results.json")]
    best = max(result["metrics"]["dev"]["accuracy"] for result in results)
    assert len(results) == 2
    assert "search: 2 trials (2 finished, 0 pruned, 0 failed)" in first.stdout
    assert f"dev accuracy {100 * best:.2f} (n 20), the highest of 2, so biased upwards; test " in first.stdout
    told = re.findall(r"\btest (?:accuracy )?[\d.]+ \(n 40\)", first.stdout)
    assert len(told) == 1 + first.stdout.count("done: ") == 4  # once of each run, the teacher's too, and of the best
    assert (outputs / "searches" / "mine.journal").is_file()


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ("method=logit_kd", Code.UNUSABLE_SEARCH, "hydra/sweeper=optuna"),
        ("method=logit_kd seed=0,1", Code.UNUSABLE_SEARCH, "seed=0,1"),
        ("method=logit_kd method.alpha=interval(0.1,1.9)", Code.OUT_OF_RANGE, "method.alpha=1.9: must be 0 to 1"),
        (
            "method=logit_kd method.alpha=0.1,0.2 hydra.sweeper.n_trials=none",
            Code.OUT_OF_RANGE,
            "hydra.sweeper.n_trials=none: ",
        ),
    ],
)
def test_a_search_that_cannot_work_is_refused(words, code, named):
    found = cli.refuse(["-m", "hydra/sweeper=optuna", *words.split()])
    assert any(fault.code == code and named in str(fault) for fault in found)
