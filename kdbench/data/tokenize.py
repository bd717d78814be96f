"""Tokenize a split once, and read its token ids from the cache by memory map: `tokens/<key>/{flat,offsets}.npy`.

`counts.json` has the numbers of cut texts and of unknown pieces. Pairs also have `types.npy`, the sentence of each
token. If words have labels, `words.npy` has the word that each token begins.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap, write_array_header_1_0
from numpy.typing import NDArray

from kdbench.data.datasets import Split
from kdbench.data.report import Counts
from kdbench.errors import Code, SourceError
from kdbench.sources.foreign import with_pad_token
from kdbench.storage.cache import cached
from kdbench.storage.files import fitting, read_json, write_json

SHOWN_UNKNOWN, LONGEST_UNKNOWN = 3, 20  # number of unknown parts that are reported, and their characters
_TOKENS = 1 << 20  # that are copied at a time


@dataclass(frozen=True)
class Tokens:
    """The token ids of all examples, end to end. Example i is flat[offsets[i]:offsets[i + 1]]."""

    key: str  # digest of texts, pairs, tokenizer and length; empty without a cache
    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]
    types: NDArray[np.int8] | None = None  # for pairs, like `flat`: 0 = first sentence, 1 = second
    words: NDArray[np.int32] | None = None  # if words have labels, like `flat`: word that the token begins, or -1
    counts: Counts | None = None  # None: a corpus, of which no text is cut off

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        return np.diff(np.asarray(self.offsets)).astype(np.int32)

    @property
    def used(self) -> NDArray[np.int64]:
        """Return the ids that occur, in ascending order."""
        occurs = np.zeros(1 + int(self.flat.max(initial=-1)), np.bool_)
        for start in range(0, len(self.flat), _TOKENS):
            occurs[self.flat[start : start + _TOKENS]] = True
        return np.flatnonzero(occurs)

    def span(self, index: int) -> slice:
        """Return the place of example `index` in the flat arrays."""
        return slice(self.offsets[index], self.offsets[index + 1])


def tokenize(split: Split, tokenizer_folder: Path, max_length: int, cache: Path) -> Tokens:
    """Return the split's texts as ids with special tokens, cut to `max_length`, from the cache if they are there.

    If a pair is too long, tokens are cut one by one from the sentence that is longer at that time.
    """
    key = _key(split, tokenizer_folder, max_length)
    return cached_tokens(key, lambda: _encode(split, load_tokenizer(tokenizer_folder), max_length), cache)


class Encoded(NamedTuple):
    """A part of the texts, tokenized: a list for each text."""

    ids: list[list[int]]
    types: list[list[int]] | None = None
    words: list[list[int]] | None = None
    counts: Counts | None = None


AT_A_TIME = 2000  # texts: a tokenizer needs a hundred times the memory of the ids that it returns


def cached_tokens(key: str, encode: Callable[[], Iterable[Encoded]], cache: Path) -> Tokens:
    """Return the tokens stored under `key`. If there are none, `encode` makes them, part by part."""
    folder = cached(cache / "tokens" / key, lambda staged: _write(staged, encode()))
    with fitting(folder):
        # np.load would also open zip files and pickles
        flat, offsets = (open_memmap(folder / f"{name}.npy", mode="r") for name in ("flat", "offsets"))
        types, words = (
            open_memmap(folder / f"{name}.npy", mode="r") if (folder / f"{name}.npy").is_file() else None
            for name in ("types", "words")
        )
        counts = read_json(folder / "counts.json") if (folder / "counts.json").is_file() else None
        return Tokens(key, flat, offsets, types, words, counts)


def _key(split: Split, tokenizer_folder: Path, max_length: int) -> str:
    digest = hashlib.sha256(f"2|{max_length}|{len(split.texts)}".encode())
    digest.update(tokenizer_files(tokenizer_folder))
    for text in split.texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    if split.pairs is not None:
        digest.update(b"pairs")
        for pair in split.pairs:
            digest.update(hashlib.sha256(pair.encode()).digest())
    if split.tagged:
        digest.update(b"words")
    return digest.hexdigest()[:16]


def tokenizer_files(folder: Path) -> bytes:
    """Return the content of all files that determine the tokenizer in `folder`."""
    paths = (folder / name for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))
    return b"".join(path.read_bytes() for path in paths if path.is_file())


def load_tokenizer(folder: Path) -> Any:
    """Return the Hugging Face tokenizer in `folder`. Raises SourceError if it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the loader tries many formats, and each raises its own errors
        raise SourceError(
            Code.MISMATCHED_MODEL, f"{folder}: its tokenizer cannot be read: {type(error).__name__}: {error}"
        ) from error
    return with_pad_token(tokenizer)


