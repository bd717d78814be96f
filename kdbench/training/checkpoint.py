"""Save and restore the state of a stage: safetensors for tensors, JSON for scalars, never pickle.

Each `checkpoint-<step>/` is a folder of `kdbench.storage.files`, so it is complete or not read. The last two are
kept: if the newest one is damaged, the stage resumes from the one before.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from kdbench.storage import files as store

log = logging.getLogger("kdbench")


@dataclass
class Progress:
    """How far a stage is: everything that is not a tensor."""

    step: int = 0  # optimiser steps taken
    seconds: float = 0.0
    best_score: float | None = None  # of the first `predict` on dev
    best_step: int = 0
    stale_epochs: int = 0  # epochs since then


class Pass(NamedTuple):
    """The losses of one forward pass, before they are read from the device."""

    names: list[str]  # of the loss terms
    values: Tensor
    logged: dict[str, float]  # other numbers


@dataclass
class State:
    """Everything of a stage that is not in its module and optimiser."""

    progress: Progress = field(default_factory=Progress)
    best: dict[str, Tensor] | None = None  # the module's state at its best dev score
    lines: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl
    passes: list[Pass] = field(default_factory=list)  # not yet in a line


def first_bad(passes: list[Pass]) -> tuple[int, dict[str, float]] | None:
    """Find the first pass with a loss that is not finite; return the number of passes after it, and its terms."""
    for index, (names, values, _) in enumerate(passes):
        if not values.isfinite().all():
            return len(passes) - 1 - index, dict(zip(names, values.tolist(), strict=True))
    return None


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copy the module's state to the CPU; shared tensors are copied separately, because safetensors refuses them."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def save(folder: Path, module: nn.Module, optimizer: Optimizer, state: State) -> Path:
    """Write `folder/checkpoint-<step>`, read it back, then remove all other checkpoints but the last one before it."""
    target = folder / f"checkpoint-{state.progress.step}"
    with store.filling(target) as staged:
        save_file(state_of(module), staged / "module.safetensors")
        save_file(_optimizer_tensors(optimizer), staged / "optimizer.safetensors")
        if state.best is not None:
            save_file(state.best, staged / "best.safetensors")
        passes = [[one.names, one.values.tolist(), one.logged] for one in state.passes]
        rest = {"progress": asdict(state.progress), "lines": state.lines, "passes": passes}
        (staged / "state.json").write_text(json.dumps(rest, allow_nan=False), encoding="utf8")
    store.verify(target / store.MANIFEST)
    before = [path for path in _all(folder) if _step(path) < state.progress.step]
    for old in _all(folder):
        if old not in (target, *before[-1:]):
            store.remove(old)
    return target


def restore(folder: Path, module: nn.Module, optimizer: Optimizer) -> State:
    """Load the last intact checkpoint into `module` and `optimizer`; return a fresh State if there is none.

    Raises Misfit if the checkpoint's content does not belong to this stage.
    """
    for path in reversed(_all(folder)):
        try:
            store.verify(path / store.MANIFEST)
        except store.Damaged as damage:
            log.warning("%s; %s is skipped", damage, path.name)
            continue
        with store.fitting(path):
            return _load(path, module, optimizer)
    return State()


def _load(path: Path, module: nn.Module, optimizer: Optimizer) -> State:
    module.load_state_dict(load_file(path / "module.safetensors"))
    _load_optimizer(optimizer, load_file(path / "optimizer.safetensors"))
    rest = store.read_json(path / "state.json")
    progress = _typed(rest["progress"])
    if progress.step != _step(path):
        raise ValueError(f"state.json is of step {progress.step}")
    passes = [Pass(names, torch.tensor(values), logged) for names, values, logged in rest["passes"]]
    if not all(isinstance(line, dict) for line in rest["lines"]) or any(len(p.names) != len(p.values) for p in passes):
        raise ValueError("state.json has other lines or passes")
    best = path / "best.safetensors"
    return State(progress, _best(best, module) if best.is_file() else None, rest["lines"], passes)


def _typed(given: dict[str, Any]) -> Progress:
    kinds = get_type_hints(Progress)
    wrong = [name for name in kinds.keys() | given.keys() if not isinstance(given.get(name, ...), kinds.get(name, ()))]
    if wrong:
        raise ValueError(f"state.json: progress has a wrong {', '.join(sorted(wrong))}")
    return Progress(**given)


def _best(path: Path, module: nn.Module) -> dict[str, Tensor]:
    best, shapes = load_file(path), {name: value.shape for name, value in module.state_dict().items()}
    if {name: value.shape for name, value in best.items()} != shapes:
        raise ValueError(f"{path.name} has other tensors than the module")
    return best


def last(folder: Path) -> str:
    """Describe in a sentence where the last checkpoint of the stage in `folder` is."""
    found = _all(folder)
    return f"Its last checkpoint is {found[-1]}." if found else "It has no checkpoint yet."


def clear(folder: Path) -> None:
    """Remove the checkpoints of a finished stage."""
    for path in _all(folder):
        store.remove(path)


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return AdamW's moments and step counts, named <parameter>.<quantity>, in the optimiser's own order."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": tensor.detach().to("cpu", copy=True)
        for index, quantities in state.items()
        for key, tensor in quantities.items()
    }


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        if tensor.dim() and tensor.shape != parameters[int(index)].shape:
            raise ValueError(f"optimizer.safetensors: {name} has another shape than its parameter")
        state.setdefault(int(index), {})[key] = tensor
    saved = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
