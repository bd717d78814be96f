"""Dropout whose random numbers are cheap, for the CPU.

torch draws its Bernoulli variables one by one, which took a quarter of a training step (scripts/bench/NOTES.md). Here a
number is kept where random bits, as many as it has itself, reach a threshold; NumPy makes 64 of them at a time.
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
    """What a stage of dropout `p` is trained within: compiled layers and GPUs draw cheaply themselves."""
    return CheapDropout() if p > 0 and hardware.device == "cpu" and not hardware.compile else nullcontext()


class CheapDropout(TorchFunctionMode):
    """Within it every `F.dropout`, and so `nn.Dropout`, is the one below."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return (dropout if func is F.dropout else func)(*args, **(kwargs or {}))


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`x` with each number set to 0 with probability `p`, to 2^-17 in half precision, the others over 1 - p.

    What is dropped is a function of torch's global generator. Takes floats of 16 and 32 bits. Srivastava et al. 2014;
    the scale as in F.dropout: of the precision of `x`.
    """
    return x * keep(x, p) if training and p > 0 else x


def keep(x: Tensor, p: float) -> Tensor:
    """0 with probability `p`, else 1 / (1 - p), of the shape and precision of `x`."""
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
