"""Read the texts and labels of a data set's splits from tables or from the Hugging Face hub."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.data import tables
from kdbench.data.tables import Reading, Table
from kdbench.errors import Code, SourceError
from kdbench.schema import DatasetConfig
from kdbench.sources import files
from kdbench.sources.fetch import Source, ask_hub, hub_commit, parse
from kdbench.sources.sources import check_source, existing, fetched, table_files
from kdbench.storage.cache import cached
from kdbench.tasks import kind, traits
from kdbench.tasks.cells import Label, LabelCells, ReadLabels, text_of


@dataclass(frozen=True)
class Rows:
    """The rows of a split."""

    texts: list[str]
    pairs: list[str] | None  # second sentences; None: single sentences
    labels: list[Label]
    lines: Sequence[int]  # where each row begins in its file, from 1: see tables.Reading.unit
    reading: Reading  # of the split's file
    names: list[str] | None = None  # of the classes, if the source declares them


def read_splits(config: DatasetConfig, cache: Path) -> dict[str, Rows]:
    """Return the splits that the source has, in the order train, dev, test. Train is always there.

    Raises SourceError if a source, file, split or column is missing or cannot be read.
    """
    source = check_source(config, "dataset")
    names = table_files(config)
    if names is None:
        return _read_hub(config, cache)
    local = source.kind == "path"
    root = Path(source.name) if local else fetched(config, source, list(names.values()), cache, "dataset")
    return _rows({split: tables.read(existing(root, split, name), config) for split, name in names.items()}, config)


def read_texts(path: Path, column: str, encoding: str) -> list[str]:
    """Return a column of a table without labels or, if `column` is empty, the lines of a text file."""
    if not column:
        with files.opened(path) as (_, file):
            return files.text(path, file.read(), encoding).splitlines()
    table = tables.read(path, DatasetConfig(text=column, label=column, encoding=encoding))
    return [text_of(value, "text", where, False) for value, where in _cells(table, column).places()]


def _read_hub(config: DatasetConfig, cache: Path) -> dict[str, Rows]:
    """Read a hub repository, or a local folder in the hub's format."""
    import datasets

    datasets.disable_progress_bars()
    source = parse(config.source)
    if source.kind == "path":
        found = _load(str(Path(source.name).absolute()), config, cache)
    else:
        found = _load_once(source, config, cache)
    read = {}
    declared: list[str] | None = None
    for split, name in vars(config.splits).items():
        if name is None:
            continue
        if name not in found:
            raise SourceError(
                Code.MISSING_COLUMN,
                f"dataset.splits.{split}={name}: {config.source} has the splits {', '.join(found)}.",
            )
        read[split], declared = _hub_table(found[name], f"{config.source}, split {name}", config)
    return _rows(read, config, declared)


def _load(path: str, config: DatasetConfig, cache: Path, revision: str | None = None, key: str | None = None) -> Any:
    """Return a datasets.DatasetDict. The library reads configurations in the README and features in the files.

    `key` names the source in messages; None: by `dataset.source` and `dataset.subset`.
    """
    import datasets
    from huggingface_hub.errors import HTTPError

    try:
        # The README counts all rows, but a local copy may lack splits.
        return datasets.load_dataset(
            path,
            config.subset,
            revision=revision,
            cache_dir=str(cache / "datasets"),
            verification_mode="no_checks",
        )
    except (ValueError, OSError, HTTPError, datasets.exceptions.DatasetsError) as error:
        key = key or f"dataset.source={config.source} dataset.subset={config.subset}"
        raise SourceError(
            Code.UNREADABLE_TABLE, f"{key} cannot be read: {' '.join(str(error).strip().splitlines()[:2])}"
        ) from error


