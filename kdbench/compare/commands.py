"""The commands that make what a table lacks."""

import re
from collections.abc import Iterable

from kdbench.compare.collect import Run

SEED = re.compile(r"(?<=\s)seed=\S+(?!.*\sseed=)", re.DOTALL)  # the last one: a quoted word may hold another


def join_seeds(commands: Iterable[str]) -> list[str]:
    """One command a configuration: `... seed=0` and `... seed=1` become `kdbench -m ... seed=0,1`."""
    seeds: dict[tuple[str, str], set[str]] = {}
    for command in commands:
        found = SEED.search(command)
        cut = found.span() if found else (len(command), len(command))
        seeds.setdefault((command[: cut[0]], command[cut[1] :]), set()).add(command[slice(*cut)][5:])
    joined = []
    for (before, after), values in sorted(seeds.items()):
        if len(values) > 1:
            before = before.replace("kdbench ", "kdbench -m ", 1)
        seed = f"seed={','.join(sorted(values, key=lambda value: (len(value), value)))}"
        joined.append(f"{before}{seed if any(values) else ''}{after}")
    return joined


def tfidf_command(runs: list[Run]) -> str | None:
    """The command that adds the TF-IDF row, as the first run has it.

    None where there is such a row, and for labels of words, of which TF-IDF has no idea.
    """
    if any(run.method == "tfidf" for run in runs):
        return None
    return next((run.tfidf_command for run in runs if run.tfidf_command), None)
