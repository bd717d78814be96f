"""What tests of several modules of the comparison need."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def study() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts/study/error_rates.py"
    spec = importlib.util.spec_from_file_location("error_rates", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
