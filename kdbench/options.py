"""What a configuration value may be: said once, beside the field, for the check and for its message.

Importable by methods (their `Params`) because it knows nothing of the rest of kdbench.
"""

from collections.abc import Callable, Collection
from dataclasses import field
from typing import Any, NamedTuple

MISSING: Any = "???"  # OmegaConf's word for "the YAML gives it": no default hides in the code


class Rule(NamedTuple):
    legal: str  # in words, for the message
    holds: Callable[[Any], bool]
    text: bool = False  # of a value of any type: each single one is text


def option(rule: Rule, default: Any = MISSING) -> Any:
    """A dataclass field whose value comes from the YAML and must obey `rule` (None is judged too)."""
    return field(default=default, metadata={"rule": rule})


def between(low: float, high: float) -> Rule:
    return Rule(f"{low:g} to {high:g}", lambda value: low <= value <= high)


def above(low: float) -> Rule:
    return Rule(f"above {low:g}", lambda value: value > low)


def at_least(low: float) -> Rule:
    return Rule(f"{low:g} or more", lambda value: value >= low)


def one_of(*values: str) -> Rule:
    return Rule(", ".join(values), lambda value: value in values)


def or_none(rule: Rule) -> Rule:
    return Rule(f"null, or {rule.legal}", lambda value: value is None or rule.holds(value))


# Of a softmax. Outside, float32 has no digits left: T^2 overflows, or logits / T does, and the loss is NaN at any rate.
TEMPERATURE = between(1e-3, 1e3)


def layer_choice() -> Rule:
    """`first`, `last`, `every_other`, or a list of distinct layer numbers, counted from 0."""

    def holds(value: Any) -> bool:
        if isinstance(value, str):
            return value in ("first", "last", "every_other")
        if not isinstance(value, list) or not value:
            return False
        return all(type(k) is int and k >= 0 for k in value) and len(set(value)) == len(value)

    return Rule("first, last, every_other, or a list of layers counted from 0 such as [0,2,4]", holds)


def sign(names: Collection[str]) -> Rule:
    """One character, or a name of one: most of them need quotes in a shell."""
    return Rule(
        f"a character, or {', '.join(names)}",
        lambda value: value in names or (len(value) == 1 and value not in '"\r\n'),
    )


def column_or_columns() -> Rule:
    """A column, or a list of distinct ones. A number is the name of a column, too."""

    def holds(value: Any) -> bool:
        if not isinstance(value, list):
            return isinstance(value, str | int) and value != ""
        return len(value) > 1 and all(map(holds, value)) and len(set(map(str, value))) == len(value)

    return Rule("a column, or for task=multi_label a list of columns such as [sport,politics]", holds, text=True)
