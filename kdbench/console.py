"""What the commands share: their parsers, printed errors, exit codes, quiet libraries, bars."""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdbench.errors import UserError, to_stderr
from kdbench.storage.files import Damaged, StoreError

A_LINE_EVERY = 60  # seconds


def command(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Return the parser of a command, which takes no abbreviated options and prints the epilog as it is."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(name, None, description, epilog, formatter_class=raw, allow_abbrev=False)


def obey(parser: argparse.ArgumentParser, argv: list[str] | None, do: Callable[[argparse.Namespace], int]) -> int:
    """Read the words of a command and do what they ask for. Return the exit code."""
    options = parser.parse_args(argv)
    return guarded(parser.prog, lambda: do(options))


def sayer(name: str, quiet: bool) -> Callable[[str], None]:
    """Return what prints a command's messages on stderr, or nothing if it is to be quiet."""
    return lambda line: None if quiet else print(f"{name}: {line}", file=sys.stderr)


def guarded(name: str, do: Callable[[], int]) -> int:
    """Return the exit code of `do`: 1 if a stored file is damaged or cannot be written, 2 if the command is wrong."""
    try:
        code = do()
        sys.stdout.flush()
        return code
    except UserError as error:
        from rich.text import Text

        to_stderr().print(Text.assemble((f"{name}: ", "bold"), error.line), soft_wrap=True)
        return 1 if isinstance(error, (Damaged, StoreError)) else 2
    except BrokenPipeError:  # kdbench --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def quiet_libraries() -> None:
    """Hide the progress bars and warnings of transformers; unused and missing heads are expected."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def size_bar(title: str, total: int, folder: Path) -> Iterator[None]:
    """Show on a terminal, while the block works, how the files below `folder` grow to `total` bytes; else nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console()
    if not console.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn())
    ended = threading.Event()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)

        def follow() -> None:
            while not ended.wait(0.2):
                bar.update(task, completed=min(_size(folder), total))  # pip copies what it has downloaded

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


@contextmanager
def text_bar(title: str, total: int | None, shown: bool = True) -> Iterator[Callable[[int, bool], None]]:
    """Show on stderr how many texts are done, and how many a second: a bar on a terminal, else a line a minute.

    Yields what must get the number of texts that are done, and whether they were done before. Texts of before do not
    count in the rate. `total` may be unknown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    rate = TextColumn("{task.fields[rate]}")
    left = TimeRemainingColumn()
    with Progress(
        *columns, rate, left, console=console, transient=True, disable=not (shown and console.is_terminal),
        speed_estimate_period=3600,  # seconds: a batch of a large model takes longer than the usual 30
    ) as bar:  # fmt: skip
        task = bar.add_task(title, total=total, rate="")
        began = said = time.monotonic()
        done = new = 0

        def told(texts: int, before: bool) -> None:
            nonlocal done, new, said
            done, new, now = done + texts, new + (0 if before else texts), time.monotonic()
            rate = f"{new / max(now - began, 1e-9):,.0f} texts/s" if new else ""
            bar.update(task, completed=done, rate=rate)
            if shown and not console.is_terminal and now - said > A_LINE_EVERY:
                said = now
                of = "" if total is None else f" of {total:,}"
                print(f"{title}: {done:,}{of} texts, {rate}", file=sys.stderr)

        yield told


def _size(folder: Path) -> int:
    """Return the bytes of all files below `folder`, which another process writes and removes."""
    size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:
                continue
    return size
