"""The teacher's own answers, judged on dev and test: the row of a file of answers, or of an ensemble, in every table.

Nothing is trained except the members of an ensemble that are missing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdbench.schema import TASKS
from kdbench.stage import Stage

if TYPE_CHECKING:
    from kdbench.runs.context import Run


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"teacher"})
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS) - {"token_classification"}
    not_others: ClassVar[str] = "the members of an ensemble may read different words"
    asks: ClassVar[frozenset[str]] = frozenset({"dev", "test"})  # at least one of each

    @property
    def reads_labels(self) -> bool:
        """Return False: nothing is trained."""
        return False


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    from kdbench.runs.context import Predictions

    members = [] if run.config.teacher.is_file else [result for result, _ in run.members]
    parameters = sum(one["parameters"]["total"] for one in members) or None
    seconds = sum(one["cost"]["seconds"] for one in members)
    run.hand_in(
        Predictions(
            lambda split: run.teacher_logits(split).numpy(),
            parameters,
            seconds,
            run.hardware.precision,
            timed=False,
            judged=run.judged(),
        )
    )
    return iter(())
