"""The command line of compare-runs, and how rows are ordered."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kdbench.compare.columns import METRICS
from kdbench.compare.statistics import Summary
from kdbench.compare.table import ROLES, Row
from kdbench.compare.where import Condition, ConditionError, condition

TESTED = 30  # rows: their tests take about a second
FORMATS = ("table", "csv", "json", "markdown", "latex", "parquet", "html")
EPILOG = """\
Differences to direct fine-tuning always use every run below ROOT, those of hidden rows too. A KEY is any key of a
run: method.alpha, student.layers, dataset.max_length (config.yaml), cost.seconds, metrics.dev.accuracy (results.json),
or dataset, task, method, student, teacher, schedule, experiment, tag, seed, id, accuracy, macro_f1, latency.

examples:
  compare-runs                                        everything below outputs/
  compare-runs outputs/reuters_r52 --metric macro_f1
  compare-runs --method theseus,logit_kd --sort latency
  compare-runs --where 'student.layers <= 3 and (method.alpha == 0.5 or like(method, "tiny*"))'
  compare-runs --best-on-dev                          of each method's grid the best on dev, reported on test
  compare-runs --group-by method --pivot dataset      a paper's table: rows are methods, columns data sets
  compare-runs --diff 7e30e6eb 4266fe72               the keys that differ, and where each came from
  OMP_NUM_THREADS=1 compare-runs --latency            times measured together, with one thread
  compare-runs --format csv > runs.csv                scores in points (0-100), full precision

exit codes: 0 printed; 1 there is nothing to compare; 2 the command line is wrong; 130 interrupted
"""

_Value = Callable[[Row], float | None]
SORT: dict[str, tuple[_Value, bool]] = {  # key of --sort: value, and whether the highest comes first
    "score": (lambda row: row.score.mean, True),
    "difference": (lambda row: _mean(row.differences[0]), True),
    "total-difference": (lambda row: _mean(row.differences[1]), True),
    "gap": (lambda row: row.gap_closed, True),
    "parameters": (lambda row: row.runs[0].parameters, False),
    "latency": (lambda row: row.times.batch_1 if row.times.quiet else None, False),
    "speedup": (lambda row: row.speedup, True),
    "seconds": (lambda row: row.seconds, False),
}


def _mean(summary: Summary | None) -> float | None:
    return summary.mean if summary else None


def ordered(rows: list[Row], key: str | None) -> list[Row]:
    """Best first by `key`, rows without it last; without a key by role, then by score. Ties go by name."""
    by_name = sorted(rows, key=lambda row: (row.label, row.settings, row.id))
    if key is None:
        return sorted(by_name, key=lambda row: (ROLES.index(row.role), -row.score.mean))
    value, highest_first = SORT[key]

    def rank(row: Row) -> tuple[bool, float]:
        number = value(row)
        return number is None, (-1 if highest_first else 1) * (number or 0.0)

    return sorted(by_name, key=rank)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _condition(text: str) -> Condition:
    try:
        return condition(text)
    except ConditionError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def _one_of(names: Iterable[str]) -> dict[str, Any]:
    """As argparse's `choices`, with the nearest one named in the refusal."""
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
    """One line for what is wrong: argparse's own ten lines of usage before it hide it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help)\n")

    def read(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The options; what is none of them is refused with the nearest that there is."""
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
        description="Compare finished kdbench runs: one row a configuration, mean ± s.d. over its seeds,\n"
        "against fine-tuning the same small model directly and against the teacher.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("roots", nargs="*", type=Path, metavar="ROOT", help="folders with runs (default: outputs)")
    _selecting(made.add_argument_group("which runs").add_argument)
    _arranging(made.add_argument_group("how they are put together").add_argument)
    _showing(made.add_argument_group("how they are shown").add_argument)
    return made


def _selecting(add: Callable[..., object]) -> None:
    for name, what in (("dataset", "data sets"), ("method", "methods"), ("student", "students"), ("tag", "tags")):
        add(f"--{name}", metavar="A,B", default=[], type=_words, help=f"only rows of these {what}")
    add("--where", metavar="EXPR", type=_condition, help="only rows for which this is true")


def _arranging(add: Callable[..., object]) -> None:
    add("--metric", **_one_of(METRICS), help="default: the one that chose on dev (dataset.metric), else accuracy")
    add("--split", **_one_of(("test", "dev")), default="test", help="default: test")
    add("--sort", **_one_of(SORT), help="best first; default: teacher, tfidf, direct baselines, methods by score")
    add(
        "--best-on-dev",
        nargs="?",
        const=["method", "student"],
        type=_words,
        metavar="KEYS",
        help="of the rows with the same KEYS (default: method,student) the best on dev",
    )
    add("--group-by", metavar="KEYS", default=[], type=_words, help="mean ± s.d. over all runs with the same KEYS")
    add("--pivot", metavar="KEY", help="a column for each value of KEY; rows: --group-by (default: method)")
    add(
        "--tests",
        action=argparse.BooleanOptionalAction,
        help=f"intervals, tests and ranks from the predictions; default: where at most {TESTED} rows are shown",
    )
    add(
        "--latency",
        action="store_true",
        help="measure the models of the rows shown again, in turns, and keep the times in ROOT: minutes",
    )
    add("--diff", nargs=2, metavar=("A", "B"), help="two runs, by folder or id: the keys that differ")


def _showing(add: Callable[..., object]) -> None:
    add("--format", **_one_of(FORMATS), default="table", help="default: table")
    add("--plots", type=Path, metavar="DIR", help="draw the pictures there too, as PNG and SVG")
    add(
        "--watch",
        action="store_true",
        help="a running sweep: done, running (stage, step, loss, time left), stopped, failed",
    )
    add("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    add("--quiet", action="store_true", help="only the data: no notes, no legend, no warnings")
