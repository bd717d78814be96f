"""Answers that need no run: `kdbench --info`, and `method=?` or `method.alpha=?`."""

import platform
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.cli.command import Configs, compose_rest, legal_choices
from kdbench.errors import Code, Fault, nearest, shown
from kdbench.options import MISSING
from kdbench.schema import GROUPS, HardwareConfig, TrackConfig
from kdbench.validation.keys import Keys, Leaf
from kdbench.validation.load import cache_at, fill
from kdbench.validation.values import in_words, keys_of

QUESTION = re.compile(r"(?P<key>[^=]+)=(?P<folder>(?:[\w-]+/)*)\?")  # key=?, group=? or group=folder/?


def info(folders: list[Path]) -> str:
    """Return versions, machine, what `auto` means on it, and folders; `folders` are those of YAMLs. Loads torch."""
    from kdbench.storage.provenance import PACKAGE, machine, source_state, versions
    from kdbench.training.hardware import settle

    state, hardware = source_state(), settle(HardwareConfig("auto", "auto", "auto", None))
    commit = f", commit {state['commit'][:8]}{' with changes' if state['dirty'] else ''}" if state["commit"] else ""
    trackers = {field.name: find_spec(field.name) for field in fields(TrackConfig)}
    lines = {
        "kdbench": f"{versions()['kdbench']} in {PACKAGE}{commit}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items() if name != "kdbench"),
        "python": sys.executable,
        "system": platform.platform(),
        "machine": machine(),
        "auto": f"{hardware.device}, {hardware.precision}, {hardware.attention}, {hardware.threads} threads",
        # an empty folder of this name, which an uninstalled package may leave, has no origin
        "trackers": ", ".join(
            name if spec and spec.origin else f"{name} (not installed)" for name, spec in trackers.items()
        ),
        "configs": ", ".join(map(str, folders)),
        "cache": str(cache_at(None)),
        "outputs": str(Path("outputs").absolute()),
    }
    more = "more: kdbench --info config | defaults | defaults-tree | plugins | searchpath"
    return "\n".join([*(f"{name + ':':10}{line}" for name, line in lines.items()), more])


def asked(configs: Configs, overrides: list[str], folders: list[Path]) -> list[Fault]:
    """Answer each `group=?`, `group=folder/?` and `key=?` of a command; its other words choose the groups."""
    questions = [question for text in overrides if (question := QUESTION.fullmatch(text))]
    others = [text for text in overrides if not QUESTION.fullmatch(text)]
    known = [text for text in others if text.partition("=")[0].partition("@")[0] in GROUPS]
    cfg, found = compose_rest(configs, known)[0].cfg, []
    for key, folder in (question.group("key", "folder") for question in questions):
        keys = keys_of(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[arg-type]
        if options := configs.options(group := key.partition("@")[0]):
            if within := [option for option in options if option.startswith(folder)]:
                print("\n".join(choices(group, within, folders)))
            else:
                close = nearest(folder, {f"{option.rpartition('/')[0]}/" for option in options if "/" in option})
                problem, legal = "is not a folder of presets", legal_choices(group, options)
                found.append(Fault(Code.UNKNOWN_CHOICE, key, f"{folder}?", problem, close, legal))
        elif key in keys.leaves or key in keys.groups:
            print("\n".join(keys_text(key, keys, fill(cfg))))
        else:
            found.append(Fault(Code.UNKNOWN_KEY, f"{key}=?", None, "unknown key", keys.nearest(key), keys.legal(key)))
    return found


def choices(group: str, options: list[str], folders: list[Path]) -> Iterator[str]:
    """Yield a line for each choice of `group`: its name and the first sentence of its YAML's comment."""
    longest = max(map(len, options))
    width = max(20, shutil.get_terminal_size().columns - len(f"{group}=  ") - longest)
    for option in options:
        file = next(path for folder in folders if (path := folder / group / f"{option}.yaml").is_file())
        words = textwrap.shorten(said(file.read_text(encoding="utf8")), width, placeholder=" …")
        yield f"{group}={option:{longest}}  {words}".rstrip()


def said(yaml: str) -> str:
    """Return the first sentence of the comment that a YAML begins with; a preset's first line is its command."""
    lines = []
    for line in yaml.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    words = [line for line in lines if not line.startswith("@package")]
    if words and "kdbench " in words[0] and len(words) > 1:
        words = words[1:]
    return re.split(r"(?<!et al)\.(?= [A-Z]|$)|(?<=\?) ", " ".join(words))[0].rstrip(":")


def keys_text(key: str, keys: Keys, filled: DictConfig) -> Iterator[str]:
    """Yield a line for `key` or each key below it: its value here (none: must be set), and what is legal."""
    names = [key] if key in keys.leaves else [f"{key}.{name}".lstrip(".") for name in keys.groups[key]]
    for name in names:
        if name in keys.leaves:
            leaf = keys.leaves[name]
            yield f"{name}={_value(name, leaf, filled)}  ({_legal(leaf)})"
        else:
            yield f"{name}: a group of {', '.join(keys.groups.get(name, []))}"


def _legal(leaf: Leaf) -> str:
    null = "" if leaf.rule or not leaf.optional else ", or null"
    return f"{leaf.kind}{null}" + (f": {in_words(leaf.rule)}" if leaf.rule else "")


def _value(key: str, leaf: Leaf, filled: DictConfig) -> str:
    try:
        value = OmegaConf.select(filled, key, default=leaf.default)
    except OmegaConfBaseException:  # refers to a key that the command does not set
        value = MISSING
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return "" if value == MISSING else shown(value)
