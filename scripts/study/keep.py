"""What the study has from outputs that are gone, of another machine: a table stays until a new one has all its runs.

Figures of one table are of one tree of outputs, whose rows were tested and timed together: tables are never mixed.
"""

import json
import re
from pathlib import Path
from typing import Any

from scripts.study.plan import data_of

Record = dict[str, Any]
RUN = re.compile(r"-(\w+)/seed(\d+)$")  # of a run's folder: its content id and its seed


def written(folder: Path) -> dict[str, Record]:
    """Question -> what its JSON has."""
    files = {path.stem: path for path in folder.glob("*.json")}
    return {question: json.loads(path.read_text(encoding="utf8")) for question, path in files.items()}


def done_before(documents: dict[str, Record]) -> set[tuple[str, int]]:
    """Id and seed of every run that the documents have a row of."""
    rows = [row for document in documents.values() for row in document["rows"]]
    found = [RUN.search(folder) for row in rows for folder in row["runs"].split()]
    return {(match[1], int(match[2])) for match in found if match}  # an export's run has a row of its own


def with_kept(made: Record, before: Record) -> Record:
    """`made`, but for the places of which `before` has a run that it lacks: of these, what `before` has."""
    chosen = {place: made if runs(made, place) >= runs(before, place) else before for place in places(made, before)}
    return made | {
        "rows": [row for place, of in chosen.items() for row in of["rows"] if data_of(row) == place],
        "details": {
            name: [one for place, of in chosen.items() for one in of["details"].get(name, []) if one["data"] == place]
            for name in made["details"]
        },
    }


def places(*documents: Record) -> list[str]:
    return sorted({data_of(row) for document in documents for row in document["rows"]})


def runs(document: Record, place: str) -> set[str]:
    return {folder for row in document["rows"] if data_of(row) == place for folder in row["runs"].split()}
