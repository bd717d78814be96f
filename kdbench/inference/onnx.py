"""Export models as ONNX graphs, check them against PyTorch, and run them with onnxruntime.

onnx, onnxscript and onnxruntime are imported inside the functions, because a PyTorch model does not need them.
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
from kdbench.inference.forms import session
from kdbench.models.network import Network
from kdbench.stage import Batch

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # (B, T) each; only models of pairs have the last one
TOLERANCE = 1e-5  # largest difference of a logit, as a share of the largest logit (or of 1)
SHAPES = ((1, 1), (1, 2), (1, 9), (2, 7), (3, 16), (5, 30), (8, 3), (16, 24), (32, 11))  # (B, T) that are compared


def to_onnx(network: Network, path: Path, token_types: bool) -> float:
    """Write the model as a graph for any batch size and length. Return the largest difference to PyTorch's logits.

    `token_types`: whether the graph has this input. A FastBERT's graph also takes `speed` and returns `exit_layer`.
    Raises UserError if the architecture has no graph, or if the graph's logits differ by more than TOLERANCE.
    """
    if network.no_onnx:
        raise UserError(Code.UNSUPPORTED_EXPORT, f"ONNX {network.no_onnx}. Ship the folder of the run")
    if (graph := network.written()) is not None:
        import onnx

        onnx.save(graph, path)
        return _checked(network, Graph(path), token_types)
    inputs = {name: torch.ones(2, 7, dtype=torch.long) for name in INPUTS[: 2 + token_types]}
    inputs["attention_mask"][1, 4:] = 0
    axes: dict[str, Any] = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in inputs}
    module, further, outputs = network.traced()
    inputs, axes = inputs | further, axes | dict.fromkeys(further)
    with warnings.catch_warnings(), quiet_log("torch.onnx"):
        warnings.simplefilter("ignore")  # torch's, about its own code
        program: Any = torch.onnx.export(
            module.eval(), kwargs=inputs, dynamic_shapes=axes, input_names=list(inputs), output_names=outputs,
            dynamo=True, verbose=False,
        )  # fmt: skip
    for value in program.model.graph.inputs:
        if len(value.shape) == 2:
            value.shape[0], value.shape[1] = "batch", "length"
    _forget_origin(program.model)
    program.save(path)
    return _checked(network, Graph(path), token_types)


def _forget_origin(model: Any) -> None:
    """Remove the notes of torch.onnx, among them the paths of the files on this machine that made each node."""
    for part in (model, model.graph, *model.functions.values()):
        part.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in graph.inputs:
            value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


@contextmanager
def quiet_log(name: str) -> Iterator[None]:
    """Silence a library's log."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


def _checked(network: Network, graph: "Graph", token_types: bool) -> float:
    """Return the largest difference of a logit over SHAPES, with padding. Raises UserError if one is too large."""
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for size, length in SHAPES:
        ids = torch.randint(1, network.config.vocab_size, (size, length), generator=generator)
        mask = (torch.arange(length) < torch.randint(1, length + 1, (size, 1), generator=generator)).long()
        batch: Any = {"input_ids": ids, "attention_mask": mask}
        if token_types:
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


def to_fp16(source: Path, target: Path) -> None:
    """Write a graph that computes in fp16, for a GPU; its logits are fp32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about numbers that fp16 rounds to 0 or to its largest
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def subgraphs(graph: Any) -> Iterator[Any]:
    """Yield the graph and the graphs inside its branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from subgraphs(attribute.g)


class Graph:
    """An ONNX graph that runs in onnxruntime on the CPU, with torch's number of threads."""

    def __init__(self, path: Path) -> None:
        self.session = session(path, torch.get_num_threads())
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.speed = 0.0  # only FastBERT reads it

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits (B, C)."""
        given: dict[str, Any] = {name: value.numpy() for name, value in batch.items() if name in self.inputs}  # type: ignore[attr-defined]
        if "speed" in self.inputs:
            given["speed"] = np.array(self.speed, np.float32)
        return torch.from_numpy(self.session.run(["logits"], given)[0])
