"""DistilBERT (Sanh et al. 2019): half the layers, pre-trained on a corpus with the teacher's masked LM.

L = a_ce * T^2 * KL(teacher || student) + a_mlm * CE(masked tokens) + a_cos * (1 - cos(last hidden states))

Then the task: direct fine-tuning, or logit distillation from the fine-tuned teacher (`alpha` > 0). One difference
from the authors' code: the teacher's segment-0 embedding is added to the positions, so that the student starts from
the teacher's exact inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdbench.losses import IGNORED, cosine_distance, soft_kl
from kdbench.models.students import base, last_hidden, logits, mlm_head, word_embeddings
from kdbench.objectives import masked_lm, soft_and_hard, supervised
from kdbench.options import TEMPERATURE, SoftAndHard, at_least, one_of, option
from kdbench.schema import ENCODERS, TASKS
from kdbench.stage import Batch, Stage, Terms, Unit

if TYPE_CHECKING:
    from kdbench.runs.context import Run


@dataclass
class Params(SoftAndHard):
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "corpus", "same_width"})
    students: ClassVar[frozenset[str]] = frozenset(ENCODERS)
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)
    general_stages: ClassVar[tuple[str, ...]] = ("pretraining",)
    general_keys: ClassVar[frozenset[str]] = frozenset(
        {"soft_weight", "mlm_weight", "cosine_weight", "mlm_temperature", "soft_on", "smoothing"}
    )

    soft_weight: float = option(at_least(0))
    mlm_weight: float = option(at_least(0))
    cosine_weight: float = option(at_least(0))
    mlm_temperature: float = option(TEMPERATURE)
    soft_on: str = option(one_of("all", "masked"))  # tokens
    smoothing: float = option(at_least(0))  # exponent of token counts in the choice of masked tokens

    @property
    def reads_teacher(self) -> bool:
        """Return whether the task has a soft term; before the task, the teacher is not fine-tuned."""
        return self.alpha > 0


def general(run: "Run", p: Params) -> Iterator[Stage]:
    teacher, student = run.mlm, run.student
    encoder, head = base(student), mlm_head(student, run.seed("mlm_head"))
    if run.config.method.init.weights == "pretrained":  # from the teacher as it is with its masked-LM head
        run.copy_layers(teacher.encoder, student)
    head.load_state_dict(teacher.head.state_dict())

    def objective(batch: Batch, step: int) -> Terms:
        hidden, target = last_hidden(encoder, batch), last_hidden(teacher.encoder, batch)
        real, chosen = batch["attention_mask"].bool(), batch["mlm_labels"] != IGNORED
        losses = {}
        if p.soft_weight > 0:
            judged = real if p.soft_on == "all" else chosen
            own = head(hidden[judged], word_embeddings(encoder))
            theirs = teacher.head(target[judged], word_embeddings(teacher.encoder))
            losses["soft"] = p.soft_weight * soft_kl(own, theirs, p.mlm_temperature, "batchmean", True)
        if p.mlm_weight > 0:
            mlm = masked_lm(hidden, head, word_embeddings(encoder), batch["mlm_labels"])
            losses["mlm"] = p.mlm_weight * mlm
        if p.cosine_weight > 0:
            losses["cosine"] = p.cosine_weight * cosine_distance(hidden[real], target[real])
        soft_over: Unit = "tokens" if p.soft_on == "all" else "masked"
        return Terms(losses, over={"soft": soft_over, "mlm": "masked", "cosine": "tokens"})

    data = run.masked_batches("pretraining", p.smoothing)
    yield Stage("pretraining", student, objective, data, run.schedule("pretraining", data), extra=head)


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student
    if p.alpha == 0:
        objective, data = supervised(student, run.task), run.batches("training")
        yield Stage("training", student, objective, data, run.schedule("training"))
        return

    def distillation(batch: Batch, step: int) -> Terms:
        return Terms(soft_and_hard(run.task, logits(student, batch), batch, p))

    data = run.batches("training", "logits", split=run.with_unlabelled(run.data.train))
    yield Stage("training", student, distillation, data, run.schedule("training", data))
