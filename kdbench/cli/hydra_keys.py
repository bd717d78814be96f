"""What of Hydra's own keys a command line or a YAML may set: how a sweep is spread, and nothing that names code.

Hydra imports what `hydra.searchpath` names while it composes, and calls what `_target_` and a logging `()` name; its
makers say that their list of forbidden names is no boundary. So here is a list of what is allowed.
"""

import re
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdbench.errors import Fault

OPEN = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper")
FLAGS = {
    "experimental_rerun": "not in kdbench, because it loads a pickle: type the command again",
    "config_path": "not in kdbench: YAMLs of your own come with --config-dir",
    "config_name": "not in kdbench: there is one config.yaml, and presets are experiment=<name>",
}
PLUGINS = re.compile(r"(hydra\._internal\.core_plugins|hydra_plugins|optuna\.samplers)\.[\w.]+", re.ASCII)
_EXTRAS = {  # extra of pyproject.toml: the package that it brings, and the launchers and sweepers that need it
    "parallel": ("hydra_plugins.hydra_joblib_launcher", "parallel", "joblib"),
    "slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm", "slurm_local", "submitit_slurm", "submitit_local"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray_cluster", "ray", "ray_aws"),
    "search": ("optuna", "optuna"),
}
_NO_LOG = {"version": 1, "root": None, "disable_existing_loggers": False}
_FIXED = {  # as conf/config.yaml has them; not read from there, because a folder of one's own comes before it
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
    """The flags, folders and overrides of a command line that Hydra is not even to compose."""
    found = [Fault(f"--{flag.replace('_', '-')}", given, FLAGS[flag]) for flag in FLAGS if (given := vars(args)[flag])]
    if args.config_dir is not None and (problem := _folder_problem(Path(args.config_dir))):
        found.append(Fault("--config-dir", args.config_dir, problem))
    for key, equals, value in (text.partition("=") for text in args.overrides):
        if not _is_open(key.strip().lstrip("+~")):
            found.append(
                Fault(key, value if equals else None, f"is Hydra's own; kdbench leaves open {', '.join(OPEN)}")
            )
        elif key in ("hydra/launcher", "hydra/sweeper") and (extra := _missing(value)):
            found.append(Fault(key, value, f"is not installed: pip install 'kdbench[{extra}]'"))
    return found


def _missing(choice: str) -> str:
    """The extra that brings a launcher or sweeper which is not installed."""
    needs = ((extra, package) for extra, (package, *choices) in _EXTRAS.items() if choice in choices)
    return next((extra for extra, package in needs if find_spec(package) is None), "")


def _is_open(key: str) -> bool:
    place = key.replace("/", ".").rpartition("@")[2]
    if place.partition(".")[0] != "hydra":
        return True
    code = "_target_" in place or place.startswith("hydra.sweeper.params")  # grids are judged as key=a,b or presets
    return key.startswith(OPEN) and "@" not in key and not code


def composed_problem(node: dict[str, Any]) -> str:
    """What a YAML has changed in Hydra's own node that it may not change."""
    given = [(key, node[key], value) for key, value in _FIXED.items()]
    given += [(f"job.{key}", node["job"][key], value) for key, value in _FIXED_JOB.items()]
    for key, found, value in given:
        if found != value:
            return f"sets hydra.{key}, which is kdbench's: leave it out"
    for name in ("launcher", "sweeper"):
        for target in _targets(node[name]):
            if not (isinstance(target, str) and PLUGINS.fullmatch(target)):
                return f"sets hydra.{name}._target_={target}, which is no launcher or sweeper of Hydra's: leave it out"
    return ""


def _folder_problem(folder: Path) -> str:
    """What is wrong with a --config-dir."""
    if not folder.is_dir():
        return "no such folder"
    if (folder / "config.yaml").exists():
        return "has a config.yaml, which would take the place of kdbench's: presets are experiment/<name>.yaml"
    return ""


def _targets(value: Any) -> list[Any]:
    if isinstance(value, dict):
        own = [value["_target_"]] if "_target_" in value else []
        return own + [target for below in value.values() for target in _targets(below)]
    return [target for below in value for target in _targets(below)] if isinstance(value, list) else []
