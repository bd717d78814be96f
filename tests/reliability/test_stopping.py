"""Ctrl-C, SIGTERM, a time limit and a faked preemption stop after the step, save, and lose nothing."""

import signal

import pytest

from kdbench.storage import files as store
from kdbench.training import interrupts as stopping
from kdbench.training.finite import NonFiniteLoss
from kdbench.training.interrupts import Limits, Stopped
from tests import test_train
from tests.test_train import equal, run, supervised, toy


@pytest.fixture(autouse=True)
def _as_in_a_command():
    with stopping.listening():
        yield


def stopped_at(step, how):
    """An objective during which, at `step`, this process gets a signal."""
    model = toy(dropout=0.3)
    inner = supervised(model)

    def objective(batch, now):
        if now == step:
            how()
        return inner(batch, now)

    return model, objective


def kill(number):
    return lambda: signal.raise_signal(number)  # os.kill: any thread may take it, and Python then acts late


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 3, 4, 11])
def test_a_signal_stops_after_the_step_and_nothing_is_repeated(tmp_path, number, step):
    whole = toy(dropout=0.3)
    record = run(whole, tmp_path / "whole")
    model, objective = stopped_at(step, kill(number))
    with pytest.raises(Stopped, match=f"saved in stage toy, step {step + 1} of 12: the same command") as stop:
        run(model, tmp_path / "broken", objective, checkpoint_every=100)
    assert stop.value.exit_code == 128 + number
    with stopping.listening():
        resumed, steps = toy(dropout=0.3), []
        inner = supervised(resumed)
        again = run(resumed, tmp_path / "broken", lambda b, s: (steps.append(s), inner(b, s))[1], checkpoint_every=100)
    assert equal(whole, resumed) and steps == list(range(step + 1, 12))
    assert again["epochs"] == record["epochs"]
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "broken")]
    assert metrics[1] == metrics[0], "also what was logged of steps that were not yet in a line"


def test_a_second_signal_stops_at_once_and_the_last_checkpoint_holds(tmp_path):
    whole = toy()
    run(whole, tmp_path / "whole")

    def twice():
        kill(signal.SIGINT)()
        kill(signal.SIGINT)()
        raise AssertionError("still going")

    model, objective = stopped_at(8, twice)
    with pytest.raises(Stopped) as stop:
        run(model, tmp_path / "broken", objective)
    assert stop.value.exit_code == 130
    with stopping.listening():
        resumed = toy()
        run(resumed, tmp_path / "broken")
    assert (tmp_path / "broken" / "stage.json").exists() and not list((tmp_path / "broken").glob("checkpoint-*"))
    store.verify(tmp_path / "broken" / "stage.json")


def test_outside_the_loop_a_signal_stops_at_once():
    with pytest.raises(Stopped) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.sigtimedwait([], 1)
    assert stop.value.exit_code == 143


@pytest.mark.parametrize(
    ("limits", "code", "step"),
    [({"preempt_at": 7}, 143, 7), ({"preempt_at": 1}, 143, 1), ({"stop_after": 1e-9}, 75, 1)],
)
def test_limits_stop_the_command(tmp_path, monkeypatch, limits, code, step):
    monkeypatch.setattr(test_train, "Limits", lambda every: Limits(every, **limits))
    model = toy()
    with pytest.raises(Stopped, match=f"step {step} of 12") as stop:
        run(model, tmp_path, checkpoint_every=100)
    assert stop.value.exit_code == code
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{step}"]


def test_preemptions_one_after_the_other_end_equal(tmp_path, monkeypatch):
    whole = toy(dropout=0.3)
    run(whole, tmp_path / "whole")
    monkeypatch.setattr(test_train, "Limits", lambda every: Limits(every, preempt_at=2))
    stops = 0
    while True:
        model = toy(dropout=0.3)
        try:
            with stopping.listening():
                run(model, tmp_path / "broken", checkpoint_every=100)
            break
        except Stopped:
            stops += 1
    assert stops == 6 and equal(whole, model)


def test_nothing_is_saved_after_a_loss_that_is_not_finite(tmp_path):
    model = toy()

    def objective(batch, step):
        terms = supervised(model)(batch, step)
        if step < 6:
            return terms
        kill(signal.SIGTERM)()
        return terms._replace(losses={"ce": terms.losses["ce"] * float("nan")})

    with pytest.raises(NonFiniteLoss, match=r"step 7: .*ce nan.*Its last checkpoint is .*checkpoint-5"):
        run(model, tmp_path, objective)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]


def test_what_runs_after_a_stopped_command_was_not_asked_to_stop():
    with pytest.raises(Stopped), stopping.listening():
        signal.raise_signal(signal.SIGTERM)
    assert stopping.after_step(None, None) == 0
