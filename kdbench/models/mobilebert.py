"""MobileBERT, a thin and deep student, and IB-BERT, its teacher (Sun et al. 2020): build, load, walk and score.

Both are stacks of blocks that pass H = 512 wide states on and work at another width inside: MobileBERT at 128
(bottleneck), IB-BERT at 1024 (inverted bottleneck). Blocks of equal H can be compared without projections.

transformers is imported inside the functions: methods import this module, and a refusal must come quickly.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import Code, UserError
from kdbench.models.encoder import attention_bias


def build(shape: dict[str, Any], label_names: list[str], attention: str, seed: int) -> Any:
    """A randomly initialised MobileBERT classifier (Sun et al. 2020, section 3.1).

    `shape`: vocab_size, max_positions, pad_token_id, layers, hidden (between blocks), heads, ffn, bottleneck
    (inside a block), embedding (of a word, before the trigram), ffn_blocks (feed-forward networks a block).
    NoNorm, ReLU, Q and K from a shared bottleneck, the classifier directly on the first token. The weights are
    a function of `seed` alone; the caller's random state is left untouched.
    """
    from transformers import MobileBertConfig, MobileBertForSequenceClassification

    config: Any = MobileBertConfig(
        **_settings(shape, label_names, attention),
        hidden_act="relu",
        normalization_type="no_norm",
        key_query_shared_bottleneck=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MobileBertForSequenceClassification(config)


def build_ib(shape: dict[str, Any], label_names: list[str], attention: str, seed: int) -> Any:
    """A randomly initialised IB-BERT classifier; arguments as for `build`, with its own widths in `shape`.

    GELU, LayerNorm; Q, K and V read the block's input (Sun et al. 2020, section 3.2 and table 1). The trigram
    embedding is MobileBERT's.
    """
    config_class, model_class = _ib_classes()
    config = config_class(
        **_settings(shape, label_names, attention),
        hidden_act="gelu",
        normalization_type="layer_norm",
        key_query_shared_bottleneck=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config)


def _settings(shape: dict[str, Any], label_names: list[str], attention: str) -> dict[str, Any]:
    """What the configurations of student and teacher share."""
    return {
        "vocab_size": shape["vocab_size"],
        "max_position_embeddings": shape["max_positions"],
        "pad_token_id": shape["pad_token_id"],
        "num_hidden_layers": shape["layers"],
        "hidden_size": shape["hidden"],
        "num_attention_heads": shape["heads"],
        "intermediate_size": shape["ffn"],
        "intra_bottleneck_size": shape["bottleneck"],
        "embedding_size": shape["embedding"],
        "num_feedforward_networks": shape["ffn_blocks"],
        "trigram_input": True,
        "use_bottleneck": True,
        "use_bottleneck_attention": False,  # V reads the block's input
        "classifier_activation": False,
        "hidden_dropout_prob": 0.0,  # each stage sets its own
        "attention_probs_dropout_prob": 0.0,
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
        "attn_implementation": attention,
    }


@cache
def _ib_classes() -> tuple[Any, Any]:
    """IB-BERT's configuration and classifier, defined on first use because their bases are transformers'."""
    from transformers import MobileBertConfig, MobileBertForSequenceClassification

    class IBBertConfig(MobileBertConfig):
        model_type = "kdbench_ib_bert"  # its own: with MobileBERT's, the folder would load as what it is not

    class IBBertForSequenceClassification(MobileBertForSequenceClassification):
        config_class = IBBertConfig

        def __init__(self, config: IBBertConfig) -> None:
            super().__init__(config)
            # Without a bottleneck for Q and K, MobileBERT's layer hands them the block's input, which its own
            # projections, of the inner width, could not take.
            layers: Any = self.mobilebert.encoder.layer
            for layer in layers:
                layer.attention.self.query = nn.Linear(config.hidden_size, config.intra_bottleneck_size)
                layer.attention.self.key = nn.Linear(config.hidden_size, config.intra_bottleneck_size)
            self.post_init()  # type: ignore[no-untyped-call]  # draws the new weights like all others

    return IBBertConfig, IBBertForSequenceClassification


def load(folder: Path, attention: str) -> Any:
    """A MobileBERT classifier's folder, in evaluation mode.

    Raises OSError where the folder holds no complete model, UserError where weights are missing.
    """
    from transformers import MobileBertForSequenceClassification

    return _load(MobileBertForSequenceClassification, folder, attention)


def save_ib(model: Any, folder: Path) -> None:
    """config.json with model_type kdbench_ib_bert, and model.safetensors; only `load_ib` reads them."""
    model.save_pretrained(folder)


def load_ib(folder: Path, attention: str) -> Any:
    """An IB-BERT classifier's folder, in evaluation mode; raises as `load`."""
    return _load(_ib_classes()[1], folder, attention)


