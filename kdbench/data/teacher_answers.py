"""Read a teacher's answers from files. Who wrote them does not matter: a network, a service or a person.

A row of a file belongs to the example with the same text (and second text), or with the same number. It says how
probable each class is, or which class it is. The result is log-probabilities, which serve as logits. They differ from
a network's logits by a constant for each example, and no softmax depends on that constant.

A file is read in parts. Of a text, only 64 bits that stand for it are in memory.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.data.datasets import Split
from kdbench.data.parts import Parts, in_parts
from kdbench.data.tables import Table
from kdbench.errors import Code, SettingError, SourceError, shown
from kdbench.schema import DatasetConfig, TeacherConfig
from kdbench.sources.teacher_source import teacher_files
from kdbench.tasks.cells import Place, class_of, spelled

log = logging.getLogger("kdbench")
TOLERANCE = 0.01  # by which probabilities may miss a sum of 1, as they are often written with two or three digits
SAME = 1e-6  # difference of two probabilities that float32 may make
NOT_GIVEN = math.nan
Keys = NDArray[np.uint64]  # 64 bits for each text, for each text with its second text, or a number
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """A teacher's answers to n examples."""

    keys: Keys  # (n,) ascending
    logits: NDArray[np.float32]  # (n, C)
    teacher: TeacherConfig

    def of(self, split: Split, partly: bool = False) -> Tensor:
        """Return (n, C) logits. An example without an answer has NaN if `partly`; else it raises SettingError."""
        at = self._places(split)
        if not partly and (at < 0).any():
            raise self._incomplete(split, at >= 0)
        found = self.logits[at]
        found[at < 0] = NOT_GIVEN
        return torch.from_numpy(found)

    def known(self, split: Split) -> NDArray[np.bool_]:
        """Return (n,): whether each example has an answer."""
        return self._places(split) >= 0

    def required(self, split: Split, partly: bool = False) -> NDArray[np.bool_]:
        """Return `known`. Raises SettingError if none has an answer, or if not all have and neither `partly` nor
        `missing=drop` allows that.
        """
        known = self.known(split)
        if not known.any() or not (known.all() or partly or self.teacher.missing == "drop"):
            raise self._incomplete(split, known)
        return known

    def _incomplete(self, split: Split, known: NDArray[np.bool_]) -> SettingError:
        lost = np.flatnonzero(~known)
        example = split.take(lost[:1])
        first = f"number {example.ids[0]}" if self.teacher.join == "id" else repr(shown(example.texts[0]))
        cure = (
            "" if len(lost) == len(split) else ", or set teacher.missing=drop to learn nothing from the teacher there"
        )
        problem = f"has no answer to {len(lost)} of {len(split)} examples, first to {first}. Complete the file{cure}"
        return _wrong(Code.UNSUITABLE_TEACHER, "source", self.teacher.source, problem)

    def _places(self, split: Split) -> NDArray[np.int64]:
        """Return (n,): the row of each example's answer, or -1."""
        if self.teacher.join == "id":
            keys = split.ids.astype(np.int64).view(np.uint64)
        else:
            keys = np.fromiter(map(_text_key, split.inputs), np.uint64, len(split))
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


def _text_key(given: Sequence[str]) -> int:
    """Return 64 bits that stand for a text, or for a text and its second one."""
    content = "\0".join(given).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def read_answers(teacher: TeacherConfig, names: list[str], pairs: bool) -> Answers:
    """Return the answers in the files of `teacher`, whose classes are matched with `names` by name.

    `pairs`: an example has two texts. If several files answer an example, its probabilities are the mean of theirs. So
    files may be the parts of one table, or the answers of several teachers. Raises SourceError, which names the row.
    """
    found = [_File(path, teacher, names, pairs).answers() for path in teacher_files(teacher)]
    keys = np.unique(np.concatenate([keys for keys, _ in found]))
    if not len(keys):
        raise _wrong(Code.UNREADABLE_TABLE, "source", teacher.source, "has no row with an answer")
    means, counts = np.zeros((len(keys), len(names))), np.zeros(len(keys), np.int64)
    for own, probabilities in found:
        at = np.searchsorted(keys, own)
        means[at] += probabilities  # a file has each key once
        counts[at] += 1
    if (most := int(counts.max())) > 1:
        log.info("teacher: the mean of %d files for %d of %d texts", most, (counts == most).sum(), len(keys))
        means /= counts[:, None]
    np.log(np.maximum(means, teacher.floor, out=means), out=means)  # type: ignore[arg-type]  # teacher_faults
    return Answers(keys, means.astype(np.float32), teacher)


