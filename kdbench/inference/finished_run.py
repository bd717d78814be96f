"""Open a finished run: its record, its data, the folder of its model."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet
from omegaconf import OmegaConf

from kdbench.data.batches import Examples
from kdbench.data.datasets import Split, TextData
from kdbench.data.stored import stored_dataset
from kdbench.data.tokenize import pad_id, tokenize
from kdbench.errors import Code, UserError
from kdbench.models import students
from kdbench.schema import DatasetConfig
from kdbench.storage.results import PREDICTIONS, RESULTS, verify_run
from kdbench.tasks.arrays import plain
from kdbench.validation.fit import KEEPS_NONE
from kdbench.validation.load import cache_at, recorded_dataset

WHOLE = 2**31 - 1  # tokens, more than any text has


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. `open_run` has checked all its files."""

    folder: Path
    result: dict[str, Any]  # results.json
    config: dict[str, Any]  # config.yaml

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @cached_property
    def dataset(self) -> DatasetConfig:
        return recorded_dataset(self.config)

    @property
    def pairs(self) -> bool:
        return self.dataset.text_pair is not None

    @property
    def cache(self) -> Path:
        return cache_at(self.config["cache_dir"])

    @property
    def teacher(self) -> "FinishedRun | None":
        """Return the teacher's run. None: no teacher, no model, or its folder is not in the same outputs folder."""
        named = self.result["teacher"] or self.result["latency"]["teacher"]
        if named is None:
            return None
        place = f"*/*-{named['id']}/seed{named['seed']}/{RESULTS}"
        found = (path.parent for path in self.folder.absolute().parents[2].glob(place))
        return next((open_run(folder) for folder in found if (folder / "model").is_dir()), None)

    @cached_property
    def data(self) -> TextData:
        """Return the texts of the run. Raises UserError if its source has other examples now."""
        data = stored_dataset(self.dataset, self.cache)
        rows = pyarrow.parquet.read_table(self.folder / PREDICTIONS, columns=["split", "id", "label"]).to_pylist()
        for name, split in (("dev", data.dev), ("test", data.test)):
            own = [(row["id"], row["label"]) for row in rows if row["split"] == name]
            if own != list(zip(split.ids.tolist(), plain(split.labels), strict=True)):
                raise UserError(
                    Code.CHANGED_DATA,
                    f"{self.dataset.source} has other {name} examples than when {self.folder} read it: bring back the"
                    " data, or do the run again",
                )
        return data

    @property
    def max_length(self) -> int:
        """Return how many tokens of a text the model reads."""
        return read_length(self.model, self.dataset.max_length)

    def examples(self, split: Split) -> Examples:
        tokens = tokenize(split, self.model, self.max_length, self.cache)
        return Examples(tokens, split.ids, split.labels, pad_id(self.model))


def read_length(model: Path, max_length: int) -> int:
    """Return how many tokens of a text the model in this folder reads. TF-IDF reads all of them."""
    return WHOLE if students.folder_traits(model).whole_texts else max_length


def open_run(folder: Path) -> FinishedRun:
    """Return the finished run in `folder`.

    Raises UserError if there is none or it has no model, Damaged if a file has changed since it was written.
    """
    folder = Path(os.path.expanduser(folder))
    result = verify_run(folder) if folder.is_dir() else None
    if result is None:
        raise UserError(
            Code.NOT_A_RUN, f"{folder} is no finished run: name the folder of a seed, such as outputs/<...>/seed0"
        )
    if result.get("phase") == "general":
        raise UserError(
            Code.NOT_A_RUN, f"{folder} holds stages before a task: it has no classifier. Name a run of a task"
        )
    if not (folder / "model").is_dir():
        missing = "its model folder is missing: give the run's command again"
        raise UserError(Code.NOT_A_RUN, f"{folder}: {KEEPS_NONE.get(result['identity']['method'], missing)}")
    return FinishedRun(folder, result, OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))  # type: ignore[arg-type]
