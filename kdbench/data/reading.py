"""What a file was read as, and which of its rows were left out: nothing about the data is guessed in silence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dropped:
    """Rows that were left out for one reason."""

    reason: str  # "another number of columns than the header"
    rows: int
    first: int  # the first one's line or row in the file, from 1: see Reading.unit


@dataclass(frozen=True)
class Reading:
    """How one file was read."""

    file: str  # as the config names it
    format: str  # csv, tsv, jsonl, json, parquet, xlsx, txt, conll, hub, ...
    separator: str | None = None  # None: the format has none
    encoding: str | None = None  # None: the format says it itself
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()  # what was guessed or merged, each a sentence

    @property
    def unit(self) -> str:
        """What its rows are counted by: a text has lines, a list of objects, a sheet and the hub have rows."""
        return "row" if self.format in ("json", "parquet", "xlsx", "hub") else "line"
