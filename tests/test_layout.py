"""What stays light, and what works on every system; which way imports go is in pyproject.toml, for lint-imports."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.storage.provenance import source_state
from scripts import imports

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


def test_help_and_a_refusal_of_kdbench_best_load_no_torch():
    begin = "from kdbench.best.cli import main; main(['no_such.csv', '--time', '5m'])"
    assert not loaded_after(begin) & {"torch", "transformers", "numpy", "hydra"}


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


@pytest.mark.parametrize(
    "loads_torch", ["runs.execute", "inference.latency", "shipping.export", "inference.classifier"]
)  # what the console scripts load
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


def test_the_commit_of_the_checkout_is_found():
    """A module that moves to another folder must not lose it in silence."""
    source_state.cache_clear()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=ROOT)
    status = subprocess.run(
        ["git", "status", "--porcelain", "--", "kdbench", "conf"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert source_state() == {"commit": head.stdout.strip(), "dirty": bool(status.stdout)}


def test_the_picture_of_imports_puts_each_package_above_what_it_imports():
    found = imports.arrows()
    height = imports.floors(found)
    assert all(height[name] > height[one] for name, names in found.items() for one in names)
    assert "training" in found["runs"] and not found["errors"] and "__main__" not in found
    with pytest.raises(ValueError, match=r"in a circle.*: a, b, c"):
        imports.floors({"a": {"b"}, "b": {"a"}, "c": {"b"}, "d": set()})


def test_no_file_has_the_marks_of_a_merge():
    marks = ("<" * 7 + " ", ">" * 7 + " ")
    done = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT)
    tracked = [ROOT / name for name in done.stdout.split("\0") if name]
    text = [path for path in tracked if path.suffix in (".md", ".py", ".yaml", ".toml", ".yml", ".j2")]
    lines = ((path, line) for path in text if path.is_file() for line in path.read_text("utf8").splitlines())
    found = [path for path, line in lines if line.startswith(marks)]
    assert len(text) > 300 and found == []
