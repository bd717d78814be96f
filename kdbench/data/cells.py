"""What stands in a cell of a table: a text, or the label of a task's kind.

How a label is written is judged over all files of a data set, so that 1.0 in one and 1 in another are one class.
"""

import ast
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from kdbench.data.reading import Reading
from kdbench.errors import SourceError

Label = str | float | list[str] | None  # None: the row has no label
BETWEEN = "|"  # labels in a cell of plain text: sport|politics
_OTHER_BETWEEN = (";", ",")  # what other programs write there
_ABSENT = {"", "nan", "na", "n/a", "<na>", "#n/a", "null", "none"}  # among numbers, in lower case
_INTEGER = re.compile(r"[+-]?\d+")
_WHOLE = re.compile(r"([+-]?\d+)(?:\.0*|,0)")  # 1.0
_DECIMAL = re.compile(r"[+-]?\d*,\d+")  # 3,5
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
# Letters without a width, and marks of a text's direction. The two joiners are not among them: they change words.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF]
)
_SHOWN = 5  # labels that a sentence names


class Place(NamedTuple):
    """Where a cell stands; put into words for an error alone."""

    reading: Reading
    line: int  # from 1

    def __str__(self) -> str:
        return f"{self.reading.file}, {self.reading.unit} {self.line},"


class LabelCells(NamedTuple):
    """The label column of one file."""

    reading: Reading
    lines: Sequence[int]
    values: Sequence[Any]

    def places(self) -> Iterator[tuple[Any, Place]]:
        return ((value, Place(self.reading, line)) for value, line in zip(self.values, self.lines, strict=True))


class Labels(NamedTuple):
    """The labels of one file, and what was settled about them, in sentences."""

    labels: list[Label]
    notes: list[str]


def text_of(value: Any, key: str, where: Place, words: bool) -> str:
    """A text as it stands; a list of words joined by spaces. `words`: each of these has a label of its own."""
    if value is None:
        return ""
    if words and isinstance(value, str):
        value = listed(value)
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


def read_labels(files: Sequence[LabelCells], task: str) -> list[Labels]:
    """The labels of all files of a data set. Raises SourceError, which names the cell."""
    readers: dict[str, Callable[[Sequence[LabelCells]], list[Labels]]] = {
        "classification": _classes,
        "multi_label": _several,
        "regression": _numbers,
        "token_classification": _tags,
    }
    return readers[task](files)


def listed(text: str) -> Any:
    """The list that a cell of plain text spells as JSON, Python or numpy do; else the text."""
    whole = text.strip()
    if whole[:1] + whole[-1:] not in ("[]", "()", "{}"):
        return text
    if re.search(r"""(['"])\s+\1""", whole):  # numpy has no commas; to Python that is one string
        whole = re.sub(r"""(['"])\s+(?=\1)""", r"\1,", whole)
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(whole)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return sorted(found) if isinstance(found, set) else list(found) if isinstance(found, list | tuple) else text
    return text


# --- classes


