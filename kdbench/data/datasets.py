"""Load the texts and labels of a task in three splits, and cut the splits that the source lacks.

Every draw has its own generator, seeded by `split_seed` and a number. So a limit on one split does not change others.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdbench.data.columns import joined, taken
from kdbench.data.readers import Rows, read_splits
from kdbench.data.report import DataReport, FileReport, SplitReport, class_counts, file_report
from kdbench.data.tables import Dropped
from kdbench.errors import Code, SourceError
from kdbench.schema import DatasetConfig
from kdbench.sources.fetch import parse
from kdbench.tasks import kind, traits

_TEST_CUT, _DEV_CUT = 0, 1
_LIMIT = {"train": 2, "dev": 3, "test": 4}
_FLOOR = 10  # rows of each class that a dev set keeps when it follows a limited train [ours]
_FAR = 1.5  # factor: a cut that is larger or smaller than the fraction by more is reported


@dataclass(frozen=True)
class Split:
    """The n examples of a split. `ids` number the rows of the source through train, dev and test."""

    ids: NDArray[np.int64]  # (n,), ascending; cuts and limits do not change the number of a row
    texts: Sequence[str]  # n
    labels: NDArray[Any]  # in the form that kdbench.tasks lists; classes are indices into TextData.label_names
    pairs: Sequence[str] | None = None  # n second sentences; None: single sentences
    labelled: NDArray[np.bool_] | None = None  # (n,) False: its label is a placeholder; None: all have labels

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: NDArray[np.int64]) -> "Split":
        """Return the rows at these positions, in this order."""
        pairs = None if self.pairs is None else taken(self.pairs, rows)
        labelled = None if self.labelled is None else self.labelled[rows]
        return Split(self.ids[rows], taken(self.texts, rows), self.labels[rows], pairs, labelled)

    def followed_by(self, other: "Split") -> "Split":
        """Return these examples, then those of `other`."""
        pairs = None if self.pairs is None or other.pairs is None else joined(self.pairs, other.pairs)
        labelled = [np.ones(len(one), np.bool_) if one.labelled is None else one.labelled for one in (self, other)]
        known = None if self.labelled is None and other.labelled is None else np.concatenate(labelled)
        ids, labels = np.concatenate([self.ids, other.ids]), np.concatenate([self.labels, other.labels])
        return Split(ids, joined(self.texts, other.texts), labels, pairs, known)

    @property
    def inputs(self) -> list[tuple[str, ...]]:
        """Return what a model reads of each example: its text, or text and pair."""
        columns = [self.texts] if self.pairs is None else [self.texts, self.pairs]
        return list(zip(*columns, strict=True))

    @property
    def tagged(self) -> bool:
        """Return whether each word has a label. One space then separates the words of a text."""
        return self.labels.dtype == object

    @property
    def unit(self) -> str:
        return "texts" if self.pairs is None else "pairs"


@dataclass(frozen=True)
class TextData:
    name: str
    label_names: list[str]
    train: Split
    dev: Split
    test: Split
    test_is: Literal["test", "dev"]  # the official split that serves as test
    report: DataReport  # how its files were read, and what they contain

    @property
    def notes(self) -> list[str]:
        """Return notes for readers of the results: repeats, dropped rows, the origin of the test split."""
        return self.report["notes"]


def load_dataset(config: DatasetConfig, cache: Path) -> TextData:
    """Read the data set, fetch it if it is not local, and cut the splits that it lacks.

    Raises SourceError if a source, file, column or label is missing or cannot be used.
    """
    rows = read_splits(config, cache)
    train = rows["train"]
    if all(label is None for label in train.labels):
        raise SourceError(Code.MISSING_LABELS, f"dataset.splits.train={config.splits.train} has no row with a label.")
    names = kind(config.task).label_names(train.labels, train.names, config)
    notes: list[str] = []
    parts, files = _labelled(rows, names, config, notes)
    if config.deduplicate:
        parts = _without_repeats(parts, notes)
    shares: dict[str, float] = {}
    absent = [part for part in ("test", "dev") if part not in parts]
    for part, number in (("test", _TEST_CUT), ("dev", _DEV_CUT)):
        if part in absent:
            asked: float = getattr(config, f"{part}_fraction")
            size = len(parts["train"])
            # Dev leaves out the classes that a cut test leaves out, so that both have one distribution.
            of = parts["test"].labels if part == "dev" and "test" in absent else parts["train"].labels
            later = absent[absent.index(part) + 1 :]
            before = parts["train"]
            parts["train"], parts[part] = cut(before, asked, [config.split_seed, number], of, 2 + len(later))
            if small := _classes_apart(before, parts[part], names):
                notes.append(f"{part}: no row of {small}: too few rows to cut from, all are in train")
            shares[part] = len(parts[part]) / size
            told = f"{100 * shares[part]:.1f} % of it"
            if not asked / _FAR <= shares[part] <= asked * _FAR:
                told += f" and not dataset.{part}_fraction={asked:g}, as classes are small"
            notes.append(f"{part}: {len(parts[part])} rows cut from train ({told}), seed {config.split_seed}")
    test_is: Literal["test", "dev"] = "test"
    if config.splits.test is not None and Path(config.splits.test).name.startswith(("dev", "val")):
        test_is = "dev"
        notes.append(f"test labels hidden or absent: test is the official dev split ({config.splits.test})")
    _limit(parts, config, notes)
    splits = {part: _contents(parts[part], shares.get(part)) for part in _LIMIT}
    _note_labels(parts["train"], notes)
    for part in ("test", "dev"):
        _note_shared(part, parts, notes)
    labels = {part: parts[part].labels for part in _LIMIT}
    every, numbers = np.concatenate([*labels.values()]), traits(config.task).numbers
    report: DataReport = {
        "name": config.name,
        "files": files,
        "splits": splits,
        "class_count": None if numbers else len(names),
        "classes": {} if numbers else class_counts(names, labels),
        "range": {"min": float(every.min()), "max": float(every.max())} if numbers else None,
        "unlabelled": None,
        "notes": notes,
    }
    return TextData(config.name, names, parts["train"], parts["dev"], parts["test"], test_is, report)


def _labelled(
    rows: dict[str, Rows], names: list[str], config: DatasetConfig, notes: list[str]
) -> tuple[dict[str, Split], list[FileReport]]:
    """Return the rows that have a label, numbered through the splits. Dropped rows go into `notes` and the reports."""
    parts, start = {}, 0
    files: list[FileReport] = []
    downloaded = parse(config.source).kind in ("pypi", "joined")
    for part, read in rows.items():
        kept = [row for row, label in enumerate(read.labels) if label is not None]
        texts = [read.texts[row] for row in kept]
        official = getattr(config.splits, part)
        where = f"dataset.splits.{part}={official}"
        hidden = {str(read.labels[row]) for row in kept} <= {"-1", "-1.0"}  # the hub's mark of hidden labels
        if not kept or ("-1" not in names and hidden):
            raise SourceError(
                Code.MISSING_LABELS,
                f"{where} has no labels. If they are kept back, let the official dev"
                " be the test: dataset.splits.test=validation dataset.splits.dev=null.",
            )
        labels = kind(config.task).encode([read.labels[row] for row in kept], names, texts, where)
        for dropped in read.reading.dropped:
            first = f"{read.reading.unit} {dropped.first}"
            notes.append(f"{part}: {dropped.rows} rows dropped ({dropped.reason}; the first is {first})")
        left_out: list[Dropped] = []
        if missing := [row for row, label in enumerate(read.labels) if label is None]:
            left_out.append(Dropped("no label", len(missing), read.lines[missing[0]]))
            first = f"{read.reading.unit} {left_out[0].first}"
            notes.append(f"{part}: {len(missing)} rows without a label dropped; the first is {first}")
        # The files of a download are in the cache of this machine, so their path means nothing elsewhere.
        file = f"{config.source}: {official}" if downloaded else read.reading.file
        files.append(file_report(part, replace(read.reading, file=file), left_out))
        pairs = None if read.pairs is None else [read.pairs[row] for row in kept]
        parts[part] = Split(np.array(kept, dtype=np.int64) + start, texts, labels, pairs)
        start += len(read.texts)
    return parts, files


def _without_repeats(parts: dict[str, Split], notes: list[str]) -> dict[str, Split]:
    """Keep the first row of each input in train, dev and test."""
    seen: set[tuple[str, ...]] = set()
    kept = {}
    for part, split in parts.items():
        rows = []
        for row, given in enumerate(split.inputs):
            key = without_line_breaks(given)
            if key not in seen:
                seen.add(key)
                rows.append(row)
        notes.append(f"{part}: {len(split) - len(rows)} repeated {split.unit} dropped")
        kept[part] = split.take(np.array(rows, dtype=np.int64))
    return kept


def without_line_breaks(given: tuple[str, ...]) -> tuple[str, ...]:
    """Return what two inputs share if they are equal: line breaks make no difference."""
    return tuple("".join(text.splitlines()) for text in given)


def _contents(split: Split, share: float | None) -> SplitReport:
    return {
        "rows": len(split),
        "cut": share,
        "empty": sum(not any(text.strip() for text in given) for given in split.inputs),
        "repeated": len(split) - len(set(split.inputs)),
    }


def _note_labels(train: Split, notes: list[str]) -> None:
    labels = defaultdict(set)
    for given, label in zip(train.inputs, train.labels, strict=True):
        labels[given].add(label.tobytes())
    if several := sum(len(found) > 1 for found in labels.values()):
        notes.append(f"train: {several} repeated {train.unit} have more than one label")


def _note_shared(part: str, parts: dict[str, Split], notes: list[str]) -> None:
    train = set(parts["train"].inputs)
    if shared := sum(given in train for given in parts[part].inputs):
        notes.append(f"{part}: {shared} of its {parts[part].unit} are also in train, kept")


def cut(split: Split, fraction: float, seed: list[int], of: NDArray[Any], parts: int) -> tuple[Split, Split]:
    """Split off a random `fraction` of each class of `of`. Return (rest, cut).

    The cut has at least one row of a class. The rest keeps one row for each of the other `parts`. A class with fewer
    rows than parts stays in the rest. If rows have no single class, all count as one class. Raises SourceError if each
    class has fewer rows than parts.
    """
    draw = np.random.default_rng(seed)
    chosen = []
    classes, wanted = _one_class_a_row(split.labels), _one_class_a_row(of)
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        size = min(max(1, round(len(rows) * fraction)), len(rows) - parts + 1) if label in wanted else 0
        chosen.append(draw.permutation(rows)[: max(0, size)])
    held = np.sort(np.concatenate(chosen))
    if not len(held):
        most = np.unique(classes, return_counts=True)[1].max()
        raise SourceError(
            Code.TOO_FEW_ROWS,
            f"no class has {parts} rows, one for each of {parts} splits (the largest has {most}): dev or test cannot be"
            " cut from train. Name their files, dataset.splits.dev and dataset.splits.test.",
        )
    return split.take(np.setdiff1d(np.arange(len(split)), held)), split.take(held)


def _one_class_a_row(labels: NDArray[Any]) -> NDArray[np.int64]:
    return labels if labels.dtype == np.int64 else np.zeros(len(labels), np.int64)


def _classes_apart(whole: Split, part: Split, names: list[str]) -> str:
    """Return the names of the classes of `whole` that `part` lacks, at most five; empty if there are none."""
    found = sorted({*_one_class_a_row(whole.labels)} - {*_one_class_a_row(part.labels)})
    more = f" and {len(found) - 5} others" if len(found) > 5 else ""
    return ", ".join(repr(names[label]) for label in found[:5]) + more


def _limit(parts: dict[str, Split], config: DatasetConfig, notes: list[str]) -> None:
    """Limit the splits in place, each by its own key; dev also in proportion to train, where it follows it."""
    limits = {"train": config.max_train_samples, "dev": config.max_dev_samples, "test": config.max_test_samples}
    whole = len(parts["train"])
    for part, limit in limits.items():
        limited = _stratified if config.stratified and part == "train" else _limited
        parts[part] = limited(parts[part], limit, [config.split_seed, _LIMIT[part]])
    if dev_follows(config) and len(parts["train"]) < whole:
        of_dev, size = len(parts["dev"]), round(len(parts["dev"]) * len(parts["train"]) / whole)
        drawn = _stratified(parts["dev"], size, [config.split_seed, _LIMIT["dev"]], _FLOOR)
        parts["dev"] = _limited(drawn, len(parts["train"]), [config.split_seed, _LIMIT["dev"]])
        told = f"dev: {len(parts['dev'])} of its {of_dev} rows, as train is limited: in proportion, {_FLOOR} a class"
        notes.append(f"{told} at least; dataset.max_dev_samples sets another number")


def dev_follows(config: DatasetConfig) -> bool:
    """Return whether dev shrinks with a limited train: who has few labels has no large dev set."""
    return config.splits.dev is None and config.max_dev_samples is None and config.max_train_samples is not None


def _stratified(split: Split, limit: int | None, seed: list[int], floor: int = 1) -> Split:
    """Return about `limit` random rows, with the classes' shares of the split, and at least `floor` of each class.

    Rows without a single class are of one class. A smaller limit gives a subset of a larger one.
    """
    if limit is None or limit >= len(split):
        return split
    draw, classes = np.random.default_rng(seed), _one_class_a_row(split.labels)
    kept = []
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        kept.append(draw.permutation(rows)[: max(floor, round(limit * len(rows) / len(split)))])
    return split.take(np.sort(np.concatenate(kept)))


def _limited(split: Split, limit: int | None, seed: list[int]) -> Split:
    """Return at most `limit` random rows, in the order of their ids. A smaller limit gives a subset of a larger one."""
    if limit is None or limit >= len(split):
        return split
    return split.take(np.sort(np.random.default_rng(seed).permutation(len(split))[:limit]))
