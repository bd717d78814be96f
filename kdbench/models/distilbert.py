"""DistilBERT (Sanh et al. 2019): BERT without segment embeddings and pooler, cut from a BERT."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdbench.declared import Architecture, six_matrices
from kdbench.models.encoder import Encoder
from kdbench.models.network import named_shape
from kdbench.stage import Batch


class Traits(Architecture):
    model_type = "distilbert"
    from_config = False
    choice = "distilbert"
    starts_from = ("bert",)
    token_types = False
    no_pairs = "DistilBERT has no token types to tell two sentences apart"
    words = True
    word_pieces = True
    prefix = "distilbert."
    layer = "transformer.layer."
    shape_keys: ClassVar[dict[str, str]] = {
        "layers": "n_layers",
        "hidden": "dim",
        "heads": "n_heads",
        "ffn": "hidden_dim",
    }
    matrices = six_matrices(
        ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"], ["ffn.lin1", "ffn.lin2"]
    )
    tokenizers = frozenset({"DistilBertTokenizer", "BertTokenizer"})
    fixed: ClassVar[dict[str, object]] = {"activation": "gelu", "sinusoidal_pos_embds": False}


# DistilBERT's modules and BERT's, within a layer.
LAYER_NAMES = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}


class Model(Encoder):
    stack = "transformer.layer"
    dropouts = ("dropout", "attention_dropout", "seq_classif_dropout")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.head = ("classifier",) if self.labels_words else ("pre_classifier", "classifier")

    @classmethod
    def config_of(cls, shape: dict[str, Any]) -> dict[str, Any]:
        return named_shape(Traits, shape) | {"sinusoidal_pos_embds": False}

    def embed(self, batch: Batch) -> Tensor:
        return self.encoder.embeddings(batch["input_ids"])

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if not self.labels_words:
            hidden = F.relu(self.model.pre_classifier(hidden[:, 0]))
        return self.model.classifier(self.model.dropout(hidden))

    def copy_from(self, source: Encoder, layers: list[int]) -> None:
        if isinstance(source, Model):
            super().copy_from(source, layers)
        else:
            self.copy_from_bert(source.encoder, layers, add_token_type=True)

    def copy_from_bert(self, source: Any, layers: list[int], add_token_type: bool) -> None:
        """Copy the embeddings and the listed layers, counted from 0, of a BertModel, by value.

        BERT adds a segment embedding to every position, DistilBERT has none. `add_token_type` adds BERT's for
        segment 0, the only one that single texts use, to the position embeddings: the embeddings' outputs are then
        equal. Without it the segment embedding is dropped, as in the authors' code.
        """
        own, theirs = self.encoder.embeddings, source.embeddings
        own.word_embeddings.load_state_dict(theirs.word_embeddings.state_dict())
        own.LayerNorm.load_state_dict(theirs.LayerNorm.state_dict())
        positions = theirs.position_embeddings.weight.detach()
        if add_token_type:
            positions = positions + theirs.token_type_embeddings.weight[0].detach()
        own.position_embeddings.load_state_dict({"weight": positions})
        for layer, index in zip(self.layers, layers, strict=True):
            for name, name_in_bert in LAYER_NAMES.items():
                module = source.encoder.layer[index].get_submodule(name_in_bert)
                layer.get_submodule(name).load_state_dict(module.state_dict())