def _class(value: Any, where: Place) -> str | None:
    """A class as it is written; None where a row has none."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or (isinstance(value, float | Decimal) and value != value):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float | Decimal) and value % 1 == 0):
        return str(int(value))
    raise SourceError(
        f"dataset.label: {where} has the label {value!r}; labels are class names or integers."
        " For other labels there are other kinds of dataset.task: multi_label for lists, regression for numbers."
    )


def _classes(files: Sequence[LabelCells]) -> list[Labels]:
    written = [[[_class(value, where)] for value, where in file.places()] for file in files]
    return [Labels([one for (one,) in rows], notes) for rows, notes in _settled(written)]


def _tags(files: Sequence[LabelCells]) -> list[Labels]:
    def tags(value: Any, where: Place) -> list[str | None]:
        value = listed(value) if isinstance(value, str) else value
        if value is None:
            return []
        if not isinstance(value, list) or None in (found := [_class(part, where) for part in value]):
            raise SourceError(
                f"dataset.label: {where} has {value!r} where a list of tags should be, one for each word of"
                " dataset.text."
            )
        return found

    settled = _settled([[tags(value, where) for value, where in file.places()] for file in files])
    return [Labels([_whole(row) or None for row in rows], notes) for rows, notes in settled]  # no words: no label


def _whole(row: Iterable[str | None]) -> list[str]:
    return [one for one in row if one is not None]


def _several(files: Sequence[LabelCells]) -> list[Labels]:
    """Of lists, or of text with a sign between the labels; an empty one means that no label holds."""
    cells: list[list[tuple[Any, Place]]] = []
    for file in files:
        cells.append([(listed(value) if isinstance(value, str) else value, where) for value, where in file.places()])
    texts = {value.strip() for rows in cells for value, _ in rows if isinstance(value, str)}
    sign = _between(texts)

    def several(value: Any, where: Place) -> list[str | None] | None:
        if isinstance(value, str):
            return [part.strip() for part in value.split(sign) if part.strip()]
        if value is None or value != value:
            return None
        items = [value] if isinstance(value, int) else value
        if not isinstance(items, list) or None in (found := [_class(part, where) for part in items]):
            raise SourceError(
                f"dataset.label: {where} has the label {value!r}; dataset.task=multi_label reads lists of labels, or"
                f" text with {BETWEEN} between them: sport{BETWEEN}politics."
            )
        return found

    written = [[several(value, where) for value, where in rows] for rows in cells]
    result = []
    for (rows, notes), given, file_cells in zip(
        _settled([[row or [] for row in rows] for rows in written]), written, cells, strict=True
    ):
        own = [value for value, _ in file_cells if isinstance(value, str)]
        if sign != BETWEEN and any(sign in value for value in own):
            notes.insert(0, f"labels of a cell are read as separated by {sign}")
        kept = next((value for value in own for other in _OTHER_BETWEEN if sign == BETWEEN and other in value), None)
        if kept is not None:
            notes.insert(0, f"a cell such as {kept!r} is one label: only {BETWEEN} separates labels here")
        labels: list[Label] = [None if row is None else _whole(found) for row, found in zip(given, rows, strict=True)]
        result.append(Labels(labels, notes))
    return result


def _between(texts: set[str]) -> str:
    """The sign between the labels of a cell. Another than | only where its parts come again in other cells."""
    if any(BETWEEN in text for text in texts):
        return BETWEEN
    for sign in _OTHER_BETWEEN:
        cells = [{part.strip() for part in text.split(sign)} for text in texts]
        counts = Counter(part for cell in cells for part in cell)
        parts = {part for cell in cells if len(cell) > 1 for part in cell}
        if parts and sum(counts[part] > 1 for part in parts) > len(parts) / 2:
            return sign
    return BETWEEN


def one_hot(columns: dict[str, LabelCells]) -> list[Label]:
    """The labels of rows that have a column of 0 and 1 for each label; None where all are empty or -1."""
    on = {"1": True, "true": True, "0": False, "false": False, "": None, "-1": None}
    rows: list[list[bool | None]] = []
    for name, cells in columns.items():
        found = []
        for value, where in cells.places():
            written = (_class(value, where) or "").lower()
            written = whole[1] if (whole := _WHOLE.fullmatch(written)) else written
            if written not in on:
                raise SourceError(
                    f"dataset.label: {where} has {value!r} in column {name}; a column for each label holds 0 and 1,"
                    " or false and true."
                )
            found.append(on[written])
        rows.append(found)
    labels: list[Label] = []
    any_column = next(iter(columns.values()))
    for row, line in zip(zip(*rows, strict=True), any_column.lines, strict=True):
        if None in row and any(value is not None for value in row):
            empty = list(columns)[row.index(None)]
            raise SourceError(
                f"dataset.label: {Place(any_column.reading, line)} has nothing in column {empty}, and 0 or 1 in others."
                " Write 0 where a label does not hold; a row without labels has none in any column."
            )
        labels.append(None if None in row else [name for name, holds in zip(columns, row, strict=True) if holds])
    return labels


def _settled(files: Sequence[Sequence[Sequence[str | None]]]) -> list[tuple[list[list[str | None]], list[str]]]:
    """One spelling of each class, over all files: (rows of labels, notes) of each."""
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
            if shown := sorted({clean[one] for one in found} & which):
                notes.append(sentence.format(", ".join(shown[:_SHOWN])))
        if at == 0:
            notes += _alike(found, read)
        result.append(([[None if one is None else read[one] for one in row] for row in rows], notes))
    return result


def _visible(name: str) -> str:
    letters = unicodedata.normalize("NFC", name).translate(_INVISIBLE)
    return "".join(" " if letter.isspace() else letter for letter in letters).strip()


def _meanings(names: set[str]) -> tuple[dict[str, str | None], list[tuple[str, set[str]]]]:
    """What each written class stands for, and the sentences about it, each with the names that it speaks of."""
    absent = {name for name in names if name.lower() in _ABSENT}
    present = names - absent
    logical = {name for name in present if name.lower() in ("true", "false")}
    whole = {name: match[1] for name in present if (match := _WHOLE.fullmatch(name))}
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
    if present and all(_reads_as_number(name) for name in present):  # labels.py refuses those with a fraction
        return {name: name for name in present} | dict.fromkeys(absent), [missing]
    return {name: name for name in names}, []


def _reads_as_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _alike(found: Counter[str], read: dict[str, str | None]) -> list[str]:
    """A sentence where classes stay apart that differ in case, width or the like."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for one, count in found.items():
        if (name := read[one]) is not None:
            letters = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
            key = " ".join(unicodedata.normalize("NFKC", letters).casefold().split())
            groups[key][name] += count
    several = [group for group in groups.values() if len(group) > 1]
    shown = [" and ".join(f"{name!r} ({count} rows)" for name, count in group.items()) for group in several[:_SHOWN]]
    return [f"classes that look alike are kept apart: {'; '.join(shown)}"] if several else []


