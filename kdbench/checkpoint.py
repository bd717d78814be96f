"""A stage's resumable state on disk: safetensors for tensors, JSON for scalars, never pickle.

`checkpoint-<step>/` is written under another name and renamed when whole: one that exists is complete.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from kdbench.results import read_json, write_json


@dataclass
class Progress:
    """Where a stage stands; all that is not a tensor."""

    step: int = 0  # optimiser steps taken
    seconds: float = 0.0
    best_score: float | None = None  # of the first `predict` on dev
    best_step: int = 0
    stale_epochs: int = 0  # epochs since then


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state on the CPU, shared tensors separated (safetensors refuses them)."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def save(
    folder: Path, module: nn.Module, optimizer: Optimizer, best: dict[str, Tensor] | None, progress: Progress
) -> None:
    """Write `folder/checkpoint-<step>` and remove older ones."""
    target = folder / f"checkpoint-{progress.step}"
    staged = folder / f".{target.name}.part"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    save_file(state_of(module), staged / "module.safetensors")
    save_file(_optimizer_tensors(optimizer), staged / "optimizer.safetensors")
    if best is not None:
        save_file(best, staged / "best.safetensors")
    write_json(staged / "progress.json", asdict(progress))
    shutil.rmtree(target, ignore_errors=True)
    staged.rename(target)
    for old in _all(folder):
        if old != target:
            shutil.rmtree(old)


def restore(folder: Path, module: nn.Module, optimizer: Optimizer) -> tuple[Progress, dict[str, Tensor] | None]:
    """Load the latest checkpoint into `module` and `optimizer`; a fresh Progress where there is none."""
    found = _all(folder)
    if not found:
        return Progress(), None
    latest = found[-1]
    module.load_state_dict(load_file(latest / "module.safetensors"))
    _load_optimizer(optimizer, load_file(latest / "optimizer.safetensors"))
    best = latest / "best.safetensors"
    return Progress(**read_json(latest / "progress.json")), load_file(best) if best.is_file() else None


def clear(folder: Path) -> None:
    """Remove the checkpoints of a finished stage."""
    for path in _all(folder):
        shutil.rmtree(path)


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and step counts, named <parameter>.<quantity> in the optimiser's own order."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": tensor.detach().to("cpu", copy=True)
        for index, quantities in state.items()
        for key, tensor in quantities.items()
    }


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    saved = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
