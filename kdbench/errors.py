"""What went wrong, said to a person."""

import difflib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

LONGEST_VALUE = 60


class UserError(Exception):
    """A fault that its message explains: it is printed alone, without a traceback."""


class SourceError(UserError, ValueError):
    """A source that is malformed, out of reach or not what it should be, in one or two lines for the user."""


class SettingError(SourceError):
    """A source that is wrong by the value of one key."""

    def __init__(self, key: str, value: str, problem: str) -> None:
        super().__init__(f"{key}={value}: {problem}")
        self.key, self.value, self.problem = key, value, problem


class Fault(NamedTuple):
    """One thing that is wrong with a command, before anything has run."""

    key: str  # in full
    value: str | None  # as given; None where none was
    problem: str
    nearest: str = ""  # the legal spelling that was probably meant
    legal: str = ""  # all legal spellings, in words

    @property
    def subject(self) -> str:
        return self.key if self.value is None else f"{self.key}={self.value}"

    def __str__(self) -> str:
        hint = f". Did you mean {self.nearest}?" if self.nearest else ""
        gap = "" if not self.legal else " " if hint else ". "
        return f"{self.subject}: {self.problem}{hint}{gap}{self.legal}"


def shown(value: Any) -> str:
    """`value` as it would be typed, shortened where it is long."""
    if isinstance(value, dict):
        text = "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list):
        text = "[" + ",".join(map(shown, value)) + "]"
    elif value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    else:
        text = str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known word that `word` was probably meant to be, or an empty string."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), "")


def to_stderr() -> "Console":
    """Coloured on a terminal (unless NO_COLOR is set); whole lines, to search in, for a pipe."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 10_000)


def print_faults(faults: list[Fault]) -> None:
    """Print a refusal: a line for each fault, and what is legal below it where that is a list."""
    from rich.padding import Padding
    from rich.text import Text

    console = to_stderr()
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    console.print(Text.assemble(("kdbench: ", "bold"), f"{count}, nothing was run"))
    for fault in faults:
        line = Text.assemble((fault.subject, "bold red"), f": {fault.problem}")
        if fault.nearest:
            line.append(". Did you mean ").append(fault.nearest, "bold green").append("?")
        console.print(Padding(line, (0, 0, 0, 2), expand=False))
        if fault.legal:
            console.print(Padding(Text(fault.legal, "dim"), (0, 0, 0, 6), expand=False))


def print_failures(failures: list[tuple[str, str]], jobs: int) -> None:
    """Print the jobs that failed, each as (overrides, reason); a single run's overrides are known."""
    from rich.text import Text

    console = to_stderr()
    if jobs > 1 and failures:
        console.print(Text.assemble(("kdbench: ", "bold"), f"{len(failures)} of {jobs} jobs failed"))
    for label, reason in failures:
        name = (f"  {label}", "bold red") if jobs > 1 else ("kdbench", "bold")
        console.print(Text.assemble(name, ": ", reason.replace("\n", "\n    ")))
