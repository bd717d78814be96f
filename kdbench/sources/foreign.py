"""Refuse model folders whose files would run code, and read their JSON files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdbench.errors import Code, SourceError

WEIGHTS = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_CODE = ("auto_map", "custom_pipelines", "quantization_config")  # each would make transformers import other code
_OWN_ATTENTION = (None, True, False, "eager", "sdpa")  # other values name a kernel that transformers would fetch


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises SourceError."""
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(Code.INCOMPLETE_MODEL, f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(Code.INCOMPLETE_MODEL, f"{path} holds {type(value).__name__}, not a JSON object.")
    return value


def read_config(path: Path) -> dict[str, Any]:
    """Return a config.json or tokenizer_config.json.

    Raises SourceError if it cannot be read, or if it names code that transformers would run in spite of
    trust_remote_code=False.
    """
    config = read_object(path)
    foreign = [key for key, value in _every_key(config) if key in _CODE or _foreign_kernel(key, value)]
    if foreign:
        raise SourceError(
            Code.UNSAFE_CONTENT,
            f"{path}: {', '.join(foreign)} would load code or kernels from elsewhere; kdbench runs"
            " transformers' own code only."
            "\nIf the weights need none of it, remove these keys from a local copy and use that.",
        )
    return config


def require_weights(folder: Path) -> None:
    """Raise SourceError if `folder` has no model.safetensors, because transformers would then load a pickle."""
    if (folder / WEIGHTS).is_file():
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if not pickles:
        raise SourceError(
            Code.INCOMPLETE_MODEL, f"{folder} has no {WEIGHTS}: save the model there with save_pretrained."
        )
    raise SourceError(
        Code.UNSAFE_CONTENT,
        f"{folder} has {pickles[0]}, but no {WEIGHTS}; kdbench reads no pickles, which can run code. Where you trust"
        f" it, convert it once:\npython -c \"from transformers import AutoModel as A; A.from_pretrained('{folder}')"
        f".save_pretrained('{folder}')\"",
    )


def with_pad_token(tokenizer: Any) -> Any:
    """Set a padding token if a Hugging Face tokenizer has none, so that it can batch texts. Return the tokenizer.

    The attention mask hides padding, so any token that does not occur in texts will do. It is `[PAD]` or `<pad>` if the
    vocabulary has it, else a special token. Raises SourceError if there is none.
    """
    if tokenizer.pad_token is None:
        named = [token for token in ("[PAD]", "<pad>") if token in tokenizer.get_vocab()]
        special = [tokenizer.sep_token, tokenizer.eos_token, tokenizer.cls_token, tokenizer.unk_token]
        tokens = [token for token in (*named, *special) if token is not None]
        if not tokens:
            raise SourceError(
                Code.MISMATCHED_MODEL,
                f"{tokenizer.name_or_path}: its tokenizer has no padding token and no special token to pad with: set"
                " pad_token in its tokenizer_config.json",
            )
        tokenizer.pad_token = tokens[0]
    return tokenizer


def _every_key(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of each object in `config`, at any depth."""
    todo: list[Any] = [config]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            yield from value.items()
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _foreign_kernel(key: str, value: Any) -> bool:
    kernel = "attn_implementation" in key or "experts_implementation" in key
    return kernel and value not in _OWN_ATTENTION
