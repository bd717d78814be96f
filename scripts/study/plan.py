"""The plan of the study: what is asked, by which commands, in which order, at what cost (plan.yaml)."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMMA = re.compile(r",(?![^\[{]*[\]}])")  # not within a list

Words = tuple[str, ...]  # key=value each, as typed behind `kdbench`


@dataclass(frozen=True)
class Step:
    """One command: runs of one question on one data set."""

    question: str
    dataset: str
    words: Words  # as typed behind `kdbench -m`
    seconds: float  # of one run, estimated

    @property
    def sweep(self) -> dict[str, list[str]]:
        """Key -> values, of the preset and of the words; the words win."""
        found = dict(_grid(self.preset)) if self.preset else {}
        for word in self.words:
            key, _, values = word.partition("=")
            found[key] = COMMA.split(values)
        return found

    @property
    def preset(self) -> str | None:
        return next((word.partition("=")[2] for word in self.words if word.startswith("experiment=")), None)

    @property
    def seeds(self) -> list[int]:
        return [int(seed) for seed in self.sweep["seed"]]

    @property
    def configurations(self) -> list[Words]:
        """The words of each configuration of the sweep, but for its seed and what is made of the finished run."""
        sweep = {key: values for key, values in self.sweep.items() if key not in ("seed", "export.int8")}
        return [
            (*map("=".join, zip(sweep, values, strict=True)), f"dataset={self.dataset}")
            for values in product(*sweep.values())
        ]

    @property
    def runs(self) -> list[tuple[Words, int]]:
        """Words and seed of each run."""
        return list(product(self.configurations, self.seeds))

    @property
    def command(self) -> str:
        """What a person types."""
        return f"kdbench -m {shlex.join([*self.words, f'dataset={self.dataset}'])}"


@dataclass(frozen=True)
class Plan:
    questions: dict[str, dict[str, Any]]
    steps: list[Step]
    budget_hours: float
    same: Mapping[str, str] = field(default_factory=dict)  # the name of a configuration -> that of the same one

    @cached_property
    def new_runs(self) -> list[list[tuple[Words, int]]]:
        """Return for each step the runs that no earlier step does."""
        seen: set[tuple[Words, int]] = set()
        found = []
        for step in self.steps:
            found.append([run for run in step.runs if run not in seen])
            seen |= set(step.runs)
        return found

    def name_of(self, words: Words) -> str:
        """Return the name of the row that has this configuration."""
        name = name_of(words)
        return self.same.get(name, name)

    @property
    def teachers(self) -> list[Words]:
        """Return the task's teachers on every data set."""
        return [words for step in self.steps if step.preset == "study/teacher" for words in step.configurations]

    def of(self, question: str) -> list[Step]:
        """Return the steps whose rows a question shows: its own, and for the last question all."""
        return [step for step in self.steps if question in (step.question, "together")]


def name_of(words: Words) -> str:
    """Return a row's name, the preset or method and its settings: `theseus_bernoulli replace_rate 0.3`."""
    settings = dict(word.split("=", 1) for word in words if not word.startswith("schedule="))
    preset = settings.pop("experiment", "").removeprefix("study/") or settings.pop("method")
    told = [(key, value) for key, value in settings.items() if not key.startswith("dataset") and key != "teacher.path"]
    return " ".join([preset, *(f"{key.rpartition('.')[2]} {value}" for key, value in told)])


def place(dataset: str, max_train_samples: int | str | None, kept: str | None = None) -> str:
    """Name a data set with its limit, as tables and sentences do; a `kept` table has its machine's name too.

    Only rows of one place may be compared.
    """
    limit = f", {int(max_train_samples):,} train texts" if max_train_samples else ""
    return dataset + limit + (f", {kept}" if kept else "")


def data_of(row: Mapping[str, Any]) -> str:
    """Return the place of a row of a CSV file."""
    return place(row["dataset"], row["max_train_samples"], row["kept"])


def place_of_words(words: Words) -> str:
    """Return the place of a configuration's row. Its limit is in the words or in its preset."""
    settings = dict(word.split("=", 1) for word in words)
    preset = _preset(settings["experiment"]) if "experiment" in settings else {}
    limit = preset.get("dataset", {}).get("max_train_samples")
    return place(settings["dataset"], settings.get("dataset.max_train_samples", limit))


def _grid(preset: str) -> dict[str, list[str]]:
    params = _preset(preset).get("hydra", {}).get("sweeper", {}).get("params", {})
    return {key: COMMA.split(str(values)) for key, values in params.items()}


@cache
def _preset(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / f"conf/experiment/{name}.yaml").read_text(encoding="utf8"))
    return found


def load_plan() -> Plan:
    raw = yaml.safe_load(Path(__file__).with_name("plan.yaml").read_text(encoding="utf8"))
    lines = (line.split() for line in raw["steps"].splitlines() if line.strip() and not line.startswith("#"))
    steps = [Step(question, dataset, tuple(words), float(seconds)) for seconds, question, dataset, *words in lines]
    return Plan(raw["questions"], steps, raw["budget_hours"], raw["same"])
