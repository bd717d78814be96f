"""A method from outside the package. Its YAML names its module, whose source is part of the id of its runs."""

import ast
import hashlib
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.errors import Code, Fault, shown
from kdbench.options import FOLDER, MISSING
from kdbench.schema import method_schema
from kdbench.validation.fit import NEEDS
from kdbench.validation.keys import method_names, run_keys


def own_method_fault(name: Any, module: Any) -> Fault | None:
    """Return why `module` cannot be the method `name`, or None. Imports the module unless a name is wrong."""
    if name in (None, MISSING):
        return Fault(Code.MISSING_VALUE, "method.name", None, "must be set: it names the folder of the runs")
    if not isinstance(name, str) or not FOLDER.holds(name):
        return Fault(Code.OUT_OF_RANGE, "method.name", shown(name), f"must be {FOLDER.legal}")
    if name in method_names():
        problem = "is a method of kdbench: give your method another name"
        return Fault(Code.UNUSABLE_METHOD, "method.name", name, problem)
    if not isinstance(module, str) or not all(part.isidentifier() for part in module.split(".")):
        problem = "must be an importable module, such as my_package.mine"
        return Fault(Code.UNUSABLE_METHOD, "method.module", shown(module), problem)
    problem = _import_problem(module) or _protocol_problem(name, module)
    return Fault(Code.UNUSABLE_METHOD, "method.module", module, problem) if problem else None


def _import_problem(module: str) -> str:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a stranger's module does when it is imported
        lost = error.name if isinstance(error, ModuleNotFoundError) else None
        if lost and f"{module}.".startswith(f"{lost}."):
            return "is not on Python's path: install it, or begin the command with PYTHONPATH=<its folder>"
        return f"cannot be imported: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


def _protocol_problem(name: str, module: str) -> str:
    """Return what is missing or wrong in `Params` and `stages`, or an empty string."""
    given = vars(importlib.import_module(module))
    params = given.get("Params")
    if not isinstance(params, type) or not is_dataclass(params):
        return "must have Params: a @dataclass of the keys that its YAML adds to the common ones"
    needs = getattr(params, "needs", None)
    if not isinstance(needs, frozenset) or not needs <= NEEDS:
        words = ", ".join(sorted(NEEDS))
        return f"must have Params.needs: a ClassVar[frozenset[str]] of {words} (empty if it trains no network)"
    if not callable(given.get("stages")):
        return "must have stages(run, p): a function that yields kdbench.stage.Stage"
    try:
        run_keys(name, (), module=module)
        OmegaConf.structured(method_schema(name, module))
    except (TypeError, ValueError, NameError, OmegaConfBaseException) as error:
        words = str(error).partition("\n")[0]
        return f"Params: {words}. A field is a bool, int, float, str, or list or dict of them, = MISSING or option(...)"
    return ""


@cache  # once in each process: later edits do not change what was imported
def sources(module: str) -> dict[str, str]:
    """Return name -> SHA-256 of the source of `module` and of the user's modules that it imports, directly or not.

    The user's modules are those below the same entry of Python's path or, in site-packages, in the same package. They
    are found by their import statements. kdbench itself is left out, because results.json has its commit.
    """
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None  # own_method_fault has imported it
    file = Path(spec.origin)
    home = file.parents[module.count(".") + (file.name == "__init__.py")]
    installed = home.name in ("site-packages", "dist-packages")
    found: dict[str, str] = {}
    todo = {module}
    while todo:
        name = todo.pop()
        package = name.partition(".")[0]
        if name in found or package == "kdbench" or (installed and package != module.partition(".")[0]):
            continue
        stem = home.joinpath(*name.split("."))
        for file in (stem / "__init__.py", stem.with_suffix(".py")):
            if file.is_file():
                source = file.read_bytes()
                found[name] = hashlib.sha256(source).hexdigest()
                todo |= set(_imported(source, name if file.stem == "__init__" else name.rpartition(".")[0]))
                break
    return dict(sorted(found.items()))


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Yield the full names in all import statements that may be modules; relative ones start from `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ["", *package.split(".")[: len(package.split(".")) - node.level + 1]] if node.level else [""]
            base = ".".join(part for part in [*start, node.module or ""] if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))
