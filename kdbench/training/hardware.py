"""Settle device, precision, attention kernel and threads: replace `auto` by what the machine has."""

import ctypes
import platform
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from kdbench.errors import Code, UserError
from kdbench.schema import HardwareConfig

_THREADS = torch.get_num_threads()  # torch's own choice: cores, or OMP_NUM_THREADS
_WAIT = timedelta(days=7)  # of one process for another: the first may wait for a teacher that another job trains
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt(3)


@dataclass(frozen=True)
class Hardware:
    device: str  # cpu | cuda | mps
    precision: str  # fp32 | bf16: of training and of the teacher's passes; final figures are fp32
    attention: str  # eager | sdpa
    threads: int
    compile: bool = False


def settle(config: HardwareConfig) -> Hardware:
    """Return the hardware settings of a run, with `auto` resolved; set torch's thread count and the allocator.

    Raises UserError if the machine does not have the device.
    """
    device = config.device if config.device != "auto" else _devices()[0]
    if device not in _devices():
        raise UserError(
            Code.MISSING_DEVICE, f"hardware.device={device}: this machine has {', '.join(_devices())} (or set auto)"
        )
    precision = config.precision if config.precision != "auto" else _best_precision(device)
    # On the CPU the fused kernel's backward costs more than all matrix products of a step (measured, at
    # head width 32: 190 against 130 ms a step); on a GPU it is the faster one.
    attention = config.attention if config.attention != "auto" else ("eager" if device == "cpu" else "sdpa")
    torch.set_num_threads(config.threads or _THREADS)
    _keep_freed_memory()
    return Hardware(device, precision, attention, torch.get_num_threads(), config.compile)


def _keep_freed_memory() -> None:
    """Make glibc reuse freed memory instead of returning it to the kernel.

    A training step frees and allocates the same tensors again. The kernel clears pages before it hands them out,
    which took a sixth of a step (scripts/bench/NOTES.md).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 64 << 20)


def give_back() -> None:
    """Return freed memory to the kernel, before something beside the steps of training needs memory."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def give_back_above(most: int) -> None:
    """`give_back` if the process has more than `most` bytes.

    On a CPU with bf16, oneDNN keeps up to 1,024 compiled products, 0.6 MB each (measured): one for each shape, made
    during the passes. They lie among the activations, and leave gaps where these were freed. So the process grows with
    each new length of a batch, the more so where each layer has widths of its own (method=prune).
    """
    if psutil.Process().memory_info().rss > most:
        give_back()


def used_memory(device: torch.device) -> int:
    """Return the bytes that this process uses, on its GPU if it has one. On Linux, it gives back freed memory first."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    give_back()
    return int(psutil.Process().memory_info().rss)


def accelerator(hardware: Hardware) -> Accelerator:
    """Return the process's Accelerator: device, mixed precision, processes."""
    mixed = "no" if hardware.precision == "fp32" else hardware.precision
    AcceleratorState._reset_state()  # it is global and refuses another precision: a sweep may have both
    patient = InitProcessGroupKwargs(timeout=_WAIT)
    return Accelerator(cpu=hardware.device == "cpu", mixed_precision=mixed, kwargs_handlers=[patient])


def _devices() -> list[str]:
    """List the machine's devices, the fastest first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [device for device, available in there.items() if available]


def _best_precision(device: str) -> str:
    """Return bf16 if the chip multiplies in it faster than in fp32.

    On a CPU (scripts/bench/NOTES.md): 20 times as fast with AMX, twice with AMD's AVX512-BF16, but half as fast with
    Intel's, which a virtual machine may show without AMX.
    """
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device == "cpu":
        chip = torch.cpu.get_capabilities()
        dot_products = chip.get("avx512_bf16") and not str(chip.get("cpu_name")).startswith("Intel")
        return "bf16" if chip.get("amx_bf16") or dot_products else "fp32"
    return "fp32"
