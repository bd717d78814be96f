"""Do jobs in processes of their own, which have torch loaded already, can be stopped, and leave nothing behind."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from kdbench.cli.compose import composing
from kdbench.errors import UserError
from kdbench.schema import RunConfig
from kdbench.storage.results import EXPORT

_PRELOADED = ["torch", "transformers", "kdbench.runs.execute", "kdbench.shipping.export", "kdbench.best.work"]
_GRACE = 20.0  # seconds that a job has to save after SIGTERM


class Ended(NamedTuple):
    """How a job ended: what it returned, or why it did not."""

    found: Any = None
    problem: str | None = None  # in words
    code: str | None = None  # of the mistake that it found: the name of a Code
    stopped: bool = False  # at its time limit


def configured(words: tuple[str, ...]) -> tuple[RunConfig, dict[str, str]]:
    """Return the config of a run and the choices of its groups. Raises UserError for the first fault."""
    from kdbench.cli.command import judge
    from kdbench.validation.load import load

    with composing(None) as configs:
        command = judge(configs, [*words], [*words], multirun=False)
        if command.faults:
            raise UserError(command.faults[0].code, command.faults[0].text)
        composed = configs.compose(tuple(command.words))
    return load(composed.cfg), composed.choices


def run(words: tuple[str, ...]) -> Path | None:
    """Do a run of kdbench, as its command does. Return its folder, or None if it failed or was stopped."""
    from kdbench.cli.main import entry
    from kdbench.runs.execute import run_folder
    from kdbench.training.hardware import settle

    config, _ = configured(words)
    folder = run_folder(config, settle(config.hardware))
    sys.argv = ["kdbench", *words]
    return None if entry() else folder


def export(folder: Path) -> Path:
    """Write and measure the other forms of a finished run: ONNX, and int8 if it has that form."""
    from kdbench.inference.finished_run import open_run
    from kdbench.models import students
    from kdbench.schema import ExportConfig
    from kdbench.shipping.export import export_run, has_export

    wanted = ExportConfig(onnx=True, int8=not students.folder_traits(open_run(folder).model).no_int8)
    return folder / EXPORT if has_export(folder, wanted) else export_run(folder, wanted)


class Workers:
    """Starts one job at a time, and ends it if the command itself is stopped."""

    def __init__(self) -> None:
        self.log: Path | None = None  # gets what the jobs print
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_PRELOADED)

    def do(
        self, job: Callable[..., Any], *given: Any, seconds: float, meanwhile: Callable[[], None] = lambda: None
    ) -> Ended:
        """Return how `job(*given)` ended, which gets SIGTERM after `seconds`. `meanwhile` is called while it works."""
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_work, args=(sender, self.log, job, given))
        process.start()
        sender.close()
        began, stopped = time.monotonic(), False
        try:
            while not receiver.poll(0.2):
                meanwhile()
                if not stopped and time.monotonic() - began > seconds:
                    stopped = True
                    process.terminate()
                elif stopped and time.monotonic() - began > seconds + _GRACE:
                    process.kill()
            ended: Ended = receiver.recv()
        except EOFError:  # it was killed
            process.join()
            ended = Ended(problem=f"its process ended with {process.exitcode}")
        except BaseException:
            process.terminate()
            process.join(_GRACE)
            process.kill()
            raise
        process.join()
        return ended._replace(stopped=stopped and ended.found is None)


def _work(sender: Connection, log: Path | None, job: Callable[..., Any], given: tuple[Any, ...]) -> None:
    """Do the job in this process, with its output in `log`, and send how it ended."""
    os.setpgrp()  # Ctrl-C in the terminal is for the command, which stops this process itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    try:
        ended = Ended(found=job(*given))
    except UserError as error:
        ended = Ended(problem=str(error), code=error.code.name)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        ended = Ended(problem=f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    sender.send(ended)
