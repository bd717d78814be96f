"""Further pre-training: masked LM on the corpus without a teacher, then direct fine-tuning.

Its general stage also trains the masked-LM heads of other methods' teachers (`run.mlm`, IB-BERT).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdbench.declared import architectures
from kdbench.models.students import base, last_hidden, mlm_head, word_embeddings
from kdbench.objectives import masked_lm, supervised
from kdbench.schema import TASKS
from kdbench.stage import Batch, Stage, Terms

if TYPE_CHECKING:
    from kdbench.runs.context import Run


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "corpus"})
    students: ClassVar[frozenset[str]] = frozenset(
        name for name, one in architectures().items() if one.student and one.masked_lm
    )
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)
    general_stages: ClassVar[tuple[str, ...]] = ("adaptation",)


def general(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student
    encoder, head = base(student), mlm_head(student, run.seed("mlm_head"))

    def objective(batch: Batch, step: int) -> Terms:
        loss = masked_lm(last_hidden(encoder, batch), head, word_embeddings(encoder), batch["mlm_labels"])
        return Terms({"mlm": loss}, over={"mlm": "masked"})

    data = run.masked_batches("adaptation")
    yield Stage("adaptation", student, objective, data, run.schedule("adaptation", data), extra=head)


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student
    yield Stage("training", student, supervised(student, run.task), run.batches("training"), run.schedule("training"))
