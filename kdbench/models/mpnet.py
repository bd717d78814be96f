"""MPNet (Song et al. 2020): BERT's layers, whose attention scores have a learned bias for each distance of two tokens.

One table holds the bias of all layers. It belongs to what makes the first layer's input. It has a column for each head,
so a layer that has lost heads must know which ones it kept.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, ClassVar

from torch import Tensor

from kdbench.declared import Architecture, six_matrices
from kdbench.models.encoder import Encoder, Pass, attention_bias, states_of
from kdbench.models.stock import Stock
from kdbench.stage import Batch


class Traits(Architecture):
    model_type = "mpnet"
    token_types = False
    word_pieces = True
    prefix = "mpnet."
    first_position = 2
    tables = Architecture.tables | {"encoder.relative_attention_bias": ("buckets", "heads")}
    matrices = six_matrices(
        ["attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"],
        ["intermediate.dense", "output.dense"],
    )
    tokenizers = frozenset({"MPNetTokenizer"})
    # transformers' code has these two numbers in it, whatever config.json says.
    fixed: ClassVar[dict[str, object]] = {"pad_token_id": 1, "relative_attention_num_buckets": 32}


class Model(Stock, Encoder):
    below = ("embeddings", "encoder.relative_attention_bias")

    @classmethod
    def attention(cls, implementation: str) -> str:
        """Transformers writes this attention out, because of its bias."""
        return "eager"

    def embed(self, batch: Batch) -> Tensor:
        return self.encoder.embeddings(input_ids=batch["input_ids"])

    def whole_passes(self, x: Tensor, mask: Tensor) -> list[Pass]:
        return self._passes(x, mask, self.position_bias(x))

    def passes(self, x: Tensor, mask: Tensor) -> list[Pass]:
        bias = self.position_bias(x)
        return [*self._passes(x, mask, bias)[:-1], partial(self._first_token, mask=mask, bias=bias[:, :, 0])]

    def _passes(self, x: Tensor, mask: Tensor, bias: Tensor) -> list[Pass]:
        hidden = attention_bias(self.encoder, x, mask)
        given = {"position_bias": bias if hidden is None else bias + hidden}  # added once for all layers
        return [partial(states_of, layer, given) for layer in self.layers]

    def position_bias(self, x: Tensor) -> Tensor:
        return self.encoder.encoder.compute_position_bias(x[:1])

    def _first_token(self, x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        layer: Any = self.layers[-1]
        attention, own = layer.attention, layer.attention.attn
        context = self.first_context(x, mask, own.dropout, bias[:, self.kept_heads[-1]])
        attended = attention.LayerNorm(attention.dropout(own.o(context)) + x[:, :1])
        return layer.output(layer.intermediate(attended), attended)

    def know_heads(self, layer: Any, heads: Sequence[int]) -> None:
        layer.attention.attn = _attention()(self.config, heads)


@cache
def _attention() -> Any:
    """Return transformers' attention with the biases of some of the heads, defined on first use."""
    from transformers.models.mpnet import modeling_mpnet

    attention: Any = modeling_mpnet.MPNetSelfAttention

    class PrunedSelfAttention(attention):  # type: ignore[misc]
        def __init__(self, config: Any, heads: Sequence[int]) -> None:
            super().__init__(config)
            self.heads = [*heads]
            self.all_head_size = len(heads) * self.attention_head_size

        def forward(self, hidden_states: Tensor, attention_mask: Any, position_bias: Tensor, **given: Any) -> Any:
            return super().forward(hidden_states, attention_mask, position_bias[:, self.heads], **given)

    return PrunedSelfAttention
