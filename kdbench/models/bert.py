"""BERT classifiers: build, load, cut and run. The only file that knows transformers' names for BERT's parts.

transformers is imported inside the functions: methods import this module, and a refusal must come quickly.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.stage import Batch

RELU_BERT = "kdbench_relu_bert"


def build(shape: dict[str, int], label_names: list[str], attention: str, seed: int) -> Any:
    """A randomly initialised classifier; `shape` has the keys of `shape_of` plus `pad_token_id`.

    The weights are a function of `seed` alone; the caller's random state is left untouched.
    """
    from transformers import BertConfig, BertForSequenceClassification

    config: Any = BertConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=shape["ffn"],
        max_position_embeddings=shape["max_positions"],
        pad_token_id=shape["pad_token_id"],
        hidden_dropout_prob=0.0,  # each stage sets its own
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(label_names)),
        label2id={name: index for index, name in enumerate(label_names)},
        attn_implementation=attention,  # type: ignore[call-arg]  # taken by the base class
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(config)


def set_dropout(model: Any, dropout: float) -> None:
    """Give every dropout of the model, and its config.json, the probability of the coming stage."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = dropout


def load(folder: Path, attention: str) -> Any:
    """A finished run's model folder, in evaluation mode.

    Raises OSError where the folder holds no whole model, UserError where weights are missing.
    """
    from transformers import BertForSequenceClassification

    loaded: Any = BertForSequenceClassification.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    if report["missing_keys"]:
        raise UserError(f"{folder}: weights are missing: {', '.join(sorted(report['missing_keys']))}")
    return model.eval()


def load_pretrained(folder: Path, seed: int) -> Any:
    """The encoder (transformers' BertModel) of a checkpoint with or without a task head.

    A checkpoint without a pooler (one made for masked language modelling) gets one drawn from `seed`.
    """
    from transformers import BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # unused and missing heads are expected here
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded: Any = BertModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(f"{folder}: weights are missing: {', '.join(missing)}")
    return model.eval().requires_grad_(False)


class MlmHead(nn.Module):
    """BERT's masked-LM head (Devlin et al. 2019, A.1), whose output matrix is the word embeddings, handed in."""

    def __init__(self, hidden: int, vocabulary: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.dense = nn.Linear(hidden, hidden)
            nn.init.normal_(self.dense.weight, std=0.02)
            nn.init.zeros_(self.dense.bias)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """(N, H), (V, H) -> (N, V)"""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), word_embeddings, self.bias)


_HEAD = {  # ours: transformers'
    "dense.weight": "transform.dense.weight",
    "dense.bias": "transform.dense.bias",
    "norm.weight": "transform.LayerNorm.weight",
    "norm.bias": "transform.LayerNorm.bias",
    "bias": "bias",
}


def load_mlm_head(folder: Path) -> MlmHead | None:
    """The masked-LM head of a checkpoint; None where it has none."""
    from transformers import BertForMaskedLM

    loaded: Any = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    if any(key.startswith("cls.") for key in report["missing_keys"]):
        return None
    state = model.cls.predictions.state_dict()
    head = MlmHead(model.config.hidden_size, model.config.vocab_size, seed=0)
    head.load_state_dict({ours: state[theirs] for ours, theirs in _HEAD.items()})
    return head.eval()


class ReluDropout(nn.Dropout):
    """ReLU before the classifier's dropout: TinyBERT's head in the authors' code."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x))


def use_relu_head(model: Any) -> None:
    """Put a ReLU between pooler and classifier. Such a model is no stock architecture: kdbench.load reads it."""
    model.dropout = ReluDropout(model.dropout.p)
    model.config.relu_head = True


def save_relu_head(model: Any, folder: Path) -> None:
    """The model's folder, under a model_type of its own, so that no other loader takes it for a plain BERT."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(path.read_text(encoding="utf8").replace('"model_type": "bert"', f'"model_type": "{RELU_BERT}"'))


def load_relu_head(folder: Path, attention: str) -> Any:
    """What `save_relu_head` wrote, in evaluation mode."""
    from transformers import BertConfig, BertForSequenceClassification

    stored = json.loads((folder / "config.json").read_text(encoding="utf8")) | {"model_type": "bert"}
    config = BertConfig.from_dict(stored, attn_implementation=attention)
    model: Any = BertForSequenceClassification(config)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    use_relu_head(model)
    return model.eval()


def flops(shape: dict[str, Any], length: int, classes: int) -> int:
    """FLOPs of one example of `length` tokens: 2 per multiply-add in matrix products, nothing else.

    Per layer: Q, K, V and output projections, scores and weighted values, the two feed-forward products;
    then pooler and classifier on one token.
    """
    h, f, t = shape["hidden"], shape["ffn"], length
    layer = 4 * t * h * h + 2 * t * t * h + 2 * t * h * f
    return 2 * (shape["layers"] * layer + h * h + h * classes)


def choose_layers(choice: str | list[int], of: int, count: int) -> list[int]:
    """Which `count` of `of` layers, counted from 0: `first`, `last`, `every_other` (evenly spaced), or a list."""
    if isinstance(choice, list):
        return choice
    return {
        "first": list(range(count)),
        "last": list(range(of - count, of)),
        "every_other": [index * of // count for index in range(count)],
    }[choice]


def copy_encoder(source: Any, target: Any, layers: list[int]) -> None:
    """Copy embeddings, pooler (FastBERT has none) and the listed layers of one BertModel into another."""
    target.embeddings.load_state_dict(source.embeddings.state_dict())
    if target.pooler is not None:
        target.pooler.load_state_dict(source.pooler.state_dict())
    for layer, index in zip(target.encoder.layer, layers, strict=True):
        layer.load_state_dict(source.encoder.layer[index].state_dict())


def copy_head(source: Any, target: Any) -> None:
    """Copy the pooler and the classifier."""
    target.bert.pooler.load_state_dict(source.bert.pooler.state_dict())
    target.classifier.load_state_dict(source.classifier.state_dict())


def cut(model: Any, layers: list[int]) -> Any:
    """A copy of a classifier that keeps the listed layers only."""
    result = copy.deepcopy(model)
    result.bert.encoder.layer = nn.ModuleList(result.bert.encoder.layer[index] for index in layers)
    result.config.num_hidden_layers = len(layers)
    return result


def attention_bias(model: Any, embedded: Tensor, mask: Tensor) -> Any:
    """The mask in the form that the model's attention implementation takes."""
    from transformers.masking_utils import create_bidirectional_mask

    return create_bidirectional_mask(config=model.config, inputs_embeds=embedded, attention_mask=mask)


def head(model: Any, hidden: Tensor) -> Tensor:
    """Logits (B, C) from last hidden states (B, T, H): pooler, dropout, classifier."""
    return model.classifier(model.dropout(model.bert.pooler(hidden)))


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, C)."""
    names = ("input_ids", "attention_mask", "token_type_ids")  # the last only where the batch has pairs
    return model(**{name: value for name, value in batch.items() if name in names}).logits
