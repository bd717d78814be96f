"""One job of a command: do its run, and report to the command how it ended."""

import os
import shlex
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kdbench.cli import sweep
from kdbench.errors import Code, Fault, SettingError, SourceError, UserError
from kdbench.schema import RunConfig
from kdbench.sources.fetch import parse
from kdbench.training import interrupts
from kdbench.training.interrupts import Pruned, Stopped
from kdbench.validation.fit import KEEPS_NONE
from kdbench.validation.load import load
from kdbench.validation.values import faults


def do(
    cfg: DictConfig,
    number: int | None,
    overrides: list[str],
    choices: dict[str, str],
    baseline_command: Callable[[RunConfig], str],
) -> None:
    """Do the run of `cfg`, the job `number` of a sweep (None: the only job).

    A failure is reported at the end, so that the other jobs go on. Raises Stopped if the command itself was stopped.
    """
    keys = [text.partition("=")[0] for text in overrides]
    job = sweep.Job(number or 0, "")
    job.label = " ".join(text for text, key in zip(overrides, keys, strict=True) if key in job.sweep.swept)
    if job.sweep.elsewhere:
        os.environ["TTY_COMPATIBLE"] = "0"  # makes rich print lines, not bars: several processes share the terminal
    if not job.begin():
        return
    if number is not None:
        print(f"[{number + 1}/{job.sweep.jobs}] {job.label}", flush=True)
    try:
        config, result = _run(cfg, job, choices, baseline_command)
    except Pruned as pruned:
        job.tell("pruned", str(pruned))
    except Stopped as stopped:
        job.tell("stopped", str(stopped), stopped.exit_code)
        if not job.sweep.elsewhere:
            raise
    except Exception as error:
        job.tell("failed", reason_of(error), 2 if isinstance(error, SourceError) else 1)
    else:
        looked = config.dry_run or config.inspect  # such a job makes no run
        job.tell("done", "" if looked else next_commands(config, Path(result["folder"])))


def _run(
    cfg: DictConfig, job: sweep.Job, choices: dict[str, str], baseline_command: Callable[[RunConfig], str]
) -> tuple[RunConfig, dict[str, Any]]:
    from kdbench.runs.execute import execute  # loads torch

    if job.sweep.elsewhere:
        interrupts.refuse_late(cfg.get("stop_after"))
    trial = None
    if sweep.TRIAL in os.environ:
        from kdbench.cli.search import of_this_job  # optuna

        trial = of_this_job()
    if trial is not None and (found := faults(cfg)):  # combinations of values are not checked before a search
        first, *others = found
        raise UserError(first.code, "\n".join([first.text, *map(str, others)]))
    if trial is not None and cfg.get("inspect"):
        raise UserError(
            Code.CONFLICTING_OPTIONS,
            "inspect=true has no dev score to search with: leave out hydra/sweeper=optuna",
        )
    typed = shlex.join(["kdbench", *job.sweep.argv])
    watch = None if trial is None else trial.watch
    config = load(cfg)
    result = execute(
        config, choices=choices, command=typed, baseline_command=baseline_command, watch=watch, runs=job.runs
    )
    if trial is not None:
        trial.done(result)
    return config, result


def bad_answers(jobs: Sequence[DictConfig]) -> list[Fault]:
    """Return what is wrong with the answers in the teachers' files of a sweep, so that it is told before the first job.

    Each is checked as its job would check it. What cannot be read for another reason is left to the jobs.
    """
    found: list[Fault] = []
    if not jobs:
        return found
    from kdbench.runs.related import uses_unlabelled
    from kdbench.runs.texts import Inputs  # loads torch

    seen = set()
    for config in map(load, jobs):
        asked = (asdict(config.dataset), asdict(config.teacher), sorted(config.method.asks), uses_unlabelled(config))
        if not config.method.reads_teacher or repr(asked) in seen:
            continue
        seen.add(repr(asked))
        try:
            Inputs(config).require_answers()
        except SettingError as error:
            if error.key.startswith("teacher."):
                found.append(Fault(error.code, error.key, error.value, error.problem))
        except UserError:
            continue
    return list(dict.fromkeys(found))


def next_commands(config: RunConfig, folder: Path) -> str:
    """Return commands for what may come after a finished run."""
    commands = {"compare": ["compare-runs", config.outputs]}
    if config.phase == "task" and config.method.name not in KEEPS_NONE:
        form = "--int8" if "encoder" in config.method.needs else "--onnx"  # int8 is not supported for TF-IDF
        commands["export"] = ["kdbench-export", str(folder), form]
        commands["predict"] = ["kdbench-predict", str(folder), "--text", "..."]
    if parse(config.dataset.source).kind != "path":
        own = ["dataset=files", "dataset.source=your.csv", "dataset.name=yours"]
        commands["your own data"] = ["kdbench", f"method={config.method.name}", *own]
    return "\n".join(["next:", *(f"  {what:14}{shlex.join(words)}" for what, words in commands.items())])


def reason_of(error: Exception) -> str:
    """Return the reason of a failed job. Print the traceback of an unexpected error."""
    if isinstance(error, UserError):
        return error.line
    traceback.print_exception(error)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
