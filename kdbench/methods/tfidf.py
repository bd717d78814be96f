"""TF-IDF and a linear SVM (scikit-learn): a baseline that takes seconds and belongs in every table.

It counts words and signs, or n-grams of characters where texts have no spaces between words; dev chooses.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.methods._linear import fitted
from kdbench.models import tfidf
from kdbench.models.network import view
from kdbench.options import MISSING, Rule, above, at_least, between, option
from kdbench.stage import Stage
from kdbench.tasks import traits

if TYPE_CHECKING:
    from pathlib import Path

    from kdbench.data.datasets import Split
    from kdbench.runs.context import Run
    from kdbench.schema import RunConfig
    from kdbench.tasks.weights import Weights

NAMES = {"word": "words", "char": "characters"}


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset()
    tasks: ClassVar[frozenset[str]] = frozenset({"classification", "multi_label", "regression"})
    not_others: ClassVar[str] = "it reads a text as a bag of words and has no answer for one of them"
    asks: ClassVar[frozenset[str]] = frozenset({"unlabelled"})  # with `pseudo_labels`

    max_ngrams: list[int] = option(Rule("whole numbers of 1 or more", lambda given: bool(given) and min(given) >= 1))
    max_char_ngrams: list[int] = option(
        Rule("whole numbers of 1 or more, or []", lambda given: min(given, default=1) >= 1)
    )
    unknown_words: float = option(between(0, 1))
    most_characters: int = option(at_least(1))
    sublinear_tf: bool = MISSING
    c: float = option(above(0))
    pseudo_labels: bool = False  # whether it learns the teacher's answers to dataset.unlabelled, too

    @property
    def reads_teacher(self) -> bool:
        """Return whether it learns the teacher's answers."""
        return self.pseudo_labels

    @property
    def reads_unlabelled(self) -> bool:
        """Return whether it learns the teacher's answers."""
        return self.pseudo_labels

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if the teacher has nothing to label."""
        if self.pseudo_labels and config.dataset.unlabelled is None:
            problem = "must name the texts that the teacher labels, such as rest, or a file"
            yield "dataset.unlabelled", f"{problem}, because method.pseudo_labels=true"


@dataclass(frozen=True)
class Fitted:
    model: tfidf.TfIdf
    tokenizer: Any
    name: str  # what is counted
    dev: float  # the score that chooses
    texts: int  # of train that it was fitted to

    def logits(self, split: "Split") -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.model.logits(tfidf.encode(self.tokenizer, split.inputs)).numpy()

    def save(self, folder: "Path") -> None:
        view(self.model).save(folder)
        self.tokenizer.save_pretrained(folder)


UNSPACED = 0.1  # more of train's characters in scripts without spaces: a new text's words would hardly be known


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    from kdbench.runs.context import Predictions
    from kdbench.runs.pseudo_labels import pseudo_labelled  # transformers: not for a method's keys

    data = run.data
    whole = pseudo_labelled(run) if p.pseudo_labels else data.train
    started = time.perf_counter()
    tokenizer = tfidf.tokenizer_of(whole.inputs, "word")
    tried = list(models(run, p, whole, tokenizer, "word", p.max_ngrams))
    unknown = tfidf.unknown_share(tfidf.encode(tokenizer, data.dev.inputs))
    run.report("unknown_words", unknown)
    unspaced = tfidf.unspaced_share(whole.inputs) > UNSPACED
    if p.max_char_ngrams and (unspaced or unknown > p.unknown_words):
        train = drawn(whole, p.most_characters, run.seed("characters"))
        characters = models(run, p, train, tfidf.tokenizer_of(train.inputs, "char"), "char", p.max_char_ngrams)
        tried = [*characters, *tried] if unspaced else [*tried, *characters]  # of equal scores on dev the first is kept
    best = max(tried, key=lambda one: one.dev)
    run.report("chosen", best.name)
    run.report("tried", {one.name: {f"dev_{run.metric}": one.dev, "train_texts": one.texts} for one in tried})
    seconds = time.perf_counter() - started
    numbers = best.model.weight.numel() + best.model.bias.numel()
    run.hand_in(Predictions(best.logits, numbers, seconds, "fp64", best.save, probable=False))
    return iter(())


def drawn(split: "Split", characters: int, seed: int) -> "Split":
    """Return the split, or a random sample of its texts with at most `characters` characters; at least one text."""
    order = np.random.default_rng(seed).permutation(len(split))
    lengths = np.array([sum(map(len, given)) for given in split.inputs])[order].cumsum()
    return split.take(np.sort(order[: max(1, np.searchsorted(lengths, characters, "right"))]))


def models(
    run: "Run", p: Params, train: "Split", tokenizer: Any, analyzer: str, longest: list[int]
) -> Iterator[Fitted]:
    """Yield a fitted model for each length of `longest`: n-grams of up to so many tokens."""
    from scipy.sparse import csr_matrix

    texts = tfidf.encode(tokenizer, train.inputs)
    ngrams = tfidf.NGrams(len(tokenizer))
    ngrams.learn(texts, max(longest))
    every = ngrams.count(texts)
    idf = tfidf.inverse_frequency(every, ngrams.sizes[-1])
    for n in longest:
        size = ngrams.sizes[n - 1]
        counts = every.below(size)
        weighed = tfidf.weights(counts, idf, p.sublinear_tf).numpy()
        matrix = csr_matrix((weighed, (counts.rows.numpy(), counts.grams.numpy())), (counts.n, size))
        of_classes = run.class_weights(run.config.schedule.class_weights)
        planes = linear(run.task, matrix, train.labels, len(run.data.label_names), p.c, run.config.seed, of_classes)
        kept = tfidf.NGrams(ngrams.vocabulary, ngrams.keys[: n - 1])
        model = tfidf.build(kept, idf[:size], *planes, analyzer, p.sublinear_tf, run.data.label_names, None)
        one = Fitted(model, tokenizer, f"{NAMES[analyzer]} up to {n}", 0.0, len(train))
        yield replace(one, dev=run.metrics(run.data.dev.labels, one.logits(run.data.dev))[run.metric])


def linear(
    task: str, matrix: Any, labels: NDArray[Any], classes: int, c: float, seed: int, weights: "Weights | None"
) -> tuple[Tensor, Tensor]:
    """Return planes (G, C) and offsets (C,): one for each class, one for each label, or one for a number."""
    from sklearn.svm import LinearSVC, LinearSVR

    machine = (LinearSVR if traits(task).numbers else LinearSVC)(C=c, random_state=seed)
    planes, offsets, absent = fitted(task, machine, matrix, labels, classes, weights, certain=1.0, of_two=1.0)
    if len(absent):  # A text's vector has the length 1, so a score is at most the plane's length from the offset.
        least = np.delete(offsets - np.linalg.norm(planes, axis=1), absent).min()
        offsets[absent] = least - 1  # below all others
    return torch.from_numpy(planes.T), torch.from_numpy(offsets)
