"""The study's evidence: the CSV files in docs/study. The page, the pictures and the verdicts follow from them alone.

<question>.csv        one row for each configuration: figures, seeds, runs, config digest, commits, machine
<question>_<name>.csv what the runs report or log themselves: one line for each run, epoch, speed or layer
times.csv             every latency that the tables ever had, by measurement

An empty cell is unknown or does not apply. Figures have six significant digits. Rows of one table come from one tree of
outputs: they were tested and timed together. A table stays until new outputs have all of its runs (`with_kept`).
"""

import csv
import json
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from scripts.study.plan import Plan, data_of, place, place_of_words

Record = dict[str, Any]

FIGURES = (  # of a row, from compare-runs
    "dataset", "data_id", "examples", "role", "method", "student", "form", "best_on_dev_of",
    "score_n", "score_points", "score_sd_points", "score_low_points", "score_high_points",
    "difference_n", "difference_points", "difference_low_points", "difference_high_points", "difference_p",
    "total_difference_n", "total_difference_points", "total_difference_low_points", "total_difference_high_points",
    "total_difference_p", "gap_closed", "gap_closed_low", "gap_closed_high", "dev_score_points",
    "parameters", "bytes", "flops_per_example", "latency_batch_1_ms", "latency_batch_32_ms", "speedup",
    "training_seconds", "teacher_seconds", "general_seconds", "precision", "device", "threads", "machine", "dirty",
)  # fmt: skip
COLUMNS = (
    "row", *FIGURES, "correction", "max_train_samples", "kept", "config_digest", "seeds", "scores_points", "runs",
    "commits",
)  # fmt: skip
TIMES = ("data", "machine", "measurement", "row", "latency_batch_1_ms")
DETAILS = {  # question -> name -> columns
    "theseus": {
        "runs": ("data", "row", "seed", "predecessor_dev_points", "graft_dev_points", "successor_dev_points",
                 "replacing_best_dev_points", "second_stage_steps", "second_stage_best_step"),
        "epochs": ("data", "row", "seed", "step", "least_drawn", "successor_dev_points", "hybrid_dev_points"),
    },
    "fastbert": {
        "speeds": ("data", "row", "seed", "speed", "n", "accuracy", "lost", "gained", "mean_exit_layer",
                   "mean_exit_layer_hard", "exit_shares", "mean_flops", "latency_batch_1_ms", "latency_batch_32_ms"),
        "layers": ("data", "row", "seed", "layer", "points", "share_of_last", "break_even_share"),
    },
}  # fmt: skip
TEXT = {
    "row", "dataset", "data_id", "role", "method", "student", "form", "precision", "device", "threads", "machine",
    "dirty", "correction", "kept", "config_digest", "seeds", "scores_points", "runs", "commits", "data", "exit_shares",
    "question", "id", "commit", "answers", "when", "quiet",
}  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """All that the CSV files say."""

    documents: dict[str, Record]  # question -> its rows and details
    times: list[Record]

    def rows(self, question: str, data: str) -> list[Record]:
        """Return the rows of a question on one data set, named as in pages. Raises LookupError if it has none."""
        found = [row for row in self.documents[question]["rows"] if data_of(row) == data]
        if not found:
            raise LookupError(f"{question}.csv has no rows of {data}")
        return found

    def row(self, question: str, name: str, data: str) -> Record:
        """Return one row. Raises LookupError where there is none."""
        for row in self.rows(question, data):
            if row["row"] == name:
                return row
        raise LookupError(f"{question}.csv has no row {name} of {data}")

    def details(self, question: str, name: str, data: str) -> list[Record]:
        """Return what the runs report on one data set. Raises LookupError if there is nothing."""
        found = [one for one in self.documents[question]["details"][name] if one["data"] == data]
        if not found:
            raise LookupError(f"{question}_{name}.csv has no lines of {data}")
        return found

    def not_run(self, plan: Plan) -> list[int]:
        """Return for each step of the plan how many of its new runs no table has."""
        rows = [row for document in self.documents.values() for row in document["rows"] if not row["form"]]
        done = {(row["row"], place_of(row), int(seed)) for row in rows for seed in row["seeds"].split()}
        return [
            sum((plan.name_of(words), place_of_words(words), seed) not in done for words, seed in runs)
            for runs in plan.new_runs
        ]


def read(folder: Path, questions: Iterable[str]) -> Evidence:
    """Read all tables. A file that does not exist has no rows."""
    documents = {
        question: {
            "rows": read_csv(folder / f"{question}.csv"),
            "details": {name: read_csv(folder / f"{question}_{name}.csv") for name in DETAILS.get(question, {})},
        }
        for question in questions
    }
    return Evidence(documents, read_csv(folder / "times.csv"))


