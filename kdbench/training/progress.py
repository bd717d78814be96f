"""Show the progress of a stage: a bar on a terminal, otherwise a plain line per epoch."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from kdbench.storage.status import StatusFile
from kdbench.training.interrupts import Pruned, Stopped

log = logging.getLogger("kdbench")
console = Console()
ESTIMATED_AFTER = 10  # steps of a stage
WORTH_A_LINE = 20  # seconds
ONCE = {"once": True}  # `extra` of a log line that each handler writes once, however often it comes
_shown: set[str] = set()  # of these, what the console has: all runs of a command share it


class _Once(logging.Filter):
    def __init__(self, seen: set[str]) -> None:
        super().__init__()
        self.seen = seen

    def filter(self, record: logging.LogRecord) -> bool:
        if "once" not in record.__dict__:
            return True
        text = record.getMessage()
        new = text not in self.seen
        self.seen.add(text)
        return new


class _ToConsole(logging.Handler):
    """Prints log lines above the progress bar, as plain text: brackets are not markup."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class _ToStderr(logging.Handler):
    """Prints log lines to stderr, for commands whose stdout is data."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def show_log(on_stderr: bool = False) -> None:
    """Send the log to the console, or to stderr."""
    hide_log()
    handler = _ToStderr() if on_stderr else _ToConsole()
    handler.addFilter(_Once(_shown))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def hide_log() -> None:
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, _ToConsole | _ToStderr)]


class _ToFile(logging.FileHandler):
    """Skips a line that cannot be written: on a full disk the run itself reports the error."""

    def handleError(self, record: logging.LogRecord) -> None: ...


@contextmanager
def logged_to(path: Path, writes: bool) -> Iterator[None]:
    """Copy the log to a run's run.log, with the time of each line."""
    if not writes:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _ToFile(path, encoding="utf8")
    handler.addFilter(_Once(set()))
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
    """Shows the progress of one run's stages, and writes it to `status.json`; `examples` is per optimiser step.

    kdbench estimates the remaining time itself, because rich forgets updates older than 30 s: if ten steps take
    longer, it has no estimate. Here there is at most one update per second or step, and the last 1000 are kept.
    """

    def __init__(
        self,
        console: Console,
        examples_per_step: int,
        status: StatusFile,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.console, self.examples, self.status, self.clock = console, examples_per_step, status, clock
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.stage, self.steps, self.first, self.step, self.since = "", 0, 0, 0, 0.0
        self.taken_at: deque[tuple[float, int]] = deque(maxlen=1000)  # (time, step), from the first step's end on

    def start(self, stage: str, steps: int, step: int, epoch: int) -> None:
        """Begin a stage of which `step` steps and `epoch` epochs are already done."""
        self.stage, self.steps, self.first, self.step, self.since = stage, steps, step, step, self.clock()
        self.taken_at.clear()
        begun = f"resumes at step {step} of {steps}" if step else f"{steps} steps"
        log.info("stage %s: %s", stage, begun)
        self.status.begin_stage(stage, steps, step, epoch)
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[losses]}"),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task(stage, total=steps, completed=step, rate="", left="", losses="")
            self.bar.start()

    def taken(self, step: int) -> None:
        """Note a step, at most one per second; after ten steps, log how long the stage will take."""
        now, tenth = self.clock(), step - self.first == ESTIMATED_AFTER
        if self.taken_at and now - self.taken_at[-1][0] < 1 and not tenth:
            return
        self.taken_at.append((now, step))
        if self.bar is not None:
            self.bar.update(self.task, completed=step, left=self.left())
        self.status.tell(step=step, seconds_left=self.seconds_left())
        if tenth and (left := self.left(WORTH_A_LINE)):
            log.info("  %s: %s", self.stage, left)

    def left(self, least: float = 0) -> str:
        """Return the stage's remaining time in words; empty if it is unknown or below `least` seconds."""
        seconds = self.seconds_left() or 0
        return f"{in_words(seconds)} left" if seconds > least else ""

    def seconds_left(self) -> float | None:
        """Return the stage's remaining seconds at its pace so far; None if there is no pace yet."""
        (begun, first), (now, step) = self.taken_at[0], self.taken_at[-1]
        return (now - begun) / (step - first) * (self.steps - step) if step > first else None

    def advance(self, step: int, losses: dict[str, float]) -> None:
        now = self.clock()
        rate = (step - self.step) * self.examples / (now - self.since)
        self.step, self.since = step, now
        if self.bar is not None:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self.bar.update(self.task, rate=f"{rate:.0f} examples/s", losses=shown)
        self.status.tell(step=step, losses=losses)

    def epoch(self, epoch: int, dev: dict[str, dict[str, float]], metric: str, means: dict[str, float]) -> None:
        self.taken_at.append((self.clock(), self.step))  # the time of an evaluation counts, too
        # A single score needs no name: it is that of the model which the run trains.
        scores = "  ".join(f"{f'{name} ' * (len(dev) > 1)}{100 * one[metric]:.2f}" for name, one in dev.items())
        shown = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        parts = [f"dev {metric} {scores}" if dev else "", shown, self.left(WORTH_A_LINE)]
        place = f"{self.stage} epoch {epoch + 1}, step {self.step}/{self.steps}"
        log.info("  %s: %s", place, " | ".join(part for part in parts if part))
        score = next(iter(dev.values()))[metric] if dev else None
        self.status.tell(now=True, epoch=epoch + 1, dev_score=score, seconds_left=self.seconds_left())
        self.since = self.clock()

    def finish(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def in_words(seconds: float) -> str:
    """Return a rough duration: `about 40 s`, `about 12 min`, `about 3.5 h`."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} h"