# --- numbers


def _numbers(files: Sequence[LabelCells]) -> list[Labels]:
    """Numbers to predict; a comma is the decimal sign where the files cannot mean thousands by it."""
    texts = {value.strip() for file in files for value in file.values if isinstance(value, str)}
    commas = {text for text in texts if "," in text}
    decimal = (
        bool(commas)
        and all(_DECIMAL.fullmatch(text) for text in commas)
        and not all(_THOUSANDS.fullmatch(text) for text in commas)
        and not any("." in text for text in texts)
    )

    def number(value: Any, where: Place) -> float | None:
        if value is None or (isinstance(value, str) and value.strip().lower() in _ABSENT) or value != value:
            return None
        written = value.strip().replace(",", ".") if decimal and isinstance(value, str) else value
        try:
            found = float(written)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if not math.isfinite(found) or (isinstance(written, str) and "_" in written):
            comma = " 1,234 may be 1.234 or 1234: write it without the comma." if value in commas else ""
            raise SourceError(
                f"dataset.label: {where} has the label {value!r}; dataset.task=regression reads numbers.{comma}"
            )
        return found

    result = []
    for file in files:
        labels: list[Label] = [number(value, where) for value, where in file.places()]
        own = [value for value in file.values if isinstance(value, str)]
        notes = []
        if example := next((value.strip() for value in own if decimal and "," in value), None):
            notes.append(f"the comma is the decimal sign: {example} is read as {example.replace(',', '.')}")
        if words := sorted({value.strip() for value in own if value.strip() and value.strip().lower() in _ABSENT}):
            notes.append(f"{', '.join(words)} among numbers says that a row has none")
        result.append(Labels(labels, notes))
    return result
