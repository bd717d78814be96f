"""A job that fails, in a module that a process can import without torch."""

import os
import signal
import time

from kdbench.errors import Code, UserError


def fails(kind: str) -> None:
    if kind == "user":
        raise UserError(Code.MISSING_COLUMN, "no such column")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "slow":
        time.sleep(60)
    raise ValueError("a bug")
