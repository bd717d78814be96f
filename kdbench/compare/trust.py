"""How far the probabilities of a row can be trusted, from the predictions of its seeds: the figures of the page."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdbench.compare.columns import NOTHING, Column
from kdbench.compare.table import Row
from kdbench.storage.predictions import NoPredictionsError, read_logits
from kdbench.tasks import kind
from kdbench.tasks.probabilities import Bin, Coverage, Numbers, Sure, confidence, coverage, reliability

LEAST = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # values of --min-confidence that are shown


class Trust(NamedTuple):
    """How sure each seed of a row was. Not the logits: of many texts and classes, they need gigabytes."""

    before: list[Sure]  # with the logits of the weights
    after: list[Sure]  # as kdbench-predict answers

    @property
    def divided(self) -> bool:
        """Whether a seed has a temperature."""
        return any(one is not other for one, other in zip(self.before, self.after, strict=True))

    def bins(self) -> tuple[list[Bin], list[Bin]]:
        """Return the bins before and after, over all seeds."""
        return reliability(_pooled(self.before)), reliability(_pooled(self.after))


def trust(row: Row, split: str) -> Trust | None:
    """Return how sure the seeds of a row were. None: it has no probabilities, or no predictions."""
    found = Trust([], [])
    for run in row.runs:
        if run.temperature is None:
            return None
        try:
            labels, logits = read_logits(run.path, split)
        except NoPredictionsError:
            continue  # the tests have already named it
        asked = kind(run.task).questions(labels, logits)
        if asked is not None:
            found.before.append(confidence(asked))
            divided = run.temperature != 1
            found.after.append(confidence(asked.divided(run.temperature)) if divided else found.before[-1])
    return found if found.after else None


def _pooled(every: Sequence[Sure]) -> Sure:
    return Sure(np.concatenate([one.top for one in every]), np.concatenate([one.right for one in every]))


def mean_coverage(found: Trust, shares: Numbers) -> Numbers:
    """Return the accuracy if these shares of the questions are answered, the surest first: the mean over seeds."""
    curves: list[Coverage] = [coverage(one) for one in found.after]
    return np.mean([np.interp(shares, one.shares, one.accuracy) for one in curves], axis=0)


def columns(found: Trust) -> list[Column]:
    """Return the table of `LEAST`: the share of texts that is answered, and its accuracy, over all seeds."""
    top, right = _pooled(found.after)
    kept = [top >= least for least in LEAST]
    accuracy = [f"{100 * right[one].mean():.2f}" if one.any() else NOTHING for one in kept]
    return [
        Column("--min-confidence", [f"{least:g}" for least in LEAST]),
        Column("answered\n%", [f"{100 * one.mean():.1f}" for one in kept]),
        Column("of these right\n%", accuracy),
    ]
