"""Classifiers of transformers' own architectures, built after a checkpoint's config.json; the encoders of checkpoints.

BERT, DistilBERT and MobileBERT are built from their shape alone (bert.py ...). transformers is imported inside the
functions: methods import this module, and a refusal must come quickly.
"""

from pathlib import Path
from typing import Any

import torch

from kdbench.errors import Code, UserError

_OF_THE_CHECKPOINT = (  # not the student's
    "architectures", "id2label", "label2id", "num_labels", "problem_type", "torch_dtype", "dtype",
    "pooler_hidden_size",  # DeBERTa's, where it is not as wide as the rest
)  # fmt: skip


def build(shape: dict[str, Any], label_names: list[str], attention: str, seed: int) -> Any:
    """A randomly initialised classifier; its weights are a function of `seed` alone.

    `shape`: a student's, and `config`, what the checkpoint's config.json says, and `chosen_layers`, those of its
    layers (from 0) that the student's will be like. The caller's random state is left untouched.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    given = {key: value for key, value in shape["config"].items() if key not in _OF_THE_CHECKPOINT}
    kind = given.pop("model_type")
    given |= {
        "hidden_size": shape["hidden"],
        "num_attention_heads": shape["heads"],
        "intermediate_size": shape["ffn"],
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }
    config: Any = AutoConfig.for_model(kind, **given)
    config.num_hidden_layers = shape["layers"]
    if kind == "modernbert":  # a layer's place says how far it sees; beyond the checkpoint's, the pattern starts anew
        config.layer_types = [config.layer_types[index % len(config.layer_types)] for index in shape["chosen_layers"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=_attention(kind, attention), dtype=torch.float32
        )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # each stage sets its own
    return model


def _attention(model_type: str, attention: str) -> str:
    """DeBERTa's attention has terms that no fused kernel has: transformers writes it out, under this name."""
    return "eager" if model_type == "deberta-v2" else attention


def load(folder: Path, model_type: str, attention: str) -> Any:
    """A classifier's folder, in evaluation mode.

    Raises OSError where the folder holds no complete model, UserError where weights are missing.
    """
    from transformers import AutoModelForSequenceClassification

    loaded: Any = AutoModelForSequenceClassification.from_pretrained(
        folder,
        attn_implementation=_attention(model_type, attention),
        dtype=torch.float32,
        output_loading_info=True,
    )
    model, report = loaded
    if report["missing_keys"]:
        raise UserError(
            Code.INCOMPLETE_MODEL, f"{folder}: weights are missing: {', '.join(sorted(report['missing_keys']))}"
        )
    return model.eval()


def load_pretrained(folder: Path, attention: str, seed: int) -> Any:
    """The encoder of a checkpoint with or without a task head, of whichever architecture config.json says.

    A checkpoint without a pooler (one made for masked language modelling) gets one drawn from `seed`.
    """
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(Code.INCOMPLETE_MODEL, f"{folder}: weights are missing: {', '.join(missing)}")
    if broken := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise UserError(
            Code.MISMATCHED_MODEL,
            f"{folder}: {broken[0]} holds numbers that are not finite: the file is damaged, or its training was",
        )
    model.set_attn_implementation(_attention(model.config.model_type, attention))
    return model.eval().requires_grad_(False)


def flops(shape: dict[str, Any], length: int, classes: int) -> int:
    """FLOPs of one example of `length` tokens: 2 per multiply-add in matrix products, nothing else.

    Counted by torch on a model without weights; all pairs of tokens where a layer sees a window of them too, because
    that is what is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = build(shape, [str(index) for index in range(classes)], "eager", 0).eval()
        model.config.pad_token_id = None  # else transformers looks for it, and here ids have no values
        model(input_ids=torch.ones(1, length, dtype=torch.long))
    return counter.get_total_flops()
