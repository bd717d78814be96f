"""The legal keys of a run's config, read from the dataclasses: full key -> type, default and rule."""

import dataclasses
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from kdbench.errors import nearest
from kdbench.options import MISSING, Rule
from kdbench.schema import GROUPS, CorpusConfig, DatasetConfig, RunConfig, ScheduleConfig, method_schema

NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", Any: "a value"}


class Leaf(NamedTuple):
    """A key that has a value, not a group of keys."""

    hint: Any
    default: Any
    rule: Rule | None

    def typed(self, value: Any) -> Any:
        """Return `value` converted by OmegaConf, such as 1 to 1.0 for a float. Raises OmegaConf's errors."""
        empty = value == [] and get_origin(self.hint) is list
        if empty or self.hint is Any or type(value) in (self.hint, *get_args(self.hint)):
            return value  # the common case; the conversion below is 100 times slower
        # An assignment takes no list of Parts.
        box = OmegaConf.merge(OmegaConf.structured(_box(self.hint)), {"value": value})
        return OmegaConf.to_container(box)["value"]  # type: ignore[index, call-overload]

    @property
    def text(self) -> bool:
        """Return whether all its values are text, so that digits and `true` are kept as typed."""
        return (self.rule is not None and self.rule.text) or set(_kinds(self.hint)) - {NoneType} == {str}

    @property
    def optional(self) -> bool:
        return NoneType in get_args(self.hint)

    @property
    def kind(self) -> str:
        """Return the type in words."""
        if get_origin(self.hint) is list:
            return "a list, [..]"
        if get_origin(self.hint) is dict:
            return "keys with values, {..}"
        return " or ".join(NAMES[kind] for kind in get_args(self.hint) or [self.hint] if kind is not NoneType)


@cache
def _box(hint: Any) -> type:
    """Return a dataclass whose only field has this type."""
    return dataclasses.make_dataclass("Box", [("value", hint, dataclasses.field(default=MISSING))])


def _kinds(hint: Any) -> Iterator[Any]:
    """Yield the types of single values in a hint: str, int and NoneType for `dict[str, list[int]] | None`."""
    below = get_args(hint)
    if not below:
        yield hint
    for part in below:
        yield from _kinds(part)


class Keys:
    """The legal keys of one dataclass and of the dataclasses in it."""

    def __init__(self, schema: type) -> None:
        self.schema = schema
        self.leaves: dict[str, Leaf] = {}
        self.groups: dict[str, list[str]] = {}  # full key, "" at the top -> the keys directly below
        self.nullable: set[str] = set()  # groups that may be null
        self._add(schema, "")

    def _add(self, kind: type, at: str) -> None:
        hints = get_type_hints(kind)
        self.groups[at] = [field.name for field in dataclasses.fields(kind)]
        for field in dataclasses.fields(kind):
            full, hint, made = f"{at}.{field.name}".lstrip("."), hints[field.name], field.default_factory
            kinds = () if get_origin(hint) is list else (hint, *get_args(hint))  # a list is one value
            below = next((part for part in kinds if isinstance(part, type) and is_dataclass(part)), None)
            if below:
                self._add(below, full)
                self.nullable |= {full} if NoneType in get_args(hint) else set()
            else:
                default = field.default if made is dataclasses.MISSING else made()
                self.leaves[full] = Leaf(hint, default, field.metadata.get("rule"))

    def flat(self, values: dict[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
        """Yield (full key, value): to the depth of the schema, or to the end for a key that it does not know."""
        for key, value in values.items():
            full = f"{at}{key}"
            if isinstance(value, dict) and value and full not in self.leaves:
                yield from self.flat(value, f"{full}.")
            else:
                yield full, value

    def nearest(self, key: str) -> str:
        """Return the legal key that was probably meant: of similar spelling, or with the same last word."""
        parent, _, last = key.rpartition(".")
        if close := nearest(last, self.groups.get(parent, [])):
            return f"{parent}.{close}" if parent else close
        if parent and parent in self.groups:
            return ""
        known = [*self.groups, *self.leaves]
        lost = key.partition(".")[0] not in self.groups[""]
        same = [other for other in known if lost and other.rpartition(".")[2] == last]
        return nearest(key, known, 0.8) or min(same, key=lambda k: (k.count("."), len(k), k), default="")

    def legal(self, key: str) -> str:
        """Return the legal names beside `key` in words, keys with values before groups."""
        parent = key.rpartition(".")[0]
        while parent not in self.groups:
            parent = parent.rpartition(".")[0]
        names = sorted(self.groups[parent], key=lambda name: bool(parent) and f"{parent}.{name}" in self.groups)
        return f"Legal{' under ' if parent else ''}{parent}: {', '.join(names)}"


@cache
def run_keys(method: str, stages: tuple[str, ...], datasets: tuple[str, ...] = (), module: str | None = None) -> Keys:
    """Return the keys of a run by `method` with these stages, and a corpus with these data sets."""

    def part(name: str, kinds: dict[str, type], *bases: type) -> type:
        fields = [(key, kind, dataclasses.field(default_factory=kind)) for key, kind in kinds.items()]
        return dataclasses.make_dataclass(name, fields, bases=bases)

    spelled = part("Stages", dict.fromkeys(stages, ScheduleConfig))
    kinds = {
        "method": part("Method", {"stages": spelled}, method_schema(method, module)),
        "corpus": part("Corpus", {"datasets": part("Datasets", dict.fromkeys(datasets, DatasetConfig))}, CorpusConfig),
    }
    keys = Keys(part("Run", kinds, RunConfig))
    keys.nullable.add("corpus")
    keys.groups[""].insert(len(GROUPS) - 1, "experiment")  # has no keys of its own: it sets those of the others
    return keys


def method_names() -> list[str]:
    """Return the methods; each is named by its file."""
    return sorted(path.stem for path in (Path(__file__).parents[1] / "methods").glob("[!_]*.py"))
