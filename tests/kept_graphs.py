"""Let torch.onnx export each structure once a session: the exporter takes seconds, whatever the weights are.

The kept graph is the one before its optimization, in which each weight has its name. A later export of the same
structure gets the weights of its own model and is optimized anew. `to_onnx` compares every graph with its model.
"""

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (str, int, float, bool, type(None), tuple, list, torch.dtype)


def structure(module: nn.Module, options: dict[str, Any]) -> str:
    """Return a digest of everything that decides the graph, except the values of the weights."""
    return digest("\n".join((*_parts(module), repr(sorted(options.items())))).encode())


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _parts(module: nn.Module) -> Iterator[str]:
    for name, part in module.named_modules():
        code = type(part).forward.__code__  # a test may have put another in its place
        yield f"{name} {type(part)} {code.co_filename} {code.co_firstlineno} {digest(code.co_code)}"
        for key, value in sorted(vars(part).items()):
            if key != "name_or_path":  # where it was loaded from
                yield f"{key} {_in_words(value)}"
    for name, value in sorted(_weights(module).items()):
        yield f"{name} {value.dtype} {tuple(value.shape)}"


def _in_words(value: Any) -> str:
    if hasattr(value, "to_dict"):  # a config of transformers
        return repr(sorted(repr(item) for item in value.to_dict().items() if item[0] != "_name_or_path"))
    if isinstance(value, Tensor):
        return digest(value.detach().numpy().tobytes())
    return repr(value) if isinstance(value, PLAIN) else getattr(value, "__qualname__", str(type(value)))


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}


def keeping(folder: Path) -> Any:
    """Return a torch.onnx.export that keeps its graphs in the folder, which several processes may share."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    exporter = torch.onnx.export
    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]

    def export(module: nn.Module, **options: Any) -> Any:
        import onnx_ir
        from torch.onnx import ONNXProgram

        kept = folder / f"{structure(module, options)}.onnx"
        if kept.is_file():
            program: Any = ONNXProgram(onnx_ir.load(kept), None)
            for one in program.model.graph.inputs:
                one.shape = one.shape.copy()  # that of a graph from a file cannot be changed
            weights = _weights(module)
            for name, one in program.model.graph.initializers.items():
                if name in weights:
                    one.const_value = onnx_ir.tensor(weights[name].detach().numpy(), name=name)
        else:
            program = exporter(module, **options, optimize=False)
            folder.mkdir(parents=True, exist_ok=True)
            filling = kept.with_suffix(f".{os.getpid()}")
            onnx_ir.save(program.model, filling)
            filling.replace(kept)
        program.optimize()
        return program

    return export
