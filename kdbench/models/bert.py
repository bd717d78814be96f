"""BERT classifiers: build, load, cut and run. The only file that knows transformers' names for BERT's parts.

transformers is imported inside the functions: methods import this module, and a refusal must come quickly.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.stage import Batch


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


def save(model: nn.Module, folder: Path, tokenizer_folder: Path) -> None:
    """A plain Hugging Face folder: config.json, model.safetensors and the teacher's tokenizer."""
    from transformers import AutoTokenizer

    model.save_pretrained(folder)  # type: ignore[operator]
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)


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
    """Copy embeddings, pooler and the listed encoder layers of one BertModel into another, value by value."""
    target.embeddings.load_state_dict(source.embeddings.state_dict())
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
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
