"""Let the teacher label the texts without labels: its answers become labels like others (Lee 2013)."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from kdbench.data.datasets import Split
from kdbench.runs.context import Run
from kdbench.tasks import kind


def pseudo_labelled(run: Run, threshold: float = 0.0, share: float = 1.0) -> Split:
    """Return train, followed by the run's texts without labels, with the teacher's answers as labels.

    A text is left out if the probability of the teacher's answer is below `threshold`, or if it is not in the surest
    `share` of the texts with the same answer (Zou et al. 2018, section 4.2). Both are for tasks of one class a text.
    """
    assert run.unlabelled is not None  # crosscheck
    raw = run.answered(run.unlabelled.split)
    logits = run.teacher_outputs("logits", raw)
    # Only a network, which has a tokenizer, answers words.
    given = run.examples(raw, run.encoder_folder).by_example(logits) if raw.tagged else logits.numpy()
    answers = kind(run.task).answers(given)
    kept = np.arange(len(raw))
    if threshold > 0 or share < 1:
        kept = surest(logits.softmax(-1).amax(-1), answers, threshold, share)
    run.report("pseudo_labels", {"texts": len(raw), "kept": len(kept)})
    chosen = raw.take(kept)
    return run.data.train.followed_by(replace(chosen, labels=answers[kept], labelled=None))  # all have one now


def surest(
    probabilities: torch.Tensor, answers: NDArray[np.int64], threshold: float, share: float
) -> NDArray[np.int64]:
    """Return the kept rows in ascending order: of each answer the surest `share`, at least one, above `threshold`."""
    sure = probabilities.numpy()
    kept = []
    for answer in np.unique(answers):
        rows = np.flatnonzero(answers == answer)
        order = rows[np.argsort(-sure[rows], kind="stable")]
        kept.append(order[: max(1, round(share * len(rows)))])
    rows = np.sort(np.concatenate(kept))
    return rows[sure[rows] >= threshold]
