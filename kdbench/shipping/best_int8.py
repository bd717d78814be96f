"""Find the fastest way to quantise a model that loses little on dev.

All ways are tried on the run's own dev set, and timed in turns in one process, beside the model in PyTorch and the fp32
graphs.
"""

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.compare.columns import number
from kdbench.data.teacher_cache import compute_outputs
from kdbench.errors import Code, UserError
from kdbench.inference import measure
from kdbench.inference.calibration import calibration_of
from kdbench.inference.classifier import graph_predict, model_predict
from kdbench.inference.finished_run import FinishedRun
from kdbench.inference.forms import graph_bytes
from kdbench.inference.int8 import AWARE, WAYS, Inputs, calibration_texts, to_int8
from kdbench.inference.latency import own_call
from kdbench.inference.onnx import to_onnx
from kdbench.inference.openvino import has_openvino, to_openvino
from kdbench.models.network import view
from kdbench.shipping.aware import quantisation_aware
from kdbench.storage.provenance import instructions, machine
from kdbench.storage.results import metric_of
from kdbench.tasks import kind

log = logging.getLogger("kdbench")
PYTORCH = "pytorch"
FP32 = "onnx"  # the name of the form that the others are compared with
SHOWN = {way: f"ONNX Runtime, int8, {way}" for way in WAYS} | {
    PYTORCH: "PyTorch, fp32",
    FP32: "ONNX Runtime, fp32",
    "openvino": "OpenVINO, fp32",
    "openvino_int8": "OpenVINO, int8, static_channel",
}


class Tried(NamedTuple):
    """One form, measured."""

    name: str  # a key of SHOWN
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


def best_int8(run: FinishedRun, source: Path, target: Path, max_loss: float, aware: bool) -> dict[str, Any]:
    """Write the fastest int8 form of the graph `source` that loses at most `max_loss` points on dev.

    Return the entry of results.json. `aware`: whether quantisation-aware training is tried, too. Raises UserError if no
    form loses so little.
    """
    with tempfile.TemporaryDirectory(prefix="kdbench-int8-") as scratch:
        graphs = _graphs(run, source, Path(scratch), aware)
        tried = _measured(run, graphs)
        show(run, tried)
        best = choose(tried, max_loss)
        shutil.copy(graphs[best.name], target)
    log.info("int8: %s is the fastest that loses at most %g points on dev", best.name, max_loss)
    every = [one._asdict() for one in tried]
    return {"way": best.name, "max_loss": max_loss, "instructions": instructions(), "tried": every}


def choose(tried: list[Tried], max_loss: float) -> Tried:
    """Return the fastest of the int8 ways that lose at most `max_loss` points. Raises UserError if no way does."""
    ways = [one for one in tried if one.name in WAYS]
    able = [one for one in ways if one.loss <= max_loss]
    if not able:
        least = min(ways, key=lambda one: one.loss)
        raise UserError(
            Code.UNSUPPORTED_EXPORT,
            f"--max-loss {max_loss:g}: no int8 form loses so little on dev. The least is {least.loss:.2f} points"
            f" ({least.name}). Raise --max-loss, or use --onnx",
        )
    return min(able, key=lambda one: one.speed)


def show(run: FinishedRun, tried: list[Tried]) -> None:
    """Log a table of the forms."""
    width, threads, dev = max(map(len, SHOWN.values())), run.result["threads"], len(run.data.dev)
    plural = "s" if threads > 1 else ""
    log.info("int8: %d dev texts; %s (%s), %d thread%s, in turns", dev, machine(), instructions(), threads, plural)
    log.info(f"%-{width}s %9s %6s %7s %8s %9s", "form", metric_of(run.result), "loss", "MB", "batch 1", "batch 32")
    for one in tried:
        times = (f"{number(ms)}{' ' if one.quiet else '?'}" for ms in (one.batch_1_ms, one.batch_32_ms))
        row = (SHOWN[one.name], one.dev, one.loss, number(one.megabytes), *times)
        log.info(f"%-{width}s %9.2f %6.2f %7s %8s %9s", *row)
    log.info("times are in ms")
    if not all(one.quiet for one in tried):
        log.info("?: the machine was not quiet, so the times and the choice are unreliable: repeat the command later")


def _graphs(run: FinishedRun, source: Path, folder: Path, aware: bool) -> dict[str, Path]:
    """Write all forms of the graph `source` into `folder`, and return their files by name."""
    found, texts = {FP32: source}, calibration_texts(run)
    for way in WAYS:
        if way != AWARE or aware:
            found[way] = folder / f"{way}.onnx"
            write_int8(run, source, found[way], way, texts)
    if has_openvino():
        for name, of in (("openvino", FP32), ("openvino_int8", "static_channel")):
            found[name] = folder / f"{name}.xml"
            to_openvino(found[of], found[name])
    return found


def write_int8(run: FinishedRun, source: Path, target: Path, way: str, texts: Sequence[Inputs] = ()) -> None:
    """Quantise the fp32 graph `source`, or that of the model after quantisation-aware training."""
    if way != AWARE:
        to_int8(source, target, way, texts)
        return
    trained, network = target.with_name(f"{target.stem}.trained.onnx"), view(quantisation_aware(run))
    network.divide_logits(calibration_of(run.model).temperature)  # as in the weights of `source`
    to_onnx(network, trained, run.pairs and network.token_types)
    to_int8(trained, target, way)
    trained.unlink()


def _measured(run: FinishedRun, graphs: dict[str, Path]) -> list[Tried]:
    """Evaluate the model and each graph on dev, and time all in turns."""
    log.info("int8: evaluating %d forms on dev, and measuring their times in turns", len(graphs) + 1)
    predicts = {PYTORCH: model_predict(run.model)} | {name: graph_predict(path, 0.0) for name, path in graphs.items()}
    sizes = {PYTORCH: run.result["bytes"]} | {name: graph_bytes(path) for name, path in graphs.items()}
    dev, metric, names = run.data.dev, metric_of(run.result), run.data.label_names
    examples, judge = run.examples(dev), kind(run.dataset.task).judge
    points = {
        name: 100 * judge(dev.labels, examples.by_example(compute_outputs(examples, predict)), names)[metric]
        for name, predict in predicts.items()
    }
    times = measure.measured({name: own_call(run, predict) for name, predict in predicts.items()})
    return [
        Tried(
            name, points[name], points[FP32] - points[name], sizes[name] / 1e6,
            times[name]["batch_1"]["median_ms"], times[name]["batch_32"]["median_ms"], times[name]["quiet"],
        )
        for name in predicts
    ]  # fmt: skip
