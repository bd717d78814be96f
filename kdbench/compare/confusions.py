"""Find the errors of a row: its confusions, and the examples on which it and its baseline differ."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kdbench.compare.collect import Run
from kdbench.compare.table import Row
from kdbench.storage.predictions import NoPredictionsError, Predictions, read
from kdbench.tasks import traits

CLASSES = 12  # shown in a confusion matrix, those with most errors
EXAMPLES = 20  # shown in each direction
SHADE = 0.55  # of a cell with all examples of its line; with a darker one, the figure would be hard to read


@dataclass(frozen=True)
class Example:
    at: int  # place in the split
    id: int
    label: str
    wrong: str  # answer of the row that is wrong, in most seeds
    ahead: int  # seeds in which only the other row is right, minus seeds of the reverse


@dataclass(frozen=True)
class Parted:
    """Examples that one of two rows gets right in more seeds than the other."""

    words: str
    count: int
    seeds: int
    examples: list[Example]  # the clearest


@dataclass(frozen=True)
class Confusions:
    classes: list[str]
    classes_left: int
    matrix: list[tuple[str, list[tuple[int, str]]]]  # label, and (count over seeds, shade 0 to SHADE) of each class
    parted: list[Parted]


def confusions(row: Row, against: Row | None, split: str) -> Confusions | None:
    """Return the confusions over all seeds of a row. None: no predictions, or texts do not have one class each."""
    if not traits(row.runs[0].task).one_class:
        return None
    mine = _all(row, split)
    if not mine:
        return None
    names = label_names(row.runs[0])
    labels = np.concatenate([one.labels for one in mine.values()])
    said = np.concatenate([one.predicted for one in mine.values()])
    wrong = Counter(labels[labels != said].tolist()) + Counter(said[labels != said].tolist())
    present = sorted(set(labels.tolist()) | set(said.tolist()), key=lambda one: (-wrong[one], one))
    shown = sorted(present[:CLASSES])
    counts = np.array([[int(((labels == a) & (said == b)).sum()) for b in shown] for a in shown])
    rows = np.maximum(counts.sum(1, keepdims=True), 1)
    matrix = [
        (
            _name(names, a),
            [(int(count), f"{SHADE * share:.2f}") for count, share in zip(line, line / total, strict=True)],
        )
        for a, line, total in zip(shown, counts, rows, strict=True)
    ]
    theirs = _all(against, split) if against else {}
    return Confusions([_name(names, a) for a in shown], len(present) - len(shown), matrix, parted(mine, theirs, names))


def _all(row: Row, split: str) -> dict[int, Predictions]:
    found = {}
    for run in row.runs:
        try:
            found[run.seed] = read(run.path, split)
        except NoPredictionsError:
            continue  # the tests have already named it
    return found


def label_names(run: Run) -> dict[int, str]:
    """Return the names of the labels from the model of the run, which is also that of its exported forms."""
    folder = run.path.parent
    models = (folder / "model/config.json", folder.parents[1] / "model/config.json")
    path = next((one for one in models if one.is_file()), None)
    if path is None:
        return {}
    named = json.loads(path.read_text(encoding="utf8")).get("id2label", {})
    return {int(number): str(name) for number, name in named.items()}


def _name(names: Mapping[int, str], label: int) -> str:
    return names.get(label, str(label))


def parted(
    mine: Mapping[int, Predictions], theirs: Mapping[int, Predictions], names: Mapping[int, str], most: int = EXAMPLES
) -> list[Parted]:
    """Return the examples on which the rows differ, in both directions, the clearest first, at most so many."""
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return []
    lead = np.sum([_right(mine[seed]).astype(int) - _right(theirs[seed]) for seed in seeds], axis=0)
    first = mine[seeds[0]]
    found = []
    for ahead, behind, words in (
        (lead, theirs, "right where its baseline is wrong"),
        (-lead, mine, "wrong where its baseline is right"),
    ):
        order = [int(at) for at in np.argsort(-ahead, kind="stable") if ahead[at] > 0]
        examples = [
            Example(
                at,
                int(first.ids[at]),
                _name(names, int(first.labels[at])),
                _name(names, _wrong_answer([behind[seed] for seed in seeds], at)),
                int(ahead[at]),
            )
            for at in order[:most]
        ]
        found.append(Parted(words, len(order), len(seeds), examples))
    return found


def _wrong_answer(every: list[Predictions], at: int) -> int:
    """Return the most frequent wrong answer, the lowest label if several are equally frequent."""
    said = Counter(int(one.predicted[at]) for one in every if one.predicted[at] != one.labels[at])
    return min(said, key=lambda label: (-said[label], label))


def _right(one: Predictions) -> np.ndarray:
    return one.labels == one.predicted
