"""BERT classifiers: build and load them; the encoder and the masked-LM head of a checkpoint.

transformers is imported inside the functions: methods import this module, and a refusal must come quickly.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import Code, UserError
from kdbench.sources.foreign import read_config


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

    Raises OSError where the folder holds no complete model, UserError where weights are missing.
    """
    from transformers import BertForSequenceClassification, BertForTokenClassification

    kind = BertForTokenClassification if labels_words(folder) else BertForSequenceClassification
    loaded: Any = kind.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    if report["missing_keys"]:
        raise UserError(
            Code.INCOMPLETE_MODEL, f"{folder}: weights are missing: {', '.join(sorted(report['missing_keys']))}"
        )
    return model.eval()


def labels_words(folder: Path) -> bool:
    """Whether the classifier in a model's folder has an answer for each word."""
    named = read_config(folder / "config.json").get("architectures") or []
    return any(str(name).endswith("ForTokenClassification") for name in named)


class MlmHead(nn.Module):
    """BERT's masked-LM head (Devlin et al. 2019, A.1), whose output matrix is the word embeddings, handed in.

    `width`: of these, which in ELECTRA and ALBERT is not that of the hidden states.
    """

    def __init__(self, hidden: int, width: int, vocabulary: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.dense = nn.Linear(hidden, width)
            nn.init.normal_(self.dense.weight, std=0.02)
            nn.init.zeros_(self.dense.bias)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """(N, H), (V, E) -> (N, V)"""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), word_embeddings, self.bias)


_HEAD = {  # ours: transformers'
    "dense.weight": "transform.dense.weight",
    "dense.bias": "transform.dense.bias",
    "norm.weight": "transform.LayerNorm.weight",
    "norm.bias": "transform.LayerNorm.bias",
    "bias": "bias",
}


def load_mlm_head(folder: Path) -> MlmHead | None:
    """The masked-LM head of a BERT's checkpoint; None where it has none, or another architecture's."""
    from transformers import BertForMaskedLM

    if read_config(folder / "config.json")["model_type"] != "bert":
        return None
    loaded: Any = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    if any(key.startswith("cls.") for key in report["missing_keys"]):
        return None
    state = model.cls.predictions.state_dict()
    head = MlmHead(model.config.hidden_size, model.config.hidden_size, model.config.vocab_size, seed=0)
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
