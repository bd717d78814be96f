"""Estimate the memory and the disk that a stage needs, before it is trained; refuse a disk that is too small.

P is the number of the module's parameters, T that of the trained ones (on a CPU without the word embeddings that do
not occur in the texts). All are float32:

- disk: a checkpoint has the module (4 P bytes) and the optimiser's two moments (8 T). Two are kept, and a third one is
  complete before the older one goes. The weights with the best dev score (4 P) are beside them, once for all
  checkpoints that name them. At worst each checkpoint names others. Then come the stage's weights (4 P), and the model,
  which is a part of them.
- memory: what the process has now, the moments (8 T), the best weights (4 P); either gradients (4 T) and activations,
  or the copy of the moments that a checkpoint is written from (8 T); and the weights once more (4 P), for the gaps
  between what is in use (our assumption: it fits the measured peaks). If the process has more than this sum, the loop
  gives back what is freed.
- activations: a linear layer keeps its input and makes an output, for each token of a pass. Everything else between two
  linear layers (norms, GELU, dropout) is of their width, and is counted with them. Attention adds layers x heads x
  length^2 weights for each text, before and after dropout. An element has 4 bytes. With bf16 it has 3, because half of
  them stay in float32 (our assumption: it fits the measured peaks), and there is a copy of the weights (2 P).

docs/results.md compares the memory with measured peaks.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor, nn

from kdbench.errors import Code, SettingError
from kdbench.storage.files import sized
from kdbench.training.hardware import used_memory

log = logging.getLogger("kdbench")
FLOAT = 4  # bytes


class Room(NamedTuple):
    """Where a stage is trained, and the size of one pass over the model."""

    outputs: str
    texts: int
    length: int  # tokens of the longest text
    heads: int = 0  # of all layers
    autocast: bool = False


class Needs(NamedTuple):
    """Bytes."""

    memory: int  # beyond what the process has before the stage
    checkpoint: int
    disk: int  # at the worst moment


def needs(
    module: nn.Module,
    trained: Sequence[Tensor],
    room: Room,
    checkpoints: int,
    scores: int,
    through: nn.Module | None = None,
) -> Needs:
    """Return what training needs.

    At most `checkpoints` are written, of which three are there at the same time, and as many best weights. There are
    at most as many of these as dev `scores`. Gradients also pass `through` a frozen module.
    """
    weights: int = sum(value.numel() for value in module.state_dict().values()) * FLOAT
    gradients = sum(one.numel() for one in trained) * FLOAT
    checkpoint = weights + 2 * gradients
    copy = max(weights, 2 * gradients)
    kept = sum(activations(one, room) for one in (module, through) if one is not None)
    training = gradients + kept + (weights // 2 if room.autocast else 0)

    def saved(count: int) -> int:
        return min(checkpoints, count) * checkpoint + min(checkpoints, count, scores) * weights

    most = max(saved(3), saved(2) + weights, 2 * weights)
    return Needs(2 * gradients + 2 * weights + max(training, copy), checkpoint, most)


def activations(module: nn.Module, room: Room) -> int:
    """Return the bytes of the activations of one pass, at most."""
    linear = [one for one in module.modules() if isinstance(one, nn.Linear)]
    widths = sum(one.in_features + one.out_features for one in linear)
    element = 3 if room.autocast else FLOAT
    return room.texts * room.length * (widths + 2 * room.heads * room.length) * element


def require(stage: str, need: Needs, room: Room, folder: Path, accelerator: Accelerator) -> int:
    """Log what the stage needs; return the bytes of memory. Raises SettingError if the disk is too small."""
    memory = used_memory(accelerator.device) + need.memory
    log.info(
        "stage %s: needs about %s of %smemory, and at most %s of disk",
        stage, sized(memory), "GPU " * (accelerator.device.type == "cuda"), sized(need.disk),
    )  # fmt: skip
    saved = [*folder.glob("checkpoint-*/*"), *folder.glob("best-*/*")]
    there = sum(path.stat().st_size for path in saved)  # of an interrupted run: counted already
    free = shutil.disk_usage(next(one for one in (folder, *folder.absolute().parents) if one.is_dir())).free
    if free + there < need.disk:
        raise SettingError(
            Code.DISK_FULL,
            "outputs",
            room.outputs,
            f"stage {stage} needs {sized(need.disk - there)} of disk for checkpoints of {sized(need.checkpoint)}, its"
            f" best weights and its model, but {sized(free)} are free. Make room (kdbench-clean {room.outputs} lists"
            " what finished runs can do without), or set outputs=<a folder on a larger disk>.",
        )
    return memory