def write_question(folder: Path, question: str, document: Record) -> None:
    write_csv(folder / f"{question}.csv", COLUMNS, document["rows"])
    for name, columns in DETAILS.get(question, {}).items():
        write_csv(folder / f"{question}_{name}.csv", columns, document["details"][name])


def read_csv(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    with path.open(encoding="utf8", newline="") as file:
        return [{name: value_of(name, text) for name, text in line.items()} for line in csv.DictReader(file)]


def write_csv(path: Path, columns: Sequence[str], records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([text_of(record[name]) for name in columns] for record in records)


def value_of(name: str, text: str) -> Any:
    if not text:
        return None
    return text if name in TEXT else json.loads(text)


def text_of(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"
    return str(value)


def with_kept(made: Record, before: Record, done: Set[str]) -> Record:
    """Return the new tables, and those of before whose runs are not all `done`.

    A new table that adds no run of its own to a kept one is left out. A kept table beside a new one of the same data
    gets the name of its machine: rows of the two may not be compared. `done` has the folders of the runs that exist.
    """
    new, old = split(made), split(before)
    kept = {data: table for data, table in old.items() if not runs(table) <= done}
    chosen = {
        data: table
        for data, table in new.items()
        if not any(own_runs(table) <= runs(one) for one in kept.values() if place_of(one["rows"][0]) == data)
    }
    for data, table in kept.items():
        named = data not in chosen  # it has its machine's name already, or stands alone
        one = table if named else renamed(table, {*old, *new})
        chosen[data_of(one["rows"][0])] = one
    every = [chosen[data] for data in sorted(chosen)]
    return {
        "rows": [row for table in every for row in table["rows"]],
        "details": {name: [one for table in every for one in table["details"].get(name, [])]
                    for name in made["details"]},
    }  # fmt: skip


def split(document: Record) -> dict[str, Record]:
    """Return the rows and details of each table, by the name of its data."""
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
    """Return the runs without those that every table has."""
    return runs({"rows": [row for row in table["rows"] if row["row"] not in ("teacher", "tfidf")]})


def place_of(row: Record) -> str:
    """Return the name of a row's data as if no other table of the same data stood beside it."""
    return place(row["dataset"], row["max_train_samples"])


def renamed(table: Record, taken: set[str]) -> Record:
    """Return a table with its machine's name, numbered where another has that name. Old runs do not know theirs."""
    rows = table["rows"]
    known = [row["machine"] for row in rows if row["machine"] != "unknown"]
    machine = (known or ["unknown"])[0].partition(",")[0]
    names = (machine if at == 1 else f"{machine} {at}" for at in count(1))
    name = next(name for name in names if f"{place_of(rows[0])}, {name}" not in taken)
    rows = [row | {"kept": name} for row in rows]
    details = {
        kind: [one | {"data": data_of(rows[0])} for one in records] for kind, records in table["details"].items()
    }
    return {"rows": rows, "details": details}


def with_times(evidence: Evidence) -> list[Record]:
    """Return the known times and those of the tables: in their measurement if it is known, else in a new one."""
    known = list(evidence.times)
    now: dict[tuple[str, str], dict[str, float]] = {}
    for table in (table for document in evidence.documents.values() for table in split(document).values()):
        machines = [row["machine"] for row in table["rows"] if row["machine"] != "unknown"]
        own = now.setdefault((place_of(table["rows"][0]), machines[0] if machines else "unknown"), {})
        for row in table["rows"]:
            if row["latency_batch_1_ms"] is not None and not row["form"] and row["row"] != "tfidf":
                own[row["row"]] = round(row["latency_batch_1_ms"], 3)
    for (data, machine), found in now.items():
        sessions: dict[int, dict[str, float]] = {}
        for one in known:
            if (one["data"], one["machine"]) == (data, machine):
                sessions.setdefault(one["measurement"], {})[one["row"]] = one["latency_batch_1_ms"]
        same = [at for at, session in sessions.items() if all(session.get(row, ms) == ms for row, ms in found.items())]
        at = same[-1] if same else len(sessions) + 1
        new = [row for row in found if row not in sessions.get(at, {})]
        known += [dict(zip(TIMES, (data, machine, at, row, found[row]), strict=True)) for row in new]
    return sorted(known, key=lambda one: (one["data"], one["machine"], one["measurement"]))
