"""The teacher's outputs for a split, computed once and kept: `teacher/<key>.safetensors` in the cache."""

import hashlib
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.data.batches import Examples
from kdbench.stage import Predict


def cached_outputs(what: str, examples: Examples, predict: Predict, weights: Path, compute: str, cache: Path) -> Tensor:
    """Outputs (n, ...) in float32, row i for example i, read by memory map where the cache has them.

    `what` names them (`logits`, `cls`). The key holds it, the teacher's weights file, the examples' tokens and
    ids, and `compute` (precision and attention kernel). A file that is damaged or has other ids is made anew.
    """
    kind = "" if what == "logits" else f"|{what}"
    digest = hashlib.sha256(f"1|{compute}|{examples.tokens.key}{kind}".encode())
    digest.update(examples.ids.tobytes())
    with weights.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    path = cache / "teacher" / f"{digest.hexdigest()[:16]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        outputs = _read(path, what, examples)
        if outputs is None:
            outputs = compute_outputs(examples, predict)
            staged = path.with_suffix(".part")
            save_file({"ids": torch.from_numpy(examples.ids), what: outputs}, staged)
            staged.replace(path)
    return outputs


def compute_outputs(examples: Examples, predict: Predict, batch_size: int = 64) -> Tensor:
    """Outputs (n, ...) in float32 on the CPU, row i for example i."""
    result: Tensor | None = None
    with torch.inference_mode():
        for rows, batch in examples.in_length_order(batch_size):
            outputs = predict(batch, 0).float().cpu()
            if result is None:
                result = torch.empty(len(examples), *outputs.shape[1:])
            result[torch.from_numpy(rows)] = outputs
    if result is None:
        raise ValueError("no examples")
    return result.clone()  # an ordinary tensor: one made in inference mode cannot be saved for backward


def _read(path: Path, what: str, examples: Examples) -> Tensor | None:
    try:
        stored = load_file(path)
    except (OSError, SafetensorError):
        return None
    if not torch.equal(stored["ids"], torch.from_numpy(examples.ids)) or not stored[what].isfinite().all():
        return None
    return stored[what]
