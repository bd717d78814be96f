"""Write a stage's `metrics.jsonl`: one line every few steps and one per epoch; all reports derive from it.

Step lines have step, epoch, steps (number in the line), losses, logged (means over the line's steps). Epoch lines
have step, epoch, dev (name of a predictor -> metrics).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.storage.files import explained, write_text

Tell = Callable[[dict[str, Any]], None]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


class MetricsLog:
    """An append-only log, each line of which is also sent to the trackers.

    `lines` are those of the checkpoint from which a stage resumes.
    """

    def __init__(self, path: Path, lines: list[dict[str, Any]], writes: bool, tell: Tell) -> None:
        self.path, self.lines, self.writes, self.tell = path, lines, writes, tell
        if writes:
            write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        for line in lines:
            tell(line)

    def steps(self, step: int, epoch: int, steps: int, losses: dict[str, float], logged: dict[str, float]) -> None:
        self._add({"step": step, "epoch": epoch, "steps": steps, "losses": losses, "logged": logged})

    def epoch(self, step: int, epoch: int, dev: dict[str, dict[str, float]]) -> None:
        self._add({"step": step, "epoch": epoch, "dev": dev})

    def epoch_means(self, epoch: int) -> dict[str, float]:
        """Return the mean of each loss and logged number over the epoch's steps."""
        lines = [line for line in self.lines if line["epoch"] == epoch and "losses" in line]
        total = sum(line["steps"] for line in lines)
        means: dict[str, float] = {}
        for line in lines:
            for name, value in (line["losses"] | line["logged"]).items():
                means[name] = means.get(name, 0.0) + value * line["steps"] / total
        return means

    def epochs(self) -> list[dict[str, Any]]:
        """Return one record per epoch: its dev metrics and its means."""
        return [
            {"epoch": line["epoch"], "step": line["step"], "dev": line["dev"]}
            | {"means": self.epoch_means(line["epoch"])}
            for line in self.lines
            if "dev" in line
        ]

    def _add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.writes:
            with explained(self.path), self.path.open("a", encoding="utf8") as file:
                file.write(json.dumps(line) + "\n")
        self.tell(line)
