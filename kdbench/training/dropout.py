"""Draw dropout masks cheaply on the CPU.

torch draws its Bernoulli variables one by one, which took a quarter of a training step (scripts/bench/NOTES.md). Here
NumPy draws 64 random bits at a time. An element of 16 or 32 bits is kept if as many random bits, read as an integer,
reach a threshold.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kdbench.training.hardware import Hardware

_BITS = {2: (torch.int16, np.int16), 4: (torch.int32, np.int32)}  # by bytes of a number


def cheap(hardware: Hardware, p: float) -> AbstractContextManager[object]:
    """Return the context in which to train with dropout `p`; compiled layers and GPUs need none, they draw cheaply."""
    return CheapDropout() if p > 0 and hardware.device == "cpu" and not hardware.compile else nullcontext()


class CheapDropout(TorchFunctionMode):
    """Replaces every `F.dropout` in its block, and so `nn.Dropout`, by `dropout` below."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return (dropout if func is F.dropout else func)(*args, **(kwargs or {}))


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Return `x` with elements set to 0 with probability `p` and the others divided by 1 - p.

    In half precision the probability is exact to 2^-17. The mask is a function of torch's global generator. Takes
    floats of 16 and 32 bits. See Srivastava et al. 2014; the scale has the precision of `x`, as in F.dropout.
    """
    return x * keep(x, p) if training and p > 0 else x


def keep(x: Tensor, p: float) -> Tensor:
    """Return a tensor like `x` whose elements are 0 with probability `p`, else 1 / (1 - p)."""
    whole, array = _BITS[x.element_size()]
    bits = torch.iinfo(whole)
    seed = int(torch.randint(2**62, ()))
    drawn = np.random.SFC64(seed).random_raw(-(-x.numel() * x.element_size() // 8)).view(array)
    numbers = torch.from_numpy(drawn)[: x.numel()].view(x.shape)
    # In whole numbers, which torch vectorises as it does no comparison: 0 below the threshold and 1 from there on,
    # then times the bits of the scale.
    lowest = bits.min + round(p * 2**bits.bits)
    scale = torch.tensor(1 / (1 - p), dtype=x.dtype).view(whole)
    return numbers.clamp_(lowest - 1, lowest).sub_(lowest - 1).mul_(scale).view(x.dtype)
