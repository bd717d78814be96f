"""The BiLSTM student of Tang et al. 2019 (section 3.1), for one text or, siamese, for two.

One text: word embeddings, one bidirectional LSTM layer, the last states of both directions, then
Linear + ReLU, dropout, Linear. Two texts: one encoder for both, and [u, v, |u - v|, u * v] of their states
into Linear + ReLU + Linear, without dropout. Words enter by the teacher's embeddings of their pieces instead
of the paper's word2vec, which is 3.6 GB and English.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from kdbench.declared import Architecture
from kdbench.errors import Code
from kdbench.models.own import Output, OwnModel

if TYPE_CHECKING:
    from kdbench.schema import RunConfig


class Traits(Architecture):
    model_type = "kdbench_bilstm"
    encoder = False
    from_config = False
    choice = "bilstm_300"
    keys = frozenset({"embedding", "multichannel", "word_vectors"})
    lacks: ClassVar[dict[str, str]] = {
        "same_kind": "a BiLSTM reads words, not the teacher's word pieces, and has no layer that could stand in the "
        "place of a teacher's; method=bilstm trains it from the teacher's logits"
    }
    masked_lm = False
    own_words = True
    no_onnx = "is not supported for a BiLSTM: torch.onnx cannot trace packed sequences"

    @classmethod
    def conflicts(cls, config: "RunConfig") -> Iterator[tuple[Code, str, str]]:
        if config.student.layers != 1:
            problem = "must be 1: the BiLSTM of Tang et al. 2019 has one layer"
            yield Code.MISMATCHED_SHAPE, "student.layers", problem
        if config.student.word_vectors not in ("teacher", "random"):
            problem = "must be teacher or random for a BiLSTM"
            yield Code.UNUSABLE_START, "student.word_vectors", problem


SPECIAL = ("[PAD]", "[UNK]", "[MASK]")  # as kdbench.data.vocabulary has them
SPREAD = 0.25  # unknown words of the paper's code are drawn from U(-0.25, 0.25)


@dataclass
class BiLstmConfig:
    """What config.json holds; transformers' names where it has them."""

    vocab_size: int
    embedding: int  # dimensions of one channel
    units: int  # of each direction
    fc: int
    multichannel: bool
    pairs: bool
    pad_token_id: int
    id2label: dict[int, str]
    label2id: dict[str, int]
    dropout: float = 0.0
    model_type: str = Traits.model_type


class BiLstm(nn.Module):
    """One text or two, by `config.pairs`; new embeddings are drawn from U(-0.25, 0.25), [PAD] is zero."""

    static: Tensor | None  # (V, E) a buffer: no requires_grad_ of the whole model can make it train

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding, padding_idx=config.pad_token_id)
        with torch.no_grad():
            self.embedding.weight.uniform_(-SPREAD, SPREAD)[config.pad_token_id] = 0
        self.register_buffer("static", self.embedding.weight.detach().clone() if config.multichannel else None)
        channels = 2 if config.multichannel else 1
        self.lstm = nn.LSTM(channels * config.embedding, config.units, batch_first=True, bidirectional=True)
        self.fc = nn.Linear((8 if config.pairs else 2) * config.units, config.fc)
        self.dropout = nn.Identity() if config.pairs else nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.fc, len(config.id2label))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Output:
        """Logits (B, C) of ids, mask and types, each (B, T).

        A model of pairs reads tokens of type 0 as the first text and of type 1 as the second, and raises
        ValueError without types; a model of single texts ignores them.
        """
        kept = attention_mask.bool()
        if self.config.pairs:
            if token_type_ids is None:
                raise ValueError("a BiLSTM of pairs needs token_type_ids")
            both = torch.cat([kept & (token_type_ids == 0), kept & (token_type_ids == 1)])
            u, v = self.encode(input_ids.repeat(2, 1), both).chunk(2)
            features = torch.cat([u, v, (u - v).abs(), u * v], dim=-1)
        else:
            features = self.encode(input_ids, kept)
        return Output(self.classifier(self.dropout(F.relu(self.fc(features)))))

    def encode(self, ids: Tensor, kept: Tensor) -> Tensor:
        """Last states (B, 2 * units), forward then backward, of the ids (B, T) that are kept (B, T)."""
        ids, lengths = pack_left(ids, kept, self.config.pad_token_id)
        words = self.embedding(ids)
        if self.static is not None:
            words = torch.cat([F.embedding(ids, self.static), words], dim=-1)
        # Packed, so that the backward direction starts at a text's last word and not in its padding.
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return torch.cat([last[0], last[1]], dim=-1)


