"""compare-runs: the arguments, the order of the rows, and the formats for programs.

The formats for people are in render.py.
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kdbench.compare.collect import Run, join_seeds, read_runs, tfidf_command
from kdbench.compare.render import METRICS, notes, print_markdown, print_terminal
from kdbench.compare.statistics import ROLES, Row, Summary, Table, build_tables

EPILOG = """\
Differences to direct fine-tuning always use every run below ROOT, those of hidden rows too.

examples:
  compare-runs                                        everything below outputs/
  compare-runs outputs/reuters_r52 --metric macro_f1
  compare-runs --method theseus,logit_kd --sort latency
  compare-runs --format csv > runs.csv                scores in points (0-100), full precision

exit codes: 0 a table was printed; 1 there is nothing to compare; 2 the command line is wrong
"""

_Value = Callable[[Row], float | None]
SORT: dict[str, tuple[_Value, bool]] = {  # key of --sort: value, and whether the highest comes first
    "score": (lambda row: row.score.mean, True),
    "difference": (lambda row: _mean(row.differences[0]), True),
    "total-difference": (lambda row: _mean(row.differences[1]), True),
    "gap": (lambda row: row.gap_closed, True),
    "parameters": (lambda row: row.runs[0].parameters, False),
    "latency": (lambda row: row.latency_1, False),
    "speedup": (lambda row: row.speedup, True),
    "seconds": (lambda row: row.seconds, False),
}


def _mean(summary: Summary | None) -> float | None:
    return summary.mean if summary else None


def ordered(rows: list[Row], key: str | None) -> list[Row]:
    """Best first by `key`, rows without it last; without a key by role, then by score. Ties go by name."""
    by_name = sorted(rows, key=lambda row: (row.label, row.settings, row.id))
    if key is None:
        return sorted(by_name, key=lambda row: (ROLES.index(row.role), -row.score.mean))
    value, highest_first = SORT[key]

    def rank(row: Row) -> tuple[bool, float]:
        number = value(row)
        return number is None, (-1 if highest_first else 1) * (number or 0.0)

    return sorted(by_name, key=rank)


def print_csv(tables: list[Table], metric: str, split: str) -> None:
    """All rows in full precision below one line of names, which are also the keys of the JSON."""
    records = [
        {**_about(table), "split": split, "metric": metric, **row.record(), "seeds": _seeds(row)}
        for table in tables
        for row in table.rows
    ]
    writer = csv.DictWriter(sys.stdout, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


def _seeds(row: Row) -> str:
    return " ".join(str(run.seed) for run in row.runs)


def _about(table: Table) -> dict[str, str | int]:
    return {
        "dataset": table.dataset,
        "data_id": table.data_id,
        "data_split": table.data_split,
        "examples": table.examples,
    }


def print_json(tables: list[Table], metric: str, split: str) -> None:
    """One document: all figures, the notes, and the commands for what is missing."""
    found = [
        {
            **_about(table),
            "rows": [row.record() | {"seeds": {run.seed: run.score for run in row.runs}} for row in table.rows],
            "notes": notes(table, split),
            "missing_baselines": join_seeds(table.missing),
            "missing_tfidf": tfidf_command(table.runs),
        }
        for table in tables
    ]
    document = {"schema": 1, "metric": metric, "split": split, "tables": found}
    print(json.dumps(document, indent=2, ensure_ascii=False))


FORMATS = {"table": print_terminal, "csv": print_csv, "json": print_json, "markdown": print_markdown}


def main(argv: list[str] | None = None) -> int:
    """Print the comparison; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # ± in a terminal that has only ASCII
    parser = _parser()
    options = parser.parse_args(argv)
    roots = options.roots or [Path("outputs")]
    if missing := [str(root) for root in options.roots if not root.is_dir()]:
        parser.error(f"no such folder: {', '.join(missing)}; ROOT is outputs or a folder in it")
    runs, warnings = read_runs([root for root in roots if root.is_dir()], options.metric, options.split)
    runs, complaints = _chosen(runs, roots, options.dataset, options.method)
    for line in [*warnings, *complaints]:
        print(f"compare-runs: {line}", file=sys.stderr)
    tables = build_tables(runs, options.method)
    if not tables:
        return 1
    tables = [replace(table, rows=ordered(table.rows, options.sort)) for table in tables]
    try:
        FORMATS[options.format](tables, options.metric, options.split)
        sys.stdout.flush()
    except BrokenPipeError:  # compare-runs | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _chosen(runs: list[Run], roots: list[Path], dataset: str | None, methods: list[str]) -> tuple[list[Run], list[str]]:
    """The runs on the data set that was asked for, and what was asked for but is not there."""
    where = f"below {', '.join(map(str, roots))}"
    if not runs:
        return [], [f"no finished runs {where}: make some with kdbench (kdbench --help says how)"]
    chosen = [run for run in runs if dataset in (None, run.dataset)]
    if not chosen:
        there = ", ".join(sorted({run.dataset for run in runs}))
        return [], [f"no finished run on {dataset} {where}; there are runs on {there}"]
    present = sorted({run.method for run in chosen})
    return chosen, [
        f"no finished run of method {method} {where}; there are runs of {', '.join(present)}"
        for method in methods
        if method not in present
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compare-runs",
        description="Compare finished kdbench runs: one row a configuration, mean ± s.d. over its seeds,\n"
        "against fine-tuning the same small model directly and against the teacher.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("roots", nargs="*", type=Path, metavar="ROOT", help="folders with runs, at any depth (default: outputs)")
    add("--dataset", metavar="NAME", help="only this data set")
    add(
        "--method",
        metavar="A,B",
        default=[],
        type=lambda names: [name for name in names.split(",") if name],
        help="only rows of these methods",
    )
    add("--metric", choices=METRICS, default="accuracy", help="default: accuracy")
    add("--split", choices=("test", "dev"), default="test", help="default: test")
    add("--sort", choices=SORT, help="best first; default: teacher, tfidf, direct baselines, methods by score")
    add("--format", choices=FORMATS, default="table", help="default: table")
    return parser
