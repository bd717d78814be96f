"""BERT classifiers: build, load, cut and run. The only file that knows transformers' names for BERT's parts.

transformers is imported inside the functions: methods import this module, and a refusal must come quickly.
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.foreign import read_config
from kdbench.stage import Batch


def build(shape: dict[str, int], label_names: list[str], attention: str, seed: int, words: bool = False) -> Any:
    """A randomly initialised classifier, of texts or of their `words`; `shape` has the keys of `shape_of` plus
    `pad_token_id`.

    The weights are a function of `seed` alone; the caller's random state is left untouched.
    """
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

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
        return (BertForTokenClassification if words else BertForSequenceClassification)(config)


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
    from transformers import BertForSequenceClassification, BertForTokenClassification

    kind = BertForTokenClassification if labels_words(folder) else BertForSequenceClassification
    loaded: Any = kind.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    if report["missing_keys"]:
        raise UserError(f"{folder}: weights are missing: {', '.join(sorted(report['missing_keys']))}")
    return model.eval()


def labels_words(folder: Path) -> bool:
    """Whether the classifier in a model's folder has an answer for each word."""
    named = read_config(folder / "config.json").get("architectures") or []
    return any(str(name).endswith("ForTokenClassification") for name in named)


def load_pretrained(folder: Path, seed: int) -> Any:
    """The encoder (transformers' BertModel) of a checkpoint with or without a task head.

    A checkpoint without a pooler (one made for masked language modelling) gets one drawn from `seed`.
    """
    from transformers import BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded: Any = BertModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(f"{folder}: weights are missing: {', '.join(missing)}")
    if broken := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise UserError(
            f"{folder}: {broken[0]} holds numbers that are not finite: the file is damaged, or its training was"
        )
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


def flops(shape: dict[str, Any], length: int, classes: int, words: bool = False) -> int:
    """FLOPs of one example of `length` tokens: 2 per multiply-add in matrix products, nothing else.

    Per layer: Q, K, V and output projections, scores and weighted values, the two feed-forward products;
    then pooler and classifier on one token or, of `words`, the classifier on all.
    """
    h, f, t = shape["hidden"], shape["ffn"], length
    layer = 4 * t * h * h + 2 * t * t * h + 2 * t * h * f
    return 2 * (shape["layers"] * layer + (t * h * classes if words else h * h + h * classes))


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
    """Copy embeddings, pooler (not all have one) and the listed layers of one BertModel into another."""
    target.embeddings.load_state_dict(source.embeddings.state_dict())
    if target.pooler is not None:
        target.pooler.load_state_dict(source.pooler.state_dict())
    for layer, index in zip(target.encoder.layer, layers, strict=True):
        layer.load_state_dict(source.encoder.layer[index].state_dict())


def copy_head(source: Any, target: Any) -> None:
    """Copy the pooler, which a classifier of words has not, and the classifier."""
    if target.bert.pooler is not None:
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
    """Logits (B, C) from last hidden states (B, T, H): pooler, dropout, classifier; (B, T, C) of words, no pooler."""
    pooler = model.bert.pooler
    return model.classifier(model.dropout(hidden if pooler is None else pooler(hidden)))


def first_tokens(encoder: Any, batch: Batch) -> list[Tensor]:
    """[CLS] after each layer of a BertModel, before the pooler: (B, 1, H) each; the last layer's alone of it."""
    x = encoder.embeddings(input_ids=batch["input_ids"], token_type_ids=batch.get("token_type_ids"))
    bias = attention_bias(encoder, x, batch["attention_mask"])
    *layers, last = encoder.encoder.layer
    states = []
    for layer in layers:
        x = layer(x, bias)
        states.append(x[:, :1])
    return [*states, first_token(last, x, batch["attention_mask"])]


def first_token(layer: Any, x: Tensor, mask: Tensor) -> Tensor:
    """A layer's output at the first token only, (B, 1, H), from its input x (B, T, H) and the mask (B, T).

    It is all that a classifier reads of the last layer. Of keys and values nothing is computed for the other
    tokens either: q (x W_k)' = (q W_k') x' and p (x W_v) = (p x) W_v, and the keys' bias moves all scores of a row
    alike, which the softmax does not see.
    """
    attention, first = layer.attention.self, x[:, :1]
    batch, _, hidden = x.shape
    heads, width = attention.num_attention_heads, hidden // attention.num_attention_heads
    query = attention.query(first).view(batch, heads, width)
    towards = torch.einsum("bad,adh->bah", query, attention.key.weight.view(heads, width, hidden))
    scores = (towards @ x.transpose(1, 2)) / math.sqrt(width)  # (B, A, T)
    scores = scores.masked_fill(mask[:, None] == 0, torch.finfo(scores.dtype).min)
    shares = attention.dropout(scores.softmax(-1))
    value = torch.einsum("bah,adh->bad", shares @ x, attention.value.weight.view(heads, width, hidden))
    # shares need not sum to 1 under dropout
    context = value + attention.value.bias.view(heads, width) * shares.sum(-1, keepdim=True)
    attended = layer.attention.output(context.reshape(batch, 1, hidden), first)
    return layer.output(layer.intermediate(attended), attended)


def logits(model: Any, batch: Batch) -> Tensor:
    """Logits (B, C) of a classifier, without what they do not depend on; (B, T, C) of one of words."""
    return head(model, read_states(model.bert, batch))


def read_states(encoder: Any, batch: Batch) -> Tensor:
    """What the head reads: the last layer's output at the first token, (B, 1, H); of words, at all, (B, T, H)."""
    if encoder.pooler is not None:
        return first_tokens(encoder, batch)[-1]
    x = encoder.embeddings(input_ids=batch["input_ids"], token_type_ids=batch.get("token_type_ids"))
    bias = attention_bias(encoder, x, batch["attention_mask"])
    for layer in encoder.encoder.layer:
        x = layer(x, bias)
    return x
