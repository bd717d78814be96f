"""A static student: a vector for each piece of a vocabulary, the mean of a text's vectors, and a small head.

A piece has the same vector in every text, so there is no layer to run and no attention to compute. The vectors may be
stored as 8-bit integers with one scale for each row. Two texts are read apart, as the BiLSTM reads them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.declared import Architecture
from kdbench.errors import Code
from kdbench.models.bilstm import principal_axes
from kdbench.models.own import Output, OwnModel
from kdbench.models.students import last_hidden

if TYPE_CHECKING:
    from kdbench.schema import RunConfig


class Traits(Architecture):
    model_type = "kdbench_static"
    encoder = False
    from_config = False
    choice = "static"
    keys = frozenset({"word_vectors", "pca", "int8_table"})
    optional_keys = frozenset({"sif", "table"})
    lacks: ClassVar[dict[str, str]] = {
        "same_kind": "a static student has no layer that could stand in the place of a teacher's; method=static trains "
        "it from the teacher's logits"
    }
    masked_lm = False
    bare_pieces = True

    @classmethod
    def conflicts(cls, config: "RunConfig") -> Iterator[tuple[Code, str, str]]:
        student = config.student
        if student.layers > 2:
            yield Code.MISMATCHED_SHAPE, "student.layers", "must be 1 (a linear head) or 2 (a head with a hidden layer)"
        if student.word_vectors == "teacher":
            problem = "must be outputs (of the encoder, for each piece alone), table or random for a static student"
            yield Code.UNUSABLE_START, "student.word_vectors", problem
        if (student.word_vectors == "table") != (student.table is not None):
            problem = "must name the vectors' file for student.word_vectors=table, and be null for other vectors"
            yield Code.CONFLICTING_VALUES, "student.table", problem
        if student.word_vectors == "outputs":
            width = config.origin.hidden
            if student.hidden > width or (student.hidden != width and not student.pca):
                least = "or less" if student.pca else "because student.pca=false keeps the encoder's width"
                yield Code.MISMATCHED_SHAPE, "student.hidden", f"must be {width} {least}"


@dataclass
class StaticConfig:
    """What config.json holds; transformers' names where it has them."""

    vocab_size: int
    hidden_size: int  # of a piece's vector
    layers: int  # of the head
    units: int  # of the head's hidden layer
    pairs: bool
    int8_table: bool
    id2label: dict[int, str]
    label2id: dict[str, int]
    dropout: float = 0.0
    problem_type: str | None = None  # transformers' word for several labels, or a number
    pad_token_id: int = 0
    model_type: str = Traits.model_type


AT_A_TIME = 512  # pieces


class Static(nn.Module):
    """Trained with vectors of 32 bits. `stored`: as the file has them, so with `config.int8_table` of 8 bits."""

    def __init__(self, config: StaticConfig, stored: bool = False) -> None:
        super().__init__()
        self.config = config
        size = (config.vocab_size, config.hidden_size)
        self.scale: nn.Embedding | None = None  # (V, 1)
        if stored and config.int8_table:
            self.embedding = nn.Embedding.from_pretrained(torch.zeros(size, dtype=torch.int8))
            self.scale = nn.Embedding.from_pretrained(torch.ones(config.vocab_size, 1))
        else:
            self.embedding = nn.Embedding(*size)
        features = (4 if config.pairs else 1) * config.hidden_size
        self.hidden = nn.Linear(features, config.units) if config.layers == 2 else None
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.units if config.layers == 2 else features, len(config.id2label))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Output:
        """Logits (B, C) of ids, mask and types, each (B, T).

        A model of pairs reads tokens of type 0 as the first text and of type 1 as the second, and raises ValueError
        without types; a model of single texts ignores them.
        """
        if self.config.pairs:
            if token_type_ids is None:
                raise ValueError("a static student of pairs needs token_type_ids")
            u = self.mean(input_ids, attention_mask * (token_type_ids == 0))
            v = self.mean(input_ids, attention_mask * (token_type_ids == 1))
            x = torch.cat([u, v, (u - v).abs(), u * v], dim=-1)
        else:
            x = self.mean(input_ids, attention_mask)
        if self.hidden is not None:
            x = F.relu(self.hidden(x))
        return Output(self.classifier(self.dropout(x)))

    def mean(self, ids: Tensor, kept: Tensor) -> Tensor:
        """Mean vectors (B, d) of the pieces (B, T) that are kept (B, T; 1 or 0); zero where a text keeps none."""
        vectors = self.embedding(ids)
        if self.scale is not None:
            vectors = vectors.to(self.scale.weight.dtype) * self.scale(ids)
        weights = kept.to(vectors.dtype).unsqueeze(-1)
        return (vectors * weights).sum(1) / weights.sum(1).clamp(min=1)


