"""kdbench: which small model should I ship, and how was it made?"""

from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def load(folder: str | Path) -> Any:
    """The model in a finished run's `model` folder, of whatever architecture, in evaluation mode.

    Call it as transformers' classifiers: `model(input_ids=..., attention_mask=...).logits`. Plain BERTs, DistilBERTs
    and MobileBERTs load with AutoModelForSequenceClassification as well. Nothing pickled is read.
    """
    from kdbench.models.students import load as load_student  # torch: not for --help

    return load_student(Path(folder))
