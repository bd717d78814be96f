"""Pseudo-labels (Lee 2013): the student learns the teacher's answers to texts without labels as if they were labels.

It is the control for distillation on such texts: the same teacher, the same texts, the hard answers alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdbench.objectives import supervised
from kdbench.options import between, option
from kdbench.schema import ARCHITECTURES, TASKS
from kdbench.stage import Stage
from kdbench.tasks import traits

if TYPE_CHECKING:
    from kdbench.runs.context import Run
    from kdbench.schema import RunConfig


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "teacher"})
    students: ClassVar[frozenset[str]] = frozenset(ARCHITECTURES)
    own_encoder: ClassVar[bool] = True
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)
    reads_unlabelled: ClassVar[bool] = True
    asks: ClassVar[frozenset[str]] = frozenset({"unlabelled"})

    threshold: float = option(between(0, 1))
    kept_share: float = option(between(0.01, 1))

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if there is nothing to label, or no probability of one class to choose by."""
        if config.dataset.unlabelled is None:
            problem = "must name the texts that method=pseudo_label lets the teacher label, such as rest, or a file"
            yield "dataset.unlabelled", f"{problem}. A sweep without it is 'method=glob(*,exclude=pseudo_label)'"
        if not traits(config.dataset.task).one_class:
            for key, all_of_it in (("threshold", 0), ("kept_share", 1)):
                if getattr(self, key) != all_of_it:
                    problem = f"must be {all_of_it} for dataset.task={config.dataset.task}: it has no one answer a text"
                    yield f"method.{key}", problem


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    from kdbench.runs.pseudo_labels import pseudo_labelled  # transformers: not for a method's keys

    student = run.student
    data = run.batches("training", split=pseudo_labelled(run, p.threshold, p.kept_share))
    yield Stage("training", student, supervised(student, run.task), data, run.schedule("training", data))