def _load_once(source: Source, config: DatasetConfig, cache: Path, key: str | None = None) -> Any:
    """Load a repository from our cache, because load_dataset retries for 23 s if there is no network."""
    import datasets

    commit = hub_commit(source, "dataset", cache)
    final = cache / "hub_datasets" / f"{source.name}@{commit}--{config.subset}".replace("/", "--")

    def fill(staged: Path) -> None:
        ask_hub(source, "dataset")  # fails at once without a network, and names alternatives
        _load(source.name, config, cache, commit, key).save_to_disk(staged)

    return datasets.load_from_disk(cached(final, fill))


def hub_split(config: DatasetConfig, source: Source, cache: Path) -> Any:
    """Return a split of a hub repository without labels; `source.version` is <revision>:<split>. Raises SourceError."""
    revision, _, split = source.version.rpartition(":")
    place = Source("hub", source.name, revision)
    own = parse(config.source)
    subset = config.subset if (own.kind, own.name) == ("hub", source.name) else None
    key = f"dataset.unlabelled={config.unlabelled}"
    found = _load_once(place, replace(config, subset=subset), cache, key)
    if split not in found:
        raise SourceError(Code.MISSING_COLUMN, f"{key}: {source.name} has the splits {', '.join(found)}.")
    for column in (config.text, config.text_pair):
        if column is not None and column not in found[split].column_names:
            there = ", ".join(found[split].column_names)
            raise SourceError(Code.MISSING_COLUMN, f"{key}: has no column {column}; it has {there}.")
    return found[split]


def _hub_table(table: Any, where: str, config: DatasetConfig) -> tuple[Table, list[str] | None]:
    """Return a split of a hub repository, and the names of the classes if the repository declares them."""
    import datasets

    tables.require(where, table.column_names, config)
    reading = Reading(where, "hub")
    lines = range(1, len(table) + 1)
    feature = None if isinstance(config.label, list) else table.features[config.label]
    if isinstance(feature, datasets.List):  # multi-label, or labels of words
        feature = feature.feature
    numbers = traits(config.task).numbers
    names = feature.names if isinstance(feature, datasets.ClassLabel) and not numbers else None

    def column(name: str) -> list[Any]:
        return [_named(label, names) for label in table[name]] if names and name == config.label else list(table[name])

    return Table(table.column_names, column, lines, reading), names


def _named(label: Any, names: list[str]) -> str | list[str] | None:
    """Return the names for a row's class numbers, None if one is missing. -1 is the hub's mark of a hidden label."""
    numbers = label if isinstance(label, list) else [label]
    if any(number is None or number < 0 for number in numbers):
        return None
    named = [names[number] for number in numbers]
    return named if isinstance(label, list) else named[0]


def _rows(found: dict[str, Table], config: DatasetConfig, names: list[str] | None = None) -> dict[str, Rows]:
    """Return the rows of each split's table. `names`: of the classes, if the source declares them."""
    labels = _labels(found, config, names)
    words = traits(config.task).words
    rows = {}
    for split, table in found.items():
        texts = [text_of(value, "text", where, words) for value, where in _cells(table, config.text).places()]
        pairs = None
        if config.text_pair is not None:
            cells = _cells(table, config.text_pair).places()
            pairs = [text_of(value, "text_pair", where, False) for value, where in cells]
        reading = replace(table.reading, notes=(*table.reading.notes, *labels[split].notes))
        declared = list(config.label) if isinstance(config.label, list) else names
        rows[split] = Rows(texts, pairs, labels[split].labels, table.lines, reading, declared)
    return rows


def _labels(found: dict[str, Table], config: DatasetConfig, names: list[str] | None) -> dict[str, ReadLabels]:
    splits = found.values()
    if isinstance(config.label, list):
        read = kind(config.task).read_columns([{name: _cells(one, name) for name in config.label} for one in splits])
    elif names is None:
        read = kind(config.task).read([_cells(one, config.label) for one in splits])
    else:  # the source has names of its own
        read = [ReadLabels(list(one.column(config.label)), []) for one in splits]
    return dict(zip(found, read, strict=True))


def _cells(table: Table, name: str) -> LabelCells:
    return LabelCells(f"{table.reading.file}, {table.reading.unit}", table.lines, table.column(name))
