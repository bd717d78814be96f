"""An MPNet that method=prune has removed heads and feed-forward units from.

All layers share one table of position biases, which has a column for each of the original's heads. So a layer must know
which of them it kept.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from kdbench.declared import Architecture
from kdbench.models import mpnet
from kdbench.models.pruned import Pruned


class Traits(Architecture):
    model_type = "kdbench_pruned_mpnet"
    student = False  # method=prune makes it of an MPNet
    encoder = False
    token_types = False


class Model(Pruned, mpnet.Model):
    kind = Traits.model_type

    def narrow(self, layer: Any, heads: Sequence[int], units: int) -> None:
        layer.attention.attn = _attention()(self.config, heads)
        super().narrow(layer, heads, units)

    def _first_token(self, x: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        return super()._first_token(x, mask, bias[:, self.config.kept_heads[-1]])


@cache
def _attention() -> Any:
    """Return transformers' attention with the biases of the kept heads, defined on first use."""
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
