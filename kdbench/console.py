"""What commands share: faults in words, exit codes, quiet libraries."""

import os
import sys
from collections.abc import Callable

from kdbench.errors import UserError, to_stderr
from kdbench.storage.files import Damaged, StoreError


def guarded(name: str, do: Callable[[], int]) -> int:
    """The exit code of `do`: 1 where something stored is damaged or cannot be written, 2 where the command is wrong."""
    try:
        code = do()
        sys.stdout.flush()
        return code
    except UserError as error:
        from rich.text import Text

        to_stderr().print(Text.assemble((f"{name}: ", "bold"), str(error)), soft_wrap=True)
        return 1 if isinstance(error, (Damaged, StoreError)) else 2
    except BrokenPipeError:  # kdbench --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def quiet_libraries() -> None:
    """Bars and advice of transformers are no answer of ours; heads that are unused or missing are expected."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
