"""Token ids of a split, made once and read by memory map: `tokens/<key>/{flat,offsets}.npy` in the cache.

Sentence pairs have a third file, `types.npy`: which sentence a token is of.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data.cache import cached
from kdbench.data.datasets import Split


@dataclass(frozen=True)
class Tokens:
    """Examples of different lengths laid end to end: example i is flat[offsets[i]:offsets[i + 1]]."""

    key: str  # digest of texts, pairs, tokenizer and length
    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]
    types: NDArray[np.int8] | None = None  # of pairs, laid as `flat`: 0 = first sentence, 1 = second

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def span(self, index: int) -> slice:
        """Where example `index` lies in the flat arrays."""
        return slice(self.offsets[index], self.offsets[index + 1])


def tokenize(split: Split, tokenizer_folder: Path, max_length: int, cache: Path) -> Tokens:
    """The split's texts as ids with special tokens, cut to `max_length`; from the cache where it has them.

    Of a pair, what is too long is cut token by token from the sentence that is then the longer one.
    """
    key = _key(split, tokenizer_folder, max_length)
    return cached_tokens(key, lambda: _encode(split, tokenizer_folder, max_length), cache)


Rows = tuple[list[list[int]], list[list[int]] | None]  # ids, token types


def cached_tokens(key: str, encode: Callable[[], Rows], cache: Path) -> Tokens:
    """The tokens stored under `key`; `encode` makes them where there are none."""
    folder = cached(cache / "tokens" / key, lambda staged: _write(staged, *encode()))
    flat, offsets = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("flat", "offsets"))
    types = np.load(folder / "types.npy", mmap_mode="r") if (folder / "types.npy").is_file() else None
    return Tokens(key, flat, offsets, types)


def _key(split: Split, tokenizer_folder: Path, max_length: int) -> str:
    digest = hashlib.sha256(f"1|{max_length}|{len(split.texts)}".encode())
    digest.update(tokenizer_files(tokenizer_folder))
    for text in split.texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    if split.pairs is not None:
        digest.update(b"pairs")
        for pair in split.pairs:
            digest.update(hashlib.sha256(pair.encode()).digest())
    return digest.hexdigest()[:16]


def tokenizer_files(folder: Path) -> bytes:
    """All that decides what the tokenizer in `folder` does."""
    paths = (folder / name for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))
    return b"".join(path.read_bytes() for path in paths if path.is_file())


def _encode(split: Split, tokenizer_folder: Path, max_length: int) -> Rows:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    options = {"truncation": "longest_first", "max_length": max_length, "return_token_type_ids": True}
    encoded = tokenizer(split.texts, split.pairs, **options) if split.texts else {"input_ids": [], "token_type_ids": []}
    return encoded["input_ids"], None if split.pairs is None else encoded["token_type_ids"]


def tokenize_here(split: Split, tokenizer_folder: Path, max_length: int) -> Tokens:
    """`tokenize` without a cache: texts that are asked about once."""
    return _laid_out("", *_encode(split, tokenizer_folder, max_length))


def _laid_out(key: str, ids: list[list[int]], types: list[list[int]] | None) -> Tokens:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    return Tokens(key, _end_to_end(ids, np.int32), offsets, None if types is None else _end_to_end(types, np.int8))


def _write(folder: Path, ids: list[list[int]], types: list[list[int]] | None) -> None:
    tokens = _laid_out("", ids, types)
    np.save(folder / "offsets.npy", tokens.offsets)
    np.save(folder / "flat.npy", tokens.flat)
    if tokens.types is not None:
        np.save(folder / "types.npy", tokens.types)


def _end_to_end(rows: list[list[int]], kind: type[np.integer[Any]]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, kind), *(np.asarray(row, kind) for row in rows)])
