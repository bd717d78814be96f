"""Distilled BiLSTM (Tang et al. 2019): a one-layer BiLSTM over words learns the teacher's logits.

L = alpha * MSE(z_t, z_s) + (1 - alpha) * CE(z_s, y)

In the paper, alpha is the weight of the CE. The BiLSTM is trained on the task's texts and on augmented ones: words
are masked or replaced by others of the same part of speech, and texts are cut to n-grams. The teacher gives logits
and label of these.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from kdbench.losses import logit_mse
from kdbench.models.students import logits
from kdbench.objectives import hard_loss, over_answers
from kdbench.options import MISSING, TaughtAndLabelled, at_least, between, one_of, option
from kdbench.stage import Batch, Stage, Terms

if TYPE_CHECKING:
    from kdbench.runs.context import Run
    from kdbench.schema import RunConfig


@dataclass
class Params(TaughtAndLabelled):
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "teacher"})
    students: ClassVar[frozenset[str]] = frozenset({"bilstm"})
    not_others: ClassVar[str] = "the texts that it makes are given one class each by the teacher"

    reduction: str = option(one_of("elementmean", "batchmean"))
    augment: bool = MISSING
    mask: float = option(between(0, 1))  # chance that a word is masked
    same_tag: float = option(between(0, 1))  # chance that it is replaced by one of the same part of speech
    ngram: float = option(between(0, 1))  # chance that a text is cut to an n-gram
    max_ngram: int = option(at_least(1))
    rounds: int = option(at_least(1))  # tries a text
    tagger: str = option(one_of("english", "clusters"))  # clusters of the teacher's word embeddings: any language

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if the teacher cannot answer texts that are made here."""
        if self.augment and config.teacher.is_file:
            yield "method.augment", "must be false: teacher=file has no answers to texts that are made here"


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    from kdbench.runs.augmentation import augmented_words  # transformers: not for a method's keys

    student = run.student
    split = run.data.train
    if p.augment:
        split = augmented_words(run, p.tagger, p.mask, p.same_tag, p.ngram, p.max_ngram, p.rounds)
    split = run.with_unlabelled(split)

    def distance(z: Tensor, batch: Batch) -> Tensor:
        return logit_mse(z, batch["teacher_logits"], p.reduction)

    def objective(batch: Batch, step: int) -> Terms:
        z = logits(student, batch)
        losses = {}
        if p.alpha > 0:
            losses["logits"] = p.alpha * over_answers(z, batch, distance)
        if p.alpha < 1:
            losses["hard"] = (1 - p.alpha) * hard_loss(run.task, z, batch)
        return Terms(losses)

    data = run.batches("training", "logits", split=split, hard=p.alpha < 1)
    yield Stage("training", student, objective, data, run.schedule("training", data))
