"""ONNX graphs beside their PyTorch models: any batch, any length, padding, pairs, exits; and quantised."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoTokenizer

from kdbench.errors import Code, UserError
from kdbench.inference import int8
from kdbench.inference import onnx as graph
from kdbench.models import network, students
from kdbench.sources.model_folder import shape_of
from kdbench.storage.files import read_json
from tests.encoders import KINDS, write_encoder
from tests.refusals import refused

SHAPE = {"vocab_size": 40, "max_positions": 64, "pad_token_id": 0, "layers": 2, "hidden": 16, "heads": 2, "ffn": 24}
NARROW = {"embedding": 8, "bottleneck": 8, "ffn_blocks": 2, "normalization": "no_norm", "activation": "relu"}
AS_IB_BERT = {"normalization": "layer_norm", "activation": "gelu"}


def model(architecture: str, **changes: object) -> Any:
    shape = (
        SHAPE | {"architecture": architecture, "config": {"model_type": "bert"}, "embedding_branch": False} | changes
    )
    made = students.build(shape, ["a", "b", "c"], "sdpa", 0).eval()
    for table in (module for module in made.modules() if isinstance(module, torch.nn.Embedding)):
        torch.nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(0))
    return made


def batch(size: int, length: int, pairs: bool = False) -> Any:
    generator = torch.Generator().manual_seed(size * length)
    ids = torch.randint(1, 40, (size, length), generator=generator)
    mask = (torch.arange(length) < torch.randint(1, length + 1, (size, 1), generator=generator)).long()
    types = {"token_type_ids": (torch.arange(length) > length // 2).long() * mask} if pairs else {}
    return {"input_ids": ids, "attention_mask": mask} | types


@cache
def bert_graph() -> bytes:
    """The graph of `model("bert")` for pairs, made once: the exporter takes seconds."""
    with TemporaryDirectory() as folder:
        graph.to_onnx(network.view(model("bert")), Path(folder) / "model.onnx", True)
        assert [path.name for path in Path(folder).iterdir()] == ["model.onnx"]
        return (Path(folder) / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("architecture", "changes", "pairs"),
    [
        ("bert", {}, True),
        pytest.param("distilbert", {}, False, marks=pytest.mark.slow),
        pytest.param("mobilebert", NARROW, False, marks=pytest.mark.slow),
        pytest.param("mobilebert", NARROW | AS_IB_BERT, False, marks=pytest.mark.slow),
        pytest.param("ib_bert", NARROW, False, marks=pytest.mark.slow),
    ],
)
def test_a_graph_answers_as_its_model_and_so_nearly_does_its_quantised_one(tmp_path, architecture, changes, pairs):
    made = model(architecture, **changes)
    assert graph.to_onnx(network.view(made), tmp_path / "model.onnx", pairs) <= graph.TOLERANCE
    whole = graph.Graph(tmp_path / "model.onnx")
    assert whole.inputs == list(graph.INPUTS[: 2 + pairs])
    assert len(graph.SHAPES) >= 8 and len(set(graph.SHAPES)) == len(graph.SHAPES)
    int8.to_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.onnx", "model.onnx"]
    quantised = graph.Graph(tmp_path / "int8.onnx")
    for shape in ((1, 1), (2, 31), (7, 64)):  # others than those of the export's own check
        given = batch(*shape, pairs)
        with torch.inference_mode():
            expected = students.forward(made, given)
        torch.testing.assert_close(whole.logits(given), expected, rtol=1e-5, atol=1e-5)
        assert 0 < (quantised.logits(given) - expected).abs().max() < 0.1 * expected.abs().max() + 0.02


@pytest.mark.parametrize("way", [*int8.WAYS])
def test_each_way_to_quantise_has_the_weights_and_the_answers_it_says(tmp_path, way):
    made, how = model("bert"), int8.WAYS[way]
    (tmp_path / "model.onnx").write_bytes(bert_graph())
    texts = [{name: value.numpy() for name, value in batch(1, length, True).items()} for length in range(4, 40)]
    int8.to_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx", way, texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.onnx", "model.onnx"]
    found = onnx.load(tmp_path / "int8.onnx").graph
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in found.initializer}
    # the matrix of the first feed-forward network, (16, 24), and its scales
    name = next(one for one, value in weights.items() if value.dtype == np.int8 and value.shape == (16, 24))
    scale = weights[name.removesuffix("_quantized") + "_scale"]
    largest = np.abs(made.bert.encoder.layer[0].intermediate.dense.weight.detach().numpy()).max(-1)
    limit = 63 if how.seven_bits else 127
    assert scale.size == (24 if how.per_channel else 1)
    expected = largest if how.per_channel else largest.max()
    np.testing.assert_allclose(scale * limit, expected, rtol=0.02)
    types = {node.op_type for node in found.node}
    assert ("QuantizeLinear" in types) == how.static and ("DynamicQuantizeLinear" in types) != how.static
    given = batch(7, 30, True)
    with torch.inference_mode():
        logits = students.forward(made, given)
    assert (
        0 < (graph.Graph(tmp_path / "int8.onnx").logits(given) - logits).abs().max() < 0.1 * logits.abs().max() + 0.02
    )


def test_half_precision_is_near_and_half_as_large(tmp_path):
    made, given = model("bert", hidden=32, ffn=64), batch(3, 20)
    graph.to_onnx(network.view(made), tmp_path / "model.onnx", False)
    graph.to_fp16(tmp_path / "model.onnx", tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.7 * (tmp_path / "model.onnx").stat().st_size
    with torch.inference_mode():
        expected = students.forward(made, given)
    found = graph.Graph(tmp_path / "half.onnx").logits(given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.slow  # tracing every layer's branch takes the exporter half a minute
@pytest.mark.parametrize("embedding_branch", [False, True])
def test_a_fastbert_keeps_its_exits(tmp_path, embedding_branch):
    made = model("fastbert", layers=3, embedding_branch=embedding_branch)
    for branch in made.branches:  # so that rows differ, and leave at each
        for layer, factor in ((branch.narrow, 3), (branch.dense, 6), (branch.classifier, 10)):
            layer.weight.data.mul_(factor)
    assert graph.to_onnx(network.view(made), tmp_path / "model.onnx", False) <= 1e-4
    session = graph.Graph(tmp_path / "model.onnx").session
    left = set()
    for speed in (0.0, 0.05, 0.1, 0.2, 0.4, 1.0):
        given = batch(40, 9)
        arrays = {name: value.numpy() for name, value in given.items()} | {"speed": torch.tensor(speed).numpy()}
        logits, exit_layer = session.run(["logits", "exit_layer"], arrays)
        with torch.inference_mode():
            expected, layers = made.early_exit(given["input_ids"], given["attention_mask"], speed)
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-5, atol=1e-4)
        assert exit_layer.tolist() == layers.tolist()
        left |= set(layers.tolist())
    assert left == {*range(1 - embedding_branch, 4)}
    int8.to_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    found = onnx.load(tmp_path / "int8.onnx").graph
    inside = [part for part in graph.subgraphs(found) if part is not found]
    assert sum(node.op_type == "MatMulInteger" for part in inside for node in part.node) >= 3 * 6


def test_a_graph_that_answers_otherwise_is_refused(tmp_path, monkeypatch):
    """As if it had forgotten the mask: its structure is that of other tests, whose graph is kept."""
    bert = network.view(model("bert"))
    monkeypatch.setattr(bert, "at_speed", lambda batch, speed: bert.model(batch["input_ids"]).logits)
    with refused(Code.UNSUPPORTED_EXPORT, "differs from PyTorch by ", kind=UserError):
        graph.to_onnx(bert, tmp_path / "model.onnx", True)


def test_a_bilstm_is_refused(tmp_path):
    made = model("bilstm", embedding=8, multichannel=False, pairs=False)
    with refused(Code.UNSUPPORTED_EXPORT, "BiLSTM", kind=UserError):
        graph.to_onnx(network.view(made), tmp_path / "model.onnx", False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
@pytest.mark.parametrize("kind", [*KINDS, "mobilebert", "ib_bert", "fastbert"])
@pytest.mark.parametrize("graphs", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["torch", "onnx"])
def test_a_tokenizer_gives_what_its_model_takes(tmp_path, kind, pairs, graphs):
    """As people use an export: AutoTokenizer and plain onnxruntime, without kdbench."""
    teacher = write_encoder(tmp_path / "teacher", kind if kind in KINDS else "bert")
    config = read_json(teacher / "config.json")
    shape = shape_of(teacher) | (NARROW if kind in ("mobilebert", "ib_bert") else {}) | {"layers": 2, "pairs": pairs}
    shape |= {"config": config, "chosen_layers": [0, 1], "pad_token_id": config["pad_token_id"]}
    shape |= {} if kind in KINDS else {"architecture": kind, "embedding_branch": False}
    made = students.build(shape, ["a", "b", "c"], "sdpa", 0).eval()
    students.save(made, tmp_path, teacher, pairs)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = (["gold", "a big lead lake"], ["iron", "pear"])[: 1 + pairs]
    given = tokenizer(*texts, padding=True, return_tensors="pt")
    assert {*given} == {*tokenizer.model_input_names} == {*students.input_names(made, pairs)}
    with torch.inference_mode():
        expected = students.load(tmp_path)(**given).logits
    if graphs:
        graph.to_onnx(network.view(made), tmp_path / "model.onnx", "token_type_ids" in given)
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        arrays = {name: value.numpy() for name, value in given.items()}
        arrays |= {"speed": np.array(0, np.float32)} if kind == "fastbert" else {}
        torch.testing.assert_close(torch.from_numpy(session.run(["logits"], arrays)[0]), expected, rtol=1e-4, atol=1e-4)
