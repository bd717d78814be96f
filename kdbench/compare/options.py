"""The command line of compare-runs."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kdbench.compare.columns import METRICS
from kdbench.compare.rows import SORT
from kdbench.compare.table import FEW
from kdbench.compare.where import Condition, ConditionError, condition

FORMATS = ("table", "csv", "json", "markdown", "latex", "parquet", "html")
EPILOG = """\
Differences to direct fine-tuning always use every run below ROOT, including hidden rows. A KEY is any key of
config.yaml (method.alpha, student.layers, dataset.max_length) or results.json (cost.seconds, metrics.dev.accuracy),
or a short name: dataset, task, method, student, teacher, schedule, experiment, tag, seed, id, labelled, raw, accuracy,
macro_f1, latency.

examples:
  compare-runs                                        everything below outputs/
  compare-runs outputs/reuters_r52 --metric macro_f1
  compare-runs --method theseus,logit_kd --sort latency
  compare-runs --where 'student.layers <= 3 and (method.alpha == 0.5 or like(method, "tiny*"))'
  compare-runs --best-on-dev                          the best row of each grid on dev, and its test score
  compare-runs --group-by method --pivot dataset      a paper's table: rows are methods, columns data sets
  compare-runs --show macro_f1,nll,brier,ece          the probabilities beside the score
  compare-runs --diff 7e30e6eb 4266fe72               the keys that differ, and the source of each value
  compare-runs --gate 7e30e6eb 4266fe72 --margin 0.5  may the second replace the first? for CI
  OMP_NUM_THREADS=1 compare-runs --latency            times measured together, with one thread
  compare-runs --format csv > runs.csv                scores in points (0-100), full precision

exit codes: 0 printed, or --gate passed; 1 nothing to compare, or --gate failed; 2 wrong command line, or runs that
--gate cannot compare; 3 --gate cannot tell; 130 interrupted
"""


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _condition(text: str) -> Condition:
    try:
        return condition(text)
    except ConditionError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _one_of(names: Iterable[str]) -> dict[str, Any]:
    """Return keywords for add_argument that act like `choices`, but suggest the nearest in a refusal."""
    known = list(names)

    def read(text: str) -> str:
        if text in known:
            return text
        from kdbench.errors import nearest

        close = nearest(text, known)
        meant = f"did you mean {close}? " if close else ""
        raise argparse.ArgumentTypeError(f"there is no {text}; {meant}choose from {', '.join(known)}")

    return {"type": read, "metavar": f"{{{','.join(known)}}}"}


class Parser(argparse.ArgumentParser):
    """Report a fault in one line, which argparse's own ten lines of usage would hide."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help)\n")

    def read(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse the options; an unknown one is refused with the nearest known one."""
        options, unknown = self.parse_known_args(argv)
        if unknown:
            from kdbench.errors import nearest

            name = unknown[0].partition("=")[0]
            close = nearest(name, [option for action in self._actions for option in action.option_strings])
            self.error(f"there is no option {name}" + f"; did you mean {close}?" * bool(close))
        return options


def parser() -> Parser:
    made = Parser(
        prog="compare-runs",
        description="Compare finished kdbench runs: a row for each configuration, mean ± s.d. over its seeds,\n"
        "against direct fine-tuning of the same small model and against the teacher.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("roots", nargs="*", type=Path, metavar="ROOT", help="folders with runs (default: outputs)")
    _selecting(made.add_argument_group("which runs").add_argument)
    _arranging(made.add_argument_group("how they are put together").add_argument)
    _gating(made.add_argument_group("a gate").add_argument)
    _showing(made.add_argument_group("how they are shown").add_argument)
    return made


def _selecting(add: Callable[..., object]) -> None:
    for name in ("dataset", "method", "student", "tag"):
        what = "data sets" if name == "dataset" else f"{name}s"
        add(f"--{name}", metavar="A,B", default=[], type=_words, help=f"only rows of these {what}")
    add("--where", metavar="EXPR", type=_condition, help="only rows for which this is true")


def _arranging(add: Callable[..., object]) -> None:
    add("--metric", **_one_of(METRICS), help="default: the one that chose on dev (dataset.metric)")
    add("--split", **_one_of(("test", "dev")), default="test", help="default: test")
    add("--sort", **_one_of(SORT), help="best first; default: teacher, tfidf, direct baselines, methods by score")
    add(
        "--best-on-dev",
        nargs="?",
        const=["method", "student"],
        type=_words,
        metavar="KEYS",
        help="only the best row on dev among those with the same KEYS (default: method,student)",
    )
    add("--group-by", metavar="KEYS", default=[], type=_words, help="mean ± s.d. over all runs with the same KEYS")
    add("--pivot", metavar="KEY", help="a column for each value of KEY; rows: --group-by (default: method)")
    add(
        "--tests",
        action=argparse.BooleanOptionalAction,
        help=f"intervals, tests and ranks from the predictions; default: if at most {FEW} rows are shown",
    )
    add(
        "--latency",
        action="store_true",
        help="measure the models of the shown rows again, in turns, and store the times in ROOT: minutes",
    )
    add("--diff", nargs=2, metavar=("A", "B"), help="the keys in which two runs (folder or id) differ")


def _points(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of points from 0 to 100, such as 0.5")
    return value


def _gating(add: Callable[..., object]) -> None:
    add(
        "--gate",
        nargs=2,
        metavar=("BASE", "CANDIDATE"),
        help="is CANDIDATE less than --margin worse? each is a setting (the folder with its seeds, or an id) or a run",
    )
    add("--margin", type=_points, metavar="POINTS", help="of the metric: what the candidate may lose, such as 0.5")
    add(
        "--must-stay",
        type=Path,
        metavar="FILE",
        help="a CSV with the columns text and label: the gate fails if the candidate is wrong about a row",
    )


def _showing(add: Callable[..., object]) -> None:
    add("--format", **_one_of(FORMATS), default="table", help="default: table")
    add(
        "--show",
        metavar="KEYS",
        default=[],
        type=_words,
        help="columns for these, too: metrics, nll, brier, ece (of --split), or any KEY",
    )
    add("--plots", type=Path, metavar="DIR", help="also draw the pictures there, as PNG and SVG")
    add(
        "--watch",
        action="store_true",
        help="show a running sweep: runs done, running (stage, step, loss, time left), stopped, failed",
    )
    add("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    add("--quiet", action="store_true", help="print only the data: no notes, no legend, no warnings")
