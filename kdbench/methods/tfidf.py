"""TF-IDF and a linear SVM (scikit-learn): seconds of work, and the row that every table must carry."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdbench.options import MISSING, Rule, above, option
from kdbench.stage import Stage

if TYPE_CHECKING:
    from kdbench.context import Run
    from kdbench.data.datasets import Split


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset()

    max_ngrams: list[int] = option(Rule("whole numbers of 1 or more", lambda given: bool(given) and min(given) >= 1))
    sublinear_tf: bool = MISSING
    c: float = option(above(0))


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    from kdbench.context import Predictions

    data, classes = run.data, len(run.data.label_names)
    started = time.perf_counter()
    tried = {}
    for longest in p.max_ngrams:
        words = TfidfVectorizer(ngram_range=(1, longest), sublinear_tf=p.sublinear_tf)
        model = make_pipeline(words, LinearSVC(C=p.c, random_state=run.config.seed))
        tried[longest] = model.fit(data.train.joined, data.train.labels)
    chosen = max(tried, key=lambda longest: tried[longest].score(data.dev.joined, data.dev.labels))
    run.report("max_ngram", chosen)
    model, svm = tried[chosen], tried[chosen][-1]
    seconds = time.perf_counter() - started

    def logits(split: "Split") -> NDArray[np.float32]:
        """Distances from the planes; the lowest float for a class that train lacks."""
        scores = model.decision_function(split.joined)
        if scores.ndim == 1:  # two classes: scikit-learn gives the second one's distance only
            scores = np.stack([-scores, scores], axis=1)
        result = np.full((len(split), classes), np.finfo(np.float32).min, np.float32)
        result[:, svm.classes_] = scores
        return result

    run.hand_in(Predictions(logits, svm.coef_.size + svm.intercept_.size, seconds, "fp64"))
    return iter(())
