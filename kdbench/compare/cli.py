"""compare-runs: read, select, arrange, print. Data goes to stdout, messages go to stderr."""

import argparse
import gc
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdbench.compare import diff, frame, pivot
from kdbench.compare.collect import Run, read_runs
from kdbench.compare.columns import METRICS, Sheet
from kdbench.compare.keys import Wanted
from kdbench.compare.notes import sheets
from kdbench.compare.options import Parser, parser
from kdbench.compare.rows import build_tables, ordered
from kdbench.compare.speed import with_speed
from kdbench.compare.table import Table
from kdbench.console import guarded
from kdbench.errors import UserError
from kdbench.tasks import PROBABILITIES


def main(argv: list[str] | None = None) -> int:
    """Print the comparison and return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # ± in a terminal that has only ASCII
    made = parser()
    options = made.read(argv)
    grouped = options.diff or options.group_by or options.pivot or options.gate
    if missing := [str(root) for root in options.roots if not root.is_dir()]:
        made.error(f"no such folder: {', '.join(missing)}; ROOT is outputs or a folder in it")
    if options.format == "parquet" and sys.stdout.isatty():
        made.error("--format parquet is not text: send it to a file with >")
    if options.format == "html" and grouped:
        made.error("--format html shows the whole comparison: leave out --diff, --gate, --group-by and --pivot")
    if options.show and grouped:
        made.error("--show adds columns to the rows: leave out --diff, --gate, --group-by and --pivot")
    if options.latency and (options.watch or grouped):
        made.error(
            "--latency measures the rows of the table: leave out --watch, --diff, --gate, --group-by and --pivot"
        )
    _check_gate(made, options)
    options.roots = options.roots or [Path("outputs")]
    return guarded("compare-runs", lambda: _watched_or_compared(made, options))


def _check_gate(made: Parser, options: argparse.Namespace) -> None:
    if options.gate is None:
        for name in ("margin", "must_stay"):
            if getattr(options, name) is not None:
                made.error(f"--{name.replace('_', '-')} needs --gate BASE CANDIDATE")
        return
    if options.margin is None:
        made.error("--gate needs --margin POINTS: what the candidate may lose, such as --margin 0.5")
    others = ("watch", "diff", "group_by", "pivot", "best_on_dev", "plots", "sort", "where", "dataset", "method",
              "student", "tag")  # fmt: skip
    if given := [f"--{name.replace('_', '-')}" for name in others if getattr(options, name)]:
        made.error(f"--gate compares the two that it names: leave out {', '.join(given)}")


def _watched_or_compared(made: Parser, options: argparse.Namespace) -> int:
    try:
        if options.watch:
            from kdbench.compare.watch import watch

            return watch(options.roots, options.format == "json")
        if options.gate:
            return _gate(options)
        with _uncollected():
            return _compare(options)
    except UserError as error:
        made.error(error.line)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage: what is read stays until the end, and to look at it took a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _compare(options: argparse.Namespace) -> int:
    wanted = Wanted(_keys(options))
    roots, others = [root for root in options.roots if root.is_dir()], list[Path]()
    named = [] if options.diff else options.dataset
    runs, warnings = read_runs(roots, options.metric, options.split, wanted, others, named)
    wanted.check()
    if options.diff:
        return _diff(options, runs)
    runs, complaints = _chosen(runs, options)
    if not options.quiet:
        from kdbench.compare.watch import unfinished

        _tell(options, *warnings, *complaints, *unfinished(others))
    tables = build_tables(runs, lambda run: _shown(run, options))
    if not tables:
        return 1
    if options.best_on_dev:
        tables = [replace(table, rows=pivot.best_on_dev(table.rows, options.best_on_dev)) for table in tables]
    if options.group_by or options.pivot:
        _pivot(options, tables)
    else:
        _tables(options, tables)
    return 0


def _tell(options: argparse.Namespace, *lines: str) -> None:
    for line in lines if not options.quiet else ():
        print(f"compare-runs: {line}", file=sys.stderr)


def _tables(options: argparse.Namespace, tables: list[Table]) -> None:
    """Print the rows, with their tests and times."""
    from kdbench.compare.testing import with_tests  # numpy

    tables = [with_tests(with_speed(table, options.roots[0], options.latency, options.quiet), options.tests)
              for table in tables]  # fmt: skip
    tables = [
        replace(table, rows=ordered(table.rows, options.sort), shown=tuple(options.show))  # by the shown figures
        for table in tables
    ]
    if options.plots:
        from kdbench.compare.pictures import save  # matplotlib

        _tell(options, f"{len(save(tables, options.plots))} pictures in {options.plots}")
    _tell(options, *(line for table in tables if table.tests for line in table.tests.warnings))
    if options.format == "html":
        from kdbench.compare.page import print_page  # matplotlib

        print_page(tables)
        return
    _print(
        options, lambda: frame.records(tables), lambda: frame.document(tables),
        lambda: [one for table in tables for one in sheets(table)],
    )  # fmt: skip


def _keys(options: argparse.Namespace) -> list[str]:
    """Return all keys on the command line but that of --tag, which is always read."""
    named = [*(options.where.keys if options.where else ()), *(options.best_on_dev or ()), *options.group_by]
    named += [key for key in options.show if key not in {**METRICS, **PROBABILITIES}]
    if options.pivot:
        named += [options.pivot, *([] if options.group_by else ["method"])]
    return named


def _shown(run: Run, options: argparse.Namespace) -> bool:
    for name in ("method", "student", "tag"):
        if (names := getattr(options, name)) and getattr(run, name) not in names:
            return False
    return options.where is None or options.where.holds(run.values)


def _chosen(runs: list[Run], options: argparse.Namespace) -> tuple[list[Run], list[str]]:
    """Return the runs on the chosen data sets, and a message for each selection that fits no run."""
    where = f"below {', '.join(map(str, options.roots))}"
    if not runs:
        return [], [f"no finished runs {where}: make some with kdbench (see kdbench --help)"]
    kept = [run for run in runs if not options.dataset or run.dataset in options.dataset]
    if not kept:
        there = ", ".join(sorted({run.dataset for run in runs}))
        return [], [f"no finished run on {', '.join(options.dataset)} {where}; there are runs on {there}"]
    complaints = []
    for name in ("method", "student", "tag"):
        present = sorted({value for run in kept if (value := getattr(run, name)) is not None})
        there = f"there are runs of {', '.join(present)}" if present else f"no run has a {name}"
        complaints += [
            f"no finished run of {name} {value} {where}; {there}"
            for value in getattr(options, name)
            if value not in present
        ]
    if options.where and not any(options.where.holds(run.values) for run in kept):
        complaints.append(f"--where {options.where.text!r} is true for none of the {len(kept)} runs {where}")
    return kept, complaints


def _diff(options: argparse.Namespace, runs: list[Run]) -> int:
    a, b = (diff.find(name, runs) for name in options.diff)
    found = diff.differences(a, b)
    _print(
        options,
        lambda: diff.records(found),
        lambda: {"a": str(a.parent), "b": str(b.parent), "differences": diff.records(found)},
        lambda: [diff.sheet(a, b, found)],
    )
    return 0


def _gate(options: argparse.Namespace) -> int:
    """Print the verdict. Return its exit code."""
    from kdbench.compare import gate  # numpy

    made, warnings = gate.gate(
        options.gate, options.margin, options.must_stay, options.metric, options.split, options.roots
    )
    _tell(options, *warnings)
    _print(
        options, lambda: gate.records(made), lambda: {"gate": gate.document(made)}, lambda: gate.sheets(made)
    )  # fmt: skip
    return gate.EXIT_CODES[made.verdict]


def _pivot(options: argparse.Namespace, tables: list[Table]) -> None:
    keys = pivot.with_trained_on(tables, options.group_by or ["method"], options.pivot)
    tables = [replace(table, rows=ordered(table.rows, options.sort)) for table in tables]
    found = pivot.groups(tables, keys, options.pivot)
    if len(tables) > 1 and options.pivot != "dataset":
        _tell(options, "each test has its own table: runs on different tests are not mixed")
    _print(
        options,
        lambda: pivot.records(found, keys, options.pivot),
        lambda: {"groups": pivot.records(found, keys, options.pivot)},
        lambda: pivot.sheets(found, keys, options.pivot),
    )


def _print(
    options: argparse.Namespace,
    records: Callable[[], list[dict[str, Any]]],
    document: Callable[[], dict[str, Any]],
    sheets: Callable[[], Sequence[Sheet]],
) -> None:
    """Print the same figures in the chosen format."""
    match options.format:
        case "csv":
            frame.print_csv(records())
        case "json":
            frame.print_json(document())
        case "parquet":
            frame.write_parquet(records())
        case name:
            from kdbench.compare import printing

            shown = list(sheets())
            if options.quiet:
                shown = [replace(one, notes=(), missing=(), legend="") for one in shown]
            {"table": printing.print_terminal, "latex": printing.print_latex, "markdown": printing.print_markdown}[
                name
            ](shown)
    sys.stdout.flush()
