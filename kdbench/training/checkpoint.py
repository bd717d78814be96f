"""Save and restore the state of a stage: safetensors for tensors, JSON for scalars, never pickle.

Each `checkpoint-<step>/` is a folder of `kdbench.storage.files`, so it is complete or not read. The last two are
kept: if the newest one is damaged, the stage resumes from the one before.

The weights with the best dev score are not in the checkpoints, because many checkpoints have the same ones. They are in
`best-<step>/`, a folder of the same kind, with the step of that score. It is complete before the first checkpoint that
names it, and is removed when no checkpoint names it. A checkpoint also names its SHA-256; without exactly this folder,
the checkpoint counts as damaged.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_type_hints

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from kdbench.storage import files as store

log = logging.getLogger("kdbench")
_STATE, _WEIGHTS = "state.json", "module.safetensors"


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
class Best:
    """The module's state at its best dev score, which was at `Progress.best_step`."""

    weights: dict[str, Tensor]
    sha256: str | None = None  # of the manifest of its folder; None: it is not saved yet


@dataclass
class State:
    """Everything of a stage that is not in its module and optimiser."""

    progress: Progress = field(default_factory=Progress)
    best: Best | None = None  # None: there is no dev score yet
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
    """Write `folder/checkpoint-<step>`, before it the best weights if they are new, and read both back.

    Then remove all other checkpoints but the last one before it, and the best weights that neither of the two names.
    """
    if state.best is not None and state.best.sha256 is None:
        state.best.sha256 = _save_best(folder / _best_name(state.progress), state.best.weights)
    target = folder / f"checkpoint-{state.progress.step}"
    with store.filling(target) as staged:
        save_file(state_of(module), staged / _WEIGHTS)
        save_file(_optimizer_tensors(optimizer), staged / "optimizer.safetensors")
        passes = [[one.names, one.values.tolist(), one.logged] for one in state.passes]
        named = None if state.best is None else state.best.sha256
        rest = {"progress": asdict(state.progress), "best": named, "lines": state.lines, "passes": passes}
        (staged / _STATE).write_text(json.dumps(rest, allow_nan=False), encoding="utf8")
    store.verify(target / store.MANIFEST)
    kept = [target, *[path for path in _all(folder) if _step(path) < state.progress.step][-1:]]
    for old in _all(folder):
        if old not in kept:
            store.remove(old)
    named_by_kept = {_named(path) for path in kept}
    for old in _bests(folder):
        if old.name not in named_by_kept:
            store.remove(old)
    return target


def _save_best(target: Path, weights: dict[str, Tensor]) -> str:
    """Write the best weights, read them back; return the SHA-256 of their manifest, which has that of the weights."""
    with store.filling(target) as staged:
        save_file(weights, staged / _WEIGHTS)
    store.verify(target / store.MANIFEST)
    return store.sha256_of(target / store.MANIFEST)


def restore(folder: Path, module: nn.Module, optimizer: Optimizer) -> State:
    """Load the last intact checkpoint into `module` and `optimizer`; return a fresh State if there is none.

    Raises Misfit if the checkpoint's content does not belong to this stage.
    """
    for path in reversed(_all(folder)):
        try:
            store.verify(path / store.MANIFEST)
            with store.fitting(path):
                return _load(path, module, optimizer)
        except store.Damaged as damage:
            log.warning("%s; %s is skipped", damage, path.name)
    return State()


def _load(path: Path, module: nn.Module, optimizer: Optimizer) -> State:
    """Load the checkpoint. Raises Damaged if its best weights are; then nothing was loaded."""
    rest = store.read_json(path / _STATE)
    progress = _typed(rest["progress"])
    if progress.step != _step(path):
        raise ValueError(f"{_STATE} is of step {progress.step}")
    passes = [Pass(names, torch.tensor(values), logged) for names, values, logged in rest["passes"]]
    if not all(isinstance(line, dict) for line in rest["lines"]) or any(len(p.names) != len(p.values) for p in passes):
        raise ValueError(f"{_STATE} has other lines or passes")
    named = rest["best"]
    if not isinstance(named, str if progress.best_step else NoneType):
        raise ValueError(f"{_STATE} names {named} as its best weights")
    best = None if named is None else _load_best(path.with_name(_best_name(progress)), named, module)
    module.load_state_dict(_read(path / _WEIGHTS))
    _load_optimizer(optimizer, _read(path / "optimizer.safetensors"))
    return State(progress, best, rest["lines"], passes)


def _read(path: Path) -> dict[str, Tensor]:
    """Read tensors into memory. On NFS, the folder of a file that is still mapped cannot be removed."""
    return {name: mapped.clone() for name, mapped in load_file(path).items()}


def _typed(given: dict[str, Any]) -> Progress:
    kinds = get_type_hints(Progress)
    wrong = [name for name in kinds.keys() | given.keys() if not isinstance(given.get(name, ...), kinds.get(name, ()))]
    if wrong:
        raise ValueError(f"{_STATE}: progress has a wrong {', '.join(sorted(wrong))}")
    return Progress(**given)


def _load_best(folder: Path, expected: str, module: nn.Module) -> Best:
    """Load the best weights. Raises Damaged if they are damaged, or others than those that the checkpoint names."""
    manifest = folder / store.MANIFEST
    store.verify(manifest)
    if (found := store.sha256_of(manifest)) != expected:
        raise store.Damaged(manifest, f"SHA-256 {expected}", found)
    weights = _read(folder / _WEIGHTS)
    if {name: one.shape for name, one in weights.items()} != {n: one.shape for n, one in module.state_dict().items()}:
        raise ValueError(f"{folder.name} has other tensors than the module")
    return Best(weights, expected)


def last(folder: Path) -> str:
    """Describe in a sentence where the last checkpoint of the stage in `folder` is."""
    found = _all(folder)
    return f"Its last checkpoint is {found[-1]}." if found else "It has no checkpoint yet."


def clear(folder: Path) -> None:
    """Remove the checkpoints of a finished stage, and the best weights."""
    for path in (*_all(folder), *_bests(folder)):
        store.remove(path)


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=_step)


def _bests(folder: Path) -> list[Path]:
    return list(folder.glob("best-*"))


def _best_name(progress: Progress) -> str:
    return f"best-{progress.best_step}"


def _named(path: Path) -> str | None:
    """Return the name of the folder with a checkpoint's best weights; None if it has none or cannot be read."""
    try:
        rest = store.read_json(path / _STATE)
        return None if rest["best"] is None else _best_name(_typed(rest["progress"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # damaged: it is skipped in any case
        return None


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
