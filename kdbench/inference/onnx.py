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
from torch import Tensor, nn

from kdbench.errors import Code, UserError
from kdbench.models import tfidf
from kdbench.models.fastbert import FastBert, uncertainty
from kdbench.stage import Batch

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # (B, T) each; the last only of models of pairs
TOLERANCE = 1e-5  # of a logit, as a share of the largest one (or of 1)
SHAPES = ((1, 1), (1, 2), (1, 9), (2, 7), (3, 16), (5, 30), (8, 3), (16, 24), (32, 11))  # (B, T) that are compared
SPEEDS = (0.0, 0.5, 1.0)  # of a FastBERT, likewise


class _Plain(nn.Module):
    """A classifier whose arguments and answer are tensors: what can be traced."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **given).logits
        return logits


class _Exits(nn.Module):
    """A FastBERT whose exits are branches of the graph: a layer is computed while some row is unsure.

    Each row gets the answer of the first head that is sure of it, as in `FastBert.early_exit`; only that rows which
    have left are still carried along while others of their batch go on.
    """

    def __init__(self, model: FastBert) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, speed: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and the layer (B,), 1..L, that each row left after; `speed`: a number, ()."""
        x, bias = self.model._embed(input_ids, attention_mask, token_type_ids)
        logits = x.new_zeros(x.shape[0], len(self.model.config.id2label))  # len(x) would be fixed in the graph
        exit_layer = input_ids.new_zeros(x.shape[0])
        for number in range(1, len(self.model.branches) + 1):
            state = (x, logits, exit_layer, bias, attention_mask, speed)
            x, logits, exit_layer = torch.cond((exit_layer == 0).any(), self._layer(number), _unchanged, state)
        return logits, exit_layer

    def _layer(self, number: int) -> Any:
        layer, branch = self.model.bert.encoder.layer[number - 1], self.model.branches[number - 1]
        last = number == len(self.model.branches)

        def go_on(x: Tensor, logits: Tensor, exit_layer: Tensor, bias: Tensor, mask: Tensor, speed: Tensor) -> Any:
            x = layer(x, bias)
            z = branch(x, mask)
            sure = torch.ones_like(exit_layer, dtype=torch.bool) if last else uncertainty(z) < speed
            leaves = sure & (exit_layer == 0)
            return x, torch.where(leaves[:, None], z, logits), torch.where(leaves, number, exit_layer)

        return go_on


def _unchanged(x: Tensor, logits: Tensor, exit_layer: Tensor, bias: Tensor, mask: Tensor, speed: Tensor) -> Any:
    return x.clone(), logits.clone(), exit_layer.clone()  # a branch may not hand back its arguments


def to_onnx(model: Any, path: Path, pairs: bool) -> float:
    """Write the model as a graph for any batch and length; returns the largest difference found to PyTorch.

    `pairs`: whether it reads token_type_ids. A FastBERT's graph also takes `speed` and gives `exit_layer`. Raises
    UserError where the architecture has no graph, or where the graph does not answer as the model does.
    """
    if model.config.model_type == "kdbench_bilstm":
        raise UserError(
            Code.UNSUPPORTED_EXPORT,
            "a BiLSTM has no ONNX graph: torch.onnx cannot trace its packed sequences. Ship its folder",
        )
    if isinstance(model, tfidf.TfIdf):
        import onnx

        onnx.save(tfidf.to_graph(model), path)
        return _checked(model, Graph(path), pairs)
    inputs = {name: torch.ones(2, 7, dtype=torch.long) for name in INPUTS[: 2 + pairs]}
    inputs["attention_mask"][1, 4:] = 0
    axes: dict[str, Any] = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in inputs}
    wrapped: nn.Module = _Plain(model)
    outputs = ["logits"]
    if isinstance(model, FastBert):
        wrapped, outputs = _Exits(model), ["logits", "exit_layer"]
        inputs["speed"], axes["speed"] = torch.tensor(0.5), None
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # of torch, about itself
        program: Any = torch.onnx.export(
            wrapped.eval(), kwargs=inputs, dynamic_shapes=axes, input_names=list(inputs), output_names=outputs,
            dynamo=True, verbose=False,
        )  # fmt: skip
    for value in program.model.graph.inputs:
        if len(value.shape) == 2:
            value.shape[0], value.shape[1] = "batch", "length"
    program.save(path)
    return _checked(model, Graph(path), pairs)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence a library's log."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


def _checked(model: Any, graph: "Graph", pairs: bool) -> float:
    """The largest difference over SHAPES, with padding; raises UserError where one is too large."""
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for size, length in SHAPES:
        ids = torch.randint(1, model.config.vocab_size, (size, length), generator=generator)
        mask = (torch.arange(length) < torch.randint(1, length + 1, (size, 1), generator=generator)).long()
        batch: Any = {"input_ids": ids, "attention_mask": mask}
        if pairs:
            batch["token_type_ids"] = (torch.arange(length) >= length // 2).long() * mask
        for graph.speed in SPEEDS if isinstance(model, FastBert) else (0.0,):
            with torch.inference_mode():
                if isinstance(model, FastBert):
                    expected = model.early_exit(**batch, speed=graph.speed)[0]
                else:
                    expected = model(**batch).logits
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

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
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
