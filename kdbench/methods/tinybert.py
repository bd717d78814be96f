"""TinyBERT (Jiao et al. 2020): embeddings, hidden states and attention scores layer by layer, then the logits.

L_layer(m) = MSE(A_s^m, A_t^g(m)) + MSE(H_s^m W, H_t^g(m)),  g(m) = m * L_T / L_S   (equations 7 to 9)
L_pred = soft cross-entropy   (equation 10)

Embeddings are layer 0, and scores are taken before the softmax. There are three stages. `general` learns on a corpus
from the teacher before the task. `intermediate` and `prediction` learn on the (augmented) task data from the
fine-tuned teacher. The paper has one W for embeddings and one for hidden states; its code shares one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.declared import architecture_traits, architectures
from kdbench.losses import attention_score_mse, hidden_mse, soft_cross_entropy
from kdbench.models.network import view
from kdbench.models.relu_bert import use_relu_head
from kdbench.models.students import base, logits
from kdbench.objectives import supervised
from kdbench.options import MISSING, SHARE, TEMPERATURE, at_least, between, one_of, option, or_none
from kdbench.schema import ENCODERS, TASKS
from kdbench.stage import Batch, Objective, Stage, Terms, Unit
from kdbench.tasks import kind, traits

if TYPE_CHECKING:
    from kdbench.runs.context import Run
    from kdbench.schema import RunConfig


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset(
        {"encoder", "teacher", "corpus", "encoder_teacher", "layers_divide", "attention"}
    )
    students: ClassVar[frozenset[str]] = frozenset(ENCODERS)
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)
    general_stages: ClassVar[tuple[str, ...]] = ("general",)
    scale_by_temperature_squared: ClassVar[bool] = False
    general_keys: ClassVar[frozenset[str]] = frozenset({"embedding", "hidden", "attention", "projection", "padding"})

    embedding: bool = MISSING  # the four terms, for the ablation
    hidden: bool = MISSING
    attention: bool = MISSING
    prediction: bool = MISSING  # false: the last stage learns the labels instead
    intermediate: bool = MISSING  # whether the second stage is done
    projection: str = option(one_of("separate", "shared"))
    padding: str = option(one_of("masked", "counted"))  # counted: padded positions enter the means (the authors' code)
    temperature: float = option(TEMPERATURE)
    reduction: str = option(one_of("batchmean", "elementmean"))
    relu_head: bool = MISSING  # logits = linear(ReLU(pooled)), as the authors' code
    augment: bool = MISSING
    copies: int = option(at_least(1))  # tries an example
    replace: float = option(between(0, 1))  # chance that a word is replaced
    candidates: int = option(at_least(1))
    max_words: int | None = option(or_none(at_least(1)))  # words of a text that may be replaced; null: all
    unlabelled_share: float | None = option(SHARE)  # of an epoch's texts; null: train and the raw texts once

    @property
    def reads_labels(self) -> bool:
        """Return whether the last stage learns the labels."""
        return not self.prediction

    @property
    def reads_unlabelled(self) -> bool:
        """Return whether a stage of the task learns from the teacher."""
        return self.prediction or self.intermediate

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if heads, head, augmentation or task do not fit, or if no stage is left."""
        teacher, student = config.teacher, config.student
        if self.attention and student.heads != teacher.heads:
            yield "student.heads", f"must equal teacher.heads={teacher.heads}, or set method.attention=false"
        if self.relu_head and student.architecture not in architecture_traits("relu_bert").starts_from:
            yield "method.relu_head", f"must be false: {student.architecture} has a head of its own"
        if self.augment and not architecture_traits(teacher.source_architecture).word_pieces:
            able = ", ".join(name for name, one in architectures().items() if one.word_pieces)
            problem = (
                f"must be false: {teacher.source_architecture} does not mark where a word goes on (##), as {able} do"
            )
            yield "method.augment", problem
        if self.augment and config.dataset.text_pair is not None:
            yield "method.augment", "must be false for pairs: words are replaced in single texts"
        if traits(config.dataset.task).words:
            if self.augment:
                yield "method.augment", "must be false where each word has a label: replaced words would need others"
            if self.relu_head:
                yield "method.relu_head", "must be false where each word has a label: it is a head for texts"


