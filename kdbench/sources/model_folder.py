"""Check a folder with an encoder before it is used: no code, no pickle, weights and tokenizer that fit together.

Only file names, headers and JSON are read, so that a local teacher is checked before anything runs.
"""

from pathlib import Path
from typing import Any

from kdbench.declared import architecture_traits
from kdbench.errors import Code, SourceError
from kdbench.schema import ENCODERS
from kdbench.sources.foreign import WEIGHTS, read_config, read_object, require_weights
from kdbench.sources.model_weights import verify_weights
from kdbench.tasks import traits

_OF_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
MODEL_FILES = ("config.json", WEIGHTS, *_OF_TOKENIZER)
SHAPE = {  # our key: config.json's
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
}
_HEADS = ("ForSequenceClassification", "ForTokenClassification")  # endings of class names in config.json
_TOKENIZERS = {"PreTrainedTokenizer", "TokenizersBackend"}  # for any architecture, also with ...Fast


def model_files(folder: Path) -> list[str]:
    """Return the names of the files of the model in `folder`. Raises SourceError if one is missing."""
    names = [name for name in MODEL_FILES if (folder / name).is_file()]
    if "config.json" not in names:
        raise SourceError(
            Code.INCOMPLETE_MODEL,
            f"{folder} is not a model folder: it has no config.json (teacher.source, teacher.folder).",
        )
    if "tokenizer.json" not in names and "vocab.txt" not in names:
        raise SourceError(
            Code.INCOMPLETE_MODEL,
            f"{folder} has neither tokenizer.json nor vocab.txt: save the tokenizer beside the model.",
        )
    require_weights(folder)
    return names


def shape_names(architecture: str) -> dict[str, str]:
    """Return the keys of config.json by our keys."""
    return SHAPE | (architecture_traits(architecture).shape_keys if architecture in ENCODERS else {})


def shape_of(folder: Path) -> dict[str, Any]:
    """Return architecture, layers, hidden, heads, ffn, vocab_size and max_positions of the encoder in `folder`.

    They come from its config.json. If the architecture has word vectors of another width, `embedding` is also returned.
    Raises SourceError.
    """
    path = folder / "config.json"
    config = read_object(path)
    architecture = str(config.get("model_type"))
    names = shape_names(architecture)
    for key in names.values():
        if type(config.get(key)) is not int:
            raise SourceError(
                Code.UNSUPPORTED_MODEL, f"{path} gives no {key}: it is not an encoder's (model_type {architecture})."
            )
        if config[key] < 1:
            raise SourceError(Code.UNSUPPORTED_MODEL, f"{path} has {key}={config[key]}: it must be 1 or more.")
    return {"architecture": architecture} | {ours: config[theirs] for ours, theirs in names.items()}


def verify(folder: Path) -> None:
    """Raise SourceError if the folder is incomplete, would run other code, or its files do not fit together."""
    model_files(folder)
    shape = shape_of(folder)
    _verify_config(folder / "config.json", shape)
    verify_weights(folder / WEIGHTS, shape["architecture"], shape)
    _verify_tokenizer(folder, shape["architecture"], shape["vocab_size"])


def head_misfit(folder: Path, task: str, label_names: list[str]) -> str | None:
    """Return why the head in the folder does not fit the task. Empty: it fits. None: there is no head."""
    config = read_config(folder / "config.json")
    heads = [str(name) for name in config.get("architectures") or () if str(name).endswith(_HEADS)]
    if not heads:
        return None
    if traits(task).numbers or not heads[0].endswith(_HEADS[traits(task).words]):
        return f"it is a {heads[0]}, the task is {task}"
    problem = config.get("problem_type")
    if (problem == "multi_label_classification") != traits(task).several:
        return f"its problem_type is {problem}, the task is {task}"
    labels = config.get("id2label") or {}
    own = sorted(map(str, labels.values())) if isinstance(labels, dict) else []
    if own != sorted(label_names):
        return f"its labels are {_few(own)}, those of the data are {_few(sorted(label_names))}"
    return ""


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _verify_config(path: Path, shape: dict[str, Any]) -> None:
    config, architecture = read_config(path), shape["architecture"]
    if architecture not in ENCODERS:
        raise SourceError(
            Code.UNSUPPORTED_MODEL, f"{path} has model_type={architecture}; kdbench reads {', '.join(ENCODERS)}."
        )
    own = architecture_traits(architecture)
    for key, value in own.fixed.items():
        if config.get(key, None if key in own.must_say else value) != value:
            raise SourceError(
                Code.UNSUPPORTED_MODEL,
                f"{path} has {key}={config.get(key)!r}; kdbench reads {architecture} with {value!r} only.",
            )
    pad = config.get("pad_token_id")
    if pad is not None and (type(pad) is not int or not 0 <= pad < shape["vocab_size"]):
        raise SourceError(
            Code.MISMATCHED_MODEL,
            f"{path} has pad_token_id={pad!r}, but vocab_size={shape['vocab_size']}: no such token.",
        )
    if shape["hidden"] % shape["heads"]:
        raise SourceError(
            Code.UNSUPPORTED_MODEL,
            f"{path}: num_attention_heads={shape['heads']} must divide hidden_size={shape['hidden']}.",
        )


def _verify_tokenizer(folder: Path, architecture: str, vocab_size: int) -> None:
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        kind = read_config(settings).get("tokenizer_class")
        known = _TOKENIZERS | architecture_traits(architecture).tokenizers
        if kind is not None and str(kind).removesuffix("Fast") not in known:
            legal = ", ".join(sorted(known))
            raise SourceError(
                Code.UNSUPPORTED_MODEL,
                f"{settings} has tokenizer_class={kind}; kdbench reads {architecture} with {legal}.",
            )
    path = next(folder / name for name in ("tokenizer.json", "vocab.txt") if (folder / name).is_file())
    highest = max(_token_ids(path), default=-1)
    if highest >= vocab_size:
        raise SourceError(
            Code.MISMATCHED_MODEL,
            f"{path} has tokens up to number {highest}, but config.json vocab_size={vocab_size}: it is the tokenizer"
            " of another model.",
        )


def _token_ids(path: Path) -> list[int]:
    if path.suffix == ".txt":
        try:
            return list(range(len(path.read_text(encoding="utf8").splitlines())))
        except UnicodeDecodeError as error:
            raise SourceError(Code.MISMATCHED_MODEL, f"{path} is not UTF-8: {error}") from error
    from tokenizers import Tokenizer

    try:
        return list(Tokenizer.from_file(str(path)).get_vocab().values())
    except Exception as error:  # the library raises no narrower class
        raise SourceError(Code.MISMATCHED_MODEL, f"{path} cannot be read as a tokenizer: {error}") from error
