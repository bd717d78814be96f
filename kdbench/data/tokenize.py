"""Token ids of a split, made once and read by memory map: `tokens/<key>/{flat,offsets}.npy` in the cache.

`counts.json` beside them says how many texts were cut and how many pieces are unknown: counted once, too.

Sentence pairs have a third file, `types.npy`: which sentence a token is of; tagged words have `words.npy`: which word a
token is the first of.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from kdbench.data.datasets import Split
from kdbench.data.report import Counts
from kdbench.errors import Code, SourceError
from kdbench.sources.foreign import with_pad_token
from kdbench.storage.cache import cached
from kdbench.storage.files import fitting, read_json, write_json

SHOWN_UNKNOWN, LONGEST_UNKNOWN = 3, 20  # examples of what a tokenizer does not know, and their characters


@dataclass(frozen=True)
class Tokens:
    """Examples of different lengths laid end to end: example i is flat[offsets[i]:offsets[i + 1]]."""

    key: str  # digest of texts, pairs, tokenizer and length
    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]
    types: NDArray[np.int8] | None = None  # of pairs, laid as `flat`: 0 = first sentence, 1 = second
    words: NDArray[np.int32] | None = None  # of tagged words, laid as `flat`: the word that it begins, or -1
    counts: Counts | None = None  # None: of a corpus, whose texts are cut into pieces and not off

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
    return cached_tokens(key, lambda: _encode(split, load_tokenizer(tokenizer_folder), max_length), cache)


class Encoded(NamedTuple):
    """Of some texts in their order, a list each."""

    ids: list[list[int]]
    types: list[list[int]] | None = None
    words: list[list[int]] | None = None
    counts: Counts | None = None


AT_A_TIME = 2000  # texts: a tokenizer holds a hundred times the memory of the ids that come out of it


def cached_tokens(key: str, encode: Callable[[], Iterable[Encoded]], cache: Path) -> Tokens:
    """The tokens stored under `key`; `encode` makes them, part by part, where there are none."""
    folder = cached(cache / "tokens" / key, lambda staged: _write(staged, encode()))
    with fitting(folder):
        # not np.load, which opens zip files and pickles too
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
    """All that decides what the tokenizer in `folder` does."""
    paths = (folder / name for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))
    return b"".join(path.read_bytes() for path in paths if path.is_file())


def load_tokenizer(folder: Path) -> Any:
    """The Hugging Face tokenizer in `folder`. Raises SourceError where its files are none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a parser of eight formats raises at files of others
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
    """Encode single texts, without the far end of long ones, which would be cut off anyway.

    A word, by its spaces, has at least one piece, or none where it is all control characters. Where a shortened text
    does not fill the length after all, all texts are read to their ends.
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
    """`given`: of each example its text, text and pair, or words."""
    rows, unknown = encoded["input_ids"], tokenizer.unk_token_id
    special = tokenizer.num_special_tokens_to_add(pair=not words and len(given[0]) == 2)
    hits = [row.count(unknown) for row in rows]
    return {
        "texts": len(rows),
        # What a text has beyond its greatest length is laid aside by the tokenizer: nothing is read twice.
        "cut": sum(bool(encoded[at].overflowing) for at, row in enumerate(rows) if len(row) == max_length),
        "pieces": sum(map(len, rows)) - special * len(rows),
        "unknown": sum(hits),
        "examples": _first(
            part for at, parts in enumerate(given) if hits[at] for part in _unknown(encoded[at], parts, unknown, words)
        ),
    }


def _unknown(encoding: Any, parts: list[str], unknown: int, words: bool) -> Iterator[str]:
    """What stands in an example where its tokens are unknown."""
    places = encoding.word_ids if words else encoding.sequence_ids
    for id_, place, (begin, end) in zip(encoding.ids, places, encoding.offsets, strict=True):
        if id_ == unknown and place is not None:
            yield parts[place][begin:end][:LONGEST_UNKNOWN]


def _first(examples: Iterable[str]) -> list[str]:
    """The first few of different examples."""
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
    """The word of each token that is a word's first, which carries its label; -1 for all others."""
    return [-1 if word is None or (at and words[at - 1] == word) else word for at, word in enumerate(words)]


def tokenize_here(split: Split, tokenizer: Any, max_length: int) -> Tokens:
    """`tokenize` without a cache and by a tokenizer that is loaded: texts that are asked about once."""
    return _laid_out(_encode(split, tokenizer, max_length, counted=False))


def _laid_out(parts: Iterable[Encoded]) -> Tokens:
    lengths: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
    flat: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
    kinds: list[NDArray[np.int8]] = []
    begun: list[NDArray[np.int32]] = []
    counts: list[Counts] = []
    for ids, types, words, counted in parts:
        lengths.append(np.fromiter(map(len, ids), np.int64))
        flat.append(np.fromiter(itertools.chain.from_iterable(ids), np.int32))
        if types is not None:
            kinds.append(np.fromiter(itertools.chain.from_iterable(types), np.int8))
        if words is not None:
            begun.append(np.fromiter(itertools.chain.from_iterable(words), np.int32))
        if counted is not None:
            counts.append(counted)
    offsets = np.concatenate(lengths).cumsum()
    whole = (np.concatenate(kinds) if kinds else None, np.concatenate(begun) if begun else None)
    return Tokens("", np.concatenate(flat), offsets, *whole, _summed(counts) if counts else None)


def _write(folder: Path, parts: Iterable[Encoded]) -> None:
    tokens = _laid_out(parts)
    if tokens.counts is not None:
        write_json(folder / "counts.json", tokens.counts)
    for name in ("offsets", "flat", "types", "words"):
        array = getattr(tokens, name)
        if array is not None:
            # not "wb": numpy would write that in C, and not say why the system refused
            with (folder / f"{name}.npy").open("w+b") as file:
                np.save(file, array)


def pad_id(folder: Path) -> int:
    """Of a model's folder; of a word vocabulary, which has no config.json, it is 0."""
    config = folder / "config.json"
    return (read_json(config).get("pad_token_id") or 0) if config.is_file() else 0
