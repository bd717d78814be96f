"""kdbench-label: choose the texts that a person should label next."""

import argparse
import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.cli import texts_file
from kdbench.console import command, obey, quiet_libraries, sayer, text_bar
from kdbench.errors import Code, UserError
from kdbench.schema import DatasetConfig
from kdbench.storage.files import explained, write_bytes
from kdbench.tasks import traits

if TYPE_CHECKING:
    from kdbench.inference.choosing import Chosen

EPILOG = """\
RUN is a finished run (outputs/<...>/seed0), its export, or a form of the export. The pool is a file as for
kdbench-predict: one text per line, or a table with the columns that had the texts in training.

--by is the criterion (Settles 2009, Active Learning Literature Survey):
  margin        the best class is hardly more probable than the second best; for TF-IDF: has hardly a higher score
  entropy       the probabilities of all classes are close to each other
  disagreement  several RUNs give different probabilities: the mean KL divergence from their mean (McCallum and
                Nigam 1998); use seeds of one method, or several methods
If a text has several labels, margin is the least over labels, and entropy and disagreement are means over labels.

--out has the text columns of the data set, its label column, which is empty, the model's guess, and the criterion. The
best text comes first. Fill the label column; kdbench then reads the file as it is.

Blank texts, repeats, and texts that are in train, dev or test of the RUN are left out.

examples:
  kdbench-label outputs/reuters_r8/theseus/bert_3l-1a2b3c4d/seed0 --texts pool.csv --top 100
  kdbench-label outputs/.../seed0 outputs/.../seed1 outputs/.../seed2 --texts pool.csv --by disagreement

exit codes: 0 written; 1 a stored file is damaged or nothing can be written; 2 the command is wrong, or there is no such
model or file; 130 interrupted. Error messages begin with a code: docs/errors.md
"""


def parser() -> argparse.ArgumentParser:
    made = command(
        "kdbench-label",
        "Write the texts of a file whose labels would help a model most, for a person to label.",
        EPILOG,
    )
    add = made.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="a finished run, or its export")
    add("--texts", type=Path, required=True, metavar="FILE", help="texts without labels; - is stdin")
    add("--top", type=int, default=200, metavar="N", help="number of texts to write (default: 200)")
    add("--by", choices=("margin", "entropy", "disagreement"), default="margin", help="criterion (default: margin)")
    add("--out", type=Path, default=Path("labels_to_give.csv"), metavar="FILE", help="(default: labels_to_give.csv)")
    add("--force", action="store_true", help="overwrite --out even if it has labels")
    add("--quiet", action="store_true", help="print only the path of --out, no messages")
    return made


def main(argv: list[str] | None = None) -> int:
    """Write the texts and print the path. Return the exit code."""
    return obey(parser(), argv, _label)


def _label(options: argparse.Namespace) -> int:
    say = sayer("kdbench-label", options.quiet)
    if options.top < 1:
        raise UserError(Code.OUT_OF_RANGE, f"--top {options.top}: must be 1 or more")
    if options.out.suffix != ".csv" or options.out.is_dir():
        raise UserError(Code.OUT_OF_RANGE, f"--out {options.out}: must be a file that ends in .csv")
    for run in options.runs:
        if not run.is_dir():
            raise UserError(Code.MISSING_FILE, f"{run}: no such folder")
    from kdbench.inference import choosing  # loads torch: not for --help
    from kdbench.inference.classifier import load_classifier

    quiet_libraries()
    models = [load_classifier(run) for run in options.runs]
    choosing.require_suitable(models, options.by)
    dataset = models[0].dataset
    columns = Columns(dataset, options.by)
    if not options.force:
        columns.require_no_labels(options.out)
    known: set[bytes] = set()
    for run in options.runs:
        try:
            known |= choosing.known_texts(run)
        except UserError as error:
            say(f"texts of train, dev and test are not left out: {error}")
    with texts_file.readable(options.texts) as path:
        total = texts_file.count(path, dataset, options.quiet).rows
        with text_bar("kdbench-label", total, not options.quiet) as told:
            rows = texts_file.texts(path, dataset)
            pool = choosing.choose(models, rows, options.by, options.top, known, told)
    left_out = f"{pool.known:,} in train, dev or test, {pool.repeated:,} repeats, {pool.blank:,} blank"
    if not pool.best:
        raise UserError(Code.MISMATCHED_INPUT, f"{options.texts}: no text is left to label ({left_out})")
    write_bytes(options.out, columns.table(pool.best))
    say(f"{len(pool.best):,} of {pool.rows:,} texts, by {options.by}. Left out: {left_out}")
    if traits(dataset.task).several and len(columns.labels) == 1:
        say(f"an empty cell in {columns.labels[0]} means that no label holds: remove rows that you do not label")
    say(f"fill {' and '.join(columns.labels)}, then check how kdbench reads the file:")
    say(f"  {columns.command(options.out)}")
    print(options.out)
    return 0


class Columns:
    """The columns of the file that a person fills."""

    def __init__(self, dataset: DatasetConfig, by: str) -> None:
        self.dataset = dataset
        self.texts = [dataset.text] if dataset.text_pair is None else [dataset.text, dataset.text_pair]
        self.labels = dataset.label if isinstance(dataset.label, list) else [dataset.label]
        taken = [*self.texts, *self.labels]
        self.names = [*taken, *(f"{name}_" if name in taken else name for name in ("guess", by))]

    def table(self, best: "Sequence[Chosen]") -> bytes:
        """Return a CSV. Its byte-order mark lets spreadsheets read it as UTF-8; kdbench skips it."""
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(self.names)
        for one in best:
            writer.writerow([*one.row, *("" for _ in self.labels), one.guess, f"{one.value:.6g}"])
        return file.getvalue().encode("utf-8-sig")

    def require_no_labels(self, out: Path) -> None:
        """Raise UserError if `out` has labels of a person, or is another file."""
        with explained(out):
            if not out.exists():
                return
            rows = list(csv.DictReader(io.StringIO(out.read_bytes().decode("utf-8-sig", "replace"), newline="")))
        given = [row for row in rows if any((row.get(name) or "").strip() for name in self.labels)]
        if not rows or any(name not in rows[0] for name in (*self.texts, *self.labels)):
            what = "exists, and is not a file of texts to label"
        elif given:
            what = f"has {len(given)} rows with labels"
        else:
            return
        raise UserError(
            Code.WOULD_OVERWRITE, f"--out {out}: {what}. Name another file, or add --force to lose what is there"
        )

    def command(self, out: Path) -> str:
        """Return the command that shows how kdbench reads the filled file."""
        label = f"[{','.join(self.labels)}]" if isinstance(self.dataset.label, list) else self.dataset.label
        words = {
            "dataset.source": out, "dataset.name": out.stem, "dataset.task": self.dataset.task,
            "dataset.text": self.dataset.text, "dataset.text_pair": self.dataset.text_pair, "dataset.label": label,
        }  # fmt: skip
        given = [f"{key}={value}" for key, value in words.items() if value is not None]
        return shlex.join(["kdbench", "dataset=files", *given, "inspect=true"])
