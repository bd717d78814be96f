"""Answers of models and the figures that judge them, task by task: see `tasks.py`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.tasks import UNREAD, is_bio, tags

Labels = NDArray[Any]  # of n examples; of tagged words n arrays
Logits = NDArray[np.float32] | Sequence[NDArray[np.float32]]


def answers(task: str, logits: Logits) -> Labels:
    """What a model says of n examples, in the form of their labels."""
    if task == "token_classification":
        return ragged([np.where(np.isnan(one[:, 0]), UNREAD, one.argmax(-1)) for one in logits])
    whole = np.asarray(logits)
    match task:
        case "classification":
            return whole.argmax(-1)
        case "multi_label":
            return (whole > 0).astype(np.int8)
        case _:
            return whole[:, 0]


def ragged(rows: Sequence[NDArray[Any]]) -> Labels:
    """(n,) of n arrays, which may be of one length: NumPy itself would make them a matrix."""
    result = np.empty(len(rows), object)
    for index, row in enumerate(rows):
        result[index] = row
    return result


def plain(labels: Labels) -> list[Any]:
    """Labels as Python has them: numbers, or lists of them."""
    return [label.tolist() for label in labels]


def metrics(task: str, labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, float]:
    """All metrics of the task, with the number of examples n; `names`: of the classes, in their order."""
    measure = {
        "classification": _classification,
        "multi_label": _multi_label,
        "regression": _regression,
        "token_classification": _tagging,
    }[task]
    return {"n": len(labels), **measure(labels, predicted, names)}


def _classification(labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, float]:
    """Macro-F1 over the classes that occur in either; of two classes the second's F1 too (GLUE: MRPC, QQP)."""
    from sklearn.metrics import f1_score, matthews_corrcoef

    found = {
        "accuracy": float((labels == predicted).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        # of one class alone it is undefined, and scikit-learn warns
        "matthews": float(matthews_corrcoef(labels, predicted)) if len({*labels, *predicted}) > 1 else 0.0,
    }
    if len(names) == 2:
        found["f1"] = float(f1_score(labels, predicted, average="binary", zero_division=0.0))
    return found


def _multi_label(labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, float]:
    """Macro-F1 over all labels; subset accuracy: the share of examples with every label right."""
    from sklearn.metrics import f1_score

    return {
        "micro_f1": float(f1_score(labels, predicted, average="micro", zero_division=0.0)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "subset_accuracy": float((labels == predicted).all(1).mean()),
    }


def _regression(labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, float]:
    """Correlations are 0 where one side is constant: the one that says nothing has no other."""
    from scipy.stats import pearsonr, spearmanr

    true, said = labels.astype(np.float64), predicted.astype(np.float64)
    varies = len(true) > 1 and np.ptp(true) > 0 and np.ptp(said) > 0
    return {
        "pearson": float(pearsonr(true, said).statistic) if varies else 0.0,
        "spearman": float(spearmanr(true, said).statistic) if varies else 0.0,
        "mean_squared_error": float(((true - said) ** 2).mean()),
    }


def _tagging(labels: Labels, predicted: Labels, names: Sequence[str]) -> dict[str, float]:
    """By seqeval: entities count as found where type and both ends are right. Of tags that are no BIO, words alone."""
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    true, said = tags(labels, names), tags(predicted, names)
    found = {"words": sum(map(len, true)), "word_accuracy": float(accuracy_score(true, said))}
    if is_bio(names):
        for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
            found[f"entity_{name}"] = float(score(true, said, zero_division=0))
    return found
