"""Look up any value of a run by its key: `method.alpha`, `student.layers`, `cost.seconds`, or a short name.

Most keys are in results.json, which is read anyway. Only for other keys config.yaml is opened, which takes a
millisecond for each run.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"  # beside results.json
SHORT = {
    "dataset": "identity.dataset",
    "task": "identity.task",
    "method": "identity.method",
    "student": "identity.student",
    "teacher": "identity.teacher",
    "schedule": "identity.choices.schedule",
    "experiment": "identity.choices.experiment",
    "labelled": "data.splits.train.rows",
    "raw": "data.splits.unlabelled.rows",
    "accuracy": "metrics.test.accuracy",
    "macro_f1": "metrics.test.macro_f1",
    "latency": "latency.batch_1.median_ms",
}
PLACES = {"method.": "identity.parameters.", "student.layers": "identity.layers"}  # keys of config.yaml in results.json


def inner(value: Any, key: str) -> tuple[Any, bool]:
    """Return the value at the dotted `key`, and whether there is one."""
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return None, False
        value = value[part]
    return value, True


def flat(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield (dotted key, leaf) of nested dictionaries; an empty dictionary is a leaf."""
    if not isinstance(value, dict) or not value:
        yield prefix, value
        return
    for key, item in value.items():
        yield from flat(item, f"{prefix}.{key}" if prefix else str(key))


class Source:
    """One run's results.json as read, and its config.yaml once a key needs it."""

    def __init__(self, results: Path, raw: Any) -> None:
        self.results, self.raw = results, raw

    @cached_property
    def config(self) -> Any:
        """config.yaml; empty if the run has none."""
        import yaml  # only for keys that results.json lacks

        path = self.results.with_name(CONFIG)
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times as fast, if libyaml is installed
        return yaml.load(path.read_text(encoding="utf8"), loader) if path.is_file() else {}

    def get(self, key: str) -> tuple[Any, bool]:
        """Return the value of `key`, and whether the run has it."""
        value, found = inner(self.raw, SHORT.get(key, key))
        if found and not isinstance(value, dict):
            return value, True
        for start, place in PLACES.items():
            if key.startswith(start):
                value, found = inner(self.raw, place + key[len(start) :])
                if found:
                    return value, True
        return (0, True) if key == "raw" else inner(self.config, key)

    def keys(self) -> set[str]:
        """Return all keys of the run."""
        return {*SHORT, *(key for key, _ in flat(self.raw)), *(key for key, _ in flat(self.config))}


class Wanted:
    """The keys on a command line; remembers which of them some run has."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self.keys = tuple(dict.fromkeys(keys))
        self.found: set[str] = set()
        self.samples: dict[Any, Source] = {}  # one for each method, as methods differ in their keys

    def of(self, source: Source) -> Mapping[str, Any]:
        """Return the values of a run; None for a key that it lacks."""
        if not self.keys:
            return {}
        self.samples.setdefault(source.get("method")[0], source)
        values = {}
        for key in self.keys:
            values[key], found = source.get(key)
            if found:
                self.found.add(key)
        return values

    def check(self) -> None:
        """Raise UserError for a key that no run has."""
        unknown = [key for key in self.keys if key not in self.found]
        if unknown and self.samples:
            from kdbench.errors import Code, UserError, nearest

            close = nearest(unknown[0], set().union(*(source.keys() for source in self.samples.values())))
            problem = f"no run has the key {unknown[0]}" + (f"; did you mean {close}?" if close else "")
            raise UserError(Code.UNKNOWN_KEY, problem)