def pack_left(ids: Tensor, kept: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """The kept ids (B, T) of each row moved to its left, in order, then `pad`: ids (B, longest), lengths (B,).

    A row that keeps nothing (an empty text) becomes one `pad`: an LSTM has no state of no token.
    """
    lengths = kept.sum(dim=1)
    order = kept.int().argsort(dim=1, descending=True, stable=True)
    beyond = torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None]
    moved = ids.gather(1, order).masked_fill(beyond, pad)
    moved = F.pad(moved, (0, 1), value=pad)  # a batch of empty texts has no column of its own
    lengths = lengths.clamp(min=1)
    return moved[:, : int(lengths.max())], lengths


class Model(OwnModel):
    config_class, module_class = BiLstmConfig, BiLstm

    @property
    def fields(self) -> dict[str, Any]:
        """The config, with the dropout that the model has now."""
        return super().fields | {"dropout": 0.0 if self.config.pairs else self.model.dropout.p}

    @property
    def last_linear(self) -> nn.Linear:
        return self.model.classifier

    @property
    def word_table(self) -> None:
        return None

    @classmethod
    def config_of(cls, shape: dict[str, Any]) -> dict[str, Any]:
        alike = ("vocab_size", "embedding", "multichannel", "pairs", "pad_token_id")
        return {name: shape[name] for name in alike} | {"units": shape["hidden"], "fc": shape["ffn"]}

    @classmethod
    def flops(cls, shape: dict[str, Any], length: int, classes: int, words: bool = False) -> int:
        """Return the FLOPs of one example of `length` tokens.

        Both directions of the LSTM (four gates each) on every token, then the two linear layers once. The two
        texts of a pair share the `length` tokens.
        """
        units, fc = shape["hidden"], shape["ffn"]
        width = shape["embedding"] * (2 if shape["multichannel"] else 1)
        features = (8 if shape["pairs"] else 2) * units
        return 2 * (length * 2 * 4 * units * (width + units) + features * fc + fc * classes)


def set_word_vectors(model: BiLstm, vectors: Tensor) -> None:
    """Copy `vectors` (V, E) into the embeddings, both channels of them. Raises ValueError for another shape."""
    table = model.embedding.weight
    if vectors.shape != table.shape:  # copy_ would broadcast
        raise ValueError(f"word vectors are {tuple(vectors.shape)}, the model's embeddings {tuple(table.shape)}")
    with torch.no_grad():
        table.copy_(vectors)
        if model.static is not None:
            model.static.copy_(vectors)


def word_vectors(words: list[str], pieces_of: Callable[[str], list[int]], table: Tensor, size: int) -> Tensor:
    """Vectors (V, size), float32, of V words from the teacher's embeddings `table` (P, H) of their pieces.

    A word's vector is the mean over its pieces, turned onto the `size` strongest principal components where
    size < H. These are not centred: of all projections to `size` dimensions this one keeps the inner products
    between words best (Eckart-Young), and size = H changes none. All are then scaled by one factor to the root
    mean square of U(-0.25, 0.25). Special tokens and words without pieces are zero; only words are given to
    `pieces_of`. Raises ValueError where size > H.
    """
    if size > table.shape[1]:
        raise ValueError(f"word vectors of {size} dimensions from a table of {table.shape[1]}")
    pieces = [[] if word in SPECIAL else pieces_of(word) for word in words]
    flat = torch.tensor([piece for row in pieces for piece in row], dtype=torch.long, device=table.device)
    lengths = torch.tensor([0, *map(len, pieces)][:-1], dtype=torch.long, device=table.device)
    vectors = F.embedding_bag(flat, table.detach().double(), lengths.cumsum(0), mode="mean")  # an empty bag is zero
    if size < table.shape[1]:
        vectors = vectors @ principal_axes(vectors, size)
    rms = vectors.square().mean().sqrt().clamp(min=1e-12)
    return (vectors * (SPREAD / 3**0.5 / rms)).float()


def principal_axes(vectors: Tensor, size: int) -> Tensor:
    """The `size` strongest axes (H, size) of vectors (V, H), not centred, strongest first.

    An axis is known up to its sign: here its largest coordinate is positive.
    """
    _, axes = torch.linalg.eigh(vectors.T @ vectors)  # (H, H), rising; far smaller than the SVD of (V, H)
    axes = axes.flip(1)[:, :size]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return axes * largest.sign()
