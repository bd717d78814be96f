"""Quantise an ONNX graph to 8 bits, in several ways, of which none is best for every model and processor.

onnx and onnxruntime are imported inside the functions, because a PyTorch model does not need them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdbench.data.batches import Examples
from kdbench.data.tokenize import load_tokenizer, pad_id, tokenize_here
from kdbench.inference.finished_run import FinishedRun
from kdbench.inference.onnx import INPUTS, quiet_log, subgraphs

SEEN = 128  # train texts whose activations are seen [ours: a first value]
Inputs = Mapping[str, Any]  # name -> array (1, T)


class Way(NamedTuple):
    """How weights and activations become integers."""

    shown: str
    static: bool  # ranges of the activations are found on train texts; else for each input, when the graph runs
    per_channel: bool  # a scale for each output of a matrix product; else one for the matrix
    seven_bits: bool = False  # of the weights: 8 of them overflow on processors with AVX2 but without VNNI


WAYS = {
    "dynamic": Way("dynamic", False, False),
    "dynamic_channel": Way("dynamic, per channel", False, True),
    "dynamic_7bit": Way("dynamic, per channel, 7-bit weights", False, True, True),
    "qat": Way("dynamic, per channel, 7-bit weights after quantisation-aware training", False, True, True),
    "static": Way("static", True, False),
    "static_channel": Way("static, per channel", True, True),
}
DEFAULT = "dynamic_7bit"  # needs no texts, and its products do not overflow without VNNI
AWARE = "qat"  # is made of a model that was trained for it: kdbench.shipping.aware


def to_int8(source: Path, target: Path, way: str = DEFAULT, texts: Iterable[Inputs] = ()) -> None:
    """Write the graph with 8-bit weights of matrix products and embeddings. `texts` calibrate a static way."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    how = WAYS[way]
    graph = onnx.load(source)
    for part in subgraphs(graph.graph):
        del part.value_info[:]  # shapes from torch, with which onnxruntime's shape inference fails
    emptied = target.with_name(f"{target.stem}.emptied.onnx")
    onnx.save(graph, emptied)
    shared: dict[str, Any] = {"per_channel": how.per_channel, "reduce_range": how.seven_bits}
    with quiet_log(""):  # it advises a preprocessing step in which its shape inference fails
        if how.static:
            quantize_static(
                emptied, target, _reader(texts), **shared,
                op_types_to_quantize=["MatMul", "Gemm", "Gather"],  # the rest is little work, and needs its precision
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,  # as onnxruntime advises for CPUs
                # products of two activations, in attention, stay as they are
                extra_options={"MatMulConstBOnly": True, "CalibMovingAverage": True},
            )  # fmt: skip
        else:
            quantize_dynamic(
                emptied, target, **shared, weight_type=QuantType.QInt8, extra_options={"EnableSubgraph": True}
            )
    emptied.unlink()


def calibration_texts(run: FinishedRun) -> list[Inputs]:
    """Return inputs (1, T) from train texts of the run, the same ones each time."""
    train = run.data.train
    rows = np.sort(np.random.default_rng(0).permutation(len(train))[:SEEN])
    split = train.take(rows)
    tokens = tokenize_here(split, load_tokenizer(run.model), run.max_length)
    examples = Examples(tokens, split.ids, split.labels, pad_id(run.model))
    batches = (examples.batch(np.array([row])) for row in range(len(examples)))
    return [{name: value.numpy() for name, value in batch.items() if name in INPUTS} for batch in batches]  # type: ignore[attr-defined]


def _reader(texts: Iterable[Inputs]) -> Any:
    """Return `texts` as onnxruntime reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.rest = iter(texts)

        def get_next(self) -> Inputs | None:
            return next(self.rest, None)

    return Reader()