class Projection(nn.Module):
    """TinyBERT's W of the hidden states and, where it is separate, of the embeddings: (B, T, H_s) -> (B, T, H_t)."""

    def __init__(self, student: int, teacher: int, separate: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(student, teacher)
        self.embedding = nn.Linear(student, teacher) if separate else None

    def forward(self, state: Tensor, layer: int) -> Tensor:
        project = self.embedding if layer == 0 and self.embedding is not None else self.hidden
        return project(state)


def layer_map(teacher: int, student: int) -> list[tuple[int, int]]:
    """Return the teacher's (hidden state, layer of the scores) for each student layer 1 to L_S.

    Hidden states count the embeddings as 0, layers do not: g(m) = m * L_T / L_S is state g(m) and layer g(m) - 1.
    """
    block = teacher // student
    return [(m * block, m * block - 1) for m in range(1, student + 1)]


def transformer_layers(student: Any, teacher: Any, projection: Projection, p: Params) -> Objective:
    """Return the embedding, hidden and attention terms, each summed over the student's layers."""
    parts, teacher_parts = view(student), view(teacher)
    above = layer_map(len(teacher_parts.layers), len(parts.layers))

    def objective(batch: Batch, step: int) -> Terms:
        own, target = parts.states(batch), teacher_parts.states(batch)
        mask = batch["attention_mask"]
        counted = mask if p.padding == "masked" else None
        losses = {}
        if p.embedding:
            losses["embedding"] = hidden_mse(projection(own[0], 0), target[0], counted)
        if p.hidden:
            pairs = [(projection(own[m], m), target[state]) for m, (state, _) in enumerate(above, start=1)]
            losses["hidden"] = torch.stack([hidden_mse(*pair, counted) for pair in pairs]).sum()
        if p.attention:
            over = "valid" if p.padding == "masked" else "all"
            mse = [
                attention_score_mse(parts.scores(m, x), teacher_parts.scores(n, target[n]), mask, over)
                for m, (x, (_, n)) in enumerate(zip(own[:-1], above, strict=True))
            ]
            losses["attention"] = torch.stack(mse).sum()
        masked: dict[str, Unit] = {"embedding": "tokens", "hidden": "tokens", "attention": "pairs"}
        return Terms(losses, over=masked if p.padding == "masked" else {})

    return objective


def general(run: "Run", p: Params) -> Iterator[Stage]:
    student, teacher, data = run.student, run.pretrained, run.corpus_batches("general")
    projection = Projection(run.config.student.hidden, run.config.teacher.hidden, p.projection == "separate")
    objective = transformer_layers(base(student), teacher, projection, p)
    yield Stage("general", student, objective, data, run.schedule("general", data), extra=projection)


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    from kdbench.runs.augmentation import augmented_tokens  # transformers: not for a method's keys

    student, teacher = run.student, run.teacher
    if p.relu_head:
        use_relu_head(student)
    split = augmented_tokens(run, p.copies, p.replace, p.candidates, p.max_words) if p.augment else run.data.train
    taught = run.with_unlabelled(split)
    if p.intermediate and (p.embedding or p.hidden or p.attention):
        projection = Projection(run.config.student.hidden, run.config.teacher.hidden, p.projection == "separate")
        if (state := run.general_extra("00_general")) is not None:
            projection.load_state_dict(state)
        data = run.batches("intermediate", split=taught)
        schedule = run.schedule("intermediate", data)
        objective = transformer_layers(base(student), base(teacher), projection, p)
        yield Stage("intermediate", student, objective, data, schedule, extra=projection, predict={})

    def prediction(batch: Batch, step: int) -> Terms:
        return Terms({"prediction": prediction_loss(run.task, logits(student, batch), batch, p)})

    if p.prediction:
        objective, data = prediction, run.batches("prediction", "logits", split=taught)
    else:
        objective, data = supervised(student, run.task), run.batches("prediction", split=split)
    yield Stage("prediction", student, objective, data, run.schedule("prediction", data))


def prediction_loss(task: str, z: Tensor, batch: Batch, p: Params) -> Tensor:
    """Return L_pred: soft cross-entropy, or what the task has in its place.

    (The authors' code learns a number from the label, not from the teacher.)
    """

    def cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
        return soft_cross_entropy(student, teacher, p.temperature, p.reduction)

    return kind(task).soft_loss(z, batch, p, cross_entropy)
