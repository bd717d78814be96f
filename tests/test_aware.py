"""Quantisation-aware training: what it rounds, its gradient, and what it is good for."""

import numpy as np
import onnx
import pytest
import torch

from kdbench.inference import int8
from kdbench.inference import onnx as graph
from kdbench.models import students
from kdbench.models.network import view
from kdbench.shipping.aware import fake_quantise, rounded_inputs, rounded_weights, train_aware
from tests.models.test_graph import batch, bert_graph, model


def test_numbers_are_rounded_as_onnxruntime_does():
    weights = torch.tensor([[0.5, -0.64, 0.004], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.5, -0.64, 0.0], [0.0, 0.0, 0.0]])  # in steps of 0.64 / 64
    torch.testing.assert_close(rounded_weights(weights), expected)
    inputs = torch.tensor([[-1.0, 0.0, 0.103], [1.55, 0.5, 0.01]], requires_grad=True)  # in steps of 2.55 / 255
    found = rounded_inputs(inputs)
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0.0, 0.10], [1.55, 0.5, 0.01]]))
    (found * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert inputs.grad.tolist() == [[1, 2, 3], [1, 2, 3]]  # straight through


def test_a_model_that_rounds_answers_as_its_int8_graph(tmp_path):
    made, given = model("bert"), batch(1, 12, True)
    (tmp_path / "model.onnx").write_bytes(bert_graph())
    int8.to_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx", int8.AWARE)
    with torch.no_grad():
        exact = students.forward(made, given)
        fake_quantise(made)
        rounded = students.forward(made, given)
    found = graph.Graph(tmp_path / "int8.onnx").logits(given)
    assert (found - rounded).abs().max() < 0.5 * (found - exact).abs().max()


def rough(seed: int):
    """A model that loses much in 8 bits: each matrix has a few large weights, so the steps of the others are wide."""
    made = model("bert", hidden=32, ffn=64)
    draw = torch.Generator().manual_seed(seed)
    for module in made.modules():
        if isinstance(module, torch.nn.Linear):
            at = torch.randint(0, module.in_features, (module.out_features,), generator=draw)
            module.weight.data[torch.arange(module.out_features), at] = 1.0
    return made


def error(made, exact, folder) -> float:
    """Return the mean squared error of the logits of the model's int8 graph, on batches that training did not see."""
    graph.to_onnx(view(made), folder / "model.onnx", False)
    int8.to_int8(folder / "model.onnx", folder / "int8.onnx", int8.AWARE)
    quantised = graph.Graph(folder / "int8.onnx")
    with torch.no_grad():
        differences = [
            quantised.logits(one) - students.forward(exact, one) for one in (batch(8, n) for n in (9, 17, 31))
        ]
    return float(torch.cat(differences).square().mean())


def test_training_makes_up_for_the_rounding(tmp_path):
    made, exact = rough(0), rough(0)
    before = error(rough(0), exact, tmp_path)
    trained = train_aware(made, (batch(16, 5 + step % 30) for step in range(60)), 60, 3e-4)
    assert error(trained, exact, tmp_path) < 0.5 * before
    for module in trained.modules():  # nothing of the training is left, and 7 bits hold the weights
        if isinstance(module, torch.nn.Linear):
            assert type(module) is torch.nn.Linear and not module._forward_pre_hooks
            torch.testing.assert_close(rounded_weights(module.weight), module.weight)
    found = onnx.load(tmp_path / "int8.onnx").graph.initializer
    assert sum(onnx.numpy_helper.to_array(one).dtype == np.int8 for one in found) >= 12


@pytest.mark.parametrize("lr", [1e30])
def test_a_loss_that_is_not_finite_is_refused(lr):
    from kdbench.errors import Code, UserError
    from tests.refusals import refused

    with refused(Code.LOSS_NOT_FINITE, "--qat", kind=UserError):
        train_aware(model("bert"), (batch(4, 9) for _ in range(9)), 9, lr)
