"""Students built after a checkpoint's config.json, and the encoders of checkpoints."""

from pathlib import Path
from typing import Any

import torch

from kdbench.errors import Code, UserError
from kdbench.models.encoder import Encoder
from kdbench.models.network import refuse_missing, view

_OF_THE_CHECKPOINT = (  # not the student's
    "architectures", "id2label", "label2id", "num_labels", "problem_type", "torch_dtype", "dtype",
    "pooler_hidden_size",  # DeBERTa's, where it is not as wide as the rest
)  # fmt: skip


class Stock(Encoder):
    """An encoder of transformers that keeps all of its checkpoint's settings but the student's shape."""

    @classmethod
    def config_of(cls, shape: dict[str, Any]) -> dict[str, Any]:
        """`shape["config"]` is the checkpoint's config.json."""
        given = {key: value for key, value in shape["config"].items() if key not in _OF_THE_CHECKPOINT}
        sizes = {"hidden_size": shape["hidden"], "num_attention_heads": shape["heads"]}
        return given | sizes | {"intermediate_size": shape["ffn"], "num_hidden_layers": shape["layers"]}


def load_pretrained(folder: Path, attention: str, seed: int) -> Any:
    """Return the encoder of a checkpoint with or without a task head, of whichever architecture config.json says.

    A checkpoint without a pooler (one made for masked language modelling) gets one drawn from `seed`.
    """
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    refuse_missing(folder, (key for key in report["missing_keys"] if not key.startswith("pooler.")))
    if broken := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise UserError(
            Code.MISMATCHED_MODEL,
            f"{folder}: {broken[0]} holds numbers that are not finite: the file is damaged, or its training was",
        )
    model.set_attn_implementation(view(model).attention(attention))
    return model.eval().requires_grad_(False)
