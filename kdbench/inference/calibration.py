"""Calibrate a finished model on dev: one temperature, and a threshold for each of several labels.

Both are in `calibration.json` of the model's folder, whose weights stay as they were trained. `Classifier` applies
them. An export has the temperature in the weights of its last layer, so that every program reads calibrated logits.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.storage.files import read_json
from kdbench.tasks import kind, traits
from kdbench.tasks.arrays import Labels, Logits
from kdbench.tasks.probabilities import (
    BINS,
    FOLDS,
    Numbers,
    Questions,
    cross_fitted,
    cross_fitted_nll,
    figures,
    fit_temperature,
    fit_thresholds,
    log_probabilities,
)

CALIBRATION = "calibration.json"  # in the folder of a model
LEAST = 2 * FOLDS  # dev texts for thresholds, so that each fold has two


@dataclass(frozen=True)
class Calibration:
    """What the logits and probabilities of a model are corrected by; the defaults change nothing."""

    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by label; {}: one half for all

    @property
    def content(self) -> bytes:
        """The content of calibration.json."""
        return f"{json.dumps(asdict(self), indent=2, ensure_ascii=False)}\n".encode()

    def judged(self, answer: Any) -> Any:
        """Return the answer of a task by the thresholds, if there are any."""
        if not self.thresholds:
            return answer
        shares = answer.probabilities.items()
        return answer._replace(labels=[name for name, share in shares if share > self.thresholds[name]])


def calibration_of(model: Path) -> Calibration:
    """Return the calibration of the model in a folder."""
    path = model / CALIBRATION
    return Calibration(**read_json(path)) if path.is_file() else Calibration()


Splits = Mapping[str, tuple[Labels, Logits]]  # dev and test


def probability_figures(task: str, labels: Labels, logits: Logits) -> dict[str, float]:
    """Return NLL, Brier score and calibration error; empty if the task has no probabilities."""
    asked = kind(task).questions(labels, logits)
    return {} if asked is None else figures(asked)


def calibrate(
    task: str, names: Sequence[str], metric: str, splits: Splits
) -> tuple[dict[str, Any] | None, Calibration]:
    """Fit temperature and thresholds on dev; return the entry of results.json and what is kept of them.

    The temperature is kept if it lowers the NLL of dev, thresholds if they raise `metric` of dev, when each text is
    answered by those of other texts. The entry is None if the task has no probabilities.
    """
    asked = {name: kind(task).questions(*one) for name, one in splits.items()}
    known = {name: one for name, one in asked.items() if one is not None}
    if not known:
        return None, Calibration()
    record, temperature = _temperature(known)
    chosen: dict[str, float] = {}
    record["thresholds"] = None
    if traits(task).several:
        scaled = {name: one.divided(temperature) for name, one in known.items()}
        record["thresholds"], chosen = _thresholds(task, names, metric, splits, scaled)
    return record, Calibration(temperature, chosen)


def _temperature(asked: Mapping[str, Questions]) -> tuple[dict[str, Any], float]:
    """Return the entry of the temperature, and the temperature to divide by, 1 if none is kept."""
    before = {name: figures(one) for name, one in asked.items()}
    fitted = fit_temperature(asked["dev"])
    record: dict[str, Any] = {"dev_examples": len(asked["dev"].right), "bins": BINS}
    if isinstance(fitted, str):
        nothing = dict.fromkeys(("temperature", "low", "high", "dev_cross_fitted"))
        return {**record, **nothing, "kept": False, "why_not": fitted, "before": before, "after": {}}, 1.0
    after = {name: figures(one.divided(fitted.value)) for name, one in asked.items()}
    score = cross_fitted_nll(asked["dev"])
    kept = score < before["dev"]["nll"]
    why_not = None if kept else "the NLL of dev is not lower by temperatures of other dev texts"
    record |= {"temperature": fitted.value, "low": fitted.low, "high": fitted.high, "dev_cross_fitted": score}
    record |= {"kept": kept, "why_not": why_not}
    return record | {"before": before, "after": after}, fitted.value if kept else 1.0


def _thresholds(
    task: str, names: Sequence[str], metric: str, splits: Splits, asked: Mapping[str, Questions]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the entry of the thresholds, and those that are kept."""
    shares: dict[str, Numbers] = {name: np.exp(log_probabilities(one.logits))[..., 1] for name, one in asked.items()}

    def judged(labels: Labels, answers: Labels) -> dict[str, float]:
        return kind(task).figures(labels, answers, names)

    labels = splits["dev"][0]
    one_answer = [name for name, own in zip(names, labels.T, strict=True) if own.min() == own.max()]
    before = {name: judged(one, (shares[name] > 0.5).astype(np.int8)) for name, (one, _) in splits.items()}
    record = {"metric": metric, "kept": False, "not_fitted": one_answer, "before": before}
    if len(labels) < LEAST:
        nothing: dict[str, Any] = {"values": {}, "dev_cross_fitted": None, "after": {}}
        return {**record, **nothing, "why_not": f"dev has {len(labels)} texts, and {LEAST} are needed"}, {}
    values = fit_thresholds(labels, shares["dev"])
    score = cross_fitted(labels, shares["dev"], lambda own, said: judged(own, said)[metric])
    after = {name: judged(one, (shares[name] > values).astype(np.int8)) for name, (one, _) in splits.items()}
    kept = score > before["dev"][metric]
    why_not = None if kept else f"the {metric} of dev is not higher by thresholds of other dev texts"
    found = dict(zip(names, values.tolist(), strict=True))
    entry = {"values": found, "dev_cross_fitted": score, "after": after, "kept": kept, "why_not": why_not}
    return record | entry, found if kept else {}


def in_words(record: Mapping[str, Any]) -> list[str]:
    """Return a sentence about the temperature, and one about the thresholds if there are any, for the log."""
    if record["temperature"] is None:
        told = [f"no temperature was fitted: {record['why_not']}"]
    else:
        before, after = record["before"]["dev"]["nll"], record["dev_cross_fitted"]
        what = (
            f"NLL of dev {before:.4f} to {after:.4f} (cross-fitted)"
            if record["kept"]
            else f"not kept: {record['why_not']}"
        )
        of = f"95 % interval {record['low']:.3g} to {record['high']:.3g}, from {record['dev_examples']} dev texts"
        told = [f"temperature {record['temperature']:.3g} ({of}): {what}"]
    if found := record["thresholds"]:
        before, after = found["before"]["dev"][found["metric"]], found["dev_cross_fitted"]
        what = f"{found['metric']} of dev {before:.4f} to {after:.4f} (cross-fitted)" if found["kept"] else "not kept"
        told.append(f"thresholds of labels: {what}" + (f": {found['why_not']}" if found["why_not"] else ""))
        if found["not_fitted"]:
            told.append(f"  one half for labels that all dev texts have, or none: {', '.join(found['not_fitted'])}")
    return told
