"""What must hold of a model.safetensors before it is used: the tensors that config.json promises, in its shapes.

Only the file's header is read. The names are those of transformers' encoders; LayerNorms are left out, because theirs
differ with age, and so is what stands above the layers, which is drawn anew where it is missing.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.errors import Code, SourceError

Size = tuple[str, str]  # rows and columns, by their keys in the shape


class Names(NamedTuple):
    """How an architecture calls its tensors."""

    prefix: str  # in a classifier's file
    layer: str  # before the number of a layer
    matrices: dict[str, Size]  # of a layer
    tables: dict[str, Size]  # of the embeddings
    shared: bool = False  # all layers are one
    biases: bool = True  # of the matrices


def _attention(query: str, key: str, value: str, out: str) -> dict[str, Size]:
    return dict.fromkeys((f"attention.{name}" for name in (query, key, value, out)), ("hidden", "hidden"))


def _feed_forward(up: str, down: str) -> dict[str, Size]:
    return {up: ("ffn", "hidden"), down: ("hidden", "ffn")}


def _tables(width: str, types: bool = True) -> dict[str, Size]:
    rows = {"word": "vocab_size", "position": "max_positions"} | ({"token_type": "types"} if types else {})
    return {f"embeddings.{name}_embeddings": (row, width) for name, row in rows.items()}


_BERT = _attention("self.query", "self.key", "self.value", "output.dense")
_BERT |= _feed_forward("intermediate.dense", "output.dense")
_DEBERTA = _attention("self.query_proj", "self.key_proj", "self.value_proj", "output.dense")
_DEBERTA |= _feed_forward("intermediate.dense", "output.dense")
_DISTILBERT = _attention("q_lin", "k_lin", "v_lin", "out_lin") | _feed_forward("ffn.lin1", "ffn.lin2")
_ALBERT = _attention("query", "key", "value", "dense") | _feed_forward("ffn", "ffn_output")
_ALBERT = {f"albert_layers.0.{name}": size for name, size in _ALBERT.items()}
_MODERNBERT = {"attn.Wqkv": ("hidden_x3", "hidden"), "attn.Wo": ("hidden", "hidden")}
_MODERNBERT |= {"mlp.Wi": ("ffn_x2", "hidden"), "mlp.Wo": ("hidden", "ffn")}

_NAMES = {
    "bert": Names("bert.", "encoder.layer.", _BERT, _tables("hidden")),
    "roberta": Names("roberta.", "encoder.layer.", _BERT, _tables("hidden", types=False)),
    "xlm-roberta": Names("roberta.", "encoder.layer.", _BERT, _tables("hidden", types=False)),
    "electra": Names("electra.", "encoder.layer.", _BERT, _tables("embedding")),
    "distilbert": Names("distilbert.", "transformer.layer.", _DISTILBERT, _tables("hidden", types=False)),
    "albert": Names("albert.", "encoder.albert_layer_groups.", _ALBERT, _tables("embedding"), shared=True),
    "deberta-v2": Names(
        "deberta.", "encoder.layer.", _DEBERTA, {"embeddings.word_embeddings": ("vocab_size", "hidden")}
    ),
    "modernbert": Names(
        "model.", "layers.", _MODERNBERT, {"embeddings.tok_embeddings": ("vocab_size", "hidden")}, biases=False
    ),
}


def verify_weights(path: Path, architecture: str, shape: dict[str, Any]) -> None:
    """Hold the file's header against config.json's shape. Raises SourceError."""
    names, there = _NAMES[architecture], _header(path)
    prefix = names.prefix if any(name.startswith(names.prefix) for name in there) else ""
    found = {name.removeprefix(prefix): tensor for name, tensor in there.items()}
    layers = {int(match[1]) for name in found if (match := re.match(rf"{re.escape(names.layer)}(\d+)\.", name))}
    if layers and len(layers) != (1 if names.shared else shape["layers"]):
        raise SourceError(
            Code.MISMATCHED_MODEL,
            f"{path} has the weights of {len(layers)} layers, but config.json num_hidden_layers={shape['layers']}."
            "\nTo use fewer layers than a checkpoint has, leave it whole and set student.layers.",
        )
    for name, size in expected(architecture, shape, sorted(layers)):
        if name not in found:
            raise SourceError(
                Code.MISMATCHED_MODEL,
                f"{path} lacks {prefix}{name}: it does not hold the weights of a {architecture} encoder.",
            )
        kind, there_size = found[name]
        if there_size != size:
            raise SourceError(
                Code.MISMATCHED_MODEL, f"{path}: {prefix}{name} is {_by(there_size)}, by config.json it is {_by(size)}."
            )
        if kind not in ("F64", "F32", "F16", "BF16"):
            raise SourceError(
                Code.MISMATCHED_MODEL,
                f"{path}: {prefix}{name} holds {kind}; kdbench reads weights in floating point only.",
            )


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> kind of number and shape of each tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except (SafetensorError, OSError) as error:
        raise SourceError(Code.INCOMPLETE_MODEL, f"{path} cannot be read as safetensors: {error}") from error
    return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}


def expected(architecture: str, shape: dict[str, Any], layers: list[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and size of what every encoder of the architecture has."""
    names = _NAMES[architecture]
    sizes = shape | {"types": 2, "hidden_x3": 3 * shape["hidden"], "ffn_x2": 2 * shape["ffn"]}
    for name, (rows, columns) in names.tables.items():
        yield f"{name}.weight", (sizes[rows], sizes[columns])
    for layer in layers:
        for name, (rows, columns) in names.matrices.items():
            yield f"{names.layer}{layer}.{name}.weight", (sizes[rows], sizes[columns])
            if names.biases:
                yield f"{names.layer}{layer}.{name}.bias", (sizes[rows],)


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
