"""Compute the teacher's outputs for a split once, and keep them in the cache: `teacher/<key>/outputs.safetensors`."""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.data.batches import Examples
from kdbench.errors import Code, UserError
from kdbench.losses import IGNORED
from kdbench.stage import Predict
from kdbench.storage.cache import cached
from kdbench.storage.files import fitting, sha256_of


def cached_outputs(what: str, examples: Examples, predict: Predict, weights: Path, compute: str, cache: Path) -> Tensor:
    """Return the result of `compute_outputs`, by memory map from the cache if it is there.

    `what` names the outputs (`logits`, `cls`). The cache key covers `what`, the teacher's weights, the tokens and ids
    of the examples, and `compute` (precision and attention kernel). A damaged entry is computed again. Raises UserError
    if an output is not finite.
    """
    kind = "" if what == "logits" else f"|{what}"
    digest = hashlib.sha256(f"1|{compute}|{examples.tokens.key}{kind}".encode())
    digest.update(np.ascontiguousarray(examples.ids).data)
    digest.update(bytes.fromhex(sha256_of(weights)))

    def fill(staged: Path) -> None:
        outputs = compute_outputs(examples, predict)
        if not outputs.isfinite().all():
            raise UserError(
                Code.UNSUITABLE_TEACHER, f"the teacher's {what} are not finite: {weights.parent} cannot teach"
            )
        save_file({"ids": torch.from_numpy(examples.ids), what: outputs}, staged / "outputs.safetensors")

    folder = cached(cache / "teacher" / digest.hexdigest()[:16], fill)
    with fitting(folder):
        return load_file(folder / "outputs.safetensors")[what]


def averaged(logits: list[Tensor], average: str) -> Tensor:
    """Return the mean of the members' `logits`, each (n, C); or logits of the mean of their `probabilities`."""
    if average == "logits":
        return torch.stack(logits).mean(0)
    return torch.stack([one.double().log_softmax(-1) for one in logits]).logsumexp(0).sub(math.log(len(logits))).float()


def compute_outputs(examples: Examples, predict: Predict, batch_size: int = 64) -> Tensor:
    """Return outputs (n, ...) in float32 on the CPU, a row for each example or for each labelled word that is read.

    `predict` returns (B, ...) or, if words have labels, (B, T, ...). Raises ValueError if there are no examples.
    """
    result: Tensor | None = None  # made outside inference mode: one from there cannot be saved for backward
    for rows, batch in examples.in_length_order(batch_size):
        with torch.inference_mode():
            outputs = predict(batch, 0).float().cpu()
        if examples.tokens.words is not None:
            outputs = outputs[batch["labels"] != IGNORED]
        if result is None:
            result = torch.empty(examples.outputs, *outputs.shape[1:])
        result[torch.from_numpy(examples.rows(rows))] = outputs
    if result is None:
        raise ValueError("no examples")
    return result