class _File:
    """One file of answers."""

    def __init__(self, path: Path, teacher: TeacherConfig, names: list[str], pairs: bool) -> None:
        self.path, self.teacher, self.names = path, teacher, names
        keys = ("id",) if teacher.join == "id" else ("text", "text_pair") if pairs else ("text",)
        for key in keys:
            if getattr(teacher, key) is None:
                raise _wrong(Code.MISSING_VALUE, key, "null", f"must be a column of {path}")
        self.keys: dict[str, str] = {key: getattr(teacher, key) for key in keys}  # key of the config -> column
        self.unit = ""  # of the places in the file, known once it is read

    def answers(self) -> tuple[Keys, Floats]:
        """Return the keys of the n different examples that have an answer, ascending, and (n, C) probabilities."""
        none = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros((0, len(self.names)))
        parts = zip(none, *(part.answers() for part in self._parts()), strict=True)
        keys, lines, probabilities = (np.concatenate(one) for one in parts)
        order = np.argsort(keys, kind="stable")  # rows of one key stay in the order of the file
        new = np.append(True, keys[order[1:]] != keys[order[:-1]])[: len(keys)]
        first = order[np.flatnonzero(new)]
        again, before = order[~new], first[np.cumsum(new)[~new] - 1]
        other = ~np.isclose(probabilities[before], probabilities[again], atol=SAME).all(1)
        if other.any():
            at = int(np.flatnonzero(other)[again[other].argmin()])
            place, same = (self.place(int(lines[rows[at]])) for rows in (again, before))
            problem = f"{place} is for the same {self.teacher.join} as {same} which has other numbers"
            raise self.wrong(Code.CONFLICTING_VALUES, "source", problem)
        return keys[first], probabilities[first]

    def _parts(self) -> Iterator["_Part"]:
        first, *second = self.keys.values()
        config = DatasetConfig(text=first, text_pair=next(iter(second), None), label=first)
        first_key = next(iter(self.keys))
        mine = {"dataset.text": first_key, "dataset.text_pair": "text_pair", "dataset.label": first_key}
        try:
            table = in_parts(self.path, config)
            columns = self._columns(table)
            for part in table.read([*columns.values()]):
                self.unit = part.reading.unit
                yield _Part(self, columns, part)
        except SettingError as error:
            if error.key.startswith("teacher."):
                raise
            raise self.wrong(error.code, mine.get(error.key, "source"), error.problem) from error
        except SourceError as error:
            coded = f"{self.path} is not in UTF-8: save it in that encoding"  # there is no key for another one
            problem = coded if error.code == Code.WRONG_ENCODING else str(error)
            raise self.wrong(error.code, "source", problem) from error

    def _columns(self, table: Parts) -> dict[str, str]:
        """Return class -> column; or "" -> the one column that has all classes."""
        answer, there = str(self.teacher.answer), table.names
        before, star, after = answer.partition("*")
        if not star:
            if answer not in there:
                raise self._no_column(answer, there)
            return {"": answer}
        inner = slice(len(before), -len(after) or None)
        found = {name[inner]: name for name in there if name.startswith(before) and name.endswith(after)}
        if before or after:
            self.require_known([*found], f"{self.path} has columns of")
        lost = [name for name in self.names if name not in found]
        if lost and (self.teacher.rest is None or len(lost) == len(self.names)):
            raise self._no_column(f"{before}{lost[0]}{after}", there)
        return {name: found[name] for name in self.names if name in found}

    # --- messages

    def place(self, line: int) -> Place:
        return Place(f"{self.path}, {self.unit}", line)

    def require_known(self, found: list[str], what: str) -> None:
        if unknown := [name for name in found if name not in self.names]:
            some = ", ".join(map(repr, unknown[:3]))
            problem = f"{what} {some}, which is no class of the data set: {shown(self.names)}"
            raise self.wrong(Code.MISMATCHED_CLASSES, "answer", problem)

    def _no_column(self, name: str, there: list[str]) -> SettingError:
        problem = f"{self.path} has no column {name}; it has {', '.join(there)}"
        return self.wrong(Code.MISSING_COLUMN, "answer", problem)

    def wrong(self, code: Code, key: str, problem: str) -> SettingError:
        return _wrong(code, key, shown(getattr(self.teacher, key)), problem)


