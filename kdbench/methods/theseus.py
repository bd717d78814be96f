"""BERT-of-Theseus (Xu et al. 2020): successor layers replace the predecessor's blocks during training.

The only loss is that of the task. Stage `replacing` trains the successor's layers inside the hybrid, and freezes the
predecessor. Stage `successor` fine-tunes the successor alone. Two presets follow published code. `reference/theseus`
has one stage, whose rate reaches 1. `blog/theseus` (bojone) starts the successor from pretrained layers, and replaces
embeddings too.

Module i of the successor (one layer) replaces block i of the predecessor (L_T / L_S layers). With
epsilon_i = 1 the block is computed, with 0 the layer, and in between both:

    x_{i+1} = epsilon_i * block_i(x_i) + (1 - epsilon_i) * layer_i(x_i)

The code of a post (ProportionalAdd) halves this sum, which rescales every junction in training but not in inference.
Here nothing is divided, unless `halved` is set. Only what epsilon asks for is computed; if each example has its own
epsilon, both are.

`variant=ordered` is the ship that gives the method its name: the successor's modules are put in one after the other,
the lowest first. M modules divide the steps of `replacing` into M equal parts. In part j, from 1, the lowest j modules
are the successor's, and the predecessor's blocks follow. So the lowest module is trained in all parts, and the highest
in the last part, where the hybrid is the successor below the predecessor's head.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.models.encoder import Pass
from kdbench.models.network import view
from kdbench.models.students import logits
from kdbench.objectives import hard_terms, supervised
from kdbench.options import MISSING, above, at_least, between, one_of, option, or_none
from kdbench.schema import ENCODERS, TASKS
from kdbench.stage import Batch, ParamGroup, Predict, Schedule, Stage, Terms

if TYPE_CHECKING:
    from kdbench.runs.context import Run
    from kdbench.schema import RunConfig


Share = float | Tensor  # one for the batch, or (B,), one an example


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset(
        {"encoder", "teacher", "encoder_teacher", "layers_divide", "same_width", "same_kind", "distinct_layers"}
    )
    students: ClassVar[frozenset[str]] = frozenset(ENCODERS)
    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)

    variant: str = option(one_of("bernoulli", "linear", "mix", "uniform", "annealed", "ordered"))
    replace_rate: float = option(between(0, 1))  # p of bernoulli; the successor's share in mix
    base_rate: float = option(between(0, 1))  # linear: p at the first step
    slope: float | None = option(or_none(above(0)))  # linear: growth of p a step; null: from full_step or full_at
    full_step: int | None = option(or_none(at_least(1)))  # linear: the step at which p is 1; null: from full_at
    full_at: float = option(between(0, 1))  # linear: share of the stage after which p is 1
    halved: bool = MISSING  # mix: whether each junction's sum is divided by two
    draw: str = option(one_of("batch", "example"))  # what one draw of the modules is for
    embeddings: str = option(one_of("frozen", "trained", "replaced"))
    frozen_dropout: bool = MISSING  # whether what stands still in `replacing` has dropout too
    successor_trains: str = option(one_of("none", "head", "last_layer_and_head", "encoder", "all"))
    replacing_share: float | None = option(or_none(between(0, 1)))  # of both stages' updates; null: as they say

    def __post_init__(self) -> None:
        if self.slope is not None and self.full_step is not None:
            raise ValueError("method.slope and method.full_step both say how fast the rate grows: leave one null")

    def conflicts(self, config: "RunConfig") -> Iterator[tuple[str, str]]:
        """Yield (key, problem) if the sum is to be halved where modules are chosen and not added."""
        if self.halved and self.variant != "mix":
            yield "method.halved", "must be false, or set method.variant=mix: only the posts' mix was halved"


def stages(run: "Run", p: Params) -> Iterator[Stage]:
    predecessor, successor = run.teacher, run.student
    view(successor).copy_head(view(predecessor))
    if p.embeddings != "replaced":
        for own, theirs in zip(view(successor).inputs, view(predecessor).inputs, strict=True):
            own.load_state_dict(theirs.state_dict())
    wanted = schedules(run, p)
    if "replacing" in wanted:
        yield replacing(run, p, predecessor, successor, wanted["replacing"])
    if "successor" in wanted:
        trained = successor_params(successor, p.successor_trains)
        data = run.batches("successor")
        yield Stage("successor", successor, supervised(successor, run.task), data, wanted["successor"], trained)
    # The posts' question: does the successor's trained head still fit the encoder that it grew up under?
    run.report("predecessor_encoder_successor_head", run.score(grafted(predecessor, successor)))


def schedules(run: "Run", p: Params) -> dict[str, Schedule]:
    """Return the schedules of the stages that are trained, by name.

    By default they are those of the stages; `replacing_share` divides the sum of their updates anew.
    """
    found = {name: run.schedule(name) for name in ("replacing", "successor")}
    if p.replacing_share is not None:
        total = sum(schedule.steps for schedule in found.values())
        steps = round(p.replacing_share * total)
        divided = {"replacing": steps, "successor": total - steps}
        found = {name: replace(schedule, steps=divided[name]) for name, schedule in found.items()}
    if p.successor_trains == "none":
        del found["successor"]
    return {name: schedule for name, schedule in found.items() if schedule.steps > 0}


def replacing(run: "Run", p: Params, predecessor: Any, successor: Any, schedule: Schedule) -> Stage:
    if p.frozen_dropout:
        view(predecessor).set_dropout(run.stage("replacing").dropout)
    parts = view(successor)
    modules = len(parts.layers) + (p.embeddings == "replaced")

    def drawn(step: int, *example: int) -> list[float]:
        generator = torch.Generator().manual_seed(run.seed("draw", "replacing", step, *example))
        progress = step / max(1, schedule.steps - 1)
        return draw_epsilon(p.variant, progress, rate(p, step, schedule.steps), modules, generator)

    def epsilon(batch: Batch, step: int) -> Sequence[Share]:
        """Return one value per module, or (B,) drawn by the example's id, so that it does not depend on the pass."""
        if p.draw == "batch":
            return drawn(step)
        return torch.tensor([drawn(step, id_) for id_ in batch["ids"].tolist()]).unbind(1)

    def objective(batch: Batch, step: int) -> Terms:
        shares = epsilon(batch, step)
        predecessor.train(p.frozen_dropout)
        z = hybrid_logits(predecessor, successor, batch, shares, p.embeddings, p.halved)
        predecessor.eval()  # in training mode in this pass only: what scores it finds it as it came
        replaced = {f"replaced_{i}": 1 - float(torch.as_tensor(share).mean()) for i, share in enumerate(shares)}
        return Terms(hard_terms(run.task, z, batch), replaced)

    def hybrid(batch: Batch, step: int) -> Tensor:
        return hybrid_logits(predecessor, successor, batch, epsilon(batch, step), p.embeddings, p.halved)

    params = [parts.stacked, *(parts.inputs if p.embeddings != "frozen" else [])]
    predict = {"successor": lambda batch, step: logits(successor, batch), "hybrid": hybrid}
    data = run.batches("replacing")
    return Stage(
        "replacing", successor, objective, data, schedule, groups(params), predict=predict, through=predecessor
    )


