"""What the commands share: printed errors, exit codes, quiet libraries."""

import os
import sys
from collections.abc import Callable

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
