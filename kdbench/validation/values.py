"""All faults of a composed config, found together and before anything runs.

`faults` checks each value against the dataclasses of `kdbench.schema` and the method's own `Params`. OmegaConf itself
stops at the first fault. `cross_faults` then checks what depends on several keys.
"""

import copy
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)

from kdbench.errors import Code, Fault, nearest, shown
from kdbench.options import FOLDER, MISSING, Rule
from kdbench.validation.fit import cross_faults
from kdbench.validation.keys import Keys, Leaf, method_names, run_keys
from kdbench.validation.load import NoTeacher, filled, typed, with_task
from kdbench.validation.own_method import own_method_fault

__all__ = ["cross_faults", "faults"]

# Resolvers run code or read the environment. kdbench's own (load.py) are allowed.
REFUSED = re.compile(r"\$\{(?!half:|half_again:|or:|own_encoder:)[^{}]*:|'_target_':")
REFERENCE = re.compile(r"\$\{(\.*)([\w.]+)\}")
RULES = {f"{group}.name": FOLDER for group in ("teacher", "student", "dataset", "corpus")}
EXAMPLES = {
    "dataset.source": "dataset.source=path/to/folder",
    "dataset.splits.train": "dataset.splits.train=train.csv",
    "dataset.text": "dataset.text=text, a column",
    "dataset.label": "dataset.label=label, a column",
    "teacher.source": "teacher.source=path/to/model",
    "teacher.path": "teacher.path=outputs/<data set>/<method>/<student>/seed0, a finished run",
    "teacher.members": "'teacher.members=[outputs/<...>/seed0,outputs/<...>/seed1]', finished runs",
    "corpus.running.source": "corpus.running.source=path/to/folder",
    "corpus.running.files": "'corpus.running.files={wiki.txt:\"\",news.csv:body}', files and text columns",
}


def faults(cfg: DictConfig, stages: Iterable[str] | None = None) -> list[Fault]:
    """Return all faults of a composed config.

    `stages` are the stages that the method has. Without them, those in the config are taken to be right.
    """
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    if fault := method_fault(values):
        return [fault]
    with_task(values)
    keys = keys_of(values, stages)
    known, found = sort_out(keys, values)
    try:
        made = OmegaConf.create(filled(copy.deepcopy(known)))
    except NoTeacher as error:
        given = dict(keys.flat(known))[error.key]
        return [*found.values(), Fault(error.code, error.key, shown(given), str(error))]
    if wrong := judged(keys, made, skip=set(found)):
        return [*found.values(), *wrong]
    if any(key in keys.leaves or key in keys.groups for key in found):
        return list(found.values())  # without these values there is no run to check
    return [*found.values(), *typed_faults(made)]


def known_keys(cfg: DictConfig) -> Keys | None:
    """Return the legal keys of a composed config, or None if its method cannot be imported."""
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    return None if method_fault(values) else keys_of(values)


def method_fault(values: dict[str, Any]) -> Fault | None:
    """Return the fault of the chosen method, or None."""
    method = values.get("method")
    name, module = (method.get("name"), method.get("module")) if isinstance(method, dict) else (None, None)
    if module is not None:
        return own_method_fault(name, module)
    if name in method_names():
        return None
    legal = f"Methods: {', '.join(method_names())}; a method of your own also needs method.module"
    return Fault(
        Code.UNKNOWN_CHOICE, "method.name", shown(name), "is not a method", nearest(str(name), method_names()), legal
    )


def keys_of(values: dict[str, Any], stages: Iterable[str] | None = None) -> Keys:
    """Return the legal keys of a composed config."""
    method, corpus = values["method"], values.get("corpus")
    given = method.get("stages")
    own = (given if isinstance(given, dict) else ()) if stages is None else stages
    datasets = tuple(corpus.get("datasets", {})) if isinstance(corpus, dict) else ()
    return run_keys(method["name"], tuple(own), datasets, method.get("module"))


def sort_out(keys: Keys, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Fault]]:
    """Return the part of `values` that the schema knows, and a fault for each other key."""
    known: dict[str, Any] = {}
    found: dict[str, Fault] = {}
    given = dict(keys.flat(values))
    for key, value in given.items():
        if REFUSED.search(str(value)):
            problem = "must be a value, or refer to a key such as ${schedule.lr}"
            found[key] = Fault(Code.CODE_IN_CONFIG, key, shown(value), problem)
        elif key.endswith("_target_"):
            found[key] = Fault(Code.CODE_IN_CONFIG, key, shown(value), "must be left out: a config never names code")
        elif key in keys.leaves:
            put(known, key, value)
        elif value is None and key in keys.nullable:
            put(known, key, None)
        elif key not in keys.groups:
            whose = f" of method={shown(values['method']['name'])}" if within(key, "method") else ""
            found[key] = Fault(
                Code.UNKNOWN_KEY, key, shown(value), f"unknown key{whose}", keys.nearest(key), keys.legal(key)
            )
        elif value != {}:
            meant = f"schedule@{key}={value}" if key == "teacher.schedule" and isinstance(value, str) else ""
            found[key] = Fault(
                Code.MISUSED_GROUP, key, shown(value), f"is a group of keys: {', '.join(keys.groups[key])}", meant
            )
    for group, below in keys.groups.items():
        if any(within(group, key) for key, value in given.items() if value is None and key in keys.nullable):
            continue  # null, or inside a group that is null
        absent = group and not any(within(key, group) for key in given)
        if absent and group in keys.nullable:
            given[group] = None
            put(known, group, None)
            continue
        if absent and below and group.rpartition(".")[0] not in found:
            found[group] = Fault(Code.MISSING_VALUE, group, None, "must be set")
        grow(known, group)
    return known, found


