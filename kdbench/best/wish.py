"""What the user of kdbench-best asks for: a file, limits, and an hour."""

import re
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import Code, UserError

_UNITS = {
    "time": {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0},
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "size": {"kB": 1e-3, "KB": 1e-3, "MB": 1.0, "GB": 1e3},
}
_EXAMPLES = {"time": "60m", "latency": "2ms", "size": "30MB"}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


@dataclass(frozen=True)
class Wish:
    file: Path
    text: str
    label: tuple[str, ...]
    pair: str | None
    unlabelled: Path | None
    task: str
    metric: str | None
    latency: float | None  # ms a text, at batch size 1
    size: float | None  # MB of the model's file
    seconds: float
    seed: int
    name: str
    outputs: Path
    out: Path  # the folder of the answer

    @property
    def words(self) -> tuple[str, ...]:
        """Return the words of kdbench that all runs share, but for cuts and lengths."""
        from kdbench.cli.main import literal  # Hydra: not for --help

        given = {
            "dataset.source": str(self.file), "dataset.name": self.name, "dataset.text": self.text,
            "dataset.text_pair": self.pair, "dataset.label": self.label[0] if len(self.label) == 1 else [*self.label],
            "dataset.task": self.task, "dataset.metric": self.metric,
            "dataset.unlabelled": None if self.unlabelled is None else str(self.unlabelled),
            "outputs": str(self.outputs), "seed": self.seed,
        }  # fmt: skip
        return ("dataset=files", *(f"{key}={literal(value)}" for key, value in given.items() if value is not None))

    def fits(self, ms: float | None, megabytes: float | None) -> bool:
        """Return whether a model keeps both limits. A figure that is not known keeps no limit."""
        quick = self.latency is None or (ms is not None and ms <= self.latency)
        return quick and (self.size is None or (megabytes is not None and megabytes <= self.size))


def quantity(kind: str, text: str) -> float:
    """Return a time in seconds, a latency in ms or a size in MB. Raises UserError."""
    found, units = _QUANTITY.fullmatch(text.strip()), _UNITS[kind]
    if found is None or found[2] not in units or not float(found[1]):
        raise UserError(
            Code.OUT_OF_RANGE,
            f"--{kind} {text}: must be a number above 0 with a unit ({', '.join(units)}), such as {_EXAMPLES[kind]}",
        )
    return float(found[1]) * units[found[2]]
