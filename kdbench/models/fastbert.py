"""FastBERT (Liu et al. 2020): an encoder with a classifier behind every layer, which stops where it is sure.

A branch head sits behind each of the L layers; the last one is the paper's teacher classifier, of the same form.
At inference a row leaves after the first layer whose head is less uncertain than `speed`, and the batch shrinks
to the rows that are left. As in the authors' code, and unlike other ports, a head has its tanh and its attention
sees no padding; a row that no head is sure of is answered by the last one.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.declared import Architecture, architecture_traits
from kdbench.errors import Code
from kdbench.models.around import Around, base_config, encoder_of
from kdbench.models.encoder import Pass
from kdbench.models.network import view
from kdbench.models.own import Output
from kdbench.sources.model_weights import layer_weights
from kdbench.stage import Batch

if TYPE_CHECKING:
    from kdbench.schema import RunConfig


class Traits(Architecture):
    model_type = "kdbench_fastbert"
    encoder = False
    choice = "fastbert"
    wraps = True
    keys = Architecture.keys | {"embedding_branch"}
    masked_lm = False
    early_exit = True
    no_openvino = "is not supported for FastBERT: its graph branches after each layer"

    @classmethod
    def conflicts(cls, config: "RunConfig") -> Iterable[tuple[Code, str, str]]:
        problem = architecture_traits(config.origin.source_architecture).no_exits_in_onnx
        if config.export.forms and problem:
            yield Code.UNSUPPORTED_EXPORT, "export.onnx", problem

    @classmethod
    def start_conflicts(cls, config: "RunConfig") -> Iterable[tuple[str, str]]:
        return architecture_traits(config.origin.source_architecture).start_conflicts(config)


WIDTH = 128  # of a branch head
HEADS = 2  # of its attention
INSIDE = -1  # in place of the layer that a row left after, while it has not left


class Branch(nn.Module):
    """A classifier on one layer's states: narrow, attend, take [CLS], classify (Liu et al. 2020, section 3.1)."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(hidden, WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.0)  # of the attention; each stage sets its own
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, classes)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, C) from hidden states (B, T, H) and the mask (B, T), 0 = padding."""
        x = torch.tanh(self.narrow(hidden))
        # Only [CLS] is read afterwards, so only its query is asked: same answer, fewer products.
        query, key, value = (_split(y) for y in (self.query(x[:, :1]), self.key(x), self.value(x)))
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS)  # (B, A, 1, T)
        scores = scores.masked_fill(mask[:, None, None] == 0, torch.finfo(scores.dtype).min)
        attended = self.dropout(scores.softmax(-1)) @ value  # (B, A, 1, d)
        return self.classifier(torch.tanh(self.dense(self.output(attended.flatten(1)))))


def _split(x: Tensor) -> Tensor:
    """(B, T, A * d) -> (B, A, T, d)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class FastBert(nn.Module):
    """An encoder of any architecture, and a `Branch` behind each of its layers."""

    def __init__(self, config: Any) -> None:
        """Draw the weights of `config.encoder`, an encoder's config.json, and of its branches."""
        super().__init__()
        self.encoder: Any = encoder_of(config)
        own = self.encoder.config
        self.config: Any = config
        self.first = 0 if config.embedding_branch else 1  # layer of the first branch; 0: the embeddings
        self.branches = nn.ModuleList(
            Branch(own.hidden_size, len(config.id2label)) for _ in range(self.first, own.num_hidden_layers + 1)
        )

    @property
    def speed(self) -> float:
        """The uncertainty below which `forward` lets a row leave; 0 = all layers for all rows."""
        return self.config.speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self.config.speed = speed

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Output:
        """Return logits (B, C) at the model's own `speed`."""
        return Output(self.early_exit(input_ids, attention_mask, self.speed, token_type_ids)[0])

    def early_exit(
        self, input_ids: Tensor, attention_mask: Tensor, speed: float, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and the layer each row left after (B,), `first`..L, both in the order of the input.

        A row leaves where its uncertainty is below `speed`, strictly, so that at 0 none does: then no head but
        the last is computed (Liu et al. 2020, section 3.3).
        """
        parts = self.parts
        x, passes = self.start(input_ids, attention_mask, token_type_ids)
        mask, rows = attention_mask, torch.arange(len(input_ids), device=input_ids.device)  # those still inside
        left: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, their logits, their layer
        last = len(passes)
        for number, branch in enumerate(self.branches, start=self.first):
            if number > 0:
                x = passes[number - 1](x)
            if number < last and speed <= 0:
                continue
            z = branch(parts.finished(x), mask)
            sure = uncertainty(z) < speed if number < last else torch.ones_like(rows, dtype=torch.bool)
            leave, stay = sure.nonzero().squeeze(1), (~sure).nonzero().squeeze(1)
            left.append((rows[leave], z[leave], torch.full_like(leave, number)))
            if not len(stay):
                break
            if len(leave):
                rows = rows[stay]
                x, mask = _trim(x[stay], mask[stay])
                passes = parts.whole_passes(x, mask)
        rows, logits, exit_layer = (torch.cat(parts) for parts in zip(*left, strict=True))
        order = rows.argsort()
        return logits[order] / self.config.logit_temperature, exit_layer[order]

    def all_logits(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return logits of every head (L, B, C) in one pass.

        Gradients reach the heads only: self-distillation leaves the backbone as it is. Whether its dropout is
        off as well is the caller's business.
        """
        with torch.no_grad():
            x, passes = self.start(input_ids, attention_mask, token_type_ids)
            states = [x]
            for run in passes:
                states.append(run(states[-1]))
            finished = [self.parts.finished(x) for x in states[self.first :]]
        return torch.stack([branch(x, attention_mask) for branch, x in zip(self.branches, finished, strict=True)])

    @property
    def parts(self) -> Any:
        """The way through the encoder."""
        return view(self.encoder)

    def start(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> tuple[Tensor, list[Pass]]:
        """Return the first layer's input (B, T, H), and the layers, ready for it."""
        batch: Any = {"input_ids": input_ids, "attention_mask": attention_mask}
        x = self.parts.embed(batch | ({} if token_type_ids is None else {"token_type_ids": token_type_ids}))
        return x, self.parts.whole_passes(x, attention_mask)


def uncertainty(logits: Tensor) -> Tensor:
    """Return the normalised entropy (B,) of logits (B, C), in [0, 1] (Liu et al. 2020, section 3.3).

    0 log 0 is 0. Summed in float64 and returned in float32, which makes equal logits exactly 1: they never fall below a
    speed of 1.
    """
    return (torch.special.entr(logits.double().softmax(-1)).sum(-1) / math.log(logits.shape[-1])).float()


def _trim(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cut off the columns, from the right, that are padding in every row: x (B, T, H), mask (B, T)."""
    length = int(mask.any(0).nonzero().max()) + 1
    return x[:, :length], mask[:, :length]


class Model(Around):
    module_class = FastBert
    speeds: ClassVar[tuple[float, ...]] = (0.0, 0.5, 1.0)

    @property
    def no_onnx(self) -> str:
        return architecture_traits(self.model.config.encoder["model_type"]).no_exits_in_onnx

    @classmethod
    @cache
    def config_class(cls) -> Any:
        class FastBertConfig(base_config()):  # type: ignore[misc]
            model_type = Traits.model_type
            speed: float = 0.0
            logit_temperature: float = 1.0  # divides the logits, but not those that decide where a row leaves
            embedding_branch: bool = False

        return FastBertConfig

    @classmethod
    def head_of(cls, shape: dict[str, Any]) -> dict[str, Any]:
        return {"embedding_branch": shape["embedding_branch"]}

    def counted(self, ids: Tensor) -> None:
        """All layers, and the last head."""
        self.model.branches[-1](self.encoder(input_ids=ids).last_hidden_state, ids)

    def divide_logits(self, temperature: float) -> None:
        """Divide the logits behind the exits, so that rows leave where they did."""
        self.config.logit_temperature *= temperature

    def set_dropout(self, dropout: float) -> None:
        view(self.encoder).set_dropout(dropout)
        for branch in self.model.branches:
            branch.dropout.p = dropout

    def traced(self) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
        return _Exits(self.model), {"speed": torch.tensor(0.5)}, ["logits", "exit_layer"]

    def at_speed(self, batch: Batch, speed: float) -> Tensor:
        given: Any = batch
        return self.model.early_exit(**given, speed=speed)[0]


class _Exits(nn.Module):
    """A FastBERT whose exits are branches of an ONNX graph: a layer is computed while some row is unsure.

    Each row gets the answer of the first head that is sure of it, as in `FastBert.early_exit`. Rows which have left are
    still carried along while others of their batch go on.
    """

    def __init__(self, model: FastBert) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, speed: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, C) and the layer (B,), first..L, that each row left after; `speed`: a number, ()."""
        x, passes = self.model.start(input_ids, attention_mask, token_type_ids)
        logits = x.new_zeros(x.shape[0], len(self.model.config.id2label))  # len(x) would be fixed in the graph
        exit_layer = input_ids.new_full((x.shape[0],), INSIDE)
        first = self.model.first
        for number, run in enumerate([*[_same] * (1 - first), *passes], start=first):
            state = (x, logits, exit_layer, attention_mask, speed)
            inside = (exit_layer == INSIDE).any()
            x, logits, exit_layer = torch.cond(inside, self._layer(number, run), _unchanged, state)
        return logits / self.model.config.logit_temperature, exit_layer

    def _layer(self, number: int, run: Pass) -> Any:
        branch, parts = self.model.branches[number - self.model.first], self.model.parts
        last = number == len(parts.layers)

        def go_on(x: Tensor, logits: Tensor, exit_layer: Tensor, mask: Tensor, speed: Tensor) -> Any:
            x = run(x)
            z = branch(parts.finished(x), mask)
            sure = torch.ones_like(exit_layer, dtype=torch.bool) if last else uncertainty(z) < speed
            leaves = sure & (exit_layer == INSIDE)
            return x, torch.where(leaves[:, None], z, logits), torch.where(leaves, number, exit_layer)

        return go_on


def _same(x: Tensor) -> Tensor:
    """Return the embeddings as layer 0's output; a branch may not hand back its arguments."""
    return x.clone()


def _unchanged(x: Tensor, logits: Tensor, exit_layer: Tensor, mask: Tensor, speed: Tensor) -> Any:
    return x.clone(), logits.clone(), exit_layer.clone()  # a branch may not hand back its arguments


def flops(shape: dict[str, Any], length: int, exit_layer: int) -> int:
    """FLOPs of one example of `length` tokens that leaves after `exit_layer`, all heads up to there asked.

    Counted as the authors do: 2 per multiply-add in linear layers only, with the head's attention for all tokens,
    without attention scores and last classifier. So the figures are not comparable with those of other architectures
    here, which count these: `Model.flops` is.
    """
    heads = exit_layer + int(shape["embedding_branch"])
    return exit_layer * _layer_flops(shape, length) + heads * _head_flops(shape, length)


def full_flops(shape: dict[str, Any], length: int) -> int:
    """FLOPs at speed 0, all layers and the last head only, counted as in `flops`: the base of every speed-up."""
    return shape["layers"] * _layer_flops(shape, length) + _head_flops(shape, length)


def _layer_flops(shape: dict[str, Any], length: int) -> int:
    return 2 * length * layer_weights(shape["config"]["model_type"], shape)


def _head_flops(shape: dict[str, Any], length: int) -> int:
    return 2 * (length * (shape["hidden"] * WIDTH + 4 * WIDTH * WIDTH) + WIDTH * WIDTH)
