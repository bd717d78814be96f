"""What stands in a cell of a table: a text, or the label of a task's kind."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from kdbench.data.reading import Reading
from kdbench.sources.fetch import SourceError

Class = str | int
Label = Class | float | list[Class] | None  # None: the row has no label
BETWEEN = "|"  # labels in a cell of plain text: sport|politics


class Place(NamedTuple):
    """Where a cell stands; put into words for an error alone."""

    reading: Reading
    line: int  # from 1

    def __str__(self) -> str:
        return f"{self.reading.file}, {self.reading.unit} {self.line},"


def text_of(value: Any, key: str, where: Place, words: bool) -> str:
    """A text as it stands; a list of words joined by spaces. `words`: each of these has a label of its own."""
    if value is None:
        return ""
    if isinstance(value, list):
        parts = [text_of(part, key, where, False) for part in value]
        if words and (several := next((part for part in parts if " " in part), None)) is not None:
            raise SourceError(f"dataset.{key}: {where} has the word {several!r}: a word must have no space.")
        return " ".join(parts)
    if not isinstance(value, str) or words:
        wanted = "a list of words" if words else "a text"
        raise SourceError(f"dataset.{key}: {where} has {value!r} where {wanted} should be.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON's \ud800 to \udfff can stand alone
        raise SourceError(f"dataset.{key}: {where} has {value!r}: half a character (a lone surrogate).") from error
    return value


def label_reader(task: str) -> Callable[[Any, Place], Label]:
    """What reads a label cell of this task: (cell, where it stands) -> label."""
    return {
        "classification": _class,
        "multi_label": _several,
        "regression": _number,
        "token_classification": _tags,
    }[task]


def _class(value: Any, where: Place) -> Class | None:
    if isinstance(value, str):
        return value.strip() or None
    if value is None or isinstance(value, int):
        return value if value is None else int(value)  # a bool counts as 0 or 1
    raise SourceError(
        f"dataset.label: {where} has the label {value!r}; labels are class names or integers."
        " For other labels there are other kinds of dataset.task: multi_label for lists, regression for numbers."
    )


def _several(value: Any, where: Place) -> list[Class] | None:
    """Of a list, or of text with | between; an empty one means that no label holds."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(BETWEEN) if part.strip()]
    if value is None:
        return None
    if not isinstance(value, list) or any((one := _class(part, where)) is None for part in value):
        raise SourceError(
            f"dataset.label: {where} has the label {value!r}; dataset.task=multi_label reads lists of labels, or text"
            f" with {BETWEEN} between them: sport{BETWEEN}politics."
        )
    return [one for part in value if (one := _class(part, where)) is not None]


def _number(value: Any, where: Place) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SourceError(f"dataset.label: {where} has the label {value!r}; dataset.task=regression reads numbers.")
    return number


def _tags(value: Any, where: Place) -> list[Class] | None:
    if value is None:
        return None
    if not isinstance(value, list) or any((one := _class(part, where)) is None for part in value):
        raise SourceError(
            f"dataset.label: {where} has {value!r} where a list of tags should be, one for each word of dataset.text."
        )
    return [one for part in value if (one := _class(part, where)) is not None] or None  # no words
