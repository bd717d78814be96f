"""Measure the latency of all models that a command has trained, together, when the command ends.

The runs are finished before this. If the command is killed, they have no times; the same command then finds the runs
and measures them.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import Timeout

from kdbench.errors import UserError
from kdbench.inference.quiet import noise
from kdbench.storage.cache import locked_hidden
from kdbench.storage.provenance import machine
from kdbench.storage.results import Runs, amend_result, read_result
from kdbench.training.progress import show_log

log = logging.getLogger("kdbench")


def at_the_end(runs: Runs) -> None:
    """Measure those `runs` that have no times yet, in turns with all others and their teachers.

    With several processes (torchrun), the first one measures. Runs of another machine are not measured.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    teachers = [teacher for teacher in runs.values() if teacher is not None]
    all_runs = {teacher: teacher for teacher in teachers} | runs  # of a run that was found it may have no times either
    try:
        _fill_in({folder: result for folder in all_runs if (result := read_result(folder)) is not None}, all_runs)
    except UserError as error:  # the runs are finished all the same
        log.warning("no times were measured: %s", error)


def _fill_in(results: dict[Path, dict[str, Any]], runs: Mapping[Path, Path | None]) -> None:
    untimed = [folder for folder, result in results.items() if result["latency"]["when"] is None]
    here = [folder for folder in untimed if results[folder]["machine"] == machine()]
    if not untimed:
        return
    show_log()
    if elsewhere := len(untimed) - len(here):
        log.info(
            "%d runs were made on another machine. To measure their latency here: compare-runs --latency", elsewhere
        )
    if here:
        from kdbench.inference.latency import together  # loads torch

        found = together({folder: runs[folder] for folder in here})
        for folder, latency in found.items():
            _keep(folder, results[folder]["latency"] | latency)
        _announce([*found.values()])


def _announce(found: list[dict[str, Any]]) -> None:
    """Log whether the times are reliable."""
    noisy = [one["load"] for one in found if not one["quiet"]]
    if noisy:
        log.info(
            "the machine was not quiet (%s), so these times are marked with a ?. To measure them again: compare-runs"
            " --latency", noise(noisy[0]),
        )  # fmt: skip


def _keep(folder: Path, latency: dict[str, Any]) -> None:
    try:
        with locked_hidden(folder, timeout=0):
            amend_result(folder, {"latency": latency})
    except Timeout:  # another command does the run again, and will measure it
        log.info("%s: the times were not stored, because another command uses this run", folder)
    except UserError as error:  # another's run, as a teacher may be
        log.warning("%s: the times were not stored: %s", folder, error)
