"""What feature distillation reads off a BertModel: hidden states, and queries, keys and values of a layer.

The layers are walked by hand. Queries, keys and scores are computed again from a layer's input, because
transformers' `output_attentions` gives probabilities after dropout, and its fused attention gives none.
"""

import math
from typing import Any

from torch import Tensor, nn

from kdbench.models.bert import attention_bias
from kdbench.stage import Batch


def hidden_states(encoder: Any, batch: Batch, layers: int | None = None) -> list[Tensor]:
    """Embedding output and the output of each of the first `layers` layers (None: all), each (B, T, H)."""
    states = [encoder.embeddings(input_ids=batch["input_ids"], token_type_ids=batch.get("token_type_ids"))]
    bias = attention_bias(encoder, states[0], batch["attention_mask"])
    for layer in encoder.encoder.layer[:layers]:
        states.append(layer(states[-1], bias))
    return states


def queries_keys_values(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each (B, A, T, d), of the layer whose input is `x` (B, T, H)."""
    attention = layer.attention.self
    parts = (attention.query(x), attention.key(x), attention.value(x))
    heads = attention.num_attention_heads
    query, key, value = (part.view(*x.shape[:2], heads, -1).transpose(1, 2) for part in parts)
    return query, key, value


def scores(layer: Any, x: Tensor) -> Tensor:
    """(B, A, T, T): query by key over sqrt(d), before mask and softmax, of the layer whose input is `x`."""
    attention = layer.attention.self
    query, key = (
        part.view(*x.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)
        for part in (attention.query(x), attention.key(x))
    )
    return query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])


class Projection(nn.Module):
    """TinyBERT's W of the hidden states and, where it is separate, of the embeddings: (B, T, H_s) -> (B, T, H_t)."""

    def __init__(self, student: int, teacher: int, separate: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(student, teacher)
        self.embedding = nn.Linear(student, teacher) if separate else None

    def forward(self, state: Tensor, layer: int) -> Tensor:
        project = self.embedding if layer == 0 and self.embedding is not None else self.hidden
        return project(state)
