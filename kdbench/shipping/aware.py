"""Quantisation-aware training: one more epoch in which the model computes with 7-bit weights and 8-bit activations.

It learns the logits that the finished model gives to the run's train texts, so it needs neither labels nor a teacher.
Rounding has no gradient, so the backward pass leaves it out (straight-through: Bengio et al. 2013, arXiv 1308.3432).
Only the int8 graph is made from these weights. Scales are those of onnxruntime's dynamic quantisation per channel.

Tried and dropped: 8-bit weights, whose products overflow on processors with AVX2 but without VNNI, so that training
could not foresee the graph's error. Training the embeddings, too: they are quantised before the epoch, and stay.
"""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdbench.errors import Code, UserError
from kdbench.inference.finished_run import FinishedRun
from kdbench.models import students
from kdbench.stage import Batch
from kdbench.storage.seeds import derive

log = logging.getLogger("kdbench")
SHARE_OF_LR = 0.1  # of the run's last stage [ours: a first value, because the weights have to move little]


def quantisation_aware(run: FinishedRun) -> Any:
    """Return the run's model after the epoch, with weights that 7 bits hold exactly.

    Raises UserError if the loss is not finite.
    """
    stage = [*run.result["identity"]["parameters"]["stages"].values()][-1]
    size, lr = stage["batch_size"] * stage["accumulation"], SHARE_OF_LR * stage["lr"]
    model, examples = students.load(run.model), run.examples(run.data.train)
    order = np.random.default_rng(derive(run.result["seed"], "qat")).permutation(len(examples))
    steps = -(-len(order) // size)
    log.info("qat: %d steps on %d train texts, learning rate %g", steps, len(order), lr)
    batches = (examples.batch(order[at : at + size]) for at in range(0, len(order), size))
    return train_aware(model, batches, steps, lr)


def train_aware(model: Any, batches: Iterator[Batch], steps: int, lr: float) -> Any:
    """Train `model` on its own logits of before, and return it. The learning rate falls linearly to 0.

    Raises UserError if the loss is not finite.
    """
    reference = copy.deepcopy(model).eval()
    model.eval()  # without dropout
    handles = fake_quantise(model)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr, weight_decay=0.0)
    losses = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        with torch.no_grad():
            expected = students.forward(reference, batch)
        difference = students.forward(model, batch) - expected
        if difference.dim() == 3:  # words: padding does not count
            difference = difference[batch["attention_mask"].bool()]
        loss = difference.square().mean()
        if not loss.isfinite():
            raise UserError(Code.LOSS_NOT_FINITE, f"--qat: the loss is {loss.item()} in step {step + 1}: leave it out")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    tenth = max(1, len(losses) // 10)
    log.info("qat: squared error of a logit %.2e, at the end %.2e", np.mean(losses[:tenth]), np.mean(losses[-tenth:]))
    for handle in handles:
        handle.remove()
    for module in [*model.modules()]:
        if isinstance(module, nn.Linear):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model.requires_grad_(True)


def fake_quantise(model: nn.Module) -> list[Any]:
    """Let every linear layer compute with rounded weights and inputs. Round the embeddings once, and freeze them.

    Return the handles of the hooks that round the inputs.
    """
    handles = []
    for module in [*model.modules()]:  # a list, because each gets a module of its own
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", Rounded())
            handles.append(module.register_forward_pre_hook(lambda _, given: (rounded_inputs(given[0]), *given[1:])))
        elif isinstance(module, nn.Embedding):
            module.weight.requires_grad_(False)
            module.weight.copy_(rounded_inputs(module.weight))
    return handles


class Rounded(nn.Module):
    """A matrix (out, in) as 7 bits hold it, for `parametrize`."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (rounded_weights(weight) - weight).detach()


def rounded_weights(weight: Tensor) -> Tensor:
    """Return weights (rows, n) as multiples of their row's largest / 64."""
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 64
    return (weight / scale).round() * scale


def rounded_inputs(inputs: Tensor) -> Tensor:
    """Return a tensor in the 256 steps between its least and largest value (and 0), with the gradient of `inputs`."""
    with torch.no_grad():
        low, high = inputs.amin().clamp_max(0), inputs.amax().clamp_min(0)
        scale = ((high - low) / 255).clamp_min(1e-12)
        zero = (-low / scale).round()
        near = ((inputs / scale).round() + zero).clamp(0, 255)
        change = (near - zero) * scale - inputs
    return inputs + change
