"""The keys of Hydra that a command line or a YAML may set: launcher and sweeper, but nothing that names code.

Hydra imports what `hydra.searchpath` names, and calls what `_target_` and a logging `()` name. Its authors say that
their list of forbidden names is not a security boundary, so this module lists what is allowed.
"""

import re
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdbench.errors import Code, Fault

OPEN = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper")
FLAGS = {
    "experimental_rerun": "is not supported, because it loads a pickle: repeat the command",
    "config_path": "is not supported: use --config-dir for your own YAMLs",
    "config_name": "is not supported: use experiment=<name> for a preset",
}
PLUGINS = re.compile(r"(hydra\._internal\.core_plugins|hydra_plugins|optuna\.samplers)\.[\w.]+", re.ASCII)
_EXTRAS = {  # extra of pyproject.toml: the package that it brings, and the launchers and sweepers that need it
    "parallel": ("hydra_plugins.hydra_joblib_launcher", "parallel", "joblib"),
    "slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm", "slurm_local", "submitit_slurm", "submitit_local"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray_cluster", "ray", "ray_aws"),
    "search": ("optuna", "optuna"),
}
_NO_LOG = {"version": 1, "root": None, "disable_existing_loggers": False}
_FIXED = {  # as in conf/config.yaml; not read from there, because the user's own folder would be read first
    "run": {"dir": "${home:${outputs}}"},
    "sweep": {"dir": "${home:${outputs}}", "subdir": "."},
    "hydra_logging": _NO_LOG,
    "job_logging": _NO_LOG,
    "env": {},
    "searchpath": [],
    "callbacks": {},
    "output_subdir": None,
    "mode": None,
    "verbose": False,
}
_FIXED_JOB = {"chdir": False, "env_set": {}, "env_copy": []}


def closed(args: Namespace) -> list[Fault]:
    """Return the faults of flags, folders and overrides that Hydra must not see."""
    found = [
        Fault(Code.CLOSED_OPTION, f"--{flag.replace('_', '-')}", given, problem)
        for flag, problem in FLAGS.items()
        if (given := vars(args)[flag])
    ]
    if args.config_dir is not None and (fault := _folder_fault(args.config_dir)):
        found.append(fault)
    for key, equals, value in (text.partition("=") for text in args.overrides):
        if not _is_open(key.strip().lstrip("+~")):
            problem = f"is a key of Hydra that kdbench closes. Open: {', '.join(OPEN)}"
            found.append(Fault(Code.CLOSED_OPTION, key, value if equals else None, problem))
        elif key in ("hydra/launcher", "hydra/sweeper") and (extra := _missing(value)):
            found.append(Fault(Code.NOT_INSTALLED, key, value, f"is not installed: pip install 'kdbench[{extra}]'"))
    return found


def _missing(choice: str) -> str:
    """Return the extra with a launcher or sweeper that is not installed, or an empty string."""
    needs = ((extra, package) for extra, (package, *choices) in _EXTRAS.items() if choice in choices)
    return next((extra for extra, package in needs if find_spec(package) is None), "")


def _is_open(key: str) -> bool:
    place = key.replace("/", ".").rpartition("@")[2]
    if place.partition(".")[0] != "hydra":
        return True
    code = "_target_" in place or place.startswith("hydra.sweeper.params")  # a grid is key=a,b or a preset
    return key.startswith(OPEN) and "@" not in key and not code


def composed_problem(node: dict[str, Any]) -> str:
    """Return what a YAML must not change in Hydra's own node, or an empty string."""
    given = [(key, node[key], value) for key, value in _FIXED.items()]
    given += [(f"job.{key}", node["job"][key], value) for key, value in _FIXED_JOB.items()]
    for key, found, value in given:
        if found != value:
            return f"must not set hydra.{key}: leave it out"
    for name in ("launcher", "sweeper"):
        for target in _targets(node[name]):
            if not (isinstance(target, str) and PLUGINS.fullmatch(target)):
                return f"must not set hydra.{name}._target_={target}: it is not a launcher or sweeper of Hydra"
    return ""


def _folder_fault(folder: str) -> Fault | None:
    """Return the fault of a --config-dir, or None."""
    if not Path(folder).is_dir():
        return Fault(Code.MISSING_FILE, "--config-dir", folder, "no such folder")
    if Path(folder, "config.yaml").exists():
        problem = "must not have a config.yaml, which would replace kdbench's: presets are experiment/<name>.yaml"
        return Fault(Code.CLOSED_OPTION, "--config-dir", folder, problem)
    return None


def _targets(value: Any) -> list[Any]:
    if isinstance(value, dict):
        own = [value["_target_"]] if "_target_" in value else []
        return own + [target for below in value.values() for target in _targets(below)]
    return [target for below in value for target in _targets(below)] if isinstance(value, list) else []
