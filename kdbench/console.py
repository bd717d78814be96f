"""What the commands share: printed errors, exit codes, quiet libraries, a bar for downloads."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdbench.errors import UserError, to_stderr
from kdbench.storage.files import Damaged, StoreError


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
