"""The legal values of a setting, declared once beside the field, for the check and for its message.

Methods can import it for their `Params`, because it imports nothing else of kdbench.
"""

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MISSING: Any = "???"  # OmegaConf's mark for a value that the YAML must give


class Rule(NamedTuple):
    legal: str  # in words, for the message
    holds: Callable[[Any], bool]
    text: bool = False  # whether each single value is text, whatever the type hint


def option(rule: Rule, default: Any = MISSING) -> Any:
    """Return a dataclass field whose value comes from the YAML and must obey `rule`, even if it is None."""
    return field(default=default, metadata={"rule": rule})


def between(low: float, high: float) -> Rule:
    return Rule(f"{low:g} to {high:g}", lambda value: low <= value <= high)


def above(low: float) -> Rule:
    return Rule(f"above {low:g}", lambda value: value > low)


def at_least(low: float) -> Rule:
    return Rule(f"{low:g} or more", lambda value: value >= low)


def one_of(*values: str) -> Rule:
    return Rule(", ".join(values), lambda value: value in values)


def within(low: float, high: float) -> Rule:
    """Return the rule for a number above `low`, and `high` at most."""
    return Rule(f"above {low:g}, and {high:g} at most", lambda value: low < value <= high)


def several(what: str, kind: type) -> Rule:
    """Return the rule for a list of two or more different values; `what` they are, in words."""

    def holds(value: Any) -> bool:
        return len(value) > 1 and len(set(value)) == len(value) and (kind is not int or min(value) >= 0)

    return Rule(f"a list of two or more different {what}", holds)


def or_none(rule: Rule) -> Rule:
    return Rule(f"null, or {rule.legal}", lambda value: value is None or rule.holds(value))


# A name of kdbench's own, which becomes that of a folder.
FOLDER = Rule(
    "a folder's name: letters, digits, _ - and . (not first)",
    lambda value: re.fullmatch(r"[\w-][\w.-]*", value, re.ASCII) is not None,
)

# A file's digest.
SHA256 = Rule("a SHA-256 of 64 hex digits", lambda value: re.fullmatch("[0-9a-f]{64}", value) is not None)

NO_WEIGHTS = "none"  # all classes have the weight 1


def _are_weights(value: Any) -> bool:
    if not isinstance(value, dict):
        return value in (NO_WEIGHTS, "balanced")
    numbers = [one for one in value.values() if isinstance(one, int | float) and not isinstance(one, bool)]
    return 0 < len(numbers) == len(value) and all(0 < one < math.inf for one in numbers)


# Weights of the classes in a loss.
CLASS_WEIGHTS = Rule("none, balanced, or weights above 0 by class such as {spam:5}", _are_weights)

# The temperature of a softmax. Beyond these limits T^2 or logits / T overflows float32, and the loss is NaN.
TEMPERATURE = between(1e-3, 1e3)

# The share of an epoch's texts that have no label (`unlabelled_share` of a method).
SHARE = or_none(between(0.01, 0.99))


@dataclass
class TaughtAndLabelled:
    """The keys of a method whose loss is alpha * what the teacher gives + (1 - alpha) * the loss of the labels."""

    alpha: float = option(between(0, 1))
    unlabelled_share: float | None = option(SHARE)  # of an epoch's texts; null: train and the raw texts once

    @property
    def reads_labels(self) -> bool:
        """Return whether the labels have a term."""
        return self.alpha < 1

    @property
    def reads_unlabelled(self) -> bool:
        """Return whether what needs no label has a term."""
        return self.alpha > 0


@dataclass
class SoftAndHard(TaughtAndLabelled):
    """Those of a method that learns from the teacher's logits, which `kdbench.objectives.soft_and_hard` reads."""

    temperature: float = option(TEMPERATURE)
    reduction: str = option(one_of("batchmean", "elementmean"))
    scale_by_temperature_squared: bool = MISSING


_LAYERS = ("first", "last", "every_other", "odd_alternate", "even_alternate", "symmetric", "contribution")


def layer_choice() -> Rule:
    """Return the rule for a name in `_LAYERS`, or a list of distinct layer numbers from 0."""

    def holds(value: Any) -> bool:
        if isinstance(value, str):
            return value in _LAYERS
        if not isinstance(value, list) or not value:
            return False
        return all(type(k) is int and k >= 0 for k in value) and len(set(value)) == len(value)

    return Rule(f"{', '.join(_LAYERS)}, or a list of layers counted from 0 such as [0,2,4]", holds)


def choose_layers(choice: str | list[int], of: int, count: int) -> list[int]:
    """Return `count` of `of` layers, counted from 0.

    `choice`: `first`, `last`, `every_other` (evenly spaced), or the layers themselves. Those of Sajjad et al. 2020,
    by what they drop: `odd_alternate` and `even_alternate` every other layer from the top, of those with
    odd or even numbers from 1; `symmetric` the middle. (If `count` is odd, the bottom keeps one more than the top.)
    `contribution` is none of these, because it is measured (kdbench.runs.context.Run.chosen_layers).
    """
    if isinstance(choice, list):
        return choice
    below = -(-count // 2)
    return {
        "first": list(range(count)),
        "last": list(range(of - count, of)),
        "every_other": [index * of // count for index in range(count)],
        "odd_alternate": _alternate(of, count, odd=True),
        "even_alternate": _alternate(of, count, odd=False),
        "symmetric": [*range(below), *range(of - (count - below), of)],
    }[choice]


def _alternate(of: int, count: int, odd: bool) -> list[int]:
    candidates = [layer for layer in reversed(range(of)) if layer % 2 != odd]  # numbers from 0: odd ones are even
    dropped = candidates[: of - count]
    return [layer for layer in range(of) if layer not in dropped]


def sign(names: Collection[str]) -> Rule:
    """Return the rule for one character or its name. Most of these characters need quotes in a shell."""
    return Rule(
        f"a character, or {', '.join(names)}",
        lambda value: value in names or (len(value) == 1 and value not in '"\r\n'),
    )


def column_or_columns() -> Rule:
    """Return the rule for a column or a list of distinct columns. A number can be a column's name."""

    def holds(value: Any) -> bool:
        if not isinstance(value, list):
            return isinstance(value, str | int) and value != ""
        return len(value) > 1 and all(map(holds, value)) and len(set(map(str, value))) == len(value)

    return Rule("a column, or for task=multi_label a list of columns such as [sport,politics]", holds, text=True)
