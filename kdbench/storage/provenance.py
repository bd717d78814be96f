"""Record where a run comes from: the machine, the versions, the state of the source."""

import functools
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


@functools.cache
def machine() -> str:
    """Return the processor's name and number of cores, by which tables tell times of two machines apart."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


@functools.cache
def instructions() -> str:
    """Return the widest instruction set for products of 8-bit integers, on which their speed depends."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text(encoding="utf8").split()) if info.is_file() else set()
    known = {
        "amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX2 VNNI", "avx512bw": "AVX-512 without VNNI",
        "avx2": "AVX2 without VNNI", "i8mm": "NEON I8MM", "asimddp": "NEON dot products", "asimd": "NEON",
    }  # fmt: skip
    return next((shown for flag, shown in known.items() if flag in words), platform.machine())


@functools.cache
def versions() -> dict[str, str]:
    packages = ("kdbench", "torch", "transformers", "accelerate", "datasets", "scikit-learn", "numpy", "onnxruntime")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


@functools.cache
def source_state() -> dict[str, Any]:
    """Return the commit of the checkout that runs, and whether it has changes.

    The commit is None if kdbench is installed.
    """

    def git(*words: str) -> str | None:
        call = ["git", "-C", str(PACKAGE), *words]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--", "__init__.py"):  # installed: a repository around it is not kdbench's own
        return {"commit": None, "dirty": False}
    status = git("status", "--porcelain", "--", ".", "../conf")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(status)}
