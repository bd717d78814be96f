"""The columns that a data set asks for, and those that its files have."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from kdbench.schema import DatasetConfig
from kdbench.sources.fetch import SourceError
from kdbench.sources.sources import TAGGED


def require_columns(where: Path | str, there: Iterable[str], config: DatasetConfig) -> list[str]:
    """The columns that are read; SourceError where one is missing."""
    for key, name, problem in missing_columns(where, there, config):
        raise SourceError(f"dataset.{key}={name}: {problem}")
    return list(_wanted(config).values())


def missing_columns(where: Path | str, there: Iterable[str], config: DatasetConfig) -> Iterator[tuple[str, str, str]]:
    """(key below `dataset`, its value, what is wrong) of each column that is asked for and not there."""
    names = list(there)
    for key, name in _wanted(config).items():
        if name not in names:
            yield key, name, f"{where} has no such column; it has {', '.join(names)}."


def _wanted(config: DatasetConfig) -> dict[str, str]:
    wanted = {"text": config.text, "text_pair": config.text_pair, "label": config.label}
    return {key: name for key, name in wanted.items() if name is not None}


def columns_at_start(path: Path, encoding: str) -> list[str] | None:
    """The columns of a table by its first lines; None where these do not tell."""
    ending = path.suffix.lower()
    try:
        if ending in TAGGED:
            return None  # they have no header
        if ending == ".parquet":
            import pyarrow.parquet

            return list(pyarrow.parquet.read_schema(path).names)
        with path.open(encoding=encoding.replace("utf-8", "utf-8-sig"), errors="replace", newline="") as file:
            start = file.read(1 << 16)
        if ending == ".jsonl":
            return list(json.loads(start.partition("\n")[0]))
        header = next(csv.reader(io.StringIO(start), delimiter="," if ending == ".csv" else "\t"))
    except (
        OSError,
        LookupError,
        ValueError,
        TypeError,
        StopIteration,
        csv.Error,
    ):  # reading it all will say what it is
        return None
    return [name.strip() for name in header] or None
