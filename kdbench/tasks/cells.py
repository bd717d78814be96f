"""The cells of a table: texts, and the labels of tasks whose labels are classes.

How a label is spelled is judged over all files of a data set, so that 1.0 in one and 1 in another are one class.
"""

import ast
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from kdbench.errors import Code, SourceError, shown

if TYPE_CHECKING:
    from kdbench.schema import DatasetConfig

Label = str | float | list[str] | None  # None: the row has no label
ABSENT = {"", "nan", "na", "n/a", "<na>", "#n/a", "null", "none"}  # among numbers, in lower case
WHOLE = re.compile(r"([+-]?\d+)(?:\.0*|,0)")  # 1.0
_INTEGER = re.compile(r"[+-]?\d+")
# Letters without a width, and marks of a text's direction. The two joiners are not among them: they change words.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF]
)
_SHOWN = 5  # labels that a sentence names


class Place(NamedTuple):
    """Where a cell is."""

    unit: str  # file and what its rows are: "train.csv, line"
    line: int  # from 1

    def __str__(self) -> str:
        return f"{self.unit} {self.line},"


class LabelCells(NamedTuple):
    """The label column of one file."""

    unit: str  # as in Place
    lines: Sequence[int]
    values: Sequence[Any]

    def places(self) -> Iterator[tuple[Any, Place]]:
        return ((value, Place(self.unit, line)) for value, line in zip(self.values, self.lines, strict=True))


class ReadLabels(NamedTuple):
    """The labels of one file, and sentences about how they were read."""

    labels: list[Label]
    notes: list[str]


