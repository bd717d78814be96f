"""MobileBERT (Sun et al. 2020): a narrow, deep student of an equally deep inverted-bottleneck teacher (IB-BERT).

FMT is the MSE between the blocks' outputs, AT the KL between the heads' attention. PD is the cross-entropy of the
masked tokens against alpha * IB-BERT's distribution + (1 - alpha) * labels.

Strategies (section 3.6): `akt` trains all at once; `jkt` trains FMT and AT of all blocks, then PD; `pkt` trains one
block after another, then PD. In `pkt`, earlier blocks train at a tenth of the learning rate (`freeze=soft`) or not at
all (`hard`).

There is no next-sentence term, because the corpora have single texts. The authors' code adds terms on the maps' means
and variances, but indexes their list wrongly; `feature_maps=normalised` has only its main term.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from kdbench.losses import (
    IGNORED,
    attention_kl,
    distillation_targets,
    hidden_mse,
    normalised_feature_mse,
    target_cross_entropy,
)
from kdbench.models.mobilebert import copy_embeddings
from kdbench.models.network import view
from kdbench.models.students import base, mlm_head, word_embeddings
from kdbench.objectives import supervised
from kdbench.options import at_least, between, one_of, option
from kdbench.schema import as_architecture
from kdbench.stage import Batch, Objective, ParamGroup, Stage, Terms

if TYPE_CHECKING:
    from kdbench.runs.context import MaskedLm, Run
    from kdbench.schema import RunConfig, StudentConfig

Losses = Callable[[Batch], dict[str, Tensor]]
SOFTLY_FROZEN = (
    0.1  # learning rate of a block whose turn is over (the authors' code; section 3.6 calls it soft-freezing)
)


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "corpus"})
    students: ClassVar[frozenset[str]] = frozenset({"mobilebert"})
    tasks: ClassVar[frozenset[str]] = frozenset({"classification", "multi_label", "regression"})
    not_others: ClassVar[str] = "its student has no head for words"
    general_stages: ClassVar[tuple[str, ...]] = ("transfer", "distillation")
    general_keys: ClassVar[frozenset[str]] = frozenset(
        {"strategy", "freeze", "feature_maps", "feature_weight", "attention_weight", "alpha", "ib_bottleneck", "ib_ffn"}
    )

    strategy: str = option(one_of("akt", "jkt", "pkt"))
    freeze: str = option(one_of("soft", "hard"))  # pkt: the blocks whose turn is over
    feature_maps: str = option(one_of("raw", "normalised"))
    feature_weight: float = option(at_least(0))
    attention_weight: float = option(at_least(0))
    alpha: float = option(between(0, 1))  # of IB-BERT's distribution in PD, 1 - alpha of the masked tokens themselves
    ib_bottleneck: int = option(at_least(1))  # of IB-BERT: width inside a block
    ib_ffn: int = option(at_least(1))

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if IB-BERT's heads do not divide its width."""
        student = config.student
        if student.heads and self.ib_bottleneck % student.heads:
            yield "method.ib_bottleneck", f"must be a multiple of student.heads={student.heads}"


def ib_bert(student: "StudentConfig", p: Params) -> "StudentConfig":
    """Return the shape of the inverted-bottleneck teacher: as deep and as wide between blocks as the student.

    It has LayerNorm and GELU whatever the student has, so that all students share it.
    """
    return as_architecture(
        student,
        "ib_bert",
        name=f"ib_bert_{student.layers}l",
        bottleneck=p.ib_bottleneck,
        ffn=p.ib_ffn,
        ffn_blocks=1,
    )


def transfer(student: Any, teacher: Any, p: Params, blocks: list[int]) -> Losses:
    """Return an objective: the FMT and AT terms of the given blocks (from 0), each a mean over these blocks."""
    mse = hidden_mse if p.feature_maps == "raw" else normalised_feature_mse

    parts, teacher_parts = view(student), view(teacher)

    def terms(batch: Batch) -> dict[str, Tensor]:
        mask, top = batch["attention_mask"], max(blocks) + 1
        own, target = parts.states(batch, top), teacher_parts.states(batch, top)
        features = torch.stack([mse(own[block + 1], target[block + 1], mask) for block in blocks])
        losses = {"features": p.feature_weight * features.mean()}
        if p.attention_weight > 0:
            kl = [attention_kl(parts.scores(b, own[b]), teacher_parts.scores(b, target[b]), mask) for b in blocks]
            losses["attention"] = p.attention_weight * torch.stack(kl).mean()
        return losses

    return terms


def distillation(student: Any, head: Any, ib: "MaskedLm", alpha: float) -> Losses:
    """Return an objective: PD, the masked tokens against labels and IB-BERT's distribution mixed."""

    def terms(batch: Batch) -> dict[str, Tensor]:
        chosen = batch["mlm_labels"] != IGNORED
        own, target = (view(model).states(batch)[-1][chosen] for model in (student, ib.encoder))
        theirs = ib.head(target, word_embeddings(ib.encoder))
        targets = distillation_targets(theirs, batch["mlm_labels"][chosen], 1 - alpha)
        return {"mlm": target_cross_entropy(head(own, word_embeddings(student)), targets)}

    return terms


def general(run: "Run", p: Params) -> Iterator[Stage]:
    ib, student = run.masked_lm(ib_bert(run.config.student, p), "random"), run.student
    encoder, head = base(student), mlm_head(student, run.seed("mlm_head"))
    copy_embeddings(ib.encoder, encoder)
    head.load_state_dict(ib.head.state_dict())
    layers, data = encoder.encoder.layer, run.masked_batches("transfer")
    everything = list(range(len(layers)))
    predict = distillation(encoder, head, ib, p.alpha)
    if p.strategy == "akt":
        together = transfer(encoder, ib.encoder, p, everything)
        objective = objective_of(lambda batch: together(batch) | predict(batch))
        yield Stage("transfer", student, objective, data, run.schedule("transfer", data), extra=head)
        return
    phases = [everything] if p.strategy == "jkt" else [[block] for block in everything]
    schedule = run.schedule("transfer", data, share=len(phases))
    for number, blocks in enumerate(phases):
        params = [ParamGroup(layers[block]) for block in blocks]
        if p.strategy == "pkt" and p.freeze == "soft":
            params += [ParamGroup(layers[before], SOFTLY_FROZEN) for before in range(blocks[0])]
        objective = objective_of(transfer(encoder, ib.encoder, p, blocks))
        yield Stage(f"transfer_{number}", student, objective, data, schedule, params, key="transfer")
    masked = run.masked_batches("distillation")
    schedule = run.schedule("distillation", masked)
    yield Stage("distillation", student, objective_of(predict), masked, schedule, extra=head)


def objective_of(losses: Losses) -> Objective:
    return lambda batch, step: Terms(losses(batch), over={"features": "tokens", "mlm": "masked"})


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    student = run.student
    yield Stage("training", student, supervised(student, run.task), run.batches("training"), run.schedule("training"))