def rate(p: Params, step: int, steps: int) -> float:
    """Return the replacement rate of this step."""
    if p.variant != "linear":
        return p.replace_rate
    full_step = max(1, p.full_at * steps) if p.full_step is None else p.full_step
    slope = (1 - p.base_rate) / full_step if p.slope is None else p.slope
    return linear_rate(step, p.base_rate, slope)


def successor_params(successor: Any, trained: str) -> list[ParamGroup]:
    parts = view(successor)
    choices: dict[str, list[nn.Module]] = {
        "head": parts.tops,
        "last_layer_and_head": [parts.layers[-1], *parts.tops],
        "encoder": [parts.stacked],
        "all": [successor],
    }
    return groups(choices[trained])


def groups(modules: list[nn.Module]) -> list[ParamGroup]:
    return [ParamGroup(module) for module in modules]


def grafted(predecessor: Any, successor: Any) -> Predict:
    """Return a predictor: the predecessor's encoder with the successor's head."""

    def predict(batch: Batch, step: int) -> Tensor:
        return view(successor).logits_of(view(predecessor).first_tokens(batch)[1], batch["attention_mask"])

    return predict


def mix(
    epsilon: Share, predecessor: Callable[[], Tensor], successor: Callable[[], Tensor], halved: bool = False
) -> Tensor:
    """Return epsilon * predecessor + (1 - epsilon) * successor, computing only what counts; states (B, T, H).

    If `halved`, the sum is divided by two, whatever epsilon is.
    """
    if halved:
        return mix(epsilon, predecessor, successor) / 2
    if isinstance(epsilon, Tensor):
        old, new = predecessor(), successor()
        share = epsilon.to(old)[:, None, None]
        return share * old + (1 - share) * new
    if epsilon == 1:
        return predecessor()
    if epsilon == 0:
        return successor()
    return epsilon * predecessor() + (1 - epsilon) * successor()


