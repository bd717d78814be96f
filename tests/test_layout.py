"""What stays light, and what works on every system; which way imports go is in pyproject.toml, for lint-imports."""

import ast
import subprocess
import sys
from pathlib import Path

from kdbench.storage.provenance import source_state

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kdbench"
MODULES = sorted(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in PACKAGE.rglob("*.py"))


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


def test_nothing_precludes_windows():
    """Modules that only Unix has are imported within what asks for the platform first."""
    unix = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog", "readline"}
    for module in MODULES:
        path = ROOT / (module.replace(".", "/") + ".py")
        top = [node for node in ast.parse(path.read_text(encoding="utf8")).body if isinstance(node, ast.Import)]
        assert not {alias.name for node in top for alias in node.names} & unix, module


def test_the_commit_of_the_checkout_is_found():
    """A module that moves to another folder must not lose it in silence."""
    source_state.cache_clear()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=ROOT)
    status = subprocess.run(
        ["git", "status", "--porcelain", "--", "kdbench", "conf"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert source_state() == {"commit": head.stdout.strip(), "dirty": bool(status.stdout)}