def _encode(split: Split, tokenizer: Any, max_length: int, counted: bool = True) -> Iterator[Encoded]:
    options = {"truncation": "longest_first", "max_length": max_length, "return_token_type_ids": True}
    for start in range(0, len(split), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        if split.tagged:
            given = [text.split(" ") for text in split.texts[part]]
            encoded = tokenizer(given, is_split_into_words=True, **options)
            words = [_begun(encoded.word_ids(row)) for row in range(len(given))]
            counts = _counted(encoded, given, tokenizer, max_length, True) if counted else None
            yield Encoded(encoded["input_ids"], None, words, counts)
            continue
        texts, pairs = split.texts[part], None if split.pairs is None else split.pairs[part]
        encoded = tokenizer(texts, pairs, **options) if pairs else _encoded_heads(texts, tokenizer, options)
        types = None if pairs is None else encoded["token_type_ids"]
        given = [list(one) for one in zip(texts, *([] if pairs is None else [pairs]), strict=True)]
        counts = _counted(encoded, given, tokenizer, max_length) if counted else None
        yield Encoded(encoded["input_ids"], types, None, counts)


def _encoded_heads(texts: Sequence[str], tokenizer: Any, options: dict[str, Any]) -> Any:
    """Encode single texts, without the end of long ones, which would be cut off anyway.

    A word between spaces has at least one piece, unless it is all control characters. If a shortened text does not fill
    the length because of that, all texts are encoded in full.
    """
    length = options["max_length"]
    heads = [_head(text, length) for text in texts]
    encoded = tokenizer(heads, **options)
    for at, (head, text) in enumerate(zip(heads, texts, strict=True)):
        if len(head) < len(text) and not encoded[at].overflowing:
            return tokenizer(list(texts), **options)
    return encoded


def _head(text: str, words: int) -> str:
    """Return the text up to the end of its first `words` words."""
    last = next(itertools.islice(re.finditer("[^ ]+", text), words - 1, None), None)
    return text if last is None else text[: last.end()]


def _counted(encoded: Any, given: list[list[str]], tokenizer: Any, max_length: int, words: bool = False) -> Counts:
    """Return the counts. `given` has for each example its text, its text and pair, or its words."""
    rows, unknown = encoded["input_ids"], tokenizer.unk_token_id
    special = tokenizer.num_special_tokens_to_add(pair=not words and len(given[0]) == 2)
    hits = [row.count(unknown) for row in rows]
    return {
        "texts": len(rows),
        # The tokenizer keeps the tokens that it cuts off, so no text is read twice.
        "cut": sum(bool(encoded[at].overflowing) for at, row in enumerate(rows) if len(row) == max_length),
        "pieces": sum(map(len, rows)) - special * len(rows),
        "unknown": sum(hits),
        "examples": _first(
            part for at, parts in enumerate(given) if hits[at] for part in _unknown(encoded[at], parts, unknown, words)
        ),
    }


def _unknown(encoding: Any, parts: list[str], unknown: int, words: bool) -> Iterator[str]:
    """Yield the parts of an example that the tokenizer does not know."""
    places = encoding.word_ids if words else encoding.sequence_ids
    for id_, place, (begin, end) in zip(encoding.ids, places, encoding.offsets, strict=True):
        if id_ == unknown and place is not None:
            yield parts[place][begin:end][:LONGEST_UNKNOWN]


def _first(examples: Iterable[str]) -> list[str]:
    """Return the first SHOWN_UNKNOWN distinct examples."""
    found: dict[str, None] = {}
    for one in examples:
        if one:
            found[one] = None
        if len(found) == SHOWN_UNKNOWN:
            break
    return [*found]


def _summed(parts: list[Counts]) -> Counts:
    return {
        "texts": sum(one["texts"] for one in parts),
        "cut": sum(one["cut"] for one in parts),
        "pieces": sum(one["pieces"] for one in parts),
        "unknown": sum(one["unknown"] for one in parts),
        "examples": _first(example for one in parts for example in one["examples"]),
    }


def _begun(words: list[int | None]) -> list[int]:
    """Return the word that each token begins, or -1. The first token of a word carries its label."""
    return [-1 if word is None or (at and words[at - 1] == word) else word for at, word in enumerate(words)]


def tokenize_here(split: Split, tokenizer: Any, max_length: int) -> Tokens:
    """Return `tokenize` without a cache, with a loaded tokenizer: for texts that are read once."""
    return _laid_out(_encode(split, tokenizer, max_length, counted=False))


def _laid_out(parts: Iterable[Encoded]) -> Tokens:
    made = [(_arrays(part), part.counts) for part in parts]
    whole = {name: np.concatenate([arrays[name] for arrays, _ in made]) for name in (made[0][0] if made else ())}
    lengths, flat = (whole.pop(name, np.zeros(0, np.int32)) for name in ("lengths", "flat"))
    counts = [one for _, one in made if one is not None]
    return Tokens("", flat, _ends(lengths), **whole, counts=_summed(counts) if counts else None)


def _arrays(part: Encoded) -> dict[str, NDArray[Any]]:
    """Return the lengths of a part's texts, and its other lists end to end."""
    found = {"lengths": np.fromiter(map(len, part.ids), np.int32)}
    for name, lists, dtype in (
        ("flat", part.ids, np.int32),
        ("types", part.types, np.int8),
        ("words", part.words, np.int32),
    ):
        if lists is not None:
            found[name] = np.fromiter(itertools.chain.from_iterable(lists), dtype)
    return found


def _ends(lengths: NDArray[np.int32], start: int = 0) -> NDArray[np.int64]:
    """Return (n + 1,) offsets of texts that begin at `start`."""
    return np.concatenate([[start], start + np.cumsum(lengths, dtype=np.int64)])


def _write(folder: Path, parts: Iterable[Encoded]) -> None:
    """Write the tokens part by part, because all of them may need more memory than there is."""
    counts: list[Counts] = []
    with ExitStack() as open_files:

        def begun(name: str, dtype: Any) -> _Growing:
            # with "wb", numpy would write in C and not report why a write failed
            return _Growing(open_files.enter_context((folder / f"{name}.npy").open("w+b")), np.dtype(dtype))

        files = {"offsets": begun("offsets", np.int64), "flat": begun("flat", np.int32)}
        files["offsets"].append(np.zeros(1, np.int64))
        for part in parts:
            arrays = _arrays(part)
            arrays["offsets"] = _ends(arrays.pop("lengths"), files["flat"].size)[1:]
            for name, values in arrays.items():
                if name not in files:
                    files[name] = begun(name, values.dtype)
                files[name].append(values)
            counts += [] if part.counts is None else [part.counts]
        for file in files.values():
            file.finish()
    if counts:
        write_json(folder / "counts.json", _summed(counts))


class _Growing:
    """An array in a .npy file, whose size is known at its end."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any]) -> None:
        self.file, self.dtype, self.size = file, dtype, 0
        self._head()

    def append(self, values: NDArray[Any]) -> None:
        self.file.write(values.astype(self.dtype, copy=False).data)
        self.size += len(values)

    def finish(self) -> None:
        """Write the size into the head. NumPy leaves as much room for it as any size needs."""
        self.file.seek(0)
        self._head()

    def _head(self) -> None:
        about = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.size,)}
        write_array_header_1_0(self.file, about)


def pad_id(folder: Path) -> int:
    """Return the padding id of a model's folder. It is 0 for a word vocabulary, which has no config.json."""
    config = folder / "config.json"
    return (read_json(config).get("pad_token_id") or 0) if config.is_file() else 0
