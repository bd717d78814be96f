"""Encoders whose layers have lost heads and units, held against the same encoders with those parts switched off."""

from operator import attrgetter
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import kdbench
from kdbench.declared import PRUNED, pruned_forms
from kdbench.inference import int8
from kdbench.inference import onnx as graph
from kdbench.inference.measure import parameters
from kdbench.models import students
from kdbench.models.network import view
from kdbench.models.pruned import pruned
from kdbench.storage.files import read_json
from tests.encoders import write_encoder
from tests.models.test_encoders import LABELS, batch, loud

PRUNABLE = [form.removeprefix(PRUNED) for form in pruned_forms()]
each = pytest.mark.parametrize("kind", PRUNABLE)
HEADS = [[1], [0, 2, 3], [0], [1, 3]]  # of four
UNITS = [[0, 5, 31], [*range(32)], [3], [*range(1, 32, 2)]]


def whole(folder: Any, kind: str, attention: str = "sdpa", words: bool = False, layers: int = 4) -> Any:
    """A classifier of layers with four heads and 32 units each, all of whose parts matter."""
    heads = {"n_heads": 4} if kind == "distilbert" else {"num_attention_heads": 4}
    config = read_json(write_encoder(folder, kind, **heads) / "config.json")
    shape = {"architecture": kind, "layers": layers, "hidden": 16, "heads": 4, "ffn": 32, "config": config}
    shape |= {key: config[key] for key in ("vocab_size", "pad_token_id")}
    shape |= {"max_positions": config["max_position_embeddings"], "chosen_layers": [*range(layers)]}
    task = "token_classification" if words else "classification"
    return loud(students.build(shape, LABELS, attention, 1, task)).eval()


def switched_off(model: Any, heads: list[list[int]], units: list[list[int]]) -> None:
    """Set to zero what reads the outputs of all other heads and units."""
    mixing, read = {
        "distilbert": ("attention.out_lin", "ffn.lin2"),
        "mpnet": ("attention.attn.o", "output.dense"),
    }.get(model.config.model_type, ("attention.output.dense", "output.dense"))
    stack = model.base_model.transformer if model.config.model_type == "distilbert" else model.base_model.encoder
    with torch.no_grad():
        for layer, kept_heads, kept_units in zip(stack.layer, heads, units, strict=True):
            for head in {*range(4)} - {*kept_heads}:
                attrgetter(mixing)(layer).weight[:, 4 * head : 4 * head + 4] = 0
            for unit in {*range(32)} - {*kept_units}:
                attrgetter(read)(layer).weight[:, unit] = 0


def answers(model: Any, inputs: Any) -> tuple[Any, Any]:
    """By the model's own forward, and by the shortest way."""
    with torch.inference_mode():
        return students.forward(model, inputs), students.logits(model, inputs)


@each
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_pruned_model_answers_as_the_whole_one_with_the_parts_switched_off(tmp_path, kind, attention):
    model = whole(tmp_path, kind, attention)
    inputs, before = batch(model.config.pad_token_id), {k: v.clone() for k, v in model.state_dict().items()}
    smaller = pruned(model, HEADS, UNITS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    untouched = answers(model.double(), inputs)[0]
    switched_off(model, HEADS, UNITS)
    expected, _ = answers(model, inputs)
    for own in answers(smaller.double(), inputs):
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)
    assert (expected - untouched).abs().max() > 0.01  # the parts mattered


@each
def test_what_adds_nothing_can_be_removed(tmp_path, kind):
    model = whole(tmp_path, kind).double()
    switched_off(model, HEADS, UNITS)
    inputs = batch(model.config.pad_token_id)
    expected = answers(model, inputs)[0]
    for own in answers(pruned(model, HEADS, UNITS).double(), inputs):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)  # its weights were rounded to float32


@each
def test_a_pruned_model_can_be_pruned_again_and_remembers_its_heads(tmp_path, kind):
    model = whole(tmp_path, kind)
    once = pruned(model, HEADS, UNITS)
    assert view(model).kept_heads == [[0, 1, 2, 3]] * 4 and view(model).kept_units == [32] * 4
    assert view(once).kept_heads == HEADS and view(once).kept_units == [3, 32, 1, 16]
    twice = pruned(once, [[0], [0, 2], [0], [1]], [[1], [*range(32)], [0], [2, 4]])
    heads, units = [[1], [0, 3], [0], [3]], [[5], [*range(32)], [3], [5, 9]]
    assert view(twice).kept_heads == heads and view(twice).kept_units == [1, 32, 1, 2]
    assert type(twice) is type(once) and twice.config.model_type == f"kdbench_pruned_{kind}"
    inputs = batch(model.config.pad_token_id)
    switched_off(model.double(), heads, units)
    for own in answers(twice.double(), inputs):
        torch.testing.assert_close(own, answers(model, inputs)[0], rtol=1e-6, atol=1e-6)


