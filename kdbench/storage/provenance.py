"""Where a run comes from: its command and choices, the machine, the versions, the state of the source."""

import functools
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from kdbench.schema import RunConfig
from kdbench.storage.files import write_json, write_text
from kdbench.training.interrupts import Watch

if TYPE_CHECKING:
    from kdbench.runs.context import Run

# Folders of finished runs, each with that of the teacher it is compared with, where one may be or not.
Runs = dict[Path, Path | None]


@dataclass(frozen=True)
class About:
    """Where a run comes from: the chosen option of each group, the command, and how to spell other runs."""

    choices: dict[str, Any]
    command: str
    baseline_command: Callable[[RunConfig], str]
    watch: Watch | None = None  # of a search
    runs: Runs = field(default_factory=dict)  # gets each finished run that this one is or needs

    def of_needed(self, config: RunConfig) -> "About":
        """Of a run that this one needs: its teacher, what comes before its task."""
        choices = self.choices | {"method": config.method.name, "student": config.student.name, "experiment": None}
        return About(choices, f"needed by: {self.command}", self.baseline_command, runs=self.runs)


def write_start(run: "Run", about: About) -> None:
    """config.yaml (resolved) and env.json, before anything is computed."""
    write_text(run.folder / "config.yaml", OmegaConf.to_yaml(asdict(run.config)))
    environment = {
        "command": about.command,
        "versions": versions(),
        **source_state(),
        **asdict(run.hardware),
        "machine": machine(),
        "system": platform.platform(),
        "processes": run.accelerator.num_processes,
    }
    write_json(run.folder / "env.json", environment)


@functools.cache
def machine() -> str:
    """The processor's name and number of cores: times of two machines are not compared without a word."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


@functools.cache
def versions() -> dict[str, str]:
    packages = ("kdbench", "torch", "transformers", "accelerate", "datasets", "scikit-learn", "numpy", "onnxruntime")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


@functools.cache
def source_state() -> dict[str, Any]:
    """Commit of the checkout that kdbench runs from, and whether it has changes; None where it is installed."""

    def git(*words: str) -> str | None:
        call = ["git", "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--", "record.py"):  # installed: a repository around it is not kdbench's own
        return {"commit": None, "dirty": False}
    status = git("status", "--porcelain", "--", "../kdbench", "../conf")
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(status)}
