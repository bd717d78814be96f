"""DeBERTa-v3 (He et al. 2023), whose code in transformers is v2's: relative positions, read by all layers."""

from functools import partial
from typing import ClassVar

from torch import Tensor

from kdbench.declared import Architecture, six_matrices
from kdbench.models.encoder import Pass, states_of
from kdbench.models.network import Network
from kdbench.models.stock import Stock
from kdbench.stage import Batch


class Traits(Architecture):
    model_type = "deberta-v2"
    lacks: ClassVar[dict[str, str]] = {
        "attention": "its attention scores have terms of position besides queries times keys, which others have not",
        "heads": "its attention reads positions by further matrices of its own, which kdbench does not take apart",
    }
    no_exits_in_onnx = "is not supported for a FastBERT on a DeBERTa: torch.export cannot put its layers into branches"
    token_types = False
    prefix = "deberta."
    tables: ClassVar[dict[str, tuple[str, str]]] = {"embeddings.word_embeddings": ("vocab_size", "hidden")}
    matrices = six_matrices(
        [*(f"attention.self.{name}_proj" for name in ("query", "key", "value")), "attention.output.dense"],
        ["intermediate.dense", "output.dense"],
    )
    tokenizers = frozenset({"DebertaV2Tokenizer"})
    must_say = frozenset({"relative_attention", "norm_rel_ebd"})
    fixed: ClassVar[dict[str, object]] = {
        "relative_attention": True,
        "norm_rel_ebd": "layer_norm",
        "type_vocab_size": 0,
        "conv_kernel_size": 0,
    }


class Model(Stock):
    below = ("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm")
    head = ("pooler", "classifier")
    dropouts = (*Network.dropouts, "pooler_dropout")

    @classmethod
    def attention(cls, implementation: str) -> str:
        """No fused kernel has the terms of position: transformers writes this attention out, under `eager`."""
        return "eager"

    def embed(self, batch: Batch) -> Tensor:
        return self.encoder.embeddings(input_ids=batch["input_ids"], mask=batch["attention_mask"])

    def whole_passes(self, x: Tensor, mask: Tensor) -> list[Pass]:
        stack = self.encoder.encoder
        given = {
            "attention_mask": stack.get_attention_mask(mask),
            "relative_pos": stack.get_rel_pos(x),
            "rel_embeddings": stack.get_rel_embedding(),
        }
        return [partial(states_of, layer, given) for layer in self.layers]

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.model.classifier(self.model.dropout(self.model.pooler(hidden)))
