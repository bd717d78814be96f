"""What must hold of a folder with a BERT before it is used: no code, no pickle, weights and tokenizer that fit.

Only names, headers and JSON are read, so that a local teacher is judged before anything runs.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from kdbench.errors import SourceError
from kdbench.foreign import WEIGHTS, read_config, read_object, require_weights

MODEL_FILES = (
    "config.json",
    WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
SHAPE = {  # our key: config.json's
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
}
# Students are built with these, so a checkpoint with others would be another network in them, silently.
_FIXED = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "position_embedding_type": "absolute",
    "is_decoder": False,
}
_TOKENIZERS = {"BertTokenizer", "DistilBertTokenizer", "PreTrainedTokenizer", "TokenizersBackend"}  # or ...Fast


def model_files(folder: Path) -> list[str]:
    """The names of the files that make up the model in `folder`; SourceError where one is missing."""
    names = [name for name in MODEL_FILES if (folder / name).is_file()]
    if "config.json" not in names:
        raise SourceError(f"{folder} is not a model folder: it has no config.json (teacher.source, teacher.folder).")
    if "tokenizer.json" not in names and "vocab.txt" not in names:
        raise SourceError(f"{folder} has neither tokenizer.json nor vocab.txt: save the tokenizer beside the model.")
    require_weights(folder)
    return names


def shape_of(folder: Path) -> dict[str, int]:
    """layers, hidden, heads, ffn, vocab_size and max_positions of the BERT in `folder`, from its config.json."""
    path = folder / "config.json"
    config = read_object(path)
    for key in SHAPE.values():
        if type(config.get(key)) is not int:
            raise SourceError(f"{path} gives no {key}: it is not a BERT's (model_type {config.get('model_type')}).")
        if config[key] < 1:
            raise SourceError(f"{path} has {key}={config[key]}: it must be 1 or more.")
    return {ours: config[theirs] for ours, theirs in SHAPE.items()}


def verify(folder: Path) -> None:
    """Raises SourceError where the folder is incomplete, would run foreign code, or its files do not fit together."""
    model_files(folder)
    shape = shape_of(folder)
    _verify_config(folder / "config.json", shape)
    _verify_weights(folder / WEIGHTS, shape)
    _verify_tokenizer(folder, shape["vocab_size"])


def _verify_config(path: Path, shape: dict[str, int]) -> None:
    config = read_config(path)
    if config.get("model_type") != "bert":
        raise SourceError(f"{path} has model_type={config.get('model_type')}; kdbench reads bert.")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise SourceError(f"{path} has {key}={config[key]!r}; kdbench builds BERTs with {value!r} only.")
    pad = config.get("pad_token_id")
    if pad is not None and (type(pad) is not int or not 0 <= pad < shape["vocab_size"]):
        raise SourceError(f"{path} has pad_token_id={pad!r}, but vocab_size={shape['vocab_size']}: no such token.")
    if shape["hidden"] % shape["heads"]:
        raise SourceError(f"{path}: num_attention_heads={shape['heads']} must divide hidden_size={shape['hidden']}.")


def _verify_weights(path: Path, shape: dict[str, int]) -> None:
    """Hold the file's header against config.json's shape. The names are those of transformers' BertModel."""
    there = _header(path)
    prefix = "bert." if any(name.startswith("bert.") for name in there) else ""
    found = {name.removeprefix(prefix): tensor for name, tensor in there.items()}
    layers = {int(match[1]) for name in found if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
    if layers and len(layers) != shape["layers"]:
        raise SourceError(
            f"{path} has the weights of {len(layers)} layers, but config.json num_hidden_layers={shape['layers']}."
            "\nTo use fewer layers than a checkpoint has, leave it whole and set student.layers."
        )
    for name, size in _expected(shape, sorted(layers)):
        if name not in found:
            raise SourceError(f"{path} lacks {prefix}{name}: it does not hold the weights of a BERT's encoder.")
        kind, there_size = found[name]
        if there_size != size:
            raise SourceError(f"{path}: {prefix}{name} is {_by(there_size)}, by config.json it is {_by(size)}.")
        if kind not in ("F64", "F32", "F16", "BF16"):
            raise SourceError(f"{path}: {prefix}{name} holds {kind}; kdbench reads weights in floating point only.")


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> kind of number and shape of each tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} cannot be read as safetensors: {error}") from error
    return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}


def _expected(shape: dict[str, int], layers: list[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of what every BERT encoder has; not of LayerNorms, whose names differ with age."""
    hidden, ffn = shape["hidden"], shape["ffn"]
    for name, rows in {"word": shape["vocab_size"], "position": shape["max_positions"], "token_type": 2}.items():
        yield f"embeddings.{name}_embeddings.weight", (rows, hidden)
    square = dict.fromkeys(("self.query", "self.key", "self.value", "output.dense"), (hidden, hidden))
    sizes = {f"attention.{name}": size for name, size in square.items()}
    sizes |= {"intermediate.dense": (ffn, hidden), "output.dense": (hidden, ffn)}
    for layer in layers:
        for name, size in sizes.items():
            yield f"encoder.layer.{layer}.{name}.weight", size
            yield f"encoder.layer.{layer}.{name}.bias", size[:1]


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _verify_tokenizer(folder: Path, vocab_size: int) -> None:
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        kind = read_config(settings).get("tokenizer_class") or "BertTokenizer"
        if str(kind).removesuffix("Fast") not in _TOKENIZERS:
            legal = ", ".join(sorted(_TOKENIZERS))
            raise SourceError(f"{settings} has tokenizer_class={kind}; kdbench reads BERT's word pieces ({legal}).")
    path = next(folder / name for name in ("tokenizer.json", "vocab.txt") if (folder / name).is_file())
    highest = max(_token_ids(path), default=-1)
    if highest >= vocab_size:
        raise SourceError(
            f"{path} has tokens up to number {highest}, but config.json vocab_size={vocab_size}: it is the tokenizer"
            " of another model."
        )


def _token_ids(path: Path) -> list[int]:
    if path.suffix == ".txt":
        try:
            return list(range(len(path.read_text(encoding="utf8").splitlines())))
        except UnicodeDecodeError as error:
            raise SourceError(f"{path} is not UTF-8: {error}") from error
    from tokenizers import Tokenizer

    try:
        return list(Tokenizer.from_file(str(path)).get_vocab().values())
    except Exception as error:  # the library raises no narrower one
        raise SourceError(f"{path} cannot be read as a tokenizer: {error}") from error
