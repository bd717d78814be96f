"""Find the fastest way to quantise a model that loses little on dev.

All ways are tried on the run's own dev set, and timed in turns in one process, beside the fp32 graphs.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kdbench.console import quiet_libraries
from kdbench.data.teacher_cache import compute_outputs
from kdbench.errors import Code, UserError
from kdbench.inference import measure
from kdbench.inference.calibration import calibration_of
from kdbench.inference.classifier import graph_predict
from kdbench.inference.finished_run import FinishedRun
from kdbench.inference.forms import graph_bytes
from kdbench.inference.int8 import AWARE, WAYS, Inputs, calibration_texts, to_int8
from kdbench.inference.latency import own_call
from kdbench.inference.onnx import to_onnx
from kdbench.inference.openvino import has_openvino, to_openvino
from kdbench.models import students
from kdbench.models.network import view
from kdbench.shipping.aware import quantisation_aware
from kdbench.storage.provenance import instructions, machine
from kdbench.storage.results import metric_of
from kdbench.tasks import kind

log = logging.getLogger("kdbench")
FP32 = "onnx"  # the name of the form that the others are compared with


class Tried(NamedTuple):
    """One form, measured."""

    name: str  # a key of WAYS, onnx, openvino or openvino_int8
    shown: str
    dev: float  # points of the run's metric
    loss: float  # points that it loses to the fp32 graph on dev
    megabytes: float
    batch_1_ms: float
    batch_32_ms: float
    quiet: bool  # whether the machine was, meanwhile

    @property
    def speed(self) -> float:
        """Return what is compared: low if it is fast for single texts and for many."""
        return self.batch_1_ms * self.batch_32_ms


class Choice(NamedTuple):
    way: str
    tried: list[Tried]
    max_loss: float

    def record(self) -> dict[str, Any]:
        """Return what the export's results.json says of the choice."""
        tried = [one._asdict() for one in self.tried]
        return {"way": self.way, "max_loss": self.max_loss, "instructions": instructions(), "tried": tried}


def require_int8(run: FinishedRun) -> None:
    """Raise UserError if the model cannot be quantised in several ways."""
    own = students.folder_traits(run.model)
    problem = own.no_int8 or own.no_onnx or ("needs a graph without branches" if own.early_exit else "")
    if problem:
        raise UserError(Code.UNSUPPORTED_EXPORT, f"--best-int8 {problem}: leave it out")


def best_int8(run: FinishedRun, max_loss: float, aware: bool) -> Choice:
    """Return the fastest int8 way that loses at most `max_loss` points on dev, with all that was measured.

    `aware`: whether quantisation-aware training is tried, too. Raises UserError if no way loses so little.
    """
    quiet_libraries()
    torch.set_num_threads(run.result["threads"])
    with tempfile.TemporaryDirectory(prefix="kdbench-int8-") as scratch:
        tried = _measured(run, _graphs(run, Path(scratch), aware))
    show(run, tried)
    return choose(tried, max_loss)


def choose(tried: list[Tried], max_loss: float) -> Choice:
    """Return the fastest of the int8 ways that lose at most `max_loss` points. Raises UserError if no way does."""
    ways = [one for one in tried if one.name in WAYS]
    able = [one for one in ways if one.loss <= max_loss]
    if not able:
        least = min(ways, key=lambda one: one.loss)
        raise UserError(
            Code.UNSUPPORTED_EXPORT,
            f"--max-loss {max_loss:g}: no int8 form loses so little on dev. The least is {least.loss:.2f} points"
            f" ({least.shown}). Raise --max-loss, or use --onnx",
        )
    best = min(able, key=lambda one: one.speed)
    log.info("int8: %s is the fastest that loses at most %g points on dev", best.shown, max_loss)
    return Choice(best.name, tried, max_loss)


def show(run: FinishedRun, tried: list[Tried]) -> None:
    """Log a table of the forms."""
    metric, threads = metric_of(run.result), run.result["threads"]
    log.info("int8: on %s (%s), %d threads, in turns", machine(), instructions(), threads)
    log.info("%-46s %8s %7s %7s %9s %9s", "form", metric, "loss", "MB", "ms, 1", "ms, 32")
    for one in tried:
        times = (f"{ms:.3g}{'' if one.quiet else '?'}" for ms in (one.batch_1_ms, one.batch_32_ms))
        log.info("%-46s %8.2f %7.2f %7.1f %9s %9s", one.shown, one.dev, one.loss, one.megabytes, *times)
    if not all(one.quiet for one in tried):
        log.info("?: the machine was not quiet, so these times are unreliable")


def _graphs(run: FinishedRun, folder: Path, aware: bool) -> dict[str, tuple[str, Path]]:
    """Write all forms into `folder`: name -> (as it is shown, file)."""
    found = {FP32: ("ONNX Runtime, fp32", folder / "onnx.onnx")}
    write_onnx(run, students.load(run.model), found[FP32][1])
    texts = calibration_texts(run)
    for name, way in WAYS.items():
        if name != AWARE or aware:
            found[name] = (f"ONNX Runtime, int8: {way.shown}", folder / f"{name}.onnx")
            write_int8(run, found[FP32][1], found[name][1], name, texts)
    if has_openvino():
        for name, source, shown in (("openvino", FP32, "fp32"), ("openvino_int8", "static_channel", "int8")):
            more = "" if shown == "fp32" else f": {WAYS[source].shown}"
            found[name] = (f"OpenVINO, {shown}{more}", folder / f"{name}.xml")
            to_openvino(found[source][1], found[name][1])
    return found


def write_onnx(run: FinishedRun, model: Any, path: Path) -> float:
    """Write a model as a graph. Return the largest difference of a logit."""
    return to_onnx(model, path, "token_type_ids" in students.input_names(model, run.pairs))


def write_int8(run: FinishedRun, source: Path, target: Path, way: str, texts: Sequence[Inputs]) -> None:
    """Quantise the fp32 graph `source`, or that of the model after quantisation-aware training."""
    if way != AWARE:
        to_int8(source, target, way, texts)
        return
    trained = target.with_name(f"{target.stem}.trained.onnx")
    model = quantisation_aware(run)
    view(model).divide_logits(calibration_of(run.model).temperature)  # as in the weights of `source`
    write_onnx(run, model, trained)
    to_int8(trained, target, way)
    trained.unlink()


def _measured(run: FinishedRun, graphs: dict[str, tuple[str, Path]]) -> list[Tried]:
    """Evaluate each graph on dev, and time all in turns."""
    predicts = {name: graph_predict(path, 0.0) for name, (_, path) in graphs.items()}
    dev, metric, names = run.data.dev, metric_of(run.result), run.data.label_names
    examples, judge = run.examples(dev), kind(run.dataset.task).judge
    points = {
        name: 100 * judge(dev.labels, examples.by_example(compute_outputs(examples, predict)), names)[metric]
        for name, predict in predicts.items()
    }
    times = measure.measured({name: own_call(run, predict) for name, predict in predicts.items()})
    return [
        Tried(
            name, shown, points[name], points[FP32] - points[name], graph_bytes(path) / 1e6,
            times[name]["batch_1"]["median_ms"], times[name]["batch_32"]["median_ms"], times[name]["quiet"],
        )
        for name, (shown, path) in graphs.items()
    ]  # fmt: skip
