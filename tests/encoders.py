"""Tiny random encoders of each architecture as the hub has them: config.json, model.safetensors, a tokenizer."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from tests.conftest import FILLER, TOPICS

WORDS = sorted({word for topic in TOPICS.values() for word in topic.split()} | set(FILLER))
KINDS = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "deberta-v2", "modernbert", "mpnet")
SHAPE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
LENGTH = {"max_position_embeddings": 32}
OWN = {  # what each has besides, the hub's where it says something
    "bert": LENGTH,
    "roberta": {"max_position_embeddings": 34, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": {"max_position_embeddings": 34, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "electra": {**LENGTH, "embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32, **LENGTH},
    "albert": {**LENGTH, "embedding_size": 8, "hidden_act": "gelu_new"},
    "deberta-v2": {
        "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
        "max_relative_positions": -1, "pooler_hidden_size": 16, "pooler_hidden_act": "gelu", "pooler_dropout": 0,
        "layer_norm_eps": 1e-7, **LENGTH,
    },
    "mpnet": {"max_position_embeddings": 34, "layer_norm_eps": 1e-5},
    "modernbert": {
        **LENGTH, "global_attn_every_n_layers": 3, "local_attention": 4, "classifier_pooling": "mean",
        "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3,
    },
}  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_encoder(folder: Path, kind: str, **changes: Any) -> Path:
    """A four-layer encoder without a head whose biases and norms are not their first zeros and ones."""
    from transformers import AutoConfig, AutoModel

    tokenizer = make_tokenizer(kind)
    tokenizer.save_pretrained(folder)
    given = (SHAPE if kind != "distilbert" else {}) | OWN[kind] | {"vocab_size": len(tokenizer)} | changes
    config = AutoConfig.for_model(kind, pad_token_id=tokenizer.pad_token_id, **given)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    return folder


def make_tokenizer(kind: str) -> Any:
    from transformers import (
        AlbertTokenizer,
        BertTokenizer,
        DebertaV2Tokenizer,
        MPNetTokenizer,
        PreTrainedTokenizerFast,
        RobertaTokenizer,
        XLMRobertaTokenizer,
    )

    if kind in ("bert", "electra", "distilbert"):
        return BertTokenizer(vocab={token: index for index, token in enumerate([*SPECIAL, *WORDS])})
    if kind == "mpnet":
        special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
        return MPNetTokenizer(vocab={token: index for index, token in enumerate([*special, *WORDS])})
    if kind == "roberta":
        trained = json.loads(byte_pairs(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]).to_str())["model"]
        return RobertaTokenizer(vocab=trained["vocab"], merges=[tuple(pair) for pair in trained["merges"]])
    if kind == "modernbert":
        made = byte_pairs(SPECIAL)
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        return PreTrainedTokenizerFast(tokenizer_object=made, mask_token="[MASK]", **named)
    special = {
        "deberta-v2": SPECIAL,
        "albert": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
        "xlm-roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    }[kind]
    unknown = next(token for token in special if "unk" in token.lower())
    pieces = Tokenizer(models.Unigram())
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token=unknown, show_progress=False)
    pieces.train_from_iterator(texts(), trainer)
    vocabulary = [tuple(pair) for pair in json.loads(pieces.to_str())["model"]["vocab"]]
    kinds = {"deberta-v2": DebertaV2Tokenizer, "albert": AlbertTokenizer, "xlm-roberta": XLMRobertaTokenizer}
    return kinds[kind](vocab=vocabulary)


def byte_pairs(special: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(texts(), trainer)
    return made


def texts() -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=9)) for _ in range(50)]
