"""The tree's rules: which way imports go, what stays light, what ships."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kdbench"
MODULES = sorted(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in PACKAGE.rglob("*.py"))

# Who may import what of ours; a name stands for itself and all below it.
ALLOWED = {
    "kdbench.losses": [],
    "kdbench.options": [],
    "kdbench.schema": ["kdbench.options", "kdbench.tasks"],
    "kdbench.tasks": [],
    "kdbench.metrics": ["kdbench.tasks"],
    "kdbench.runs.related": ["kdbench.schema"],
    "kdbench.methods._early_exit": ["kdbench.losses", "kdbench.stage"],
    "kdbench.storage.seeds": [],
    "kdbench.stage": [],
    "kdbench.storage.files": ["kdbench.errors"],
    "kdbench.storage.results": ["kdbench.storage.files"],
    "kdbench.training.interrupts": [],
    "kdbench.training.processes": ["kdbench.stage", "kdbench.errors"],
    "kdbench.training.checkpoint": ["kdbench.storage.files"],
    "kdbench.models": ["kdbench.stage", "kdbench.models", "kdbench.errors", "kdbench.storage.files", "kdbench.sources.foreign"],
    "kdbench.objectives": ["kdbench.stage", "kdbench.losses", "kdbench.models"],
    "kdbench.methods": [
        "kdbench.stage", "kdbench.losses", "kdbench.objectives", "kdbench.models", "kdbench.options", "kdbench.runs.context",
        "kdbench.methods._early_exit", "kdbench.schema", "kdbench.data.datasets", "kdbench.tasks",
    ],
    "kdbench.training.loop": [
        "kdbench.stage", "kdbench.storage.files", "kdbench.training.interrupts", "kdbench.training.checkpoint", "kdbench.training.metrics_log",
        "kdbench.training.processes", "kdbench.training.progress", "kdbench.storage.seeds", "kdbench.training.updates", "kdbench.training.finite",
    ],
    "kdbench.training.finite": ["kdbench.training.checkpoint", "kdbench.errors", "kdbench.stage"],
    "kdbench.training.updates": ["kdbench.stage", "kdbench.training.processes", "kdbench.training.used_rows"],
    "kdbench.training.used_rows": ["kdbench.stage"],
    "kdbench.compare": [
        "kdbench.compare", "kdbench.console", "kdbench.storage.results", "kdbench.storage.files", "kdbench.errors", "kdbench.tasks",
        "kdbench.metrics", "kdbench.inference.latency",  # by --latency alone
        "kdbench.validation.load", "kdbench.data.stored", "kdbench.data.datasets",  # by texts.py, for a page alone
        "kdbench.data.report",  # by page.py
    ],
    "kdbench.console": ["kdbench.errors", "kdbench.storage.files"],
    "kdbench.errors": [],
    "kdbench.sources.foreign": ["kdbench.errors"],
    "kdbench.data": [
        "kdbench.data", "kdbench.schema", "kdbench.errors", "kdbench.stage", "kdbench.storage.files", "kdbench.sources.foreign",
        "kdbench.tasks", "kdbench.metrics",
    ],
}  # fmt: skip


def imported(module: str) -> set[str]:
    """All that the module's source imports, anywhere in it."""
    path = ROOT / (module.replace(".", "/") + ".py")
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "kdbench":
            names |= {f"kdbench.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def below(name: str, roots: list[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


@pytest.mark.parametrize("owner", ALLOWED)
def test_imports_go_downwards(owner):
    members = [module for module in MODULES if below(module, [owner])]
    assert members
    for module in members:
        ours = {name for name in imported(module) if name.split(".")[0] == "kdbench"}
        assert {name for name in ours if not below(name, ALLOWED[owner])} == set(), module


def test_methods_do_not_know_each_other_or_hydra():
    for module in MODULES:
        names = imported(module)
        if module.startswith("kdbench.methods."):
            assert not any(name.startswith("kdbench.methods") for name in names), module
        if not module.startswith("kdbench.c") or module.startswith(("kdbench.compare", "kdbench.runs.context")):
            assert not any(name.split(".")[0] == "hydra" for name in names), module


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_compare_runs_loads_no_torch():
    loaded = loaded_after("import kdbench.compare.cli")
    assert not loaded & {"torch", "transformers", "datasets", "numpy", "scipy", "hydra", "rich"}


def test_importing_a_method_loads_neither_transformers_nor_datasets():
    names = [module for module in MODULES if module.startswith("kdbench.methods.")]
    loaded = loaded_after(f"import {', '.join(names)}")
    assert not loaded & {"transformers", "datasets", "accelerate", "sklearn"}


TORCH_IS_IMPORTED = """
import os, sys

class Watch:
    def find_spec(name, path, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            os._exit(0)

sys.meta_path.insert(0, Watch)
"""


@pytest.mark.parametrize("loads_torch", ["run", "latency", "export", "classifier"])  # what the console scripts load
def test_threads_that_wait_do_not_spin_for_long_unless_the_user_says_so(loads_torch):
    def seen(**own: str) -> str:
        """What libgomp would read."""
        env = {name: value for name, value in os.environ.items() if "GOMP" not in name and "OMP_WAIT" not in name}
        code = f"{TORCH_IS_IMPORTED}import kdbench.{loads_torch}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env | own)
        return done.stdout.strip()

    assert seen().isdecimal() and int(seen()) < 100_000  # libgomp's own is 300,000
    assert seen(GOMP_SPINCOUNT="7") == "7"
    assert seen(OMP_WAIT_POLICY="ACTIVE") == "None"


def test_nothing_precludes_windows():
    """Modules that only Unix has are imported within what asks for the platform first."""
    unix = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog", "readline"}
    for module in MODULES:
        path = ROOT / (module.replace(".", "/") + ".py")
        top = [node for node in ast.parse(path.read_text(encoding="utf8")).body if isinstance(node, ast.Import)]
        assert not {alias.name for node in top for alias in node.names} & unix, module
