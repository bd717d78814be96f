"""ALBERT (Lan et al. 2020): one layer, run again and again."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from kdbench.declared import Architecture, six_matrices
from kdbench.models.network import Network
from kdbench.models.stock import Stock
from kdbench.stage import Batch

if TYPE_CHECKING:
    from kdbench.schema import RunConfig


class Traits(Architecture):
    model_type = "albert"
    lacks: ClassVar[dict[str, str]] = {
        "distinct_layers": "its layers are one set of weights, so none of them can be replaced",
        "heads": "its layers are one set of weights, so none of them can lose heads or units of its own",
    }
    prefix = "albert."
    layer = "encoder.albert_layer_groups."
    one_layer = True
    shape_keys: ClassVar[dict[str, str]] = {"embedding": "embedding_size"}
    tables: ClassVar[dict[str, tuple[str, str]]] = {
        "embeddings.word_embeddings": ("vocab_size", "embedding"),
        "embeddings.position_embeddings": ("max_positions", "embedding"),
        "embeddings.token_type_embeddings": ("types", "embedding"),
    }
    matrices = six_matrices(
        [f"albert_layers.0.attention.{name}" for name in ("query", "key", "value", "dense")],
        ["albert_layers.0.ffn", "albert_layers.0.ffn_output"],
    )
    tokenizers = frozenset({"AlbertTokenizer"})
    fixed: ClassVar[dict[str, object]] = {"type_vocab_size": 2, "num_hidden_groups": 1, "inner_group_num": 1}

    @classmethod
    def start_conflicts(cls, config: "RunConfig") -> Iterator[tuple[str, str]]:
        if config.method.init.layers != "first":
            yield "method.init.layers", "must be first: ALBERT's layers are one and the same"


class Model(Stock):
    below = ("embeddings", "encoder.embedding_hidden_mapping_in")
    stack = "encoder.albert_layer_groups"
    above = ("pooler",)
    dropouts = (*Network.dropouts, "classifier_dropout_prob")

    @property
    def layers(self) -> list[nn.Module]:
        return super().layers * self.config.num_hidden_layers

    def embed(self, batch: Batch) -> Tensor:
        return self.encoder.encoder.embedding_hidden_mapping_in(super().embed(batch))

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.model.classifier(self.model.dropout(torch.tanh(self.encoder.pooler(hidden[:, 0]))))
