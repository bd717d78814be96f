"""Read the texts without labels that a student learns from its teacher on (`dataset.unlabelled`): its transfer set.

Blank texts, repeats, texts of train, and copies of dev and test texts are dropped and counted. Two texts are equal if
they are after `normalised`. Near copies have a Jaccard index of NEAR or more of their sets of character 5-grams (Lee et
al. 2022, section 4.2, with 5-grams of words). MinHash finds the candidates, and the sets themselves decide.

The source is read twice, and is never in memory as a whole: 8 bytes a text are. The texts that remain are kept in the
cache, `unlabelled/<key>/{texts.arrow,about.json}`, and are read from there when they are needed.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdbench.data.columns import stored_columns
from kdbench.data.datasets import Split, TextData
from kdbench.data.raw import texts
from kdbench.data.readers import hub_split
from kdbench.data.report import UnlabelledReport
from kdbench.data.stored import dataset_key, stored_dataset
from kdbench.errors import Code, SettingError, SourceError
from kdbench.schema import DatasetConfig
from kdbench.sources.sources import check_unlabelled, unlabelled_files, unlabelled_identity
from kdbench.storage.cache import cached
from kdbench.storage.files import fitting, read_json, write_json
from kdbench.tasks import kind, traits

_LIMIT = 5  # the number of this draw, beside those in datasets.py
_FIRST = 1 << 40  # the id of a file's first text, above all numbers of rows
_ROWS = 1000  # of a record batch
_GRAM = 5  # characters
NEAR = 0.8  # Lee et al. 2022, section 4.2
_SOUGHT = 0.7  # at which MinHash looks for candidates: below NEAR, because it estimates
_PERMUTATIONS = 128
_URL = re.compile(r"(https?://|www\.)\S+")

Given = tuple[str, ...]  # a text, or text and pair


class Unlabelled(NamedTuple):
    split: Split  # its labels are placeholders
    report: UnlabelledReport


def stored_unlabelled(config: DatasetConfig, data: TextData, cache: Path) -> Unlabelled:
    """Return the texts without labels, from the cache if they are there. Raises SourceError.

    `data` is the data set of `config`.
    """
    what = {"schema": 1, "data": dataset_key(config, cache), "unlabelled": unlabelled_identity(config, cache)}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    folder = cached(cache / "unlabelled" / key, lambda staged: _write(staged, config, data, cache))
    with fitting(folder):
        table, texts = stored_columns(folder / "texts.arrow")
        ids = table["id"].to_numpy().copy()
        tagged, train = data.train.tagged, data.train.labels
        unknown = kind(config.task).unknown
        labels = unknown(texts["text"]) if tagged else np.zeros((len(ids), *train.shape[1:]), train.dtype)
        split = Split(ids, texts["text"], labels, texts.get("pair"), np.zeros(len(ids), np.bool_))
        # The texts may lie elsewhere than when they were read.
        return Unlabelled(split, read_json(folder / "about.json") | {"source": str(config.unlabelled)})


def _write(folder: Path, config: DatasetConfig, data: TextData, cache: Path) -> None:
    ids, given_texts = _source(config, data, cache)
    keys = np.fromiter((_key(given) for given in given_texts()), np.uint64)
    if not len(keys):
        raise SourceError(Code.TOO_FEW_ROWS, f"dataset.unlabelled={config.unlabelled} is empty.")
    kept = keys != _BLANK
    dropped = {"blank": int((~kept).sum())}
    first = np.zeros(len(keys), np.bool_)
    first[np.unique(keys, return_index=True)[1]] = True
    dropped["repeated"] = int((kept & ~first).sum())
    kept &= first
    for name, splits in (("in_train", [data.train]), ("in_dev_or_test", [data.dev, data.test])):
        held = np.fromiter((_key(given) for split in splits for given in split.inputs), np.uint64)
        found = kept & np.isin(keys, held)
        dropped[name] = int(found.sum())
        kept &= ~found
    if config.max_unlabelled_samples is not None:
        rows = np.flatnonzero(kept)
        drawn = np.random.default_rng([config.split_seed, _LIMIT]).permutation(len(rows))
        kept[rows[drawn[config.max_unlabelled_samples :]]] = False
    near = _NearCopies([*data.dev.inputs, *data.test.inputs] if kept.any() else [])
    digest = hashlib.sha256()
    count = 0
    columns = ["text"] if config.text_pair is None else ["text", "pair"]
    schema = pa.schema([("id", pa.int64()), *((name, pa.string()) for name in columns)])
    numbers = range(_FIRST, _FIRST + len(keys)) if ids is None else map(int, ids)
    left = (one for one in compress(zip(numbers, given_texts(), strict=False), kept) if not near.holds(one[1]))
    with pa.ipc.new_file(folder / "texts.arrow", schema) as writer:
        while part := list(islice(left, _ROWS)):
            count += len(part)
            for _, given in part:
                digest.update(hashlib.sha256("\0".join(given).encode()).digest())
            writer.write_table(
                pa.table([[number for number, _ in part], *zip(*(given for _, given in part), strict=True)], schema)
            )
    dropped["near_dev_or_test"] = int(kept.sum()) - count
    if not count:
        told = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in dropped.items() if number)
        raise SourceError(
            Code.TOO_FEW_ROWS, f"dataset.unlabelled={config.unlabelled} has no text that can be used: {told}."
        )
    report = {"rows": count, "read": len(keys), "dropped": dropped, "sha256": digest.hexdigest()}
    write_json(folder / "about.json", report)


def _source(
    config: DatasetConfig, data: TextData, cache: Path
) -> tuple[NDArray[np.int64] | None, Callable[[], Iterator[Given]]]:
    """Return the ids of the texts (None: they are numbered), and what reads them from the beginning."""
    source = check_unlabelled(config)
    if source is None:
        whole = stored_dataset(replace(config, max_train_samples=None), cache).train
        rest = whole.take(np.flatnonzero(~np.isin(whole.ids, data.train.ids)))
        return rest.ids, lambda: iter(rest.inputs)
    columns = [name for name in (config.text, config.text_pair) if name is not None]
    if source.kind == "hub":
        table = hub_split(config, source, cache)
        return None, lambda: _of_hub(table, columns)
    files, words = unlabelled_files(config), traits(config.task).words

    def read() -> Iterator[Given]:
        try:
            for given in chain.from_iterable(texts(path, config) for path in files):
                yield (" ".join(given[0].split()),) if words else given
        except SourceError as error:
            # dataset.encoding is also that of the labelled files: to change it may spoil them.
            coded = "it must be in UTF-8, or in the encoding of the labelled files (dataset.encoding). To convert a "
            coded += "Windows file: iconv -f cp1252 -t utf-8, a Chinese one: -f gb18030"
            problem = coded if error.code == Code.WRONG_ENCODING else str(error)
            raise SettingError(error.code, "dataset.unlabelled", str(config.unlabelled), problem) from error

    return None, read


def _of_hub(table: Any, columns: Sequence[str]) -> Iterator[Given]:
    for batch in table.select_columns(columns).iter(_ROWS):
        for cells in zip(*(batch[name] for name in columns), strict=True):
            yield tuple(
                "" if cell is None else " ".join(cell) if isinstance(cell, list) else str(cell) for cell in cells
            )


# --- what counts as the same text

_BLANK = 0


def normalised(text: str) -> str:
    """Return a text without what makes no other text of it: case, kinds of space, digits, addresses of pages."""
    return " ".join(re.sub(r"\d+", "0", _URL.sub(" url ", text.casefold())).split())


def _key(given: Given) -> int:
    """Return 64 bits that stand for a normalised text; _BLANK for a blank one."""
    parts = [normalised(text) for text in given]
    if not any(parts):
        return _BLANK
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "little") or 1


def _grams(given: Given) -> set[bytes]:
    text = "\0".join(normalised(one) for one in given)
    return {text[at : at + _GRAM].encode() for at in range(max(1, len(text) - _GRAM + 1))}


class _NearCopies:
    """Find texts that nearly are one of `held`."""

    def __init__(self, held: Sequence[Given]) -> None:
        from datasketch import MinHash, MinHashLSH  # scipy: not for a cached set

        self.held = held
        self.empty = MinHash(num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)  # its permutations are drawn once
        self.index = MinHashLSH(threshold=_SOUGHT, num_perm=_PERMUTATIONS)
        with self.index.insertion_session() as session:
            for number, given in enumerate(held):
                session.insert(number, self._sketch(_grams(given)), check_duplication=False)

    def holds(self, given: Given) -> bool:
        grams = _grams(given)
        for number in self.index.query(self._sketch(grams)):
            other = _grams(self.held[number])
            if len(grams & other) >= NEAR * len(grams | other):
                return True
        return False

    def _sketch(self, grams: set[bytes]) -> Any:
        made = self.empty.copy()
        made.update_batch([*grams])
        return made
