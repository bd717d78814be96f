"""ModernBERT (Warner et al. 2024): layers that see all of the text or a window of it, with rotary positions."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.declared import Architecture
from kdbench.models.encoder import Pass, attention_bias
from kdbench.models.network import Network
from kdbench.models.stock import Stock
from kdbench.options import choose_layers
from kdbench.stage import Batch

if TYPE_CHECKING:
    from kdbench.schema import RunConfig


class Traits(Architecture):
    model_type = "modernbert"
    lacks: ClassVar[dict[str, str]] = {
        "attention": "two of three layers see a window of the text only, so their scores are not those of others",
        "heads": "its heads share one matrix, and its units are gated: kdbench does not take them apart",
    }
    token_types = False
    prefix = "model."
    layer = "layers."
    tables: ClassVar[dict[str, tuple[str, str]]] = {"embeddings.tok_embeddings": ("vocab_size", "hidden")}
    matrices: ClassVar[dict[str, tuple[str, str]]] = {
        "attn.Wqkv": ("hidden_x3", "hidden"),
        "attn.Wo": ("hidden", "hidden"),
        "mlp.Wi": ("ffn_x2", "hidden"),
        "mlp.Wo": ("hidden", "ffn"),
    }
    biases = False

    @classmethod
    def start_conflicts(cls, config: "RunConfig") -> Iterator[tuple[str, str]]:
        student, origin = config.student, config.origin
        if config.method.init.layers == "contribution":
            yield (
                "method.init.layers",
                "may drop layer 0, the only one without a norm before its attention (ModernBERT)",
            )
        elif student.layers <= origin.layers:
            first, *others = choose_layers(config.method.init.layers, origin.layers, student.layers)
            if first != 0 or 0 in others:
                problem = "must begin with layer 0, the only one without a norm before its attention (ModernBERT)"
                yield "method.init.layers", problem


class Model(Stock):
    stack = "layers"
    above = ("final_norm",)
    head = ("head", "classifier")
    dropouts = (
        *Network.dropouts, "embedding_dropout", "mlp_dropout", "attention_dropout", "classifier_dropout",
    )  # fmt: skip

    @classmethod
    def config_of(cls, shape: dict[str, Any]) -> dict[str, Any]:
        """A layer's number says how far it sees: the student's layers see as far as the ones they come from."""
        from transformers import AutoConfig

        kinds = AutoConfig.for_model(**shape["config"]).layer_types
        chosen = [kinds[index % len(kinds)] for index in shape["chosen_layers"]]  # beyond the checkpoint's: anew
        return super().config_of(shape) | {"layer_types": chosen}

    def embed(self, batch: Batch) -> Tensor:
        return self.encoder.embeddings(batch["input_ids"])

    def whole_passes(self, x: Tensor, mask: Tensor) -> list[Pass]:
        from transformers.masking_utils import create_bidirectional_sliding_window_mask

        places = torch.arange(x.shape[1], device=x.device)[None]
        biases = {
            "full_attention": attention_bias(self.encoder, x, mask),
            "sliding_attention": create_bidirectional_sliding_window_mask(
                config=self.config, inputs_embeds=x, attention_mask=mask
            ),
        }
        given = {
            kind: {
                "attention_mask": biases[kind],
                "position_embeddings": self.encoder.rotary_emb(x, places, kind),
            }
            for kind in set(self.config.layer_types)
        }
        return [partial(layer, **given[str(layer.attention_type)]) for layer in self.layers]

    def finished(self, hidden: Tensor) -> Tensor:
        return self.encoder.final_norm(hidden)

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = self.finished(hidden)
        if self.config.classifier_pooling == "mean":
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            pooled = hidden[:, 0]
        return self.model.classifier(self.model.drop(self.model.head(pooled)))

    def set_dropout(self, dropout: float) -> None:
        super().set_dropout(dropout)
        for layer in self.layers:  # not read from a module; and where it was 0, there is no module for the output
            attention: Any = layer.attn
            attention.attention_dropout, attention.out_drop = dropout, nn.Dropout(dropout)