@each
def test_its_weights_are_smaller_and_are_counted(tmp_path, kind):
    model = whole(tmp_path, kind, "eager")
    smaller = pruned(model, HEADS, UNITS)
    removed = (3 + 1 + 3 + 2) * (4 * 16 * 4 + 3 * 4) + (29 + 0 + 31 + 16) * (2 * 16 + 1)
    assert parameters(smaller)["total"] == parameters(model)["total"] - removed
    layers = view(smaller).layers
    shapes = [tuple(attrgetter(name)(layers[0]).weight.shape) for name in view(smaller).projections]
    assert shapes == [(4, 16)] * 3
    made, read = (attrgetter(name)(layers[3]) for name in view(smaller).feed_forward)
    assert made.weight.shape == (16, 16) and read.weight.shape == (16, 16) and made.out_features == 16
    ids = torch.full((1, 9), 6)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        smaller(input_ids=ids, attention_mask=torch.ones_like(ids))
    shape = {"layers": 4, "hidden": 16, "heads": 4, "ffn": 32, "config": smaller.config.to_dict()}
    shape |= {key: smaller.config.to_dict()[key] for key in ("vocab_size", "pad_token_id")}
    shape |= {"max_positions": smaller.config.max_position_embeddings, "chosen_layers": [0, 1, 2, 3]}
    assert students.flops(shape | view(smaller).found_shape, 9, 3) == counter.get_total_flops()


@each
def test_a_folder_is_loaded_with_the_same_answers(tmp_path, kind):
    from transformers import AutoModelForSequenceClassification

    model = whole(tmp_path / "teacher", kind)
    smaller, inputs = pruned(model, HEADS, UNITS), batch(model.config.pad_token_id)
    students.save(smaller, tmp_path / "model", tmp_path / "teacher", pairs=False)
    said = read_json(tmp_path / "model" / "config.json")
    assert said["model_type"] == f"kdbench_pruned_{kind}" and said["kept_heads"] == HEADS
    assert said["architectures"][0].startswith("Pruned") and said["kept_units"] == [3, 32, 1, 16]
    expected = answers(smaller, inputs)[0]
    for load in (kdbench.load, AutoModelForSequenceClassification.from_pretrained):
        again = load(tmp_path / "model").eval()
        torch.testing.assert_close(answers(again, inputs)[0], expected, rtol=1e-6, atol=1e-6)
        assert again.config.id2label == model.config.id2label


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_words_are_labelled_by_a_pruned_model(tmp_path, kind):
    model = whole(tmp_path / "teacher", kind, words=True)
    smaller, inputs = pruned(model, HEADS, UNITS), batch(model.config.pad_token_id)
    students.save(smaller, tmp_path / "model", tmp_path / "teacher", pairs=False)
    switched_off(model.double(), HEADS, UNITS)
    expected, real = answers(model, inputs)[0], inputs["attention_mask"].bool()
    assert expected.shape == (4, 11, 3)
    for own in (*answers(smaller.double(), inputs), answers(kdbench.load(tmp_path / "model").double(), inputs)[0]):
        torch.testing.assert_close(own[real], expected[real], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", *(pytest.param(one, marks=pytest.mark.slow) for one in PRUNABLE[1:])])
def test_a_graph_answers_as_its_model(tmp_path, kind):
    few = whole(tmp_path / "teacher", kind, layers=2)  # the exporter's time is that of its layers
    smaller = pruned(few, HEADS[:2], [UNITS[0], UNITS[2]])
    assert graph.to_onnx(view(smaller), tmp_path / "model.onnx", kind == "bert") <= graph.TOLERANCE
    int8.to_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    inputs = batch(smaller.config.pad_token_id) | (
        {"token_type_ids": torch.zeros(4, 11).long()} if kind == "bert" else {}
    )
    del inputs["labels"]
    expected = answers(smaller, inputs)[0]
    whole_graph, quantised = graph.Graph(tmp_path / "model.onnx"), graph.Graph(tmp_path / "int8.onnx")
    torch.testing.assert_close(whole_graph.logits(inputs), expected, rtol=1e-5, atol=1e-5)
    assert 0 < (quantised.logits(inputs) - expected).abs().max() < 0.2 * expected.abs().max()
