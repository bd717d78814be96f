"""kdbench-best: from a file and limits to the best model, within the time."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.best.wish import Wish, quantity
from kdbench.console import command, obey
from kdbench.errors import Code, UserError

if TYPE_CHECKING:
    from kdbench.best.work import Ended

EPILOG = """\
FILE is a table with a column of texts and a column of labels: .csv, .tsv, .jsonl, .parquet, .xlsx; docs/data.md has the
details. Dev and test are cut from it. The first model is there within a minute, and better ones follow until the
time is up. All are ordinary runs below --outputs, which compare-runs shows.

The answer is one folder: model/ in every form that keeps the limits, README.md with three sentences, the table and the
commands, answer.json, page.html. It is written anew for each better model. A command that was killed leaves the best so
far, and the same command goes on with the time that is left.

examples:
  kdbench-best reviews.csv --text body --label stars --latency 2ms --size 30MB --time 60m
  kdbench-best tickets.csv --label queue --unlabelled old_tickets.csv --metric macro_f1
  kdbench-best reviews.csv --dry-run

exit codes: 0 there is a model; 1 no run was finished, or none keeps the limits; 2 the command or the file is wrong;
130 interrupted, with the best so far in the folder. Error messages begin with a code: docs/errors.md
"""
_KEYS = {  # of kdbench -> of this command
    "dataset.source": "FILE", "dataset.text_pair": "--pair", "dataset.text": "--text", "dataset.label": "--label",
    "dataset.unlabelled": "--unlabelled", "dataset.metric": "--metric", "dataset.task": "--task",
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = command(
        "kdbench-best", "Find the best small text classifier for a file, a latency, a size and a time.", EPILOG
    )
    add = made.add_argument
    add("file", type=Path, metavar="FILE", help="texts with labels")
    add("--text", default="text", metavar="COLUMN", help="the texts (default: text)")
    add("--label", action="append", metavar="COLUMN", help="the labels (default: label); --label twice"
                      " or more: columns of 0 and 1, for --task multi_label")  # fmt: skip
    add("--pair", metavar="COLUMN", help="the second text of each row, for pairs")
    add("--task", default="classification", help="kind of task (default: classification)")
    add("--unlabelled", type=Path, metavar="FILE", help="texts without labels, to be taught on")
    add("--latency", metavar="TIME", help="limit of a text at batch size 1, such as 2ms")
    add("--size", metavar="BYTES", help="limit of the model's file, such as 30MB")
    add("--time", default="60m", metavar="TIME", help="what all may take (default: 60m)")
    add("--metric", metavar="NAME", help="what chooses on dev (default: the task's first)")
    add("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    add("--outputs", type=Path, default=Path("outputs"), metavar="DIR", help="(default: outputs)")
    add("--out", type=Path, metavar="DIR", help="folder of the answer (default: best/<name of FILE>)")
    add("--dry-run", action="store_true", help="print the plan and its costs; train nothing")
    add("--explain", action="store_true", help="print the kdbench command of each run as it begins")
    add("--json", action="store_true", help="print the answer as one JSON document")
    return made


def main(argv: list[str] | None = None) -> int:
    """Print the three sentences and the folder. Return the exit code."""
    return obey(parser(), argv, _best)


def wish_of(options: argparse.Namespace) -> Wish:
    """Return what the words ask for. Raises UserError."""
    latency = options.latency and quantity("latency", options.latency)
    size = options.size and quantity("size", options.size)
    for name in ("file", "unlabelled"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            raise UserError(Code.MISSING_FILE, f"{'FILE' if name == 'file' else '--unlabelled'} {path}: no such file")
    labels = tuple(options.label or ["label"])
    if options.text in labels:
        problem = "is also --text: name the column of the texts and that of their labels"
        raise UserError(Code.CONFLICTING_OPTIONS, f"--label {options.text}: {problem}")
    name = re.sub(r"[^a-z0-9]+", "_", options.file.name.partition(".")[0].lower()).strip("_") or "data"
    return Wish(
        file=options.file, text=options.text, label=labels, pair=options.pair,
        unlabelled=options.unlabelled, task=options.task, metric=options.metric, latency=latency, size=size,
        seconds=quantity("time", options.time), seed=options.seed, name=name, outputs=options.outputs,
        out=options.out or Path("best") / name,
    )  # fmt: skip


def _best(options: argparse.Namespace) -> int:
    wish = wish_of(options)
    from kdbench.best import answer  # loads torch, with all below: not for --help
    from kdbench.best.look import look
    from kdbench.best.machine import measure
    from kdbench.best.plan import Plan, encoders
    from kdbench.best.race import Race
    from kdbench.best.show import Screen
    from kdbench.best.standing import Clock, Standing
    from kdbench.best.work import Workers
    from kdbench.training.interrupts import listening

    answer.require_place(wish.out)
    clock, workers, screen = Clock(wish), Workers(), Screen(options.explain, options.json)
    with listening():  # SIGTERM ends the job, too
        found = _found(workers.do(look, wish.words, seconds=clock.left))
        plan = Plan(wish, found, _found(workers.do(measure, seconds=clock.left)), encoders())
        screen.say(found.lines)
        if options.dry_run:
            screen.plan(plan)
            return 0
        wish.out.parent.mkdir(parents=True, exist_ok=True)
        workers.log = wish.out.with_name(f".{wish.out.name}.log")
        standing = Standing(plan, clock, workers.log)
        with screen:
            Race(standing, workers, screen).go()
        leading = answer.write(standing, page=True)
    if leading is None:
        answer.refuse(standing)
    clock.close()
    screen.answer(standing, leading)
    return 0


def _found(ended: "Ended") -> Any:
    """Return what a job found. Raises UserError in the words of this command."""
    if ended.code is not None:
        problem = ended.problem or ""
        for key, own in _KEYS.items():
            problem = problem.replace(key, own)
        raise UserError(Code[ended.code], problem)
    if ended.found is None:
        raise UserError(Code.PROCESS_LOST, ended.problem or "its time was up before the file was read")
    return ended.found
