"""The finished runs below a folder, and of which configuration of the plan each is: of the one whose content id it has.

So a run counts whoever asked for it, in whatever words: one that another run needed, one that an older plan had.
"""

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from kdbench.cli.compose import composing
from kdbench.compare.collect import Run, read_runs
from kdbench.compare.keys import Wanted
from kdbench.runs.identity import run_id
from kdbench.schema import GROUPS, RunConfig
from kdbench.storage.files import read_json
from kdbench.training.hardware import Hardware
from kdbench.validation.load import load
from scripts.study.plan import Words

CUT, EXPORTED = "dataset.max_train_samples", "exported_from"


class Kind(NamedTuple):
    """What an id has of the hardware."""

    precision: str
    attention: str
    compile: bool


class Finished:
    """Read once: a run that is done later is found by another `Finished`."""

    def __init__(self, outputs: Path, before: Collection[tuple[str, int]] = ()) -> None:
        self.outputs, self.before = outputs, before  # id and seed of what was done elsewhere
        self.runs: list[Run] = read_runs([outputs], "accuracy", "test", Wanted([CUT, EXPORTED]))[0]
        self.done = {(run.id, run.seed): run for run in self.runs}
        self.kinds = {kind for run in self.runs if (kind := kind_of(environment(run.path)))}
        self.ids = cache(self._ids)

    def _ids(self, words: Words) -> frozenset[str]:
        """The content ids of a configuration, one a kind of hardware; none where a run that it needs is not done."""
        try:
            config = composed(self.filled(words))
        except LookupError:
            return frozenset()
        return frozenset(run_id(config, Hardware("cpu", kind.precision, kind.attention, 1, kind.compile))
                         for kind in self.kinds)  # fmt: skip

    @property
    def folders(self) -> set[str]:
        return {self.folder(run) for run in self.runs}

    def folder(self, run: Run) -> str:
        """Of a run or an export, below the outputs."""
        return run.path.parent.relative_to(self.outputs).as_posix()

    def has(self, words: Words, seed: int) -> bool:
        """Whether the run is done, here or elsewhere."""
        return any((id_, seed) in self.done or (id_, seed) in self.before for id_ in self.ids(words))

    def filled(self, words: Words) -> Words:
        """With the folder of a run for each {key=value,..}, see `folder_of`."""
        dataset = next(word for word in words if word.startswith("dataset="))
        return tuple(f"{word.partition('{')[0]}{self.folder_of(word, dataset)}" if "{" in word else word
                     for word in words)  # fmt: skip

    def folder_of(self, word: str, dataset: str) -> Path:
        """The run of seed 0 that {key=value,..} in `word` asks for. Raises LookupError where it is not done."""
        asked = tuple(word[word.index("{") + 1 : word.index("}")].split(","))
        found = [self.done[id_, 0] for id_ in self.ids((*asked, dataset)) if (id_, 0) in self.done]
        if not found:
            raise LookupError(f"no finished run of {' '.join((*asked, dataset))} below {self.outputs}")
        return found[0].path.parent.resolve()


def composed(words: Words) -> RunConfig:
    """What `kdbench` makes of the words. Composing takes a tenth of a second, so it is done once for all values."""
    chosen = tuple(word for word in words if word.partition("=")[0] in GROUPS)
    values = OmegaConf.from_dotlist([word for word in words if word not in chosen])
    return load(OmegaConf.merge(of_groups(chosen), values))  # type: ignore[arg-type]


@cache
def of_groups(chosen: Words) -> DictConfig:
    with composing(None) as configs:
        cfg = configs.compose(chosen).cfg
    OmegaConf.set_struct(cfg, False)  # a word may set a key that the YAML leaves out
    return cfg


def environment(results: Path) -> dict[str, Any]:
    """The env.json of a run; an export's is its run's."""
    for folder in list(results.parents)[:3]:
        if (folder / "env.json").is_file():
            return read_json(folder / "env.json")
    return {}


def kind_of(found: dict[str, Any]) -> Kind | None:
    return Kind(found["precision"], found["attention"], found.get("compile", False)) if found else None


def trained_id(run: Run) -> str:
    """Of the run that an export was made of; else its own."""
    return run.values[EXPORTED] or run.id
