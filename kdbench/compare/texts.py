"""The texts of a split's examples, if the data set is in the cache of this machine.

Nothing is fetched or stored.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdbench.compare.collect import Run
from kdbench.compare.keys import Source
from kdbench.errors import shortened
from kdbench.storage.files import Damaged
from kdbench.storage.predictions import NoPredictionsError, read

if TYPE_CHECKING:
    from kdbench.data.datasets import Split

LONGEST = 300  # characters


@dataclass(frozen=True)
class Texts:
    split: "Split | None" = None
    why_not: str = ""  # a clause, if there are no texts

    def of(self, at: int) -> str:
        """Return a text by its place, in one line, with both sentences of a pair, cut after LONGEST characters."""
        assert self.split is not None
        parts = [self.split.texts[at]] + ([self.split.pairs[at]] if self.split.pairs is not None else [])
        text = " | ".join(" ".join(part.split()) for part in parts)
        return shortened(text, LONGEST)


def texts(runs: Iterable[Run]) -> Texts:
    """Find the texts by the config.yaml of any of the runs that was judged by all examples, which are the same."""
    whole = (run for run in runs if run.judged == run.examples)
    run = next((run for run in whole if run.path.with_name("config.yaml").is_file()), None)
    if run is None:
        return Texts(why_not="no run here has the config.yaml that names their source")
    from omegaconf.errors import OmegaConfBaseException  # these imports are slow, and a table does without them
    from yaml import YAMLError

    from kdbench.errors import UserError

    try:
        return _of_run(run)
    except (UserError, Damaged, NoPredictionsError, OSError) as error:
        return Texts(why_not=" ".join(str(error).split()))
    except (OmegaConfBaseException, YAMLError, LookupError, TypeError, ValueError) as error:
        return Texts(why_not=f"{run.path.with_name('config.yaml')} cannot be used: {type(error).__name__}")


def _of_run(run: Run) -> Texts:
    from kdbench.data.stored import kept_split
    from kdbench.storage.files import private
    from kdbench.validation.load import cache_path, recorded_dataset

    config = Source(run.path, {}).config
    cache, dataset = cache_path(config["cache_dir"]), recorded_dataset(config)
    found = kept_split(dataset, private(cache), run.split) if cache.is_dir() else None
    if found is None:
        return Texts(why_not=f"{dataset.name} is not in this machine's cache, {cache}; any run on it puts it there")
    own = read(run.path, run.split)
    if not (np.array_equal(own.ids, found.ids) and np.array_equal(own.labels, found.labels)):
        return Texts(why_not=f"this machine's cache has other examples of {dataset.name} than the runs had")
    return Texts(found)
