"""Report what a run reads, before anything is trained; `inspect=true` also shows some rows, and ends there."""

import json
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data.datasets import Split, TextData
from kdbench.data.report import ReadReport, data_lines, pieces_lines, warnings
from kdbench.errors import shortened
from kdbench.training.progress import ONCE

log = logging.getLogger("kdbench")

SHOWN_ROWS, LONGEST = 5, 300  # of inspect=true: rows, and characters of a text


def tell(report: ReadReport) -> None:
    """Log how the data were read; a console shows each report once, however many runs read the same data."""
    for lines in (data_lines(report), pieces_lines(report["pieces"])):
        if lines:
            log.info("%s", "\n".join(f"data: {line}" for line in lines), extra=ONCE)
    for warning in warnings(report["pieces"]):
        log.warning("data: WARNING: %s", warning, extra=ONCE)


def show_rows(data: TextData) -> None:
    """Log the first rows of train: label, then text (and pair), as JSON, which shows line breaks and spaces."""
    few = data.train.take(np.arange(min(SHOWN_ROWS, len(data.train))))
    log.info("the first rows of train:")
    for given, label in zip(few.inputs, few.labels, strict=True):
        texts = (shortened(text, LONGEST) for text in given)
        row = [label_of(label, few, data.label_names), *texts]
        log.info("  %s", " | ".join(json.dumps(one, ensure_ascii=False) for one in row))


def label_of(label: NDArray[Any], split: Split, names: list[str]) -> object:
    """Return the label of one row, by name, as its file might have it."""
    if split.tagged:
        return [names[tag] for tag in label]
    if split.labels.ndim == 2:
        return sorted(names[at] for at in np.flatnonzero(label))
    return float(label) if split.labels.dtype == np.float32 else names[int(label)]
