"""DistilBERT classifiers (Sanh et al. 2019): BERT without segment embeddings and pooler, cut from a BERT.

transformers is imported inside the functions: methods import this module, and a refusal must come quickly.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import Code, UserError
from kdbench.models.bert import labels_words

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


def build(shape: dict[str, Any], label_names: list[str], attention: str, seed: int, words: bool = False) -> Any:
    """A randomly initialised classifier, of texts or of their `words`.

    `shape`: vocab_size, max_positions, pad_token_id, layers, hidden, heads, ffn. The weights are a function of
    `seed` alone; the caller's random state is left untouched.
    """
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        DistilBertForTokenClassification,
    )

    config: Any = DistilBertConfig(
        vocab_size=shape["vocab_size"],
        max_position_embeddings=shape["max_positions"],
        pad_token_id=shape["pad_token_id"],
        n_layers=shape["layers"],
        dim=shape["hidden"],
        n_heads=shape["heads"],
        hidden_dim=shape["ffn"],
        sinusoidal_pos_embds=False,
        dropout=0.0,  # each stage sets its own
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        id2label=dict(enumerate(label_names)),
        label2id={name: index for index, name in enumerate(label_names)},
        attn_implementation=attention,  # type: ignore[call-arg]  # taken by the base class
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (DistilBertForTokenClassification if words else DistilBertForSequenceClassification)(config)


def load(folder: Path, attention: str) -> Any:
    """A DistilBERT classifier's folder, in evaluation mode.

    Raises OSError where the folder holds no complete model, UserError where weights are missing.
    """
    from transformers import DistilBertForSequenceClassification, DistilBertForTokenClassification

    kind = DistilBertForTokenClassification if labels_words(folder) else DistilBertForSequenceClassification
    loaded: Any = kind.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    if report["missing_keys"]:
        raise UserError(
            Code.INCOMPLETE_MODEL, f"{folder}: weights are missing: {', '.join(sorted(report['missing_keys']))}"
        )
    return model.eval()


def copy_from_bert(bert_model: Any, distil_model: Any, layers: list[int], add_token_type: bool) -> None:
    """Copy embeddings and the listed layers, counted from 0, of a BertModel into a DistilBertModel, by value.

    BERT adds a segment embedding to every position, DistilBERT has none. `add_token_type` adds BERT's for
    segment 0, the only one that single texts use, to the position embeddings: the embeddings' outputs are then
    equal. Without, it is dropped, as in the authors' code.
    """
    source, target = bert_model.embeddings, distil_model.embeddings
    target.word_embeddings.load_state_dict(source.word_embeddings.state_dict())
    target.LayerNorm.load_state_dict(source.LayerNorm.state_dict())
    positions = source.position_embeddings.weight.detach()
    if add_token_type:
        positions = positions + source.token_type_embeddings.weight[0].detach()
    target.position_embeddings.load_state_dict({"weight": positions})
    for layer, index in zip(distil_model.transformer.layer, layers, strict=True):
        for name, name_in_bert in LAYER_NAMES.items():
            module = bert_model.encoder.layer[index].get_submodule(name_in_bert)
            layer.get_submodule(name).load_state_dict(module.state_dict())


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states (B, T, H) of a classifier or its base model; ids and mask (B, T)."""
    return model.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def flops(shape: dict[str, Any], length: int, classes: int, words: bool = False) -> int:
    """FLOPs of one example of `length` tokens: 2 per multiply-add in matrix products, nothing else.

    Per layer: Q, K, V and output projections, scores and weighted values, the two feed-forward products; then
    the two products of the classifier on one token or, of `words`, its one on all.
    """
    h, t = shape["hidden"], length
    layer = 4 * t * h * h + 2 * t * t * h + 2 * t * h * shape["ffn"]
    return 2 * (shape["layers"] * layer + (t * h * classes if words else h * h + h * classes))
