"""The teacher's logits for a split, computed once and kept: `teacher/<key>.safetensors` in the cache."""

import hashlib
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.data.batches import Examples
from kdbench.stage import Predict


def cached_logits(examples: Examples, predict: Predict, weights: Path, compute: str, cache: Path) -> Tensor:
    """Logits (n, C) in float32, row i for example i, read by memory map where the cache has them.

    The key holds the teacher's weights file, the examples' tokens and ids, and `compute` (precision and
    attention kernel). A file that is damaged or has other ids is made anew.
    """
    digest = hashlib.sha256(f"1|{compute}|{examples.tokens.key}".encode())
    digest.update(examples.ids.tobytes())
    with weights.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    path = cache / "teacher" / f"{digest.hexdigest()[:16]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        logits = _read(path, examples)
        if logits is None:
            logits = compute_logits(examples, predict)
            staged = path.with_suffix(".part")
            save_file({"ids": torch.from_numpy(examples.ids), "logits": logits}, staged)
            staged.replace(path)
    return logits


def compute_logits(examples: Examples, predict: Predict, batch_size: int = 64) -> Tensor:
    """Logits (n, C) in float32 on the CPU, row i for example i."""
    result: Tensor | None = None
    with torch.inference_mode():
        for rows, batch in examples.in_length_order(batch_size):
            logits = predict(batch, 0).float().cpu()
            if result is None:
                result = torch.empty(len(examples), logits.shape[1])
            result[torch.from_numpy(rows)] = logits
    if result is None:
        raise ValueError("no examples")
    return result.clone()  # an ordinary tensor: one made in inference mode cannot be saved for backward


def _read(path: Path, examples: Examples) -> Tensor | None:
    try:
        stored = load_file(path)
    except (OSError, SafetensorError):
        return None
    if not torch.equal(stored["ids"], torch.from_numpy(examples.ids)) or not stored["logits"].isfinite().all():
        return None
    return stored["logits"]
