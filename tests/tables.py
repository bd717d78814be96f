"""Read one file as kdbench reads the file of a split."""

from pathlib import Path

from kdbench.data import readers, tables
from kdbench.schema import DatasetConfig


def read_table(path: Path, config: DatasetConfig) -> readers.Rows:
    return readers._rows({"train": tables.read(path, config)}, config)["train"]
