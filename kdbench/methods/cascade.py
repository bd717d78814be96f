"""A cascade of two finished models: the small one answers where it is sure, the teacher elsewhere.

FastBERT's starting idea in the source posts. Only missing models are trained. `small` is a finished run of any
method; if null, it is the direct fine-tune of `student`. Sureness is the small model's normalised entropy, as for
FastBERT's exits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdbench.methods._early_exit import cascade_curve
from kdbench.models.fastbert import uncertainty
from kdbench.options import Rule, between, option
from kdbench.schema import ARCHITECTURES
from kdbench.stage import Stage

if TYPE_CHECKING:
    from kdbench.data.datasets import Split
    from kdbench.runs.context import Run


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "teacher", "teacher_model"})
    students: ClassVar[frozenset[str]] = frozenset(ARCHITECTURES)
    own_encoder: ClassVar[bool] = True
    not_others: ClassVar[str] = "who answers is decided by the entropy of one distribution over classes"

    small: str | None = None
    speed: float = option(between(0, 1))
    speeds: list[float] = option(Rule("numbers from 0 to 1", lambda given: all(0 <= speed <= 1 for speed in given)))


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    from kdbench.runs.context import Predictions

    small, large = run.finished(p.small, "small"), run.finished_teacher
    for name, split in {"dev": run.data.dev, "test": run.data.test}.items():
        answers = [model.logits(split).numpy() for model in (small, large)]
        run.report(
            f"curve_{name}", cascade_curve(answers[0], answers[1], split.labels, p.speeds, small.flops, large.flops)
        )

    def logits(split: "Split") -> NDArray[np.float32]:
        answers = small.logits(split)
        unsure = np.flatnonzero(~(uncertainty(answers).numpy() < p.speed))
        result = answers.numpy().copy()
        if len(unsure):
            result[unsure] = large.logits(split.take(unsure)).numpy()
        return result

    run.hand_in(Predictions(logits, small.parameters + large.parameters, small.seconds, "fp32"))
    return iter(())
