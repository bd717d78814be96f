"""`--where`: a condition on a run's keys, parsed with `ast`. Nothing of it is ever executed.

    method == "theseus" and student.layers <= 3
    method.alpha in [0.5, 0.7] or not like(student, "bert_*")

A key that a run lacks is null. Null equals only null, and is neither smaller nor larger than anything.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

Value = Callable[[Mapping[str, Any]], Any]  # of a node, from the values of a run's keys
LONGEST = 2000  # characters
WORDS = {"null": None, "none": None, "true": True, "false": False}
LEGAL = 'keys, numbers, "text", [lists], and, or, not, ==, !=, <, <=, >, >=, in, and like(key, "pattern*")'
ORDER = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}


class ConditionError(Exception):
    """A condition that cannot be parsed; the message says where, and what is legal."""


@dataclass(frozen=True)
class Condition:
    text: str
    keys: tuple[str, ...]
    _value: Value

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Return whether the condition is true for a run with these values."""
        return bool(self._value(values))


def condition(text: str) -> Condition:
    """Parse a condition. Raises ConditionError."""
    if len(text) > LONGEST:
        raise ConditionError(f"is longer than {LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        keys: dict[str, None] = {}
        value = _read(tree, keys)
    except SyntaxError as error:
        raise ConditionError(f"cannot be read at character {error.offset}; legal: {LEGAL}") from None
    except (ValueError, RecursionError, MemoryError):
        raise ConditionError(f"cannot be read; legal: {LEGAL}") from None
    return Condition(text, tuple(keys), value)


def _read(node: ast.expr, keys: dict[str, None]) -> Value:
    """Return what computes a node, and collect its keys. Raises ConditionError for what is not listed here."""
    if (key := _key(node)) is not None:
        if (word := key.lower()) in WORDS:
            return lambda values: WORDS[word]
        keys[key] = None
        return lambda values: values[key]
    match node:
        case ast.Constant(value=str() | int() | float() | None as constant):
            return lambda values: constant
        case ast.BoolOp(op=sign, values=parts):
            each, joined = [_read(part, keys) for part in parts], all if isinstance(sign, ast.And) else any
            return lambda values: joined(one(values) for one in each)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            each = [_read(part, keys) for part in parts]
            return lambda values: [one(values) for one in each]
        case ast.UnaryOp(op=ast.Not(), operand=part):
            inner = _read(part, keys)
            return lambda values: not inner(values)
        case ast.UnaryOp(op=ast.USub(), operand=part):
            inner = _read(part, keys)
            return lambda values: -number if isinstance(number := inner(values), (int, float)) else None
        case ast.Compare(left=first, comparators=others, ops=signs):
            if odd := [sign for sign in signs if isinstance(sign, (ast.Is, ast.IsNot))]:
                raise ConditionError(f"has {type(odd[0]).__name__.lower()}: write == or !=")
            each = [_read(part, keys) for part in (first, *others)]

            def compared(values: Mapping[str, Any]) -> bool:
                chain = [one(values) for one in each]
                return all(_compared(sign, a, b) for sign, a, b in zip(signs, chain, chain[1:], strict=False))

            return compared
        case ast.Call(func=ast.Name(id="like"), args=[part, ast.Constant(value=str(pattern))], keywords=[]):
            inner = _read(part, keys)
            return lambda values: (found := inner(values)) is not None and fnmatchcase(str(found), pattern)
    raise ConditionError(f"has {ast.unparse(node)[:40]!r}, which is not legal; legal: {LEGAL}")


def _key(node: ast.expr) -> str | None:
    """Return `a.b.c` as text, None for any other node."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _key(node.value)) is not None:
        return f"{before}.{node.attr}"
    return None


def _compared(sign: ast.cmpop, a: Any, b: Any) -> bool:
    if isinstance(sign, (ast.Eq, ast.NotEq)):
        return (a == b) is isinstance(sign, ast.Eq)
    if isinstance(sign, (ast.In, ast.NotIn)):
        inside = isinstance(b, (list, str)) and (isinstance(b, list) or isinstance(a, str)) and a in b
        return inside is isinstance(sign, ast.In)
    numbers = all(isinstance(value, (int, float)) for value in (a, b))
    texts = isinstance(a, str) and isinstance(b, str)
    return (numbers or texts) and ORDER[type(sign)](a, b)
