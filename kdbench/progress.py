"""What a person sees while a stage trains: a bar on a terminal, a plain line an epoch anywhere else."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kdbench.stopping import Pruned, Stopped

log = logging.getLogger("kdbench")
console = Console()


class _ToConsole(logging.Handler):
    """Log lines above the progress bar; plain text, whatever brackets they hold."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class _ToStderr(logging.Handler):
    """For commands whose stdout is data."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def show_log(on_stderr: bool = False) -> None:
    """Send the log's lines to the console, or to stderr."""
    hide_log()
    log.addHandler(_ToStderr() if on_stderr else _ToConsole())
    log.setLevel(logging.INFO)
    log.propagate = False


def hide_log() -> None:
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, _ToConsole | _ToStderr)]


class _ToFile(logging.FileHandler):
    """A line that cannot be written is left out: on a full disk the run itself will say so."""

    def handleError(self, record: logging.LogRecord) -> None: ...


@contextmanager
def logged_to(path: Path, writes: bool) -> Iterator[None]:
    """Copy the log to a run's run.log, with the time of each line."""
    if not writes:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _ToFile(path, encoding="utf8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    except (Stopped, Pruned) as stopped:
        handler.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, "%s", (stopped,), None))
        raise
    except BaseException as error:  # for who reads the file later; the console is told at the end
        words = f"{type(error).__name__}: {error}".partition("\n")[0]
        handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "failed: %s", (words,), None))
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


class Display:
    """Progress of one run's stages; `examples` is the number of examples of one optimiser step."""

    def __init__(self, console: Console, examples_per_step: int) -> None:
        self.console, self.examples = console, examples_per_step
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.stage, self.steps, self.step, self.since = "", 0, 0, 0.0

    def start(self, stage: str, steps: int, step: int) -> None:
        self.stage, self.steps, self.step, self.since = stage, steps, step, time.perf_counter()
        begun = f"resumes at step {step}" if step else f"{steps} steps"
        log.info("stage %s: %s", stage, begun)
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[losses]}"),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task(stage, total=steps, completed=step, rate="", losses="")
            self.bar.start()

    def advance(self, step: int, losses: dict[str, float]) -> None:
        now = time.perf_counter()
        rate = (step - self.step) * self.examples / (now - self.since)
        self.step, self.since = step, now
        if self.bar is not None:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self.bar.update(self.task, completed=step, rate=f"{rate:.0f} examples/s", losses=shown)

    def epoch(self, epoch: int, dev: dict[str, dict[str, float]], metric: str, means: dict[str, float]) -> None:
        scores = "  ".join(f"{name} {100 * metrics[metric]:.2f}" for name, metrics in dev.items())
        shown = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        log.info(
            "  %s epoch %d, step %d/%d: %s%s",
            self.stage, epoch + 1, self.step, self.steps, f"dev {metric} {scores} | " if dev else "", shown,
        )  # fmt: skip
        self.since = time.perf_counter()

    def finish(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
