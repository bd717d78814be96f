"""`--where`: a condition on a run's keys, parsed with `ast` and evaluated node by node. Nothing is ever executed.

    method == "theseus" and student.layers <= 3
    method.alpha in [0.5, 0.7] or not like(student, "bert_*")

A key that a run lacks is null. Null equals only null, and is neither smaller nor larger than anything.
"""

import ast
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

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
    _tree: ast.expr

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Return whether the condition is true for a run with these values."""
        return bool(_value(self._tree, values))


def condition(text: str) -> Condition:
    """Parse a condition. Raises ConditionError."""
    if len(text) > LONGEST:
        raise ConditionError(f"is longer than {LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        keys: dict[str, None] = {}
        _check(tree, keys)
    except SyntaxError as error:
        raise ConditionError(f"cannot be read at character {error.offset}; legal: {LEGAL}") from None
    except (ValueError, RecursionError, MemoryError):
        raise ConditionError(f"cannot be read; legal: {LEGAL}") from None
    return Condition(text, tuple(keys), tree)


def _check(node: ast.expr, keys: dict[str, None]) -> None:
    """Collect the keys. Raises ConditionError for every kind of node that is not listed here."""
    if (key := _key(node)) is not None:
        if key.lower() not in WORDS:
            keys[key] = None
        return
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None):
            return
        case ast.BoolOp(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
            inside = parts
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=part):
            inside = [part]
        case ast.Compare(left=first, comparators=others, ops=signs):
            if odd := [sign for sign in signs if isinstance(sign, (ast.Is, ast.IsNot))]:
                raise ConditionError(f"has {type(odd[0]).__name__.lower()}: write == or !=")
            inside = [first, *others]
        case ast.Call(func=ast.Name(id="like"), args=[part, ast.Constant(value=str())], keywords=[]):
            inside = [part]
        case _:
            raise ConditionError(f"has {ast.unparse(node)[:40]!r}, which is not legal; legal: {LEGAL}")
    for part in inside:
        _check(part, keys)


def _key(node: ast.expr) -> str | None:
    """Return `a.b.c` as text, None for any other node."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _key(node.value)) is not None:
        return f"{before}.{node.attr}"
    return None


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    if (key := _key(node)) is not None:
        return WORDS[key.lower()] if key.lower() in WORDS else values[key]
    match node:
        case ast.Constant(value=value):
            return value
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, values) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_value(part, values) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not _value(part, values)
        case ast.UnaryOp(operand=part):
            number = _value(part, values)
            return -number if isinstance(number, (int, float)) else None
        case ast.Compare(left=first, comparators=others, ops=signs):
            chain = [_value(part, values) for part in (first, *others)]
            return all(_compared(sign, a, b) for sign, a, b in zip(signs, chain, chain[1:], strict=False))
        case ast.Call(args=[part, ast.Constant(value=pattern)]):
            value = _value(part, values)
            return value is not None and fnmatchcase(str(value), str(pattern))
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part, values) for part in parts]
    raise AssertionError(ast.dump(node))  # _check lets nothing else through


def _compared(sign: ast.cmpop, a: Any, b: Any) -> bool:
    if isinstance(sign, (ast.Eq, ast.NotEq)):
        return (a == b) is isinstance(sign, ast.Eq)
    if isinstance(sign, (ast.In, ast.NotIn)):
        inside = isinstance(b, (list, str)) and (isinstance(b, list) or isinstance(a, str)) and a in b
        return inside is isinstance(sign, ast.In)
    numbers = all(isinstance(value, (int, float)) for value in (a, b))
    texts = isinstance(a, str) and isinstance(b, str)
    return (numbers or texts) and ORDER[type(sign)](a, b)
