"""The keys that a run's config may have, read off the dataclasses: full key -> type, default and rule."""

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

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Any: "a value"}


class Leaf(NamedTuple):
    """A key that holds a value."""

    hint: Any
    default: Any
    rule: Rule | None
    box: type  # a dataclass with nothing but this value

    def typed(self, value: Any) -> Any:
        """`value` as OmegaConf settles it (1 is 1.0 where a float is due). Raises OmegaConf's errors."""
        if type(value) in (self.hint, *get_args(self.hint)):
            return value  # the common case; the way below costs a hundred times as much
        box = OmegaConf.structured(self.box)
        box.value = value
        return OmegaConf.to_container(box)["value"]  # type: ignore[index, call-overload]

    @property
    def text(self) -> bool:
        """Whether every value in it is text: digits, `true` and the like arrive as they were typed."""
        return (self.rule is not None and self.rule.text) or set(_kinds(self.hint)) - {NoneType} == {str}

    @property
    def optional(self) -> bool:
        return NoneType in get_args(self.hint)

    @property
    def kind(self) -> str:
        """The type, in words."""
        if get_origin(self.hint) is list:
            return "a list, [..]"
        if get_origin(self.hint) is dict:
            return "keys with values, {..}"
        return " or ".join(NAMES[kind] for kind in get_args(self.hint) or [self.hint] if kind is not NoneType)


def _kinds(hint: Any) -> Iterator[Any]:
    """The types of the single values in a hint: str and int of `dict[str, list[int]] | None`, and None's."""
    below = get_args(hint)
    if not below:
        yield hint
    for part in below:
        yield from _kinds(part)


class Keys:
    """All legal keys below one dataclass."""

    def __init__(self, schema: type) -> None:
        self.schema = schema
        self.leaves: dict[str, Leaf] = {}
        self.groups: dict[str, list[str]] = {}  # full key, "" at the top -> the keys directly below
        self.nullable: set[str] = set()  # groups that may be null as a whole
        self._add(schema, "")

    def _add(self, kind: type, at: str) -> None:
        hints = get_type_hints(kind)
        self.groups[at] = [field.name for field in dataclasses.fields(kind)]
        for field in dataclasses.fields(kind):
            full, hint, made = (
                f"{at}.{field.name}" if at else field.name,
                hints[field.name],
                field.default_factory,
            )
            below = next(
                (part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)),
                None,
            )
            if below:
                self._add(below, full)
                self.nullable |= {full} if NoneType in get_args(hint) else set()
            else:
                default = field.default if made is dataclasses.MISSING else made()
                box = dataclasses.make_dataclass("Box", [("value", hint, dataclasses.field(default=MISSING))])
                self.leaves[full] = Leaf(hint, default, field.metadata.get("rule"), box)

    def flat(self, values: dict[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
        """(full key, value), as deep as the schema goes or, where it does not know the key, to the end."""
        for key, value in values.items():
            full = f"{at}{key}"
            if isinstance(value, dict) and value and full not in self.leaves:
                yield from self.flat(value, f"{full}.")
            else:
                yield full, value

    def nearest(self, key: str) -> str:
        """The legal key that was probably meant: near in spelling, or the same last word elsewhere."""
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
        """What may stand in the place of `key`, in words: values first, then groups of them."""
        parent = key.rpartition(".")[0]
        while parent not in self.groups:
            parent = parent.rpartition(".")[0]
        names = sorted(self.groups[parent], key=lambda name: bool(parent) and f"{parent}.{name}" in self.groups)
        return f"Legal{' under ' if parent else ''}{parent}: {', '.join(names)}"


@cache
def run_keys(method: str, stages: tuple[str, ...], datasets: tuple[str, ...] = (), module: str | None = None) -> Keys:
    """The keys of a run by `method`, whose stages, and whose corpus' data sets, have these names."""

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
    keys.groups[""].insert(len(GROUPS) - 1, "experiment")  # a group without keys of its own: it sets the others'
    return keys


def method_names() -> list[str]:
    """The methods that there are: the file name is the key."""
    return sorted(path.stem for path in (Path(__file__).parents[1] / "methods").glob("[!_]*.py"))