def judged(keys: Keys, filled: DictConfig, skip: set[str]) -> list[Fault]:
    """Return the values with a wrong type or out of range; `skip` are keys that are already known to be wrong."""
    raw = dict(keys.flat(OmegaConf.to_container(filled, resolve=False)))  # type: ignore[arg-type]
    found: dict[str, Fault] = {}
    skip = skip | {key for key, value in raw.items() if value is None and key in keys.groups}
    for key, leaf in keys.leaves.items():
        if not any(within(key, faulty) for faulty in skip) and (
            fault := fault_of(key, leaf, raw.get(key, leaf.default), filled, keys)
        ):
            found[key] = fault
    wrong = skip | found.keys()
    return [fault for key, fault in found.items() if not follows(key, raw, wrong)]


def follows(key: str, raw: dict[str, Any], wrong: set[str]) -> bool:
    """Return whether the value comes, or would come, from another key that is in `wrong`."""
    origin = next((key for key in ("teacher.path", "teacher.members") if raw.get(key) == MISSING), "teacher.source")
    if raw.get(key, MISSING) == MISSING and key != origin:
        stage_key = key.startswith("method.stages.")
        giver = f"schedule.{key.rpartition('.')[2]}" if stage_key else origin
        return (stage_key or key.startswith("teacher.")) and any(within(giver, faulty) for faulty in wrong)
    sources: set[str] = set()
    todo = {key}
    while todo:
        todo = {name for known in todo for name in references(known, raw.get(known))} - sources
        sources |= todo
    elsewhere = any(within(source, faulty) for source in sources for faulty in wrong)
    return elsewhere and key not in sources  # each key of a circle has its own fault


def within(key: str, group: str) -> bool:
    return f"{key}.".startswith(f"{group}.")


def fault_of(key: str, leaf: Leaf, raw: Any, filled: DictConfig, keys: Keys) -> Fault | None:
    """Return the fault of one value, or None; `raw` is the value as it is written."""
    if raw == MISSING:
        problem = "must be set" + (f", e.g. {EXAMPLES[key]}" if key in EXAMPLES else "")
        legal = f"Legal: {in_words(leaf.rule)}" if leaf.rule else ""
        return Fault(Code.MISSING_VALUE, key, None, problem, legal=legal)
    if "${" not in str(raw):
        return misfit(key, leaf, raw)
    close = ""
    try:
        return misfit(key, leaf, resolved(filled, key))
    except InterpolationToMissingValueError:
        problem = "refers to a key that is not set"
    except InterpolationKeyError:
        # A key that is missing further up the chain has its fault there.
        lost = next((name for name in references(key, raw) if name not in keys.leaves), "")
        problem, close = f"refers to {lost}, which does not exist", keys.nearest(lost)
    except InterpolationResolutionError as error:
        problem = "refers to itself in a circle" if "Recursive" in str(error) else str(error).splitlines()[0]
    return Fault(Code.BROKEN_REFERENCE, key, shown(raw), problem, close)


def resolved(filled: DictConfig, key: str) -> Any:
    """Return the value of `key` with every reference in it resolved. Raises OmegaConf's errors."""
    value = OmegaConf.select(filled, key)
    if not OmegaConf.is_config(value) and "${" not in str(value):
        return value  # the common case; what follows takes as long again
    return OmegaConf.to_container(OmegaConf.create([value]), resolve=True)[0]  # type: ignore[index]


def misfit(key: str, leaf: Leaf, given: Any) -> Fault | None:
    """Return the fault of a value that has the wrong type or is out of range, or None."""
    rule = leaf.rule or RULES.get(key)
    try:
        value = leaf.typed(given)
    except OmegaConfBaseException:
        more = in_words(rule) if rule else "or null" * leaf.optional
        return Fault(Code.WRONG_TYPE, key, shown(given), f"must be {leaf.kind}" + f" ({more})" * bool(more))
    if isinstance(value, float) and not math.isfinite(value):
        return Fault(Code.OUT_OF_RANGE, key, shown(given), "must be a finite number")
    if rule is None or rule.holds(value):
        return None
    close = nearest(str(value), re.findall(r"\w+", rule.legal), cutoff=0.7)
    return Fault(Code.OUT_OF_RANGE, key, shown(given), f"must be {in_words(rule)}", close)


def in_words(rule: Rule) -> str:
    """Return the legal values in words: `a, b, c` becomes `a, b or c`."""
    before, _, last = rule.legal.rpartition(", ")
    return f"{before} or {last}" if re.fullmatch(r"\w+(, \w+)+", rule.legal) else rule.legal


def typed_faults(made: DictConfig) -> list[Fault]:
    OmegaConf.resolve(made)
    try:
        return cross_faults(typed(made))
    except ValueError as error:  # of a method's __post_init__
        return [Fault(Code.CONFLICTING_VALUES, "method", None, str(error))]


def references(key: str, value: Any) -> Iterator[str]:
    """Yield the full keys that the raw `value` of `key` refers to."""
    for dots, name in REFERENCE.findall(str(value)):
        yield ".".join([*key.split(".")[: -len(dots)], name]) if dots else name


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    group, _, last = key.rpartition(".")
    grow(tree, group)[last] = value


def grow(tree: dict[str, Any], group: str) -> dict[str, Any]:
    """Return the dictionary at `group`, after creating it if needed."""
    for part in group.split(".") if group else ():
        tree = tree.setdefault(part, {})
    return tree
