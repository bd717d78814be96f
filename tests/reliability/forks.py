"""Processes forked from this one, which has torch loaded: a death costs a second and not ten."""

import ctypes
import os
import signal
import time
import traceback
from collections.abc import Callable


def forked(work: Callable[[], object]) -> int:
    """A process that does `work`; its exit status is 0 if that ended well, or what it exited with."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def kill_after(seconds: float) -> None:
    """The kernel sends this process SIGKILL when it has used so much CPU time: a busy machine moves nothing."""
    libc, timer = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p()
    event = (ctypes.c_int * 16)(0, 0, signal.SIGKILL)  # struct sigevent: a value of two ints, then the signal
    when = (ctypes.c_long * 4)(0, 0, int(seconds), int(seconds % 1 * 1e9))  # struct itimerspec: once
    made = libc.timer_create(time.CLOCK_PROCESS_CPUTIME_ID, event, ctypes.byref(timer))
    if made or libc.timer_settime(timer, 0, when, None):
        raise OSError(ctypes.get_errno(), "no timer")
