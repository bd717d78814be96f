"""What the study has from outputs that are gone, of another machine: a table stays until a new one has all its runs.

Rows of one table are of one tree of outputs, tested and timed together: beside a new table of the same data the kept
one has its machine's name, and no row goes from the one into the other.
"""

import json
import re
from collections.abc import Set
from itertools import count
from pathlib import Path
from typing import Any

from scripts.study.plan import data_of, place

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


def with_kept(made: Record, before: Record, done: Set[str]) -> Record:
    """`made` without the tables that bring nothing new, and of `before` those with runs that are not `done`.

    `done`: the folders of runs that the outputs have. `made` may leave some of them out.
    """
    new, old = tables(made), tables(before)
    kept = {data: table for data, table in old.items() if not runs(table) <= done}
    chosen = {
        data: table
        for data, table in new.items()
        if not any(own_runs(table) <= runs(one) for one in kept.values() if place_of(one) == data)
    }
    for data, table in kept.items():
        named = data not in chosen  # by its machine already, or there is no other table of its data
        one = table if named else renamed(table, {*old, *new})
        chosen[data_of(one["rows"][0])] = one
    every = [chosen[data] for data in sorted(chosen)]
    return made | {
        "rows": [row for table in every for row in table["rows"]],
        "details": {
            name: [one for table in every for one in table["details"].get(name, [])] for name in made["details"]
        },
    }


def tables(document: Record) -> dict[str, Record]:
    """The rows and details of each table, by its name."""
    found: dict[str, Record] = {}
    for row in document["rows"]:
        found.setdefault(data_of(row), {"rows": [], "details": {}})["rows"].append(row)
    for name, records in document["details"].items():
        for one in records:
            found[one["data"]]["details"].setdefault(name, []).append(one)
    return found


def runs(table: Record) -> set[str]:
    return {folder for row in table["rows"] for folder in row["runs"].split()}


def own_runs(table: Record) -> set[str]:
    """But for what every table has."""
    return runs({"rows": [row for row in table["rows"] if row["row"] not in ("teacher", "tfidf")]})


def place_of(table: Record) -> str:
    """What the table is called that has no other of its data beside it."""
    return place(table["rows"][0]["dataset"], table["rows"][0]["max_train_samples"])


def renamed(table: Record, taken: set[str]) -> Record:
    """By its machine, numbered where there is another of that name; runs of long ago do not tell theirs."""
    known = [row["machine"] for row in table["rows"] if row["machine"] != "unknown"]
    machine = (known or ["unknown"])[0].partition(",")[0]
    names = (machine if at == 1 else f"{machine} {at}" for at in count(1))
    name = next(name for name in names if f"{place_of(table)}, {name}" not in taken)
    rows = [row | {"kept": name} for row in table["rows"]]
    details = {
        kind: [one | {"data": data_of(rows[0])} for one in records] for kind, records in table["details"].items()
    }
    return {"rows": rows, "details": details}
