"""The classifier of TinyBERT's published code: a ReLU between pooler and classifier. No stock architecture.

transformers is imported inside the functions: methods import this module, and a refusal must come quickly.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

RELU_BERT = "kdbench_relu_bert"


def use_relu_head(model: Any) -> None:
    """Put a ReLU between pooler and classifier, where BERT has a dropout, as the authors' code does.

    Such a model is no stock architecture: kdbench.load reads it.
    """
    model.dropout = nn.ReLU()
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
