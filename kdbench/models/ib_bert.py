"""IB-BERT, MobileBERT's teacher (Sun et al. 2020, section 3.2 and table 1): blocks that are wider inside."""

from functools import cache
from typing import Any

from torch import nn

from kdbench.declared import Architecture
from kdbench.models import mobilebert


class Traits(Architecture):
    model_type = "kdbench_ib_bert"
    encoder = False
    from_config = False
    keys = frozenset({"heads", "embedding", "bottleneck", "ffn_blocks"})


class Model(mobilebert.Model):
    """GELU and LayerNorm; Q, K and V read the block's input. The trigram embedding is MobileBERT's."""

    model_type = Traits.model_type

    @classmethod
    def block(cls, shape: dict[str, Any]) -> dict[str, Any]:
        return {"hidden_act": "gelu", "normalization_type": "layer_norm", "key_query_shared_bottleneck": False}

    @classmethod
    def model_class(cls, words: bool) -> Any:
        _register()
        return super().model_class(words)


@cache
def _register() -> None:
    """Make the architecture known to transformers, on first use."""
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        MobileBertConfig,
        MobileBertForSequenceClassification,
    )

    class IBBertConfig(MobileBertConfig):
        model_type = Traits.model_type

    class IBBertForSequenceClassification(MobileBertForSequenceClassification):
        config_class = IBBertConfig

        def __init__(self, config: IBBertConfig) -> None:
            super().__init__(config)
            # Without a bottleneck for Q and K, MobileBERT's layer hands them the block's input, which its own
            # projections, of the inner width, could not take.
            layers: Any = self.mobilebert.encoder.layer
            for layer in layers:
                layer.attention.self.query = nn.Linear(config.hidden_size, config.intra_bottleneck_size)
                layer.attention.self.key = nn.Linear(config.hidden_size, config.intra_bottleneck_size)
            self.post_init()  # type: ignore[no-untyped-call]  # draws the new weights like all others

    AutoConfig.register(Traits.model_type, IBBertConfig)
    AutoModelForSequenceClassification.register(IBBertConfig, IBBertForSequenceClassification)