class _Part:
    """Some consecutive rows of a file."""

    def __init__(self, file: _File, columns: dict[str, str], table: Table) -> None:
        self.file, self.teacher, self.names = file, file.teacher, file.names
        self.columns, self.table = columns, table

    def answers(self) -> tuple[Keys, NDArray[np.int64], Floats]:
        """Return keys, lines and (n, C) probabilities of the n rows that have an answer."""
        probabilities = self._probabilities()
        kept = np.flatnonzero(~np.isnan(probabilities[:, 0]))
        keys = np.array([self._key(row) for row in kept.tolist()], np.uint64)
        return keys, np.asarray(self.table.lines, np.int64)[kept], probabilities[kept]

    def _key(self, row: int) -> int:
        cells = [self._cells[column][row] for column in self.file.keys.values()]
        if self.teacher.join == "text":
            return _text_key(["" if cell is None else str(cell) for cell in cells])
        number = _number(cells[0])
        if not abs(number) < 1 << 63 or number % 1 != 0:  # also of NaN
            problem = f"{self._place(row)} has {cells[0]!r} where the number of an example should be"
            raise self.file.wrong(Code.INVALID_LABEL, "id", problem)
        return int(cells[0] if isinstance(cells[0], int) else number) % (1 << 64)

    @cached_property
    def _cells(self) -> dict[str, Sequence[Any]]:
        """Column -> cells, of all columns that are used."""
        return {name: self.table.column(name) for name in {*self.columns.values(), *self.file.keys.values()}}

    def _place(self, row: int) -> Place:
        return self.file.place(self.table.lines[row])

    def _probabilities(self) -> Floats:
        """Return (rows, C) probabilities that sum to 1; NaN in rows that have none, such as those of blank texts."""
        teacher = self.teacher
        given = self._given()
        if teacher.values == "log_probabilities":
            given = np.exp(given)
        absent, total = np.isnan(given), np.nansum(given, 1)
        lost = absent.sum(1)
        answered = lost < len(self.names)
        partly = answered & (lost > 0)
        if teacher.rest is None and partly.any():
            row = int(partly.argmax())
            name = self.names[int(absent[row].argmax())]
            problem = f"must be spread or renormalise: {self._place(row)} has no number for {name!r}"
            raise self.file.wrong(Code.MISSING_VALUE, "rest", problem)
        wrong = answered & ((total > 1 + TOLERANCE) | (total == 0) | (~partly & (total < 1 - TOLERANCE)))
        if wrong.any():
            row = int(wrong.argmax())
            problem = f"{self._place(row)} has probabilities with the sum {total[row]:.4g}, which is not 1"
            raise self.file.wrong(Code.OUT_OF_RANGE, "values", problem)
        left = np.maximum(0, 1 - total) / np.maximum(1, lost) if teacher.rest == "spread" else 0 * total
        found: Floats = np.where(absent, left[:, None], given)
        found[~answered] = NOT_GIVEN
        found /= found.sum(1, keepdims=True)
        return found

    def _given(self) -> Floats:
        """Return (rows, C) numbers as they are in the file; NaN where there is none."""
        columns, rows = self.columns, len(self.table.lines)
        found = np.full((rows, len(self.names)), NOT_GIVEN)
        if "" not in columns:
            for name, column in columns.items():
                cells = self._cells[column]
                found[:, self.names.index(name)] = [self._checked(row, name, cell) for row, cell in enumerate(cells)]
            return found
        for row, cell in enumerate(self._cells[columns[""]]):
            by_class = self._label(row, cell) if self.teacher.values == "labels" else self._by_class(row, cell)
            self.file.require_known([*by_class], f"{self._place(row)} has")
            for name, number in by_class.items():
                found[row, self.names.index(name)] = self._checked(row, name, number)
        return found

    def _label(self, row: int, cell: Any) -> dict[str, Any]:
        try:
            name = class_of(cell, self._place(row))
        except SourceError:  # its message speaks of a data set
            name = str(cell)
        return {} if name is None else dict.fromkeys(self.names, 0.0) | {name: 1.0}

    def _by_class(self, row: int, cell: Any) -> dict[str, Any]:
        """Return class -> number of a cell that holds a map or a list, perhaps spelled as JSON or by Python."""
        found = spelled(cell) if isinstance(cell, str) else cell
        if found is None or found == "":
            return {}
        if isinstance(found, list) and found and all(isinstance(one, tuple) for one in found):
            found = dict(found)  # a map of Arrow
        if isinstance(found, dict):
            return {str(name): number for name, number in found.items() if number is not None}
        if not isinstance(found, list):
            problem = f"{self._place(row)} has {shown(cell)!r} where a map or a list of numbers should be"
            raise self.file.wrong(Code.INVALID_LABEL, "answer", problem)
        classes = self.teacher.classes
        if classes is None:
            problem = "must name the classes in the order of the numbers, because a list has no names"
            raise self.file.wrong(Code.MISSING_VALUE, "classes", problem)
        if len(classes) != len(found):
            problem = (
                f"{self._place(row)} has {len(found)} numbers, and not one for each of these {len(classes)} classes"
            )
            raise self.file.wrong(Code.MISMATCHED_CLASSES, "classes", problem)
        return dict(zip(classes, found, strict=True))

    def _checked(self, row: int, name: str, cell: Any) -> float:
        """Return the number in a cell, NaN if it is empty. Raises SettingError if it cannot be what it should be."""
        if cell is None or cell == "":
            return NOT_GIVEN
        number = _number(cell)
        logarithm = self.teacher.values == "log_probabilities"
        if not (number <= TOLERANCE if logarithm else 0 <= number <= 1 + TOLERANCE):
            legal = "a logarithm, 0 or less" if logarithm else "from 0 to 1"
            problem = f"{self._place(row)} has {cell!r} for {name!r}, which must be {legal}"
            raise self.file.wrong(Code.OUT_OF_RANGE, "values", problem)
        return number


def _number(cell: Any) -> float:
    """Return the number that a cell spells; NaN if it spells none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def _wrong(code: Code, key: str, value: str, problem: str) -> SettingError:
    return SettingError(code, f"teacher.{key}", value, problem)
