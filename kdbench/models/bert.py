"""BERT (Devlin et al. 2019)."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from kdbench.declared import Architecture
from kdbench.models.encoder import BertForm
from kdbench.models.network import MlmHead, named_shape


class Traits(Architecture):
    model_type = "bert"
    from_config = False
    choice = "bert_3l"
    words = True
    word_pieces = True
    prefix = "bert."
    tables = Architecture.tables | {"embeddings.token_type_embeddings": ("types", "hidden")}
    tokenizers = frozenset({"BertTokenizer", "DistilBertTokenizer"})
    fixed: ClassVar[dict[str, object]] = {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "position_embedding_type": "absolute",
        "is_decoder": False,
    }


class Model(BertForm):
    @classmethod
    def config_of(cls, shape: dict[str, Any]) -> dict[str, Any]:
        return named_shape(Traits, shape)

    @classmethod
    def load_mlm_head(cls, folder: Path) -> MlmHead | None:
        from transformers import BertForMaskedLM

        loaded: Any = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        model, report = loaded
        if any(key.startswith("cls.") for key in report["missing_keys"]):
            return None
        state = model.cls.predictions.state_dict()
        head = MlmHead(model.config.hidden_size, model.config.hidden_size, model.config.vocab_size, seed=0)
        head.load_state_dict({ours: state[theirs] for ours, theirs in _HEAD.items()})
        return head.eval()


_HEAD = {  # MlmHead's: transformers'
    "dense.weight": "transform.dense.weight",
    "dense.bias": "transform.dense.bias",
    "norm.weight": "transform.LayerNorm.weight",
    "norm.bias": "transform.LayerNorm.bias",
    "bias": "bias",
}
