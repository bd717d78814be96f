"""Read what a file declares without running the rest of it: a refusal and tab completion need no torch.

A method's file declares its keys (`Params`), an architecture's and a task's what else must be known of it before it is
imported. Each name is a class at the top level of the file.
"""

import ast
import pkgutil
import sys
from functools import cache
from importlib import import_module
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec

LIGHT = (
    "kdbench.errors",
    "kdbench.options",
    "kdbench.schema",
    "kdbench.tasks",
)  # imported by a declaration, and free of torch


def declaring(package: str, name: str) -> tuple[str, ...]:
    """Return the modules of a package that define the class `name`, in the order of their names."""
    modules = sorted(module.name for module in pkgutil.iter_modules(import_module(package).__path__))
    return tuple(module for module in modules if f"\nclass {name}(" in _source(f"{package}.{module}"))


@cache
def declared(module: str, name: str) -> type:
    """Return the class `name` of a module of the package, without what else its file imports and defines."""
    loader = _Declarations(name)
    made = module_from_spec(ModuleSpec(module, loader))
    loader.exec_module(made)
    found: type = getattr(made, name)
    return found


class _Declarations(InspectLoader):
    """Load three kinds of statements of a file.

    Imports from the standard library and from `LIGHT`; what the class names of the file's own; the class itself.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def get_source(self, fullname: str) -> str:
        tree = ast.parse(_source(fullname))
        (wanted,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == self.name]
        named = {node.id for node in ast.walk(wanted) if isinstance(node, ast.Name)}
        tree.body = [node for node in tree.body if node is wanted or self._declares(node, named)]
        return ast.unparse(tree)

    def _declares(self, node: ast.stmt, named: set[str]) -> bool:
        match node:
            case ast.ImportFrom(module=str(module)) | ast.Import(names=[ast.alias(name=module)]):
                return module in LIGHT or module.partition(".")[0] in sys.stdlib_module_names
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.FunctionDef(name=name):
                return name in named
        return False


def _source(module: str) -> str:
    """Return the text of a module that need not be imported; its package is."""
    spec = find_spec(module)
    assert spec is not None and isinstance(spec.loader, InspectLoader)
    return spec.loader.get_source(module) or ""
