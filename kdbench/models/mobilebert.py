"""MobileBERT (Sun et al. 2020): a thin and deep student, whose blocks work at 128 inside and pass 512 on.

IB-BERT, its teacher (ib_bert.py), passes states of the same width on, so that blocks are compared without projections.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.declared import Architecture
from kdbench.models.encoder import Encoder
from kdbench.models.network import named_shape
from kdbench.stage import Batch


class Traits(Architecture):
    model_type = "mobilebert"
    encoder = False
    from_config = False
    choice = "mobilebert_6l"
    keys = frozenset({"heads", "embedding", "bottleneck", "ffn_blocks", "normalization", "activation"})


class Model(Encoder):
    model_type = Traits.model_type

    @classmethod
    def block(cls, shape: dict[str, Any]) -> dict[str, Any]:
        """Return what config.json says of a block."""
        return {
            "hidden_act": shape["activation"],
            "normalization_type": shape["normalization"],
            "key_query_shared_bottleneck": True,  # section 3.1
        }

    @classmethod
    def config_of(cls, shape: dict[str, Any]) -> dict[str, Any]:
        """`shape`: hidden is the width between blocks, bottleneck that inside, embedding that of a word before the
        trigram; ffn_blocks counts the feed-forward networks of a block.
        """
        own = {
            "model_type": cls.model_type,
            "intra_bottleneck_size": shape["bottleneck"],
            "embedding_size": shape["embedding"],
            "num_feedforward_networks": shape["ffn_blocks"],
            "trigram_input": True,
            "use_bottleneck": True,
            "use_bottleneck_attention": False,  # V reads the block's input
            "classifier_activation": False,  # the classifier reads the first token directly
        }
        return named_shape(Traits, shape) | cls.block(shape) | own

    @property
    def head_width(self) -> int:
        return self.config.intra_bottleneck_size // self.config.num_attention_heads

    def logits(self, batch: Batch) -> Tensor:
        return self.forward(batch)

    def scores(self, index: int, x: Tensor) -> Tensor:
        """Return Q K^T / sqrt(d), (B, A, T, T), of a block at its input: before mask and softmax (equation 3)."""
        bottleneck: Any = self.layers[index].bottleneck
        return super().scores(index, bottleneck.attention(x) if bottleneck.key_query_shared_bottleneck else x)

    def mlm_head(self, seed: int) -> "MaskedLMHead":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MaskedLMHead(self.encoder.config).apply(self.encoder._init_weights)


class MaskedLMHead(nn.Module):
    """Logits over the vocabulary: words are scored by their E wide embeddings beside H - E further weights each.

    The word embeddings are an argument, not a parameter: they are the model's, trained and saved with it.
    """

    def __init__(self, config: Any) -> None:
        from transformers.models.mobilebert.modeling_mobilebert import MobileBertPredictionHeadTransform

        super().__init__()
        self.embedding, self.padding = config.embedding_size, config.pad_token_id
        self.transform = MobileBertPredictionHeadTransform(config)
        self.extra = nn.Linear(config.hidden_size - config.embedding_size, config.vocab_size)

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """Logits (N, V) from hidden states (N, H) and the base model's word embeddings (V, E)."""
        transformed = self.transform(hidden)
        tied = F.linear(transformed[:, : self.embedding], word_embeddings)
        # The padding's embedding must stay zero: the trigram of a text's last token contains it if padding
        # follows, nothing if not. The input side never trains it; here it would learn to be unlikely.
        tied[:, self.padding] = 0
        return tied + self.extra(transformed[:, self.embedding :])


def copy_embeddings(source: Any, target: Any) -> None:
    """Copy all that turns tokens into the first block's input, trigram projection and norm included, by value.

    The outputs still differ between IB-BERT and MobileBERT: the same scale and shift follow a LayerNorm in the
    one and no normalisation in the other (as in the authors' code).
    """
    target.base_model.embeddings.load_state_dict(source.base_model.embeddings.state_dict())
