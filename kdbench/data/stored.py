"""Keep the splits of a data set in the cache, `splits/<key>/{train,dev,test}.arrow`, and read their texts from there.

The source is read and checked once. Later runs do not hold the texts in memory, but read them from disk when needed.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdbench.data.columns import stored_columns
from kdbench.data.datasets import Split, TextData, load_dataset
from kdbench.schema import DatasetConfig
from kdbench.sources.fetch import kept_commit, parse
from kdbench.sources.sources import dataset_identity
from kdbench.storage.cache import cached
from kdbench.storage.files import MANIFEST, fitting, read_json, verify, write_json
from kdbench.tasks import kind
from kdbench.tasks.arrays import plain

_ROWS = 1000  # of a record batch, which is in memory at a time
_SPLITS = ("train", "dev", "test")


def stored_dataset(config: DatasetConfig, cache: Path) -> TextData:
    """Return the result of `load_dataset`, from the cache if it is there. Raises SourceError."""
    folder = cached(_folder(config, cache), lambda staged: _write(staged, load_dataset(config, cache)))
    with fitting(folder):
        about = read_json(folder / "data.json")
        train, dev, test = (_split(folder / f"{name}.arrow", config.task) for name in _SPLITS)
        names, test_is = about.pop("label_names"), about.pop("test_is")
        return TextData(about["name"], names, train, dev, test, test_is, about)


def kept_split(config: DatasetConfig, cache: Path, split: str) -> Split | None:
    """Return a split of `stored_dataset` if the cache has it, else None. Nothing is fetched or written.

    Raises SourceError if a local source is missing, Damaged or Misfit if a cached file has changed.
    """
    source = parse(config.source)
    if source.kind == "hub" and kept_commit(source, "dataset", cache) is None:
        return None
    folder = _folder(config, cache)
    if not folder.is_dir():
        return None
    verify(folder / MANIFEST, [f"{split}.arrow"])
    with fitting(folder):
        return _split(folder / f"{split}.arrow", config.task)


def dataset_key(config: DatasetConfig, cache: Path) -> str:
    """Return a digest of all that decides the splits."""
    # of runs, of how the content is fetched, and of another folder
    others = ("epochs", "max_length", "parts", "unpacked_bytes", "unlabelled", "max_unlabelled_samples", "language")
    chosen = {key: value for key, value in asdict(config).items() if key not in others}
    content = {"schema": 4, "config": chosen, "content": dataset_identity(config, cache)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _folder(config: DatasetConfig, cache: Path) -> Path:
    return cache / "splits" / dataset_key(config, cache)


def _write(folder: Path, data: TextData) -> None:
    for name in _SPLITS:
        split: Split = getattr(data, name)
        columns: dict[str, Any] = {"id": split.ids, "label": plain(split.labels), "text": split.texts}
        if split.pairs is not None:
            columns["pair"] = split.pairs
        table = pa.table(columns)
        with pa.ipc.new_file(folder / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=_ROWS)
    write_json(folder / "data.json", {"label_names": data.label_names, "test_is": data.test_is, **data.report})


def _split(path: Path, task: str) -> Split:
    table, texts = stored_columns(path)
    ids = table["id"].to_numpy().copy()  # a copy, because torch needs writable arrays
    return Split(ids, texts["text"], kind(task).stored(table["label"]), texts.get("pair"))
