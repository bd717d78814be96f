"""What a row gets wrong: its confusions, and the examples on which it and its baseline part."""

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np

from kdbench.compare.predictions import NoPredictionsError, Predictions, read
from kdbench.compare.rows import Row

CLASSES = 12  # shown of a confusion matrix: those with most errors
EXAMPLES = 20  # shown each way


@dataclass(frozen=True)
class Mistakes:
    classes: list[str]
    classes_left: int
    matrix: list[tuple[str, list[tuple[int, str]]]]  # label, and (count over seeds, shade 0-1) of each class
    examples: list[tuple[str, list[str]]]  # a sentence, and the examples


def mistakes(row: Row, against: Row | None, split: str) -> Mistakes | None:
    """Over all seeds of a row; None where there are no predictions."""
    mine = _all(row, split)
    if not mine:
        return None
    names = _names(row)
    labels = np.concatenate([one.labels for one in mine.values()])
    said = np.concatenate([one.predicted for one in mine.values()])
    wrong = Counter(labels[labels != said].tolist()) + Counter(said[labels != said].tolist())
    present = sorted(set(labels.tolist()) | set(said.tolist()), key=lambda one: (-wrong[one], one))
    shown = sorted(present[:CLASSES])
    counts = np.array([[int(((labels == a) & (said == b)).sum()) for b in shown] for a in shown])
    rows = np.maximum(counts.sum(1, keepdims=True), 1)
    matrix = [
        (_name(names, a), [(int(count), f"{share:.2f}") for count, share in zip(line, line / total, strict=True)])
        for a, line, total in zip(shown, counts, rows, strict=True)
    ]
    theirs = _all(against, split) if against else {}
    return Mistakes([_name(names, a) for a in shown], len(present) - len(shown), matrix, _parted(mine, theirs, names))


def _all(row: Row, split: str) -> dict[int, Predictions]:
    found = {}
    for run in row.runs:
        try:
            found[run.seed] = read(run.path, split)
        except NoPredictionsError:
            continue  # the tests have already named it
    return found


def _names(row: Row) -> dict[int, str]:
    """The labels' names, from the exported model."""
    path = row.runs[0].path.parent / "model" / "config.json"
    if not path.is_file():
        return {}
    named = json.loads(path.read_text(encoding="utf8")).get("id2label", {})
    return {int(number): str(name) for number, name in named.items()}


def _name(names: dict[int, str], label: int) -> str:
    return names.get(label, str(label))


def _parted(
    mine: dict[int, Predictions], theirs: dict[int, Predictions], names: dict[int, str]
) -> list[tuple[str, list[str]]]:
    """Examples that one gets right in more seeds than the other, the clearest first."""
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds or any(not np.array_equal(mine[seed].ids, theirs[seed].ids) for seed in seeds):
        return []
    lead = np.sum([_right(mine[seed]).astype(int) - _right(theirs[seed]) for seed in seeds], axis=0)
    first = mine[seeds[0]]
    found = []
    for sign, words in ((1, "right where its baseline is wrong"), (-1, "wrong where its baseline is right")):
        order = [at for at in np.argsort(-sign * lead, kind="stable") if sign * lead[at] > 0]
        texts = [
            f"{first.ids[at]} {_name(names, int(first.labels[at]))} ({abs(int(lead[at]))} of {len(seeds)})"
            for at in order[:EXAMPLES]
        ]
        found.append((f"{len(order)} examples {words}: number, label (seeds ahead)", texts))
    return found


def _right(one: Predictions) -> np.ndarray:
    return one.labels == one.predicted
