"""The finished runs below a folder, and the configuration of the plan that each one has, found by its content id.

So a run counts in whatever words it was asked for: one that another run needed, or one that an older plan had.
"""

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
    """The part of the hardware that enters a content id."""

    precision: str
    attention: str
    compile: bool


class Finished:
    """The runs below `outputs` at the time of reading; a later run needs a new `Finished`."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.runs: list[Run] = read_runs([outputs], "accuracy", "test", Wanted([CUT, EXPORTED]))[0]
        self.done = {(run.id, run.seed): run for run in self.runs}
        self.kinds = {kind for run in self.runs if (kind := kind_of(environment(run.path)))}
        self.ids = cache(self._ids)

    def _ids(self, words: Words) -> frozenset[str]:
        """Return a configuration's content ids, one for each kind of hardware; none where it needs a run not done."""
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
        """Return the folder of a run or an export, relative to the outputs."""
        return run.path.parent.relative_to(self.outputs).as_posix()

    def filled(self, words: Words) -> Words:
        """Replace each {key=value,..} with the folder of its run, see `folder_of`."""
        dataset = next(word for word in words if word.startswith("dataset="))
        return tuple(f"{word.partition('{')[0]}{self.folder_of(word, dataset)}" if "={" in word else word
                     for word in words)  # fmt: skip

    def folder_of(self, word: str, dataset: str) -> Path:
        """Return the run of seed 0 that {key=value,..} in `word` asks for. Raises LookupError if it is not done."""
        asked = tuple(word[word.index("{") + 1 : word.index("}")].split(","))
        found = [self.done[id_, 0] for id_ in self.ids((*asked, dataset)) if (id_, 0) in self.done]
        if not found:
            raise LookupError(f"no finished run of {' '.join((*asked, dataset))} below {self.outputs}")
        return found[0].path.parent.resolve()


def composed(words: Words) -> RunConfig:
    """Return the config that `kdbench` composes. Composing takes 0.1 s, so it is done once for all values of a key."""
    chosen = tuple(word for word in words if word.partition("=")[0].partition("@")[0] in GROUPS)
    values = OmegaConf.from_dotlist([word for word in words if word not in chosen])
    return load(OmegaConf.merge(of_groups(chosen), values))  # type: ignore[arg-type]


@cache
def of_groups(chosen: Words) -> DictConfig:
    with composing(None) as configs:
        cfg = configs.compose(chosen).cfg
    OmegaConf.set_struct(cfg, False)  # a word may set a key that the YAML leaves out
    return cfg


def environment(results: Path) -> dict[str, Any]:
    """Return the env.json of a run; an export has that of its run."""
    for folder in list(results.parents)[:3]:
        if (folder / "env.json").is_file():
            return read_json(folder / "env.json")
    return {}


def kind_of(found: dict[str, Any]) -> Kind | None:
    return Kind(found["precision"], found["attention"], found.get("compile", False)) if found else None


def trained_id(run: Run) -> str:
    """Return the id of a run, or of the run that an export was made of."""
    return run.values[EXPORTED] or run.id
