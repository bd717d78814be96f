"""ELECTRA (Clark et al. 2020): BERT with embeddings of their own width, and no pooler."""

from typing import ClassVar

from torch import Tensor, nn

from kdbench.declared import Architecture
from kdbench.models.encoder import BertForm
from kdbench.models.network import Network
from kdbench.models.stock import Stock
from kdbench.stage import Batch


class Traits(Architecture):
    model_type = "electra"
    word_pieces = True
    prefix = "electra."
    shape_keys: ClassVar[dict[str, str]] = {"embedding": "embedding_size"}
    tables: ClassVar[dict[str, tuple[str, str]]] = {
        "embeddings.word_embeddings": ("vocab_size", "embedding"),
        "embeddings.position_embeddings": ("max_positions", "embedding"),
        "embeddings.token_type_embeddings": ("types", "embedding"),
    }
    tokenizers = frozenset({"ElectraTokenizer", "BertTokenizer"})
    fixed: ClassVar[dict[str, object]] = {
        "type_vocab_size": 2,
        "position_embedding_type": "absolute",
        "is_decoder": False,
    }


class Model(Stock, BertForm):
    above = ()
    dropouts = (*Network.dropouts, "classifier_dropout")

    @property
    def inputs(self) -> list[nn.Module]:
        return [self.encoder.embeddings, *([self.encoder.embeddings_project] if self._projected else [])]

    @property
    def _projected(self) -> bool:
        return self.config.embedding_size != self.config.hidden_size

    def embed(self, batch: Batch) -> Tensor:
        x = super().embed(batch)
        return self.encoder.embeddings_project(x) if self._projected else x
