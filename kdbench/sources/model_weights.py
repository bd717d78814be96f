"""Check that a model.safetensors has the tensors and shapes that config.json defines, before it is used.

Only the header of the file is read. The names are those of transformers' encoders. LayerNorms are not checked, because
their names depend on the version. Parts above the layers are not checked, because missing ones are initialised.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdbench.declared import architecture_traits
from kdbench.errors import Code, SourceError


def verify_weights(path: Path, architecture: str, shape: dict[str, Any]) -> None:
    """Compare the header of the file with the shape in config.json. Raises SourceError if they differ."""
    own, there = architecture_traits(architecture), _header(path)
    prefix = own.prefix if any(name.startswith(own.prefix) for name in there) else ""
    found = {name.removeprefix(prefix): tensor for name, tensor in there.items()}
    layers = {int(match[1]) for name in found if (match := re.match(rf"{re.escape(own.layer)}(\d+)\.", name))}
    if layers and len(layers) != (1 if own.one_layer else shape["layers"]):
        raise SourceError(
            Code.MISMATCHED_MODEL,
            f"{path} has the weights of {len(layers)} layers, but config.json num_hidden_layers={shape['layers']}."
            "\nTo use fewer layers than a checkpoint has, leave it as it is and set student.layers.",
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
    """Return dtype and shape of each tensor by its name. Raises SourceError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except (SafetensorError, OSError) as error:
        raise SourceError(Code.INCOMPLETE_MODEL, f"{path} cannot be read as safetensors: {error}") from error
    return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}


def expected(architecture: str, shape: dict[str, Any], layers: list[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of the tensors that every encoder of the architecture has."""
    own, sizes = architecture_traits(architecture), _sizes(shape)
    for name, (rows, columns) in own.tables.items():
        yield f"{name}.weight", (sizes[rows], sizes[columns])
    for layer in layers:
        for name, (rows, columns) in own.matrices.items():
            yield f"{own.layer}{layer}.{name}.weight", (sizes[rows], sizes[columns])
            if own.biases:
                yield f"{own.layer}{layer}.{name}.bias", (sizes[rows],)


def layer_weights(architecture: str, shape: dict[str, Any]) -> int:
    """Return how many numbers the matrices of one layer hold."""
    sizes = _sizes(shape)
    return sum(sizes[rows] * sizes[columns] for rows, columns in architecture_traits(architecture).matrices.values())


def _sizes(shape: dict[str, Any]) -> dict[str, Any]:
    return shape | {"types": 2, "buckets": 32, "hidden_x3": 3 * shape["hidden"], "ffn_x2": 2 * shape["ffn"]}


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
