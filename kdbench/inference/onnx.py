"""Models as ONNX graphs: made from PyTorch, checked against it, quantised, run by onnxruntime.

onnx, onnxscript and onnxruntime are imported inside the functions: whoever only loads a PyTorch model needs none.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.errors import Code, UserError
from kdbench.models.network import Network, view
from kdbench.stage import Batch

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # (B, T) each; the last only of models of pairs
TOLERANCE = 1e-5  # of a logit, as a share of the largest one (or of 1)
SHAPES = ((1, 1), (1, 2), (1, 9), (2, 7), (3, 16), (5, 30), (8, 3), (16, 24), (32, 11))  # (B, T) that are compared


def to_onnx(model: Any, path: Path, pairs: bool) -> float:
    """Write the model as a graph for any batch and length; returns the largest difference found to PyTorch.

    `pairs`: whether it reads token_type_ids. A FastBERT's graph also takes `speed` and gives `exit_layer`. Raises
    UserError where the architecture has no graph, or where the graph does not answer as the model does.
    """
    network = view(model)
    if network.traits.no_onnx:
        raise UserError(Code.UNSUPPORTED_EXPORT, f"ONNX {network.traits.no_onnx}. Ship the folder of the run")
    if (graph := network.written()) is not None:
        import onnx

        onnx.save(graph, path)
        return _checked(network, Graph(path), pairs)
    inputs = {name: torch.ones(2, 7, dtype=torch.long) for name in INPUTS[: 2 + pairs]}
    inputs["attention_mask"][1, 4:] = 0
    axes: dict[str, Any] = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in inputs}
    module, further, outputs = network.traced()
    inputs, axes = inputs | further, axes | dict.fromkeys(further)
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # of torch, about itself
        program: Any = torch.onnx.export(
            module.eval(), kwargs=inputs, dynamic_shapes=axes, input_names=list(inputs), output_names=outputs,
            dynamo=True, verbose=False,
        )  # fmt: skip
    for value in program.model.graph.inputs:
        if len(value.shape) == 2:
            value.shape[0], value.shape[1] = "batch", "length"
    program.save(path)
    return _checked(network, Graph(path), pairs)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a library's log."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


def _checked(network: Network, graph: "Graph", pairs: bool) -> float:
    """Return the largest difference over SHAPES, with padding. Raises UserError where one is too large."""
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for size, length in SHAPES:
        ids = torch.randint(1, network.config.vocab_size, (size, length), generator=generator)
        mask = (torch.arange(length) < torch.randint(1, length + 1, (size, 1), generator=generator)).long()
        batch: Any = {"input_ids": ids, "attention_mask": mask}
        if pairs:
            batch["token_type_ids"] = (torch.arange(length) >= length // 2).long() * mask
        for graph.speed in network.speeds:
            with torch.inference_mode():
                expected = network.at_speed(batch, graph.speed)
            difference = (graph.logits(batch) - expected).abs().max().item()
            worst = max(worst, difference)
            if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
                raise UserError(
                    Code.UNSUPPORTED_EXPORT,
                    f"the ONNX graph differs from PyTorch by {difference:.1e} at batch {size}, length {length}: nothing"
                    f" was exported (allowed: {TOLERANCE:g} of the largest logit)",
                )
    return worst


def to_int8(source: Path, target: Path) -> None:
    """Quantise a graph dynamically: the weights of matrix products to 8 bits, activations when they are computed."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source)
    for part in _graphs(graph.graph):
        del part.value_info[:]  # shapes that torch wrote down; onnxruntime's own inference trips over them
    emptied = target.with_name("emptied.onnx")
    onnx.save(graph, emptied)
    with _quiet(""):  # it advises a preprocessing step that its own shape inference fails in
        quantize_dynamic(emptied, target, weight_type=QuantType.QInt8, extra_options={"EnableSubgraph": True})
    emptied.unlink()


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph and those inside its branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


class Graph:
    """An ONNX graph in onnxruntime, on the CPU; called as a PyTorch classifier is by the rest of kdbench."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.speed = 0.0  # of a FastBERT

    def logits(self, batch: Batch) -> Tensor:
        """(B, C)"""
        given: dict[str, Any] = {name: value.numpy() for name, value in batch.items() if name in self.inputs}  # type: ignore[attr-defined]
        if "speed" in self.inputs:
            given["speed"] = np.array(self.speed, np.float32)
        return torch.from_numpy(self.session.run(["logits"], given)[0])
