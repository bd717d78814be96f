"""Token ids of a split, made once and read by memory map: `tokens/<key>/{flat,offsets}.npy` in the cache."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from kdbench.data.datasets import Split


@dataclass(frozen=True)
class Tokens:
    """Examples of different lengths laid end to end: example i is flat[offsets[i]:offsets[i + 1]]."""

    key: str  # digest of texts, tokenizer and length
    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]


def tokenize(split: Split, tokenizer_folder: Path, max_length: int, cache: Path) -> Tokens:
    """The split's texts as ids with special tokens, cut to `max_length`; from the cache where it has them."""
    key = _key(split, tokenizer_folder, max_length)
    folder = cache / "tokens" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _write(folder, split.texts, tokenizer_folder, max_length)
    flat, offsets = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("flat", "offsets"))
    return Tokens(key, flat, offsets)


def _key(split: Split, tokenizer_folder: Path, max_length: int) -> str:
    digest = hashlib.sha256(f"1|{max_length}|{len(split.texts)}".encode())
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        path = tokenizer_folder / name
        if path.is_file():
            digest.update(path.read_bytes())
    for text in split.texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:16]


def _write(folder: Path, texts: list[str], tokenizer_folder: Path, max_length: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else []
    staged = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    staged.mkdir(parents=True, exist_ok=True)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    np.save(staged / "offsets.npy", offsets)
    flat = np.concatenate([np.asarray(row, np.int32) for row in ids]) if ids else np.zeros(0, np.int32)
    np.save(staged / "flat.npy", flat)
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)
