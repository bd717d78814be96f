"""What is peculiar to a command with several jobs: the grid of a preset, which jobs are judged, when it is a search."""

import itertools
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import Fault, UserError

if TYPE_CHECKING:
    from kdbench.cli.command import Composed, Configs, Override


def grid_of(configs: "Configs", texts: list[str]) -> list[str] | None:
    """What is left of a preset's sweep without the keys that are set on the command line; None: there is no sweep."""
    preset = [text for text in texts if text.startswith("experiment=")]
    try:
        grid = configs.compose(tuple(preset)).grid if preset else {}
    except UserError:  # judged with the rest
        return None
    typed = {text.partition("=")[0].lstrip("+~") for text in texts}
    return [f"{key}={values}" for key, values in grid.items() if key not in typed] if grid else None


def needs_multirun(o: "Override", choice: bool) -> Fault:
    key, _, value = (o.typed or o.text).partition("=")
    if o.is_text:
        return o.fault(
            f"is a sweep: add -m, or, for one value with a comma, write {shlex.quote(in_quotes(key, value))}"
        )
    as_list = "" if choice else f", or write [{value}] for a list"
    return o.fault(f"is a sweep: add -m{as_list}")


def quoted_path_fault(o: "Override") -> Fault | None:
    """What is wrong where an existing file's or folder's name has a comma and would be swept over in pieces."""
    key, _, value = (o.typed or o.text).partition("=")
    if not (o.sweep and o.is_text and Path(value).expanduser().exists()):
        return None
    return o.fault("has a comma and must be in quotes of its own", shlex.quote(in_quotes(key, value)))


def in_quotes(key: str, value: str) -> str:
    """The override whose value is one text, whatever it holds."""
    return f'{key}="{value}"'


def combinations(values: list[list[str]], search: bool) -> list[tuple[str, ...]]:
    """The jobs of a sweep; of a search those that differ in one key, because what it will ask for is not known."""
    if not search:
        return list(itertools.product(*values))
    first = tuple(options[0] for options in values)
    others = [(*first[:i], value, *first[i + 1 :]) for i, options in enumerate(values) for value in options[1:]]
    return [first, *others]


def search_faults(first: "Composed", swept: "list[Override]") -> list[Fault]:
    """What is wrong with a search, or with an interval where there is none."""
    if first.trials is None:
        problem = "an interval needs a sweeper that searches: add hydra/sweeper=optuna"
        return [o.fault(problem) for o in swept if o.interval]
    found = []
    if not swept:
        example = "e.g. 'method.alpha=interval(0.1,0.9)' or method.temperature=5,10,20"
        found.append(Fault("hydra/sweeper", "optuna", f"has nothing to search: give a key several values, {example}"))
    if type(first.trials) is not int or first.trials < 1:
        found.append(Fault("hydra.sweeper.n_trials", str(first.trials), "must be an integer (1 or more)"))
    if "WORLD_SIZE" in os.environ:
        found.append(Fault("hydra/sweeper", "optuna", "is one process that asks: torchrun's cannot share a search"))
    chosen_by = "is no setting to choose by its dev score: search with one seed, then run the best with several"
    return found + [o.fault(chosen_by) for o in swept if o.key == "seed"]
