"""Files that libraries write in Rust or C++, past Python's `open`: written aside, then passed on in three writes.

A refusal is told as the library tells it.
"""

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import safetensors.torch
from safetensors import SafetensorError
from transformers.tokenization_utils_tokenizers import TokenizersBackend

Open = Callable[[Any, str], Any]


def pass_on(patch: pytest.MonkeyPatch, mine: Callable[[Any], bool], opened: Open) -> None:
    """From now on safetensors, tokenizers and pyarrow write what is `mine` with `opened`."""
    serialize, save_tokenizer = safetensors.serialize_file, TokenizersBackend._save_pretrained
    new_file, numbers = pyarrow.ipc.new_file, itertools.count()

    def serialize_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
        if not mine(filename):
            return serialize(tensors, filename, metadata=metadata)
        with tempfile.NamedTemporaryFile() as aside:
            serialize(tensors, aside.name, metadata=metadata)
            staged = Path(filename).with_name(f".tmp{next(numbers):06}")  # as safetensors' own does
            try:
                _pieces(Path(aside.name).read_bytes(), staged, opened)
                os.replace(staged, filename)
            except OSError as error:
                raise SafetensorError(f"Error while serializing: I/O error: {_in_rust(error)}") from None

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        if not mine(save_directory):
            return save_tokenizer(self, save_directory, *args, **kwargs)
        with tempfile.TemporaryDirectory() as aside:
            *before, name = save_tokenizer(self, aside, *args, **kwargs)
            file = os.path.join(save_directory, os.path.basename(name))
            try:
                _pieces(Path(name).read_bytes(), file, opened)
            except OSError as error:
                raise Exception(_in_rust(error)) from None
        return (*before, file)

    def arrow_file(sink: Any, *args: Any, **kwargs: Any) -> Any:
        return new_file(opened(sink, "wb") if mine(sink) else sink, *args, **kwargs)

    patch.setattr(safetensors.torch, "serialize_file", serialize_file)
    patch.setattr(TokenizersBackend, "_save_pretrained", save_pretrained)
    patch.setattr(pyarrow.ipc, "new_file", arrow_file)


def _pieces(content: bytes, path: Any, opened: Open) -> None:
    third = len(content) // 3 + 1
    with opened(path, "wb") as file:
        for start in range(0, len(content), third):
            file.write(content[start : start + third])


def _in_rust(error: OSError) -> str:
    return f"{error.strerror} (os error {error.errno})"
