"""Choose the texts whose labels would help a model most (Settles 2009, Active Learning Literature Survey, 3.1 and 3.2).

A criterion judges beliefs (n, Q, C): Q questions about a text, with C answers each. A text that has one class is one
question, whose answers are the classes. A text that has several labels is a question of two answers for each label.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from kdbench.data.datasets import without_line_breaks
from kdbench.data.raw import Row, is_blank
from kdbench.data.stored import kept_split
from kdbench.errors import Code, UserError
from kdbench.inference.classifier import Classifier
from kdbench.tasks import traits
from kdbench.validation.load import cache_at, recorded_dataset

Beliefs = NDArray[np.float64]  # (n, Q, C): probabilities, which sum to 1 over C, or scores
AT_A_TIME = 4000  # rows: sorted by length they have hardly any padding


# --- criteria


def entropy(beliefs: Beliefs) -> NDArray[np.float64]:
    """Return (n,): the entropy of the answers in nats, the mean over questions. A large one is uncertain."""
    logs = np.log(beliefs, out=np.zeros_like(beliefs), where=beliefs > 0)
    return np.asarray(-(beliefs * logs).sum(-1).mean(-1))


def margin(beliefs: Beliefs) -> NDArray[np.float64]:
    """Return (n,): the best answer less the second best, the least over questions. A small one is uncertain."""
    ordered = np.sort(beliefs, -1)
    return np.asarray((ordered[..., -1] - ordered[..., -2]).min(-1))


def disagreement(committee: Sequence[Beliefs]) -> NDArray[np.float64]:
    """Return (n,): the mean KL divergence in nats of the models' beliefs from their mean (McCallum and Nigam 1998).

    It is computed as the entropy of the mean less the mean of the entropies, which is the same.
    """
    own = np.mean([entropy(one) for one in committee], 0)
    return np.asarray(np.maximum(entropy(np.mean(committee, 0)) - own, 0.0))  # rounding makes a 0 negative


def require_suitable(models: Sequence[Classifier], by: str) -> None:
    """Raise UserError if these models cannot be judged by this criterion."""
    first = models[0]
    if not (traits(first.task).one_class or traits(first.task).several):
        raise UserError(
            Code.UNSUPPORTED_TASK,
            f"kdbench-label does not support task={first.task}: it compares the probabilities of a text's labels."
            " Supported: classification, multi_label",
        )
    if by == "disagreement" and len(models) == 1:
        raise UserError(
            Code.CONFLICTING_OPTIONS,
            "--by disagreement needs several RUNs, such as the seeds of one method. With one, use --by margin",
        )
    if by != "disagreement" and len(models) > 1:
        raise UserError(Code.CONFLICTING_OPTIONS, f"--by {by} judges one RUN. With several, use --by disagreement")
    if by != "margin" and not all(model.probable for model in models):
        raise UserError(
            Code.CONFLICTING_OPTIONS,
            f"--by {by} needs probabilities, and TF-IDF gives scores. Use --by margin with one RUN",
        )
    for model in models[1:]:
        if (model.task, sorted(model.labels), model.pairs) != (first.task, sorted(first.labels), first.pairs):
            raise UserError(Code.MISMATCHED_CLASSES, "the RUNs must have one task and the same labels")


def beliefs(model: Classifier, texts: Sequence[Sequence[str]], names: Sequence[str]) -> Beliefs:
    """Return the beliefs of a model, its labels in the order of `names`. `texts` has a sequence for each column."""
    logits = model.logits(*texts).double()[:, [model.labels.index(name) for name in names]]
    if traits(model.task).one_class:
        return np.asarray(logits.softmax(-1) if model.probable else logits)[:, None]
    yes = np.asarray(logits.sigmoid() if model.probable else logits)
    return np.stack([yes, 1 - yes if model.probable else 0 * yes], -1)


# --- the best of a pool


class Chosen(NamedTuple):
    """A text for a person to label."""

    row: Row
    guess: str  # the label that a model gives it; "|" separates several
    value: float  # of the criterion


class Pool(NamedTuple):
    """What a file of texts holds."""

    best: list[Chosen]  # the best one first
    rows: int
    blank: int
    known: int  # that were left out
    repeated: int  # that were left out, as the text is among the best


def choose(
    models: Sequence[Classifier],
    rows: Iterator[Row],
    by: str,
    top: int,
    known: set[bytes],
    told: Callable[[int, bool], None],
) -> Pool:
    """Return the `top` best texts by a criterion. They are in memory, and AT_A_TIME others.

    Texts whose `text_key` is in `known` are left out, as are blank ones and repeats of a text that is among the best.
    The repeat of a text that is worse cannot become one of the best. `told` gets the number of rows that are done.
    """
    heap: list[tuple[float, int, bytes, Chosen]] = []  # the worst of the best comes first
    keys: set[bytes] = set()
    count = blank = left_out = repeated = 0
    while part := list(islice(rows, AT_A_TIME)):
        texts = [(count + at, text_key(row), row) for at, row in enumerate(part) if not is_blank(row)]
        new = [one for one in texts if one[1] not in known]
        count, blank, left_out = count + len(part), blank + len(part) - len(texts), left_out + len(texts) - len(new)
        for (number, key, row), (value, guess) in zip(new, _judged(models, [row for *_, row in new], by), strict=True):
            if key in keys:
                repeated += 1
                continue
            # Of equal texts, the first one in the file is better.
            entry = (-value if by == "margin" else value, -number, key, Chosen(row, guess, value))
            if len(heap) < top:
                heapq.heappush(heap, entry)
            elif entry > heap[0]:
                keys.remove(heapq.heapreplace(heap, entry)[2])
            else:
                continue
            keys.add(key)
        told(len(part), False)
    return Pool([chosen for *_, chosen in sorted(heap, reverse=True)], count, blank, left_out, repeated)


def _judged(models: Sequence[Classifier], rows: Sequence[Row], by: str) -> list[tuple[float, str]]:
    """Return the value of the criterion, and the guess: that of the models' mean."""
    if not rows:
        return []
    texts, names = list(zip(*rows, strict=True)), models[0].labels
    committee = [beliefs(model, texts, names) for model in models]
    mean = np.mean(committee, 0)
    match by:
        case "entropy":
            values = entropy(mean)
        case "margin":
            values = margin(mean)
        case _:
            values = disagreement(committee)
    if traits(models[0].task).one_class:
        guesses = [names[index] for index in mean[:, 0].argmax(-1)]
    else:
        hold = mean[..., 0] > mean[..., 1]
        guesses = ["|".join(names[index] for index in np.flatnonzero(row)) for row in hold]
    return list(zip(values.tolist(), guesses, strict=True))


def text_key(row: Row) -> bytes:
    """Return a digest that equal texts share."""
    return hashlib.blake2b("\0".join(without_line_breaks(row)).encode(), digest_size=16).digest()


def known_texts(folder: Path) -> set[bytes]:
    """Return the keys of the texts in train, dev and test of the model in a folder.

    Raises UserError if the cache does not have them, or the data are no longer where they were.
    """
    config: Any = OmegaConf.load(folder / "config.yaml")
    keys = set()
    for name in ("train", "dev", "test"):
        split = kept_split(recorded_dataset(config), cache_at(config["cache_dir"]), name)
        if split is None:
            raise UserError(Code.MISSING_FILE, f"the cache does not have the data of {folder}")
        keys |= {text_key(row) for row in split.inputs}
    return keys