class Model(OwnModel):
    config_class, module_class, stored_class = StaticConfig, Static, partial(Static, stored=True)

    @property
    def last_linear(self) -> nn.Linear:
        return self.model.classifier

    @property
    def word_table(self) -> nn.Embedding:
        table: nn.Embedding = self.model.embedding
        return table

    @classmethod
    def config_of(cls, shape: dict[str, Any]) -> dict[str, Any]:
        alike = ("vocab_size", "layers", "pairs", "int8_table", "pad_token_id")
        return {name: shape[name] for name in alike} | {"hidden_size": shape["hidden"], "units": shape["ffn"]}

    @classmethod
    def flops(cls, shape: dict[str, Any], length: int, classes: int, words: bool = False) -> int:
        """Return the FLOPs of one example: those of the head's matrices. The mean has no product of matrices."""
        features = (4 if shape["pairs"] else 1) * shape["hidden"]
        sizes = [features, *([shape["ffn"]] if shape["layers"] == 2 else []), classes]
        return 2 * sum(rows * columns for rows, columns in pairwise(sizes))

    @property
    def fields(self) -> dict[str, Any]:
        """The config, with the dropout that the model has now."""
        return super().fields | {"dropout": self.model.dropout.p}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights; with `config.int8_table`, the vectors in 8 bits."""
        state = super().tensors
        if self.config.int8_table and self.model.scale is None:
            state["embedding.weight"], state["scale.weight"] = to_int8(state["embedding.weight"])
        return state


def to_int8(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return (V, d) integers of 8 bits, and (V, 1) scales, whose products are nearest to the rows of `table`.

    A row's largest number becomes 127 or -127, so no number is off by more than half of the row's scale.
    """
    scale = table.abs().amax(1, keepdim=True) / 127
    whole = table / torch.where(scale > 0, scale, 1)  # a row of zeros stays one
    return whole.round().clamp(-127, 127).to(torch.int8), scale


def piece_outputs(encoder: Any, pieces: Tensor, before: list[int], after: list[int]) -> Tensor:
    """Return (V, H), float32, on the CPU: what the encoder returns for each of `pieces` (n,), zero for other tokens.

    A piece stands alone between the special tokens `before` and `after`; the mean is over all of them, as in model2vec.
    """
    device = next(encoder.parameters()).device
    vectors = torch.zeros(encoder.config.vocab_size, encoder.config.hidden_size)
    with torch.inference_mode():
        for ids in pieces.split(AT_A_TIME):
            around = [torch.tensor(tokens, dtype=torch.long).expand(len(ids), -1) for tokens in (before, after)]
            wrapped = torch.cat([around[0], ids[:, None], around[1]], 1).to(device)
            batch: Any = {"input_ids": wrapped, "attention_mask": torch.ones_like(wrapped)}
            vectors[ids] = last_hidden(encoder, batch).float().mean(1).cpu()
    return vectors.clone()  # a tensor from inference mode cannot be trained


def start_table(vectors: Tensor, ranked: Tensor, size: int, pca: bool, sif: float | None) -> Tensor:
    """Return the table (V, size), float32, from which training starts, of pieces with `vectors` (V, H).

    `ranked` (n,): the ids of the pieces that occur in texts, by falling frequency. Other rows are zero. With `pca`, the
    vectors are centred and turned onto their strongest axes; `size` is H otherwise. With `sif`, they get
    `zipf_weights`. All are then scaled by one factor to a root mean square of 1, so that a learning rate means the same
    whatever they are from.
    """
    table = torch.zeros(len(vectors), size, dtype=torch.float64)
    chosen = vectors.detach().cpu().double()[ranked]
    if pca:
        chosen = chosen - chosen.mean(0)
        chosen = chosen @ principal_axes(chosen, size)
    if sif is not None:
        chosen = chosen * zipf_weights(len(ranked), sif)[:, None]
    table[ranked] = chosen / chosen.square().mean().sqrt().clamp(min=1e-12)
    return table.float()


def zipf_weights(count: int, a: float) -> Tensor:
    """Return the weights a / (a + p) (Arora et al. 2017) of `count` pieces by falling frequency, in float64.

    Zipf's law gives the frequencies p: they fall as 1 / rank, and sum to 1. Ranks begin with 2, as in model2vec.
    """
    frequencies = 1 / torch.arange(2, count + 2, dtype=torch.float64)
    return a / (a + frequencies / frequencies.sum())
