"""What the code may not call, what must be pinned, who may write to the cache."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kdbench.errors import Code
from kdbench.schema import Part, TeacherConfig
from kdbench.sources.sources import check_source
from kdbench.storage.files import StoreError
from kdbench.validation.load import cache_folder
from tests.refusals import refused
from tests.test_layout import MODULES, ROOT

UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "tarfile", "diskcache"}
CALLS = {
    "torch.load",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "torch.hub.load",
    "eval",
    "exec",
}
COPIES = {"kdbench.cli.compose", "kdbench.cli.command"}  # may unpickle what they pickled themselves, and read no file
MEMBERS_ONLY = {  # reads single members of a verified archive as streams, under names of its own
    "kdbench.sources.npm": {"tarfile"},
}
HOLES = {  # package: the last version with a known hole, the first without
    "torch": ("2.9.1", "2.10.0"),  # CVE-2026-24747, CVE-2025-32434: weights_only
    "transformers": ("5.9.0", "5.10.0"),  # CVE-2026-4372, -5241, -9856: code and paths of a model folder
    "hydra-core": ("1.3.7", "1.3.8"),  # CVE-2026-68508, -106439, -106441: instantiate, logging
    "filelock": ("3.20.2", "3.20.3"),  # CVE-2026-22701: links
}


def imported(module: str) -> set[str]:
    """The modules that the module's source imports, anywhere in it."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def calls(module: str) -> set[str]:
    """The dotted names that the module's source calls."""
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf8"))
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_unpickled_unpacked_by_name_or_executed(module):
    allowed = MEMBERS_ONLY.get(module, set()) | ({"pickle"} if module in COPIES else set())
    assert ({name.partition(".")[0] for name in imported(module)} & UNPICKLERS) - allowed == set()
    if module in COPIES:
        assert {name for name in calls(module) if name.startswith("pickle.")} == {"pickle.dumps", "pickle.loads"}
        assert not {name.rpartition(".")[2] for name in calls(module)} & {"open", "read", "read_bytes", "recv"}
    assert calls(module) & CALLS == set()
    if module in MEMBERS_ONLY:
        assert not {name.rpartition(".")[2] for name in calls(module)} & {"extract", "extractall", "unpack_archive"}
    assert "trust_remote_code=True" not in (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf8")


@pytest.mark.parametrize("package", HOLES)
def test_versions_with_known_holes_are_not_installed(package):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    (floor,) = (r.specifier for r in map(Requirement, project["dependencies"]) if r.name == package)
    broken, whole = HOLES[package]
    assert broken not in floor and whole in floor


def sources(value):
    """A config with the keys of each group that has a source on the package index, however deep."""
    if isinstance(value, dict):
        if str(value.get("source")).startswith(("pypi:", "joined:")):
            made = TeacherConfig(source=value["source"], sha256=value.get("sha256"))
            made.parts = [Part(**part) for part in value.get("parts", ())]
            made.unpacked_bytes = value.get("unpacked_bytes")
            yield made
        for below in value.values():
            yield from sources(below)


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_download_from_the_package_index_is_pinned_by_its_digest(path):
    for config in sources(yaml.safe_load(path.read_text(encoding="utf8"))):
        check_source(config, "teacher")


def test_the_cache_is_its_owners(configure, tmp_path):
    assert cache_folder(configure(f"cache_dir={tmp_path / 'new' / 'cache'}")).stat().st_mode & 0o777 == 0o700
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o770)
    with refused(Code.UNSAFE_FOLDER, folder, "drwxrwx---", f"chmod go-w {folder}", kind=StoreError):
        cache_folder(configure(f"cache_dir={folder}"))
    folder.chmod(0o755)
    assert cache_folder(configure(f"cache_dir={folder}")) == Path(folder)


def locked(name):
    """Each requirement of a lock with its hashes; scripts/setup installs no other, and no dependency by itself."""
    entries = re.findall(r"^[^#\s].*(?:\n +.*)*", (ROOT / f"requirements/{name}.lock").read_text(), re.MULTILINE)
    for entry in entries:
        requirement, *hashes = re.split(r"\s*\\\n\s*", entry)
        yield Requirement(requirement), hashes


def test_all_that_is_installed_is_pinned_by_version_and_digest():
    pins = {}
    for lock in ("torch-cpu", "torch", "build", "main", "browser"):
        for requirement, hashes in locked(lock):
            (one,) = requirement.specifier
            assert one.operator == "==" and "*" not in one.version, requirement
            assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text) for text in hashes), requirement
            pins[canonicalize_name(requirement.name)] = one.version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    extras = project["project"]["optional-dependencies"]
    asked += [text for name, extra in extras.items() if name not in ("ray", "wandb") for text in extra]  # in no lock
    for wanted in map(Requirement, asked):
        assert wanted.name == "kdbench" or pins[canonicalize_name(wanted.name)] in wanted.specifier, wanted
    setup = (ROOT / "scripts/setup").read_text()
    installs = [line for line in setup.splitlines() if " install " in line]
    assert all("--no-deps" in line and ("--require-hashes" in line or "--no-index" in line) for line in installs)
