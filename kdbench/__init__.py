"""kdbench: which small model should I ship, and how was it made?"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from kdbench.inference.classifier import Classifier

__version__ = "0.2.0"

# Threads that wait for their next piece of work spin, and take the processors from other runs. libgomp, which torch's
# builds for Linux link, reads how long when it is loaded: so it is set here, before any module imports torch. Figures
# are in scripts/bench/NOTES.md.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "10000"


def load(folder: str | Path) -> Any:
    """The model in a finished run's `model` folder, of whatever architecture, in evaluation mode.

    Call it as transformers' classifiers: `model(input_ids=..., attention_mask=...).logits`. Plain BERTs, DistilBERTs
    and MobileBERTs load with AutoModelForSequenceClassification as well. Nothing pickled is read.
    """
    from kdbench.models.students import load as load_student  # torch: not for --help

    return load_student(Path(folder))


def load_classifier(folder: str | Path) -> "Classifier":
    """The model of a finished run (its seed's folder) or of an export, with its tokenizer and its labels.

    `load_classifier(run)(["a text", "another"])` is an answer a text: its `label`, and the `probabilities` of all.
    Texts are cut to the length of training. Raises kdbench.errors.UserError where the folder holds no such model.
    """
    from kdbench.inference.classifier import load_classifier as load_  # torch: not for --help

    return load_(Path(folder))


def load_runs(
    *roots: str | Path,
    metric: str | None = None,
    split: str = "test",
    where: str | None = None,
    tests: bool | None = None,
) -> "pandas.DataFrame":
    """The finished runs below `roots` (default: outputs), a row a configuration: the rows of `compare-runs`.

    `metric` is `--metric`; None is the one that chose on dev.
    Columns and figures are those of `compare-runs --format csv`: scores in points (0-100), times as the name says.
    `where` is a condition as in `--where`, `tests` is `--tests` (True) or `--no-tests` (False). What is left out, and
    why, is in the frame's `attrs["warnings"]`.
    """
    from kdbench.compare.frame import load_frame

    return load_frame([Path(root) for root in roots] or [Path("outputs")], metric, split, where, tests)
