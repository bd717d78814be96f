"""Send a run to experiment trackers, through accelerate: config, metrics, results and model card.

A resumed run is a new run of the tracker, which receives the complete history from metrics.jsonl. Trackers write on
this machine unless their own environment variables say otherwise. Only trackers that are turned on are imported. If a
tracker fails, the log names it and the run continues without it.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import tracking
from accelerate.tracking import GeneralTracker

from kdbench.compare.keys import flat
from kdbench.inference.finished_run import open_run
from kdbench.shipping.card import model_card

if TYPE_CHECKING:
    from kdbench.runs.context import Run

log = logging.getLogger("kdbench")
PROJECT = "kdbench"
FOLDER = "tensorboard"  # below the outputs: tensorboard --logdir outputs/tensorboard


@contextmanager
def tracked(run: "Run") -> Iterator["Tracking"]:
    """Start the trackers that `run` turns on; tell them at the end how the run ended."""
    wanted = (
        [name for name, asked in asdict(run.config.track).items() if asked] if run.accelerator.is_main_process else []
    )
    tracks = Tracking(run, wanted)
    done = False
    try:
        yield tracks
        done = True
    finally:
        tracks.each(lambda name, tracker: _END.get(name, _end)(tracker, done))


class Tracking:
    """The trackers of one run; those of a run that it needs, such as its teacher's, start and end within."""

    def __init__(self, run: "Run", wanted: list[str]) -> None:
        self.run = run
        self.last = 0  # step, over all stages
        self.trackers: dict[str, GeneralTracker] = {}
        if wanted:
            title = run.folder.relative_to(run.config.outputs).as_posix()
            config = {key: _scalar(value) for key, value in flat(asdict(run.config))}
            self.trackers = dict.fromkeys(wanted)
            self.each(lambda name, _: self.trackers.update({name: _START[name](title, config, run.config.outputs)}))

    def each(self, do: Callable[[str, GeneralTracker], object]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                do(name, tracker)
            except Exception as error:  # whatever a stranger's network, disk or version does
                words = str(error).partition("\n")[0]
                log.warning(
                    "tracker %s failed (%s: %s): the run continues without it", name, type(error).__name__, words
                )
                del self.trackers[name]

    def line(self, stage: str, before: int, line: dict[str, Any]) -> None:
        """Send a line of the metrics.jsonl of `stage`, which follows `before` steps of other stages."""
        if "dev" in line:
            scores = {f"{stage}/dev/{who}": metrics for who, metrics in line["dev"].items()}
            values = {f"{key}/{name}": value for key, metrics in scores.items() for name, value in _scores(metrics)}
        else:
            values = {f"{stage}/{name}": value for name, value in (line["losses"] | line["logged"]).items()}
        self.last = before + line["step"]
        self.each(lambda _, tracker: tracker.log(values, step=self.last))

    def finished(self, result: dict[str, Any]) -> None:
        """Send the results of the finished run, and its model card if it saves a model."""
        values = {
            f"{split}/{key}": value
            for split in result.get("metrics", {})
            for key, value in _scores(result["metrics"][split])
        }
        values |= {"parameters": result["parameters"]["total"], "seconds": result["cost"]["seconds"]}
        self.each(lambda _, tracker: tracker.log(values, step=self.last))
        if "metrics" in result and (self.run.folder / "model").is_dir():
            card = cache(lambda: model_card(open_run(self.run.folder), None))
            self.each(lambda name, tracker: _CARD[name](tracker, card(), self.last))


def _scores(metrics: dict[str, float]) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in metrics.items() if name != "n")


def _scalar(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _tensorboard(title: str, config: dict[str, Any], outputs: str) -> GeneralTracker:
    return _started(tracking.TensorBoardTracker(title, Path(outputs) / FOLDER), config)


def _mlflow(title: str, config: dict[str, Any], outputs: str) -> GeneralTracker:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it reports its use to its makers
    return _started(tracking.MLflowTracker(PROJECT, run_name=title, nested_run=True), config)


def _trackio(title: str, config: dict[str, Any], outputs: str) -> GeneralTracker:
    return _started(tracking.TrackioTracker(PROJECT, name=title, config=config))


def _wandb(title: str, config: dict[str, Any], outputs: str) -> GeneralTracker:
    mode = os.environ.get("WANDB_MODE", "offline")  # else it asks for a key, or waits for its server
    return _started(tracking.WandBTracker(PROJECT, name=title, config=config, mode=mode, reinit="create_new"))


def _started(tracker: GeneralTracker, config: dict[str, Any] | None = None) -> GeneralTracker:
    """Start a tracker, and send it `config` if it did not receive that when it was made."""
    tracker.start()
    if config is not None:
        tracker.store_init_configuration(config)
    return tracker


def _card_as_file(tracker: GeneralTracker, card: str, step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "README.md")
        path.write_text(card, encoding="utf8")
        tracker.log_artifact(str(path))


def _card_as_report(tracker: GeneralTracker, card: str, step: int) -> None:
    import trackio

    tracker.log({"model_card": trackio.Markdown(card)}, step=step)


def _card_as_notes(tracker: GeneralTracker, card: str, step: int) -> None:
    tracker.tracker.notes = card


def _end(tracker: GeneralTracker, done: bool) -> None:
    tracker.finish()


def _end_mlflow(tracker: GeneralTracker, done: bool) -> None:
    import mlflow

    mlflow.end_run("FINISHED" if done else "KILLED")


def _end_wandb(tracker: GeneralTracker, done: bool) -> None:
    tracker.tracker.finish(exit_code=0 if done else 1)


_START = {"tensorboard": _tensorboard, "mlflow": _mlflow, "trackio": _trackio, "wandb": _wandb}
_CARD: dict[str, Callable[[GeneralTracker, str, int], None]] = {
    "tensorboard": lambda tracker, card, step: tracker.log({"model_card": card}, step=step),
    "mlflow": _card_as_file,
    "trackio": _card_as_report,
    "wandb": _card_as_notes,
}
_END = {"mlflow": _end_mlflow, "wandb": _end_wandb}
