"""Everything that can be wrong with a composed config, found at once and before anything runs.

`faults` reads value by value against the dataclasses of `kdbench.schema` and the method's own `Params`
(OmegaConf itself stops at the first fault). What no single value can know is `cross_faults`' matter.
"""

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

from kdbench.errors import Fault, nearest, shown
from kdbench.options import MISSING, Rule
from kdbench.validation.fit import cross_faults
from kdbench.validation.keys import Keys, Leaf, method_names, run_keys
from kdbench.validation.load import NoTeacher, fill, load
from kdbench.validation.own_method import own_method_fault

__all__ = ["cross_faults", "faults"]

# What runs code or depends on more than the config; `half`, `half_again` and `or` are kdbench's own (config.py).
REFUSED = re.compile(r"\$\{(?!half:|half_again:|or:)[^{}]*:|'_target_':")
REFERENCE = re.compile(r"\$\{(\.*)([\w.]+)\}")
FOLDER = Rule(
    "of letters, digits, _ - and . (not first): it names a folder",
    lambda value: re.fullmatch(r"[\w-][\w.-]*", value, re.ASCII) is not None,
)
RULES = {f"{group}.name": FOLDER for group in ("teacher", "student", "dataset", "corpus")}
EXAMPLES = {
    "dataset.source": "dataset.source=path/to/folder",
    "dataset.splits.train": "dataset.splits.train=train.csv",
    "dataset.text": "dataset.text=text, a column",
    "dataset.label": "dataset.label=label, a column",
    "teacher.source": "teacher.source=path/to/model",
    "teacher.path": "teacher.path=outputs/<data set>/<method>/<student>/seed0, a finished run",
    "corpus.running.source": "corpus.running.source=path/to/folder",
    "corpus.running.files": "'corpus.running.files={wiki.txt:\"\",news.csv:body}', file and text column",
}


def faults(cfg: DictConfig, stages: Iterable[str] | None = None) -> list[Fault]:
    """All faults of a composed config; `stages`: the method's own, where the config may name others."""
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    if fault := method_fault(values):
        return [fault]
    keys = keys_of(values, stages)
    known, found = sort_out(keys, values)
    try:
        filled = fill(OmegaConf.create(known))
    except NoTeacher as error:
        given = dict(keys.flat(known))[error.key]
        return [*found.values(), Fault(error.key, shown(given), str(error))]
    if wrong := judged(keys, filled, skip=set(found)):
        return [*found.values(), *wrong]
    if any(key in keys.leaves or key in keys.groups for key in found):
        return list(found.values())  # without these values there is no run to look at
    return [*found.values(), *typed_faults(OmegaConf.create(known))]


def known_keys(cfg: DictConfig) -> Keys | None:
    """The legal keys of a composed config; None where it names no method that can be imported."""
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    return None if method_fault(values) else keys_of(values)


def method_fault(values: dict[str, Any]) -> Fault | None:
    """What is wrong with the choice of the method."""
    method = values.get("method")
    name, module = (method.get("name"), method.get("module")) if isinstance(method, dict) else (None, None)
    if module is not None:
        return own_method_fault(name, module)
    if name in method_names():
        return None
    legal = f"Methods: {', '.join(method_names())}; one of your own needs method.module as well"
    return Fault("method.name", shown(name), "no such method", nearest(str(name), method_names()), legal)


def keys_of(values: dict[str, Any], stages: Iterable[str] | None = None) -> Keys:
    """The legal keys of a composed config."""
    method, corpus = values["method"], values.get("corpus")
    given = method.get("stages")
    own = (given if isinstance(given, dict) else ()) if stages is None else stages
    datasets = tuple(corpus.get("datasets", {})) if isinstance(corpus, dict) else ()
    return run_keys(method["name"], tuple(own), datasets, method.get("module"))


def sort_out(keys: Keys, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Fault]]:
    """The part of `values` that the schema knows, and a fault for each of the rest."""
    known: dict[str, Any] = {}
    found: dict[str, Fault] = {}
    given = dict(keys.flat(values))
    for key, value in given.items():
        if REFUSED.search(str(value)):
            problem = "refused; write a value or another key, such as ${schedule.lr}"
            found[key] = Fault(key, shown(value), problem)
        elif key.endswith("_target_"):
            found[key] = Fault(key, shown(value), "refused; a config holds values and names no code")
        elif key in keys.leaves:
            put(known, key, value)
        elif value is None and key in keys.nullable:
            put(known, key, None)
        elif key not in keys.groups:
            whose = f" of method={shown(values['method']['name'])}" if within(key, "method") else ""
            found[key] = Fault(key, shown(value), f"unknown key{whose}", keys.nearest(key), keys.legal(key))
        elif value != {}:
            meant = f"schedule@{key}={value}" if key == "teacher.schedule" and isinstance(value, str) else ""
            found[key] = Fault(key, shown(value), f"is a group of keys: {', '.join(keys.groups[key])}", meant)
    for group, below in keys.groups.items():
        if any(within(group, key) for key, value in given.items() if value is None and key in keys.nullable):
            continue  # null, or within what is null
        absent = group and not any(within(key, group) for key in given)
        if absent and group in keys.nullable:
            given[group] = None
            put(known, group, None)
            continue
        if absent and below and group.rpartition(".")[0] not in found:
            found[group] = Fault(group, None, "must be set")
        grow(known, group)
    return known, found


