"""The commands that make what a table lacks."""

import re
from collections.abc import Iterable

from kdbench.compare.collect import Run

SEED = re.compile(r"(?<=\s)seed=\S+")  # not teacher.seed=
DATASET = re.compile(r"(?<=\s)dataset[.=]\S+")


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
    """The command that adds the TF-IDF row; the data set is set as for its neighbours.

    None where there is one, and for labels of words, of which it has no idea.
    """
    if any(run.method == "tfidf" for run in runs) or runs[0].task == "token_classification":
        return None
    for run in runs:
        for baseline in filter(None, run.baselines):
            return " ".join(["kdbench method=tfidf", *DATASET.findall(baseline[1])])
    return f"kdbench method=tfidf dataset={runs[0].dataset}"
