"""TF-IDF and a linear SVM (scikit-learn): seconds of work, and the row that every table must carry."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdbench.options import MISSING, Rule, above, option
from kdbench.stage import Stage

if TYPE_CHECKING:
    from kdbench.data.datasets import Split
    from kdbench.runs.context import Run


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset()
    tasks: ClassVar[frozenset[str]] = frozenset({"classification", "multi_label", "regression"})
    not_others: ClassVar[str] = "it reads a text as a bag of words and has no answer for one of them"

    max_ngrams: list[int] = option(Rule("whole numbers of 1 or more", lambda given: bool(given) and min(given) >= 1))
    sublinear_tf: bool = MISSING
    c: float = option(above(0))


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    from kdbench.runs.context import Predictions

    data = run.data
    started = time.perf_counter()
    tried = {}
    for longest in p.max_ngrams:
        words = TfidfVectorizer(ngram_range=(1, longest), sublinear_tf=p.sublinear_tf)
        tried[longest] = make_pipeline(words, machine(run.task, p.c, run.config.seed))
        tried[longest].fit(data.train.joined, data.train.labels)

    def logits(split: "Split", longest: int) -> NDArray[np.float32]:
        return outputs(run.task, tried[longest], split.joined, len(data.label_names))

    dev = {longest: run.metrics(data.dev.labels, logits(data.dev, longest)) for longest in tried}
    chosen = max(tried, key=lambda longest: dev[longest][run.metric])
    run.report("max_ngram", chosen)
    seconds = time.perf_counter() - started
    run.hand_in(Predictions(lambda split: logits(split, chosen), size(tried[chosen][-1]), seconds, "fp64"))
    return iter(())


def machine(task: str, c: float, seed: int) -> Any:
    """The linear machine of the task: one a class, one a label, or one for the number."""
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import LinearSVC, LinearSVR

    if task == "regression":
        return LinearSVR(C=c, random_state=seed)
    one = LinearSVC(C=c, random_state=seed)
    return OneVsRestClassifier(one) if task == "multi_label" else one


def outputs(task: str, model: Any, texts: list[str], classes: int) -> NDArray[np.float32]:
    """(n, C) Distances from the planes; the lowest float for a class that train lacks. Of a number: itself."""
    if task == "regression":
        return model.predict(texts).astype(np.float32)[:, None]
    scores = model.decision_function(texts)
    if task == "multi_label":
        return scores.reshape(len(texts), classes).astype(np.float32)
    if scores.ndim == 1:  # two classes: scikit-learn gives the second one's distance only
        scores = np.stack([-scores, scores], axis=1)
    result = np.full((len(texts), classes), np.finfo(np.float32).min, np.float32)
    result[:, model[-1].classes_] = scores
    return result


def size(model: Any) -> int:
    """Numbers that were fitted; a label that train never has, or always, has none."""
    parts = getattr(model, "estimators_", [model])
    return sum(part.coef_.size + part.intercept_.size for part in parts if hasattr(part, "coef_"))