def _load(model_class: Any, folder: Path, attention: str) -> Any:
    model, report = model_class.from_pretrained(
        folder, attn_implementation=attention, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        raise UserError(
            Code.INCOMPLETE_MODEL, f"{folder}: weights are missing: {', '.join(sorted(report['missing_keys']))}"
        )
    return model.eval()


def copy_embeddings(source: Any, target: Any) -> None:
    """Copy all that turns tokens into the first block's input, trigram projection and norm included, by value.

    The outputs still differ between IB-BERT and MobileBERT: the same scale and shift follow a LayerNorm in the
    one and no normalisation in the other (as in the authors' code).
    """
    target.base_model.embeddings.load_state_dict(source.base_model.embeddings.state_dict())


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor, layers: int | None = None) -> list[Tensor]:
    """The embeddings' output and that of each of the first `layers` blocks (None: all), (B, T, H) each.

    ids and mask (B, T). `model` is a classifier or its base model, MobileBERT or IB-BERT.
    """
    base = model.base_model
    states = [base.embeddings(input_ids=input_ids)]
    bias = attention_bias(base, states[0], attention_mask)
    for layer in base.encoder.layer[:layers]:
        states.append(layer(states[-1], bias))
    return states


def scores(layer: Any, x: Tensor) -> Tensor:
    """Q K^T / sqrt(d), (B, A, T, T), of a block at its input x (B, T, H): before mask and softmax.

    The attention-transfer loss needs them (Sun et al. 2020, equation 3); transformers returns probabilities only.
    """
    if layer.bottleneck.key_query_shared_bottleneck:
        x = layer.bottleneck.attention(x)
    attention = layer.attention.self

    def split(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (attention.num_attention_heads, attention.attention_head_size)).transpose(1, 2)

    return split(attention.query(x)) @ split(attention.key(x)).transpose(2, 3) * attention.scaling


class MaskedLMHead(nn.Module):
    """Logits over the vocabulary: words are scored by their E wide embeddings beside H - E further weights each.

    The word embeddings are an argument, not a parameter: they are the model's, trained and saved with it.
    """

    def __init__(self, config: Any) -> None:
        from transformers.models.mobilebert.modeling_mobilebert import MobileBertPredictionHeadTransform

        super().__init__()
        self.embedding, self.padding = config.embedding_size, config.pad_token_id
        self.transform = MobileBertPredictionHeadTransform(config)
        self.extra = nn.Linear(config.hidden_size - config.embedding_size, config.vocab_size)

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """Logits (N, V) from hidden states (N, H) and the base model's word embeddings (V, E)."""
        transformed = self.transform(hidden)
        tied = F.linear(transformed[:, : self.embedding], word_embeddings)
        # The padding's embedding must stay zero: the trigram of a text's last token contains it if padding
        # follows, nothing if not. The input side never trains it; here it would learn to be unlikely.
        tied[:, self.padding] = 0
        return tied + self.extra(transformed[:, self.embedding :])


def mlm_head(base: Any, seed: int) -> MaskedLMHead:
    """A masked-language-modelling head for a MobileBERT or IB-BERT, its weights a function of `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedLMHead(base.config).apply(base._init_weights)


def flops(shape: dict[str, Any], length: int, classes: int, ib: bool = False) -> int:
    """FLOPs of one example of `length` tokens: 2 per multiply-add in matrix products, nothing else.

    The trigram projection; per block the bottlenecks (MobileBERT's two, IB-BERT's one) and the way back to H,
    Q, K, V and output projections, scores and weighted values, all feed-forward networks; the classifier on
    one token.
    """
    h, b, t = shape["hidden"], shape["bottleneck"], length
    queries_and_keys = 2 * h * b if ib else h * b + 2 * b * b
    projections = queries_and_keys + h * b + b * b
    token = h * b + projections + 2 * t * b + shape["ffn_blocks"] * 2 * b * shape["ffn"] + b * h
    return 2 * (t * (3 * shape["embedding"] * h + shape["layers"] * token) + h * classes)
