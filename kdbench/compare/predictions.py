"""The stored predictions of a run: which examples it got right, in the order of their ids."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from kdbench.results import PREDICTIONS


class NoPredictionsError(Exception):
    """A run without usable predictions; the message says why."""


@dataclass(frozen=True)
class Predictions:
    """One split of one run: (N,) each, ordered by id."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]


def read(results: Path, split: str) -> Predictions:
    """The predictions beside a results.json."""
    path = results.with_name(PREDICTIONS)
    try:
        table = pyarrow.parquet.read_table(path, filters=pyarrow.compute.field("split") == split)
        logits = np.stack(table["logits"].to_numpy())
        ids, labels = (table[name].to_numpy().astype(np.int64) for name in ("id", "label"))
    except FileNotFoundError:
        raise NoPredictionsError(f"{path.parent} has no {PREDICTIONS}") from None
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise NoPredictionsError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    order = np.argsort(ids, kind="stable")
    return Predictions(ids[order], labels[order], logits.argmax(-1)[order])