def blocks(predecessor_layers: int, successor_layers: int) -> list[list[int]]:
    """The predecessor's layers, counted from 0, that each successor layer replaces."""
    size, rest = divmod(predecessor_layers, successor_layers)
    if rest:
        raise ValueError(f"{predecessor_layers} layers do not divide into {successor_layers} blocks")
    return [list(range(i * size, (i + 1) * size)) for i in range(successor_layers)]


def hybrid_logits(
    predecessor: Any, successor: Any, batch: Batch, epsilon: Sequence[Share], embeddings: str, halved: bool = False
) -> Tensor:
    """Return logits (B, C), of words (B, T, C), of the hybrid under the predecessor's head.

    `epsilon` has one value a module, independent of each other. `embeddings`: `frozen` takes the
    predecessor's, `trained` the successor's, `replaced` mixes both by a further, leading epsilon. `halved` divides
    every sum of two modules by two, that of the embeddings included.
    """
    rest = list(epsilon)
    old, new = view(predecessor), view(successor)
    first: Share = rest.pop(0) if embeddings == "replaced" else {"frozen": 1.0, "trained": 0.0}[embeddings]
    x = mix(first, lambda: old.embed(batch), lambda: new.embed(batch), halved and embeddings == "replaced")
    mask = batch["attention_mask"]
    layers, modules = old.passes(x, mask), new.passes(x, mask)
    for share, block, module in zip(rest, blocks(len(layers), len(modules)), modules, strict=True):
        x = junction(x, share, [layers[index] for index in block], module, halved)
    return old.logits_of(x, mask)


def junction(x: Tensor, epsilon: Share, block: list[Pass], module: Pass, halved: bool = False) -> Tensor:
    """Return one step of the hybrid: the block, the module, or their mix."""

    def predecessor() -> Tensor:
        y = x
        for layer in block:
            y = layer(y)
        return y

    return mix(epsilon, predecessor, lambda: module(x), halved)


def draw_epsilon(variant: str, progress: float, rate: float, modules: int, generator: torch.Generator) -> list[float]:
    """Return one epsilon per module for this step, each drawn on its own; 1 = predecessor, 0 = successor.

    `rate` is the replacement rate p of this step, `progress` goes from 0 at the first step to 1 at the last. bernoulli,
    linear: 0 with probability p, else 1 (Xu et al. 2020, section 3.1). mix: 1 - p, always. uniform: U(0, 1). annealed:
    1 - progress. ordered: 0 for the lowest module in the first of M equal parts, for all M in the last, else 1.
    """
    if variant in ("bernoulli", "linear"):
        drawn = torch.rand(modules, generator=generator) < rate
        return (1.0 - drawn.double()).tolist()
    if variant == "uniform":
        return torch.rand(modules, generator=generator).tolist()
    if variant == "ordered":
        replaced = min(modules, 1 + int(progress * modules))
        return [0.0] * replaced + [1.0] * (modules - replaced)
    share = {"mix": 1 - rate, "annealed": 1 - progress}[variant]
    return [share] * modules


def linear_rate(step: int, base: float, slope: float) -> float:
    """p_t = min(1, slope * t + base), t = optimiser steps already taken (Xu et al. 2020, section 3.3)."""
    return min(1.0, slope * step + base)
