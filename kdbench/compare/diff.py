"""`--diff A B`: the keys in which two runs differ, and the source of each value."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.compare.collect import Run
from kdbench.compare.columns import NOTHING, Column, Sheet
from kdbench.compare.keys import Source, flat, inner
from kdbench.errors import Code, UserError, shortened
from kdbench.storage.files import read_json
from kdbench.storage.results import RESULTS

GROUPED = ("teacher", "student", "method", "schedule", "dataset", "corpus", "hardware")
RECORDED = (
    "precision", "device", "threads", "machine", "commit", "dirty", "identity.data_id", "identity.test_id",
    "identity.dev_id", "identity.parameters.source", "versions",
)  # fmt: skip
# Of results.json, what is compared after the settings, in this order; the rest are figures.


@dataclass(frozen=True)
class Difference:
    key: str
    values: tuple[Any, Any]
    origins: tuple[str, ...]  # NOTHING if the run has no such key


def find(name: str, runs: Iterable[Run]) -> Path:
    """Return the results.json of a run's folder, or of an id (or its beginning) with /seed<k>, else its first seed."""
    path = Path(name, RESULTS)
    return path if path.is_file() else named(name, runs)[0].path


def named(name: str, runs: Iterable[Run]) -> list[Run]:
    """Return the runs of a row's or run's id (or its beginning), or the one of an id with /seed<k>, by seed."""
    id_, _, seed = name.partition("/seed")
    fitting = sorted(
        (run for run in runs if id_ and _has_id(run, id_) and seed in ("", str(run.seed))),
        key=lambda run: run.seed,
    )
    ids = sorted({run.row_id for run in fitting})
    if len(ids) != 1:
        why = f"it fits {', '.join(ids)}" if ids else "no finished run has this id"
        raise UserError(Code.NOT_A_RUN, f"{name}: {why}; give a run's folder, its id as in the table, or id/seed1")
    return fitting


def _has_id(run: Run, start: str) -> bool:
    return run.row_id.startswith(start) or run.id.startswith(start)


def differences(a: Path, b: Path) -> list[Difference]:
    """Return the differing settings, then the differing records of machine and code; figures are not compared."""
    sources = [Source(path, read_json(path)) for path in (a, b)]
    sides = [dict(flat(source.config)) for source in sources]
    origins = [_Origins(source) for source in sources]
    found = [
        Difference(key, pair, tuple(origin.of(key) for origin in origins))
        for key in dict.fromkeys([*sides[0], *sides[1]])
        if (pair := _pair(sides, key))[0] != pair[1] and not all(_scheduled(side, key) for side in sides if key in side)
    ]
    recorded = [
        {key: value for name in RECORDED for key, value in flat(inner(source.raw, name)[0], name)} for source in sources
    ]
    return found + [
        Difference(f"recorded {key}", pair, ("found by the run", "found by the run"))
        for key in dict.fromkeys([*recorded[0], *recorded[1]])
        if (pair := _pair(recorded, key))[0] != pair[1]
    ]


def _pair(sides: list[dict[str, Any]], key: str) -> tuple[Any, Any]:
    return sides[0].get(key), sides[1].get(key)


def _scheduled(side: dict[str, Any], key: str) -> str:
    """Return `schedule.lr` if `key` is the lr of a stage and has the schedule's value, else an empty string.

    A stage takes from the schedule what it does not set, so the schedule's own key already shows the difference.
    """
    giver = f"schedule.{key.rpartition('.')[2]}"
    return giver if key.startswith("method.stages.") and giver in side and side[giver] == side[key] else ""


class _Origins:
    """The sources of a run's values, from its command (env.json) and its chosen options (results.json)."""

    def __init__(self, source: Source) -> None:
        self.values = dict(flat(source.config))
        path = source.results.with_name("env.json")
        command = str(read_json(path).get("command", "")) if path.is_file() else ""
        self.needed = command.startswith("needed by: ")  # a teacher or a general stage, whose method was not typed
        words = [word.lstrip("+") for word in shlex.split(command.removeprefix("needed by: ")) if "=" in word]
        self.typed = dict(word.split("=", 1) for word in words)
        self.choices = inner(source.raw, "identity.choices")[0] or {}

    def of(self, key: str) -> str:
        """Return `command line`, or the YAML file with the value."""
        group = key.partition(".")[0]
        if key not in self.values:
            return NOTHING
        if self.needed and group in ("method", "student", "schedule"):
            return "set by kdbench: a run that another needs"
        if key in self.typed and key not in GROUPED:
            return "command line"
        if giver := _scheduled(self.values, key):
            return f"command line, {giver}" if giver in self.typed else self.of(giver)
        if (preset := self.choices.get("experiment")) is not None:
            return f"conf/experiment/{preset}.yaml, or what it leaves to conf/{group}"
        if group not in GROUPED:
            return "conf/config.yaml"
        choice = self.choices.get(group)
        return f"conf/{group}/{choice}.yaml" if choice else "nothing chosen"


def sheet(a: Path, b: Path, found: list[Difference]) -> Sheet:
    """Return a line for each key, with both values and their sources."""
    return Sheet(
        f"A {a.parent}\nB {b.parent}",
        columns(found, "A", "B"),
        notes=[] if found else ["The two runs have the same settings and the same conditions."],
    )


def columns(found: list[Difference], a: str, b: str) -> list[Column]:
    """Return the columns of the differences between runs that are called `a` and `b`."""
    return [
        Column("\nkey", [one.key for one in found], left=True),
        Column(f"\n{a}", [_shown(one.values[0]) for one in found], left=True),
        Column(f"\n{b}", [_shown(one.values[1]) for one in found], left=True),
        Column(f"\n{a} came from", [one.origins[0] for one in found], drop=2, left=True),
        Column(f"\n{b} came from", [one.origins[1] for one in found], drop=1, left=True),
    ]


def _shown(value: Any) -> str:
    text = NOTHING if value is None else value if isinstance(value, str) else json.dumps(value)
    return shortened(text, 40)


def records(found: list[Difference]) -> list[dict[str, Any]]:
    return [
        {"key": one.key, "a": one.values[0], "b": one.values[1], "a_from": one.origins[0], "b_from": one.origins[1]}
        for one in found
    ]