def judged(keys: Keys, filled: DictConfig, skip: set[str]) -> list[Fault]:
    """The faults of type and range, value by value; `skip`: keys that are known to be wrong."""
    raw = dict(keys.flat(OmegaConf.to_container(filled, resolve=False)))  # type: ignore[arg-type]
    found: dict[str, Fault] = {}
    skip = skip | {key for key, value in raw.items() if value is None and key in keys.groups}
    for key, leaf in keys.leaves.items():
        if not any(within(key, faulty) for faulty in skip) and (
            fault := fault_of(key, leaf, raw.get(key, leaf.default), filled, keys)
        ):
            found[key] = fault
    wrong = skip | found.keys()
    return [fault for key, fault in found.items() if not told_elsewhere(key, raw, wrong)]


def told_elsewhere(key: str, raw: dict[str, Any], wrong: set[str]) -> bool:
    """Whether the value came, or would have come, from another key that is faulty."""
    whole = "teacher.path" if raw.get("teacher.path") == MISSING else "teacher.source"
    if raw.get(key, MISSING) == MISSING and key != whole:
        stage_key = key.startswith("method.stages.")
        giver = f"schedule.{key.rpartition('.')[2]}" if stage_key else whole
        return (stage_key or key.startswith("teacher.")) and any(within(giver, faulty) for faulty in wrong)
    sources: set[str] = set()
    todo = {key}
    while todo:
        todo = {name for known in todo for name in references(known, raw.get(known))} - sources
        sources |= todo
    elsewhere = any(within(source, faulty) for source in sources for faulty in wrong)
    return elsewhere and key not in sources  # each key of a circle is told


def within(key: str, group: str) -> bool:
    return f"{key}.".startswith(f"{group}.")


def fault_of(key: str, leaf: Leaf, raw: Any, filled: DictConfig, keys: Keys) -> Fault | None:
    """The fault of one value, `raw` as it is written."""
    if raw == MISSING:
        example = f", e.g. {EXAMPLES[key]}" if key in EXAMPLES else ""
        return Fault(key, None, f"must be set{example}", legal=f"Legal: {in_words(leaf.rule)}" if leaf.rule else "")
    if "${" not in str(raw):
        return misfit(key, leaf, raw)
    try:
        return misfit(key, leaf, resolved(filled, key))
    except InterpolationToMissingValueError:
        return Fault(key, shown(raw), "refers to a key that is not set")
    except InterpolationKeyError:
        # Where the lost key is further up the chain, this fault is told there.
        lost = next((name for name in references(key, raw) if name not in keys.leaves), "")
        return Fault(key, shown(raw), f"refers to {lost}, which is not there", keys.nearest(lost))
    except InterpolationResolutionError as error:
        circle = "Recursive" in str(error)
        return Fault(key, shown(raw), "refers to itself in a circle" if circle else str(error).splitlines()[0])


def resolved(filled: DictConfig, key: str) -> Any:
    return OmegaConf.to_container(OmegaConf.create([OmegaConf.select(filled, key)]), resolve=True)[0]  # type: ignore[index]


def misfit(key: str, leaf: Leaf, given: Any) -> Fault | None:
    """The fault of a value with the wrong type or out of its range."""
    rule = leaf.rule or RULES.get(key)
    try:
        value = leaf.typed(given)
    except OmegaConfBaseException:
        more = in_words(rule) if rule else "or null" * leaf.optional
        return Fault(key, shown(given), f"must be {leaf.kind}" + f" ({more})" * bool(more))
    if isinstance(value, float) and not math.isfinite(value):
        return Fault(key, shown(given), "must be a finite number")
    if rule is None or rule.holds(value):
        return None
    close = nearest(str(value), re.findall(r"\w+", rule.legal), cutoff=0.7)
    return Fault(key, shown(given), f"must be {in_words(rule)}", close)


def in_words(rule: Rule) -> str:
    """`a, b, c` as `a, b or c`; other rules as they are."""
    before, _, last = rule.legal.rpartition(", ")
    return f"{before} or {last}" if re.fullmatch(r"\w+(, \w+)+", rule.legal) else rule.legal


def typed_faults(cfg: DictConfig) -> list[Fault]:
    try:
        return cross_faults(load(cfg))
    except ValueError as error:  # of a method's __post_init__
        return [Fault("method", None, str(error))]


def references(key: str, value: Any) -> Iterator[str]:
    """The full keys that the raw `value` of `key` refers to."""
    for dots, name in REFERENCE.findall(str(value)):
        yield ".".join([*key.split(".")[: -len(dots)], name]) if dots else name


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    group, _, last = key.rpartition(".")
    grow(tree, group)[last] = value


def grow(tree: dict[str, Any], group: str) -> dict[str, Any]:
    """The dictionary at `group`, made where it is not there."""
    for part in group.split(".") if group else ():
        tree = tree.setdefault(part, {})
    return tree