def text_of(value: Any, key: str, where: Place, words: bool) -> str:
    """Return a text as it is in its cell; a list of words is joined by spaces.

    `words`: each word has a label. Raises SourceError where the cell holds something else.
    """
    if value is None:
        return ""
    if words and isinstance(value, str):
        value = listed(value)
    if isinstance(value, list):
        parts = [text_of(part, key, where, False) for part in value]
        if words and (several := next((part for part in parts if " " in part), None)) is not None:
            raise SourceError(
                Code.INVALID_TEXT, f"dataset.{key}: {where} has the word {several!r}: a word must have no space."
            )
        return " ".join(parts)
    if not isinstance(value, str) or words:
        wanted = "a list of words" if words else "a text"
        raise SourceError(Code.INVALID_TEXT, f"dataset.{key}: {where} has {value!r} where {wanted} should be.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON's \ud800 to \udfff can stand alone
        raise SourceError(
            Code.INVALID_TEXT, f"dataset.{key}: {where} has {value!r}: half a character (a lone surrogate)."
        ) from error
    return value


def listed(text: str) -> Any:
    """Return the list that a text spells as JSON, Python or NumPy do, or the text itself."""
    whole = text.strip()
    if whole[:1] + whole[-1:] not in ("[]", "()", "{}"):
        return text
    if re.search(r"""(['"])\s+\1""", whole):  # NumPy has no commas; to Python that is one string
        whole = re.sub(r"""(['"])\s+(?=\1)""", r"\1,", whole)
    found = spelled(whole)
    return sorted(found) if isinstance(found, set) else list(found) if isinstance(found, list | tuple) else text


def spelled(text: str) -> Any:
    """Return what a text spells as JSON or Python do, or the text itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


# --- classes


def class_of(value: Any, where: Place) -> str | None:
    """Return a class as it is written, None where a row has none. Raises SourceError for other values."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or (isinstance(value, float | Decimal) and value != value):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float | Decimal) and value % 1 == 0):
        return str(int(value))
    raise SourceError(
        Code.INVALID_LABEL,
        f"dataset.label: {where} has the label {value!r}; labels are class names or integers."
        " For other labels there are other kinds of dataset.task: multi_label for lists, regression for numbers.",
    )


def present(row: Iterable[str | None]) -> list[str]:
    """Return the classes of a row that are not missing."""
    return [one for one in row if one is not None]


def settled(files: Sequence[Sequence[Sequence[str | None]]]) -> list[tuple[list[list[str | None]], list[str]]]:
    """Return (rows of classes, notes) of each file, each class in one spelling over all files."""
    counts = [Counter(one for row in rows for one in row if one is not None) for rows in files]
    clean = {one: _visible(one) for found in counts for one in found}
    meaning, sentences = _meanings({one for one in clean.values() if one})
    read = {one: meaning.get(name) for one, name in clean.items()}
    result = []
    for at, (rows, found) in enumerate(zip(files, counts, strict=True)):
        notes = []
        if altered := [one for one in found if clean[one] != one]:
            notes.append(
                "labels are read without invisible letters and with composed ones (Unicode NFC):"
                f" {', '.join(map(ascii, altered[:_SHOWN]))}"
            )
        for sentence, which in sentences:
            if named := sorted({clean[one] for one in found} & which):
                notes.append(sentence.format(", ".join(named[:_SHOWN])))
        if at == 0:
            notes += _alike(found, read)
        result.append(([[None if one is None else read[one] for one in row] for row in rows], notes))
    return result


def _visible(name: str) -> str:
    letters = unicodedata.normalize("NFC", name).translate(_INVISIBLE)
    return "".join(" " if letter.isspace() else letter for letter in letters).strip()


def _meanings(names: set[str]) -> tuple[dict[str, str | None], list[tuple[str, set[str]]]]:
    """Return the meaning of each written class, and sentences about it with the names that each is about."""
    absent = {name for name in names if name.lower() in ABSENT}
    present = names - absent
    logical = {name for name in present if name.lower() in ("true", "false")}
    whole = {name: match[1] for name in present if (match := WHOLE.fullmatch(name))}
    whole |= {name: name for name in present if _INTEGER.fullmatch(name)}
    missing = ("{} among such labels says that a row has none", absent)
    if logical and present <= logical | {name for name, number in whole.items() if number in ("0", "1")}:
        numbers = {name: ("false", "true")[int(number)] for name, number in whole.items()}
        found: dict[str, str | None] = {name: name.lower() for name in logical} | numbers | dict.fromkeys(absent)
        unlike = {name for name in present if found[name] != name}
        return found, [missing, ("labels {} are read as false and true", unlike)]
    if whole and present <= whole.keys():
        unlike = {name for name, number in whole.items() if number != name}
        return whole | dict.fromkeys(absent), [missing, ("labels such as {} are read as whole numbers", unlike)]
    if present and all(_is_finite(name) for name in present):  # class_names refuses those with a fraction
        return {name: name for name in present} | dict.fromkeys(absent), [missing]
    return {name: name for name in names}, []


def _is_finite(text: str) -> bool:
    return _reads_as(float, text) and math.isfinite(float(text))


def _reads_as(kind: type, text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _alike(found: Counter[str], read: dict[str, str | None]) -> list[str]:
    """Return a sentence where classes are kept apart that differ in case, width or the like."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for one, count in found.items():
        if (name := read[one]) is not None:
            letters = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
            key = " ".join(unicodedata.normalize("NFKC", letters).casefold().split())
            groups[key][name] += count
    several = [group for group in groups.values() if len(group) > 1]
    told = [" and ".join(f"{name!r} ({count} rows)" for name, count in group.items()) for group in several[:_SHOWN]]
    return [f"classes that look alike are kept apart: {'; '.join(told)}"] if several else []


def class_names(train: Sequence[Label], declared: list[str] | None, config: "DatasetConfig") -> list[str]:
    """Return the classes as the source declares them, or else those of train, sorted; integers by value.

    Raises SourceError where their number is not `dataset.classes`, or below two.
    """
    names = declared or _sorted({str(one) for one in each(train)}, config)
    if config.classes is not None and len(names) != config.classes:
        raise SourceError(
            Code.MISMATCHED_CLASSES,
            f"dataset.classes={config.classes}, but {config.name} has {len(names)} labels in train."
            " Set it to what the data have, or to null.",
        )
    if len(names) < 2:
        raise SourceError(
            Code.MISMATCHED_CLASSES,
            f"dataset.label={shown(config.label)}: train has the one label {names[0]!r}; two are needed.",
        )
    return names


def each(labels: Iterable[Label]) -> Iterator[Any]:
    """Yield the labels of rows that have one or several."""
    for label in labels:
        if label is not None:
            yield from label if isinstance(label, list) else [label]


def _sorted(found: set[str], config: "DatasetConfig") -> list[str]:
    integers = all(_reads_as(int, name) for name in found)
    if not integers and found and all(_reads_as(float, name) for name in found):
        example = min(name for name in found if not _reads_as(int, name))
        raise SourceError(
            Code.INVALID_LABEL,
            f"dataset.label={config.label}: labels such as {example} are numbers with a fraction: name a column of"
            " class names or integers, or predict the number: dataset.task=regression.",
        )
    return sorted(found, key=lambda name: (int(name), name)) if integers else sorted(found)


def numbered(labels: Sequence[Any], names: list[str], where: str) -> dict[str, int]:
    """Return the number of each class. Raises SourceError where a label is none of them."""
    number = {name: index for index, name in enumerate(names)}
    if unknown := sorted({str(one) for one in each(labels)} - number.keys()):
        raise SourceError(Code.MISMATCHED_CLASSES, f"{where} has labels that train lacks: {unknown[:5]}.")
    return number
