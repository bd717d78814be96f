"""Trackers: what arrives in the store of each, read back with its own reader; a tracker that fails loses no run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.tracking import TensorBoardTracker

from kdbench.cli import main as cli
from kdbench.errors import Code
from kdbench.runs.identity import run_id
from kdbench.training.hardware import settle
from kdbench.training.loop import _Trainer

pytestmark = pytest.mark.filterwarnings("default")  # theirs


@pytest.fixture
def board(tmp_path):
    """`board("finetune")`: the one event log of the runs by that method: scalars, and texts by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(method, which=-1):
        files = sorted((tmp_path / "outputs/tensorboard/topics" / method).glob("*/seed0/events*"))
        events = EventAccumulator(str(files[which]), {"tensors": 0, "scalars": 0}).Reload()
        scalars = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        texts = {
            tag.removesuffix("/text_summary"): events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
            for tag in events.Tags()["tensors"]
        }
        return scalars, texts

    return read


def lines(result):
    folder = Path(result["folder"])
    return [
        json.loads(line) for path in sorted(folder.glob("0*/metrics.jsonl")) for line in path.read_text().splitlines()
    ]


def is_card(text, result):
    accuracy = f"{100 * result['metrics']['test']['accuracy']:.2f}"
    return text.startswith("---\n") and accuracy in text and "theseus" in text


def test_tensorboard_gets_metrics_config_results_and_card(configure, execute, board, tmp_path):
    result = execute(configure("method=theseus", "track.tensorboard=true"))
    scalars, texts = board("theseus")
    steps = [stage["steps"] for stage in result["stages"]]
    assert steps == [16, 8]  # 60 texts, 8 a batch
    first = next(line for line in lines(result) if "losses" in line)
    assert scalars["replacing/ce"][0] == (first["step"], pytest.approx(first["losses"]["ce"]))
    assert [step for step, _ in scalars["successor/dev/student/accuracy"]] == [24]  # the axis goes on
    best = result["stages"][1]["epochs"][0]["dev"]["student"]["accuracy"]
    assert scalars["successor/dev/student/accuracy"][0][1] == pytest.approx(best)
    assert scalars["test/accuracy"] == [(24, pytest.approx(result["metrics"]["test"]["accuracy"]))]
    assert is_card(texts["model_card"], result)
    (hparams,) = (tmp_path / "outputs/tensorboard/topics/theseus").rglob("hparams.yml")
    assert "method.variant: linear" in hparams.read_text() and "seed: 0" in hparams.read_text()
    teacher, _ = board("finetune")  # a run of its own
    assert "training/dev/student/accuracy" in teacher and "training/ce" in teacher


def test_what_was_done_before_a_stop_is_sent_again(configure, execute, board, monkeypatch):
    step = _Trainer._step

    def interrupted(self, batch):
        if self.stage.name == "successor" and self.progress.step == 6:
            raise KeyboardInterrupt
        step(self, batch)

    config = configure("method=theseus", "track.tensorboard=true")
    monkeypatch.setattr(_Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(config)
    monkeypatch.setattr(_Trainer, "_step", step)
    result = execute(config)
    scalars, _ = board("theseus")  # the last log is of the second attempt
    sent = [step for tag in ("replacing/ce", "successor/ce") for step, _ in scalars[tag]]
    written = [line["step"] for line in lines(result) if "losses" in line]
    before = len([line for line in lines(result)[: len(written)] if "losses" in line and line["epoch"] < 2])
    assert len(sent) == len(written) and sent == sorted(sent) and before


def test_trackers_are_no_part_of_a_run(configure):
    config = configure("method=finetune")
    other = configure("method=finetune", "track.tensorboard=true", "track.wandb=true")
    assert run_id(config, settle(config.hardware)) == run_id(other, settle(other.hardware))


@pytest.mark.parametrize("where", ["start", "log", "store_init_configuration", "finish"])
def test_a_tracker_that_fails_loses_no_run(configure, execute, monkeypatch, where):
    def fail(*args, **keywords):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(TensorBoardTracker, where, fail)
    result = execute(configure("method=finetune", "schedule.epochs=1", "track.tensorboard=true"))
    said = (Path(result["folder"]) / "run.log").read_text()
    assert said.count("tracker tensorboard failed (ConnectionError: no route): the run continues without it") == 1
    assert result["metrics"]["test"]["n"] == 40


def test_a_tracker_that_is_not_there_is_refused(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()  # what it leaves behind is no package
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *(path for path in sys.path if not Path(path, "wandb").is_dir())])
    (fault,) = cli.refuse(["track.wandb=true"])
    assert (fault.code, fault.key) == (Code.NOT_INSTALLED, "track.wandb") and "'kdbench[wandb]'" in fault.problem
    (fault,) = cli.refuse(["track.tensorbord=true"])
    assert "Did you mean track.tensorboard?" in str(fault)


@pytest.mark.slow
def test_nothing_is_imported_that_was_not_asked_for():
    names = "{'tensorboard', 'mlflow', 'trackio', 'wandb', 'torch.utils.tensorboard'}"
    code = f"import sys, kdbench.runs.execute; print({names} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.slow
def test_mlflow_on_a_local_store(configure, execute, monkeypatch, tmp_path):
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    result = execute(configure("method=theseus", "track.mlflow=true"))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'kdbench'")
    teacher, run = sorted(client.search_runs([experiment.experiment_id]), key=lambda one: one.info.run_name)
    assert run.info.run_name.startswith("topics/theseus/bert_2l-") and "finetune" in teacher.info.run_name
    assert {one.info.status for one in (teacher, run)} == {"FINISHED"}
    assert run.data.params["method.variant"] == "linear" and run.data.params["teacher.layers"] == "4"
    assert run.data.metrics["test/accuracy"] == pytest.approx(result["metrics"]["test"]["accuracy"])
    assert [one.step for one in client.get_metric_history(run.info.run_id, "successor/dev/student/accuracy")] == [24]
    card = Path(client.download_artifacts(run.info.run_id, "README.md", str(tmp_path)))
    assert is_card(card.read_text(), result)


@pytest.mark.slow
def test_trackio(configure, execute, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at its first import
    result = execute(configure("method=theseus", "track.trackio=true"))
    import trackio

    (name,) = [one.name for one in trackio.Api().runs("kdbench") if "theseus" in one.name]
    run = next(one for one in trackio.Api().runs("kdbench") if one.name == name)
    assert run.config["method.variant"] == "linear"
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("kdbench", name)
    merged = {key: (line["step"], value) for line in logs for key, value in line.items() if key != "step"}
    assert merged["test/accuracy"] == (24, pytest.approx(result["metrics"]["test"]["accuracy"]))
    assert is_card(merged["model_card"][1]["_value"], result)
