"""A frozen encoder and a linear classifier: the mean of the last hidden states, and logistic regression.

Nothing is trained by gradients, so it takes minutes where fine-tuning takes hours. With `contrastive`, the encoder is
first tuned on pairs of texts, as in SetFit (Tunstall et al. 2022): texts of one class shall have similar means.
"""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from kdbench.methods._linear import fitted
from kdbench.models.network import view
from kdbench.options import MISSING, Rule, at_least, option
from kdbench.schema import TASKS
from kdbench.stage import Batch, ParamGroup, Stage, Terms, Words
from kdbench.tasks import traits

if TYPE_CHECKING:
    from kdbench.runs.context import Run
    from kdbench.schema import RunConfig
    from kdbench.tasks.weights import Weights


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder"})
    students: ClassVar[frozenset[str]] = frozenset({"mean_pooled"})
    own_encoder: ClassVar[bool] = True
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS) - {"token_classification"}
    not_others: ClassVar[str] = "it has one vector for a text, and no answer for one of its words"

    c: list[float] = option(Rule("numbers above 0", lambda given: bool(given) and min(given) > 0))
    max_iterations: int = option(at_least(1))
    contrastive: bool = MISSING
    pairs: int = option(at_least(1))  # of each kind, for a text and epoch

    @property
    def used_stages(self) -> frozenset[str]:
        """Return the stages that are trained."""
        return frozenset({"contrastive"} if self.contrastive else ())

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if there are no classes by which pairs could be drawn."""
        if self.contrastive and not traits(config.dataset.task).one_class:
            problem = f"must be false for dataset.task={config.dataset.task}: pairs are of one class or of two"
            yield "method.contrastive", problem


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student
    if p.contrastive:
        yield tuning(run, p)
    started = time.perf_counter()
    fit(run, p, student.eval())
    run.spend(time.perf_counter() - started)


def tuning(run: "Run", p: Params) -> Stage:
    """Return the stage that tunes the encoder on pairs, by the cosine of their means."""
    from kdbench.data.text_pairs import PairBatches

    student, batches = run.student, run.batches("contrastive")
    data = PairBatches(batches.examples, p.pairs, batches.batch_size, run.seed("pairs"))

    def objective(batch: Batch, step: int) -> Terms:
        given: Any = batch
        u, v = (means(student, given, before) for before in ("", "other_"))
        return Terms({"pairs": pair_similarity(u, v, given["same"])})

    table = view(student).word_table
    words = None if table is None else Words(table, batches.used_ids())
    schedule = run.schedule("contrastive", data)
    params = [ParamGroup(student.encoder)]
    return Stage("contrastive", student, objective, data, schedule, params, predict={}, words=words)


def pair_similarity(u: torch.Tensor, v: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Return (cos(u, v) - s)^2, the mean over the batch; u and v (B, H); s is 1 for a pair of one class, else 0.

    SetFit's loss of its pairs (Tunstall et al. 2022, section 3), as sentence-transformers has it.
    """
    cosine = torch.nn.functional.cosine_similarity(u.float(), v.float(), dim=-1)
    return (cosine - same.float()).square().mean()


def means(student: Any, batch: dict[str, torch.Tensor], before: str = "") -> torch.Tensor:
    """Return the mean states (B, H) of a batch's texts, or of the others of its pairs."""
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if view(student).token_types else ()))
    found: torch.Tensor = student.mean(**{name: batch[before + name] for name in names if before + name in batch})
    return found


def fit(run: "Run", p: Params, student: Any) -> None:
    """Fit the classifier on the means of train, by each value of `p.c`, and keep the one with the best dev score.

    Means are standardised for this; the classifier's weights then take the means as they are.
    """
    data = run.data
    train, dev = (
        run.outputs(split, lambda batch, step: means(student, dict(batch))).double().numpy()  # type: ignore[arg-type]
        for split in (data.train, data.dev)
    )
    centre, spread = train.mean(0), train.std(0)
    spread[spread < 1e-9] = 1
    tried: dict[float, float] = {}
    best: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    weights, x = run.class_weights(run.config.schedule.class_weights), (train - centre) / spread
    for c in sorted(p.c):
        planes, offsets = linear(run.task, x, data.train.labels, len(data.label_names), c, p.max_iterations, weights)
        planes = planes / spread
        offsets = offsets - planes @ centre
        tried[c] = run.metrics(data.dev.labels, (dev @ planes.T + offsets).astype(np.float32))[run.metric]
        if best is None or tried[c] > max(score for other, score in tried.items() if other != c):
            best = planes, offsets
            run.report("c", c)
    run.report("tried", {f"{c:g}": {f"dev_{run.metric}": score} for c, score in tried.items()})
    assert best is not None
    with torch.no_grad():
        for own, found in zip((student.classifier.weight, student.classifier.bias), best, strict=True):
            own.copy_(torch.from_numpy(found))


ABSENT = -30.0  # logit, or distance below the lowest offset, of what train never has: a probability near 1e-13


def linear(
    task: str,
    x: NDArray[np.float64],
    labels: NDArray[Any],
    classes: int,
    c: float,
    iterations: int,
    weights: "Weights | None" = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return planes (C, H) and offsets (C,) by logistic regression with an L2 penalty, weight `c` of the errors.

    x (n, H), standardised. A number has a ridge regression, whose penalty is 1 / c. `weights`: see `fitted`.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    machine = Ridge(alpha=1 / c) if traits(task).numbers else LogisticRegression(C=c, max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # more iterations change the scores little
        planes, offsets, absent = fitted(task, machine, x, labels, classes, weights, certain=-ABSENT, of_two=0.5)
    if len(absent):
        offsets[absent] = np.delete(offsets, absent).min() + ABSENT
    return planes, offsets
