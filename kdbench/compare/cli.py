"""compare-runs: read, select, arrange, print. Data goes to stdout, words about it to stderr."""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdbench.compare import diff, frame, pivot, speed
from kdbench.compare.collect import Run, read_runs
from kdbench.compare.columns import Sheet
from kdbench.compare.keys import UnknownKeyError, Wanted
from kdbench.compare.load import with_tests
from kdbench.compare.notes import sheet
from kdbench.compare.options import Parser, ordered, parser
from kdbench.compare.rows import build_tables
from kdbench.compare.speed import with_speed
from kdbench.compare.table import Table
from kdbench.console import guarded
from kdbench.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Print the comparison; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # ± in a terminal that has only ASCII
    made = parser()
    options = made.read(argv)
    if missing := [str(root) for root in options.roots if not root.is_dir()]:
        made.error(f"no such folder: {', '.join(missing)}; ROOT is outputs or a folder in it")
    if options.format == "parquet" and sys.stdout.isatty():
        made.error("--format parquet is no text: send it to a file with >")
    if options.format == "html" and (options.diff or options.group_by or options.pivot):
        made.error("--format html is the whole comparison: leave out --diff, --group-by and --pivot")
    if options.latency and (options.watch or options.diff or options.group_by or options.pivot):
        made.error("--latency measures the rows of the table: leave out --watch, --diff, --group-by and --pivot")
    options.roots = options.roots or [Path("outputs")]
    return guarded("compare-runs", lambda: _watched_or_compared(made, options))


def _watched_or_compared(made: Parser, options: argparse.Namespace) -> int:
    try:
        if options.watch:
            from kdbench.compare.watch import watch

            return watch(options.roots, options.format == "json")
        return _compare(options)
    except (UnknownKeyError, diff.NotARunError, UserError) as error:
        made.error(str(error))


def _compare(options: argparse.Namespace) -> int:
    wanted = Wanted(_keys(options))
    runs, warnings = read_runs([root for root in options.roots if root.is_dir()], options.metric, options.split, wanted)
    wanted.check()
    if options.diff:
        return _diff(options, runs)
    runs, complaints = chosen(runs, options)
    if not options.quiet:
        from kdbench.compare.watch import unfinished

        for line in [*warnings, *complaints, *unfinished(options.roots)]:
            print(f"compare-runs: {line}", file=sys.stderr)
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


def _tables(options: argparse.Namespace, tables: list[Table]) -> None:
    """Print the rows, with tests and times where they were asked for."""
    tables = [with_speed(table, options.roots[0], options.latency, options.quiet) for table in tables]
    tables = [with_tests(table, table.metric, options.split, options.tests) for table in tables]
    tables = [replace(table, rows=ordered(table.rows, options.sort)) for table in tables]  # by what is shown
    if options.plots:
        from kdbench.compare.pictures import save  # matplotlib

        files = save(tables, options.split, options.plots)
        if not options.quiet:
            print(f"compare-runs: {len(files)} pictures in {options.plots}", file=sys.stderr)
    if not options.quiet:
        for line in (line for table in tables if table.tests for line in table.tests.warnings):
            print(f"compare-runs: {line}", file=sys.stderr)
    if options.format == "html":
        from kdbench.compare.page import print_page  # matplotlib

        print_page(tables, options.split)
        return
    _print(
        options,
        lambda: frame.records(tables, options.split),
        lambda: frame.document(tables, options.split),
        lambda: _sheets(tables, options),
    )


def _sheets(tables: list[Table], options: argparse.Namespace) -> Sequence[Sheet]:
    """The table, and below it its tests and its times."""
    found = []
    for table in tables:
        found.append(sheet(table, table.metric, options.split))
        if table.tests and table.tests.count:
            from kdbench.compare import certainty

            found.append(certainty.sheet(table))
        if table.session:
            found.append(speed.sheet(table))
    return found


def _keys(options: argparse.Namespace) -> list[str]:
    """All keys that the command line names; --tag needs none, it is always read."""
    named = [*(options.where.keys if options.where else ()), *(options.best_on_dev or ()), *options.group_by]
    if options.pivot:
        named += [options.pivot, *([] if options.group_by else ["method"])]
    return named


def _shown(run: Run, options: argparse.Namespace) -> bool:
    asked = ((options.method, run.method), (options.student, run.student), (options.tag, run.tag))
    if any(names and value not in names for names, value in asked):
        return False
    return options.where is None or options.where.holds(run.values)


def chosen(runs: list[Run], options: argparse.Namespace) -> tuple[list[Run], list[str]]:
    """The runs on the data sets that were asked for, and what was asked for but is not there."""
    where = f"below {', '.join(map(str, options.roots))}"
    if not runs:
        return [], [f"no finished runs {where}: make some with kdbench (kdbench --help says how)"]
    kept = [run for run in runs if not options.dataset or run.dataset in options.dataset]
    if not kept:
        there = ", ".join(sorted({run.dataset for run in runs}))
        return [], [f"no finished run on {', '.join(options.dataset)} {where}; there are runs on {there}"]
    complaints = []
    for name in ("method", "student", "tag"):
        present = sorted({str(value) for run in kept if (value := _of(run, name)) is not None})
        there = f"there are runs of {', '.join(present)}" if present else f"no run has a {name}"
        complaints += [
            f"no finished run of {name} {value} {where}; {there}"
            for value in getattr(options, name)
            if value not in present
        ]
    if options.where and not any(options.where.holds(run.values) for run in kept):
        complaints.append(f"--where {options.where.text!r} is true of none of the {len(kept)} runs {where}")
    return kept, complaints


def _of(run: Run, name: str) -> str | None:
    return {"method": run.method, "student": run.student, "tag": run.tag}[name]


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


def _pivot(options: argparse.Namespace, tables: list[Table]) -> None:
    keys = options.group_by or ["method"]
    tables = [replace(table, rows=ordered(table.rows, options.sort)) for table in tables]
    found = pivot.groups(tables, keys, options.pivot)
    if not options.quiet and len(tables) > 1 and options.pivot != "dataset":
        print("compare-runs: different data is not mixed: a table each", file=sys.stderr)
    arguments = (keys, options.pivot, options.split)
    _print(
        options,
        lambda: pivot.records(found, *arguments),
        lambda: {"groups": pivot.records(found, *arguments)},
        lambda: pivot.sheets(found, *arguments),
    )


def _print(
    options: argparse.Namespace,
    records: Callable[[], list[dict[str, Any]]],
    document: Callable[[], dict[str, Any]],
    sheets: Callable[[], Sequence[Sheet]],
) -> None:
    """The same figures in the format that was asked for."""
    match options.format:
        case "csv":
            frame.print_csv(records())
        case "json":
            frame.print_json(document())
        case "parquet":
            frame.write_parquet(records())
        case name:
            shown = list(sheets())
            if options.quiet:
                shown = [replace(one, notes=(), missing=(), legend="") for one in shown]
            if name == "table":
                from kdbench.compare.terminal import print_terminal

                print_terminal(shown)
            else:
                from kdbench.compare import documents

                (documents.print_latex if name == "latex" else documents.print_markdown)(shown)
    sys.stdout.flush()
