"""Report how a data set was read: in the log, in results.json and on the HTML page.

The reports are plain JSON and are cached with the splits, so that a cached data set gives the same sentences.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from kdbench.data.tables import Dropped, Reading
from kdbench.errors import shortened

SHOWN_CLASSES = 20
_LONGEST_NAME = 40  # characters of a class name that are shown: a wrong label column may hold texts
TOO_MANY_UNKNOWN = 0.05  # share of a split's pieces; above it, the model does not know the language


class FileReport(TypedDict):
    """How the file of a split was read, and which rows were dropped."""

    split: str
    file: str
    format: str
    separator: str | None
    encoding: str | None
    unit: str  # what `first` counts: line or row
    dropped: list[dict[str, Any]]  # reason, rows, first; each is also in the data set's notes
    notes: list[str]


class SplitReport(TypedDict):
    rows: int
    cut: float | None  # share of the rows of train that it was cut from; None: it has its own file
    empty: int
    repeated: int  # texts that also occur earlier in the split


class UnlabelledReport(TypedDict):
    source: str  # dataset.unlabelled
    rows: int  # that are learned from
    read: int  # of the source
    dropped: dict[str, int]  # reason -> rows: blank, repeated, in_train, in_dev_or_test, near_dev_or_test
    sha256: str  # of the texts


class DataReport(TypedDict):
    name: str
    files: list[FileReport]
    splits: dict[str, SplitReport]
    class_count: int | None  # None: numbers are predicted
    classes: dict[str, dict[str, int]]  # rows (or labelled words) in each split, for the first SHOWN_CLASSES classes
    range: dict[str, float] | None  # min and max of the numbers to predict; None: classes
    unlabelled: UnlabelledReport | None  # None: the run does not learn from texts without labels
    notes: list[str]


class Counts(TypedDict):
    """Counts of a tokenizer on the texts of a split."""

    texts: int
    cut: int  # texts longer than dataset.max_length
    pieces: int  # without special tokens
    unknown: int  # pieces
    examples: list[str]  # unknown parts of the texts


class PiecesReport(TypedDict):
    tokenizer: str
    pretrained: bool  # False: its vocabulary is from train, and rare words are unknown
    max_length: int
    splits: dict[str, Counts]


class ReadReport(DataReport):
    """`data` in results.json."""

    pieces: list[PiecesReport]  # for each tokenizer of the run


def file_report(split: str, reading: Reading, dropped: Sequence[Dropped]) -> FileReport:
    """Return the report of a file. `dropped`: rows that were dropped after the file was read."""
    return {
        "split": split,
        "file": reading.file,
        "format": reading.format,
        "separator": reading.separator,
        "encoding": reading.encoding,
        "unit": reading.unit,
        "dropped": [asdict(one) for one in (*reading.dropped, *dropped)],
        "notes": [*reading.notes],
    }


def class_counts(names: list[str], labels: dict[str, NDArray[Any]]) -> dict[str, dict[str, int]]:
    """Return the number of rows (or labelled words) in each split, for the first SHOWN_CLASSES classes."""
    counts = {split: _counted(found, len(names)) for split, found in labels.items()}
    return {
        name: {split: int(found[index]) for split, found in counts.items()}
        for index, name in enumerate(names[:SHOWN_CLASSES])
    }


def _counted(labels: NDArray[Any], classes: int) -> NDArray[np.int64]:
    if labels.ndim == 2:  # a column for each label
        columns: NDArray[np.int64] = labels.sum(0, dtype=np.int64)
        return columns
    flat = np.concatenate(labels) if labels.dtype == object and len(labels) else labels
    return np.bincount(flat.astype(np.int64), minlength=classes)


def data_lines(data: DataReport) -> list[str]:
    """Return the report as lines of text."""
    raw = data["unlabelled"]
    return [*_files(data), _rows(data), _labels(data), *data["notes"], *([_unlabelled(raw)] if raw else [])]


def _files(data: DataReport) -> Iterator[str]:
    for one in data["files"]:
        how = [one["format"]]
        how += [f"separator {json.dumps(one['separator'])}"] if one["separator"] is not None else []
        how += [one["encoding"]] if one["encoding"] is not None else []
        yield f"{one['split']} is {one['file']} ({', '.join(how)})"
        yield from (f"{one['split']}: {note}" for note in one["notes"])


def _rows(data: DataReport) -> str:
    parts = []
    for name, split in data["splits"].items():
        told = [f"{split['empty']} empty"] if split["empty"] else []
        told += [f"{split['repeated']} repeated"] if split["repeated"] else []
        parts.append(f"{name} {split['rows']}" + (f" ({', '.join(told)})" if told else ""))
    return f"rows: {', '.join(parts)}"


def _labels(data: DataReport) -> str:
    if data["range"] is not None:
        return f"numbers from {data['range']['min']:g} to {data['range']['max']:g}"
    known = []
    for name, found in data["classes"].items():
        short = json.dumps(shortened(name, _LONGEST_NAME), ensure_ascii=False)
        known.append(f"{short} {'/'.join(map(str, found.values()))}")
    more = (data["class_count"] or 0) - len(known)
    known += [f"and {more} more"] if more else []
    return f"{data['class_count']} classes (train/dev/test): {', '.join(known)}"


def _unlabelled(found: UnlabelledReport) -> str:
    why = {
        "blank": "blank",
        "repeated": "repeated",
        "in_train": "in train",
        "in_dev_or_test": "in dev or test",
        "near_dev_or_test": "nearly as one in dev or test",
    }
    dropped = ", ".join(f"{count} {why[reason]}" for reason, count in found["dropped"].items() if count)
    told = f"; dropped: {dropped}" if dropped else ""
    return f"unlabelled: {found['rows']} of the {found['read']} texts of {found['source']} are learned from{told}"


def pieces_lines(pieces: Sequence[PiecesReport]) -> list[str]:
    """Return lines on how many texts are cut and how many pieces are unknown, for each tokenizer."""
    lines = []
    for report in pieces:
        length, splits = report["max_length"], report["splits"]
        cut = ", ".join(f"{name} {one['cut']} ({_share(one['cut'], one['texts'])})" for name, one in splits.items())
        unknown = ", ".join(f"{name} {_share(one['unknown'], one['pieces'])}" for name, one in splits.items())
        lines.append(f"{report['tokenizer']}: texts cut to {length} pieces (dataset.max_length): {cut}")
        lines.append(f"{report['tokenizer']}: unknown pieces: {unknown}")
    return lines


def warnings(pieces: Sequence[PiecesReport]) -> list[str]:
    """Return a warning for each pretrained tokenizer that does not know the language of the texts."""
    found = []
    for one in pieces:
        splits = one["splits"].items()
        above = [(name, split) for name, split in splits if split["unknown"] > TOO_MANY_UNKNOWN * split["pieces"]]
        if one["pretrained"] and above:
            name, split = above[0]
            found.append(
                f"{_share(split['unknown'], split['pieces'])} of {name}'s pieces are unknown to {one['tokenizer']}:"
                f" {', '.join(split['examples'])} and others. It cannot read such texts, and another English encoder"
                " cannot either. Fetch one of their language where there is a network (hf download <org>/<name>"
                " --local-dir my_encoder), then give teacher=local teacher.source=my_encoder. Without one, use"
                " method=tfidf, on n-grams of characters."
            )
    return found


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole if whole else 0:.1f} %"
