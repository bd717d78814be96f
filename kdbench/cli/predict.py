"""kdbench-predict: predict with a finished model. Answers go to stdout, messages to stderr."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.cli import texts_file
from kdbench.console import command, obey, quiet_libraries, sayer, text_bar
from kdbench.data.raw import Row, is_blank
from kdbench.errors import Code, UserError
from kdbench.inference.forms import graph_file
from kdbench.tasks import kind

if TYPE_CHECKING:
    from kdbench.inference.classifier import Classifier

SCHEMA = 1  # version of the --json document
OUT = (".parquet", ".csv", ".jsonl")  # endings of --out
EPILOG = """\
MODEL is a finished run (outputs/<...>/seed0), its export (.../seed0/export), or a graph of the export
(.../export/onnx/model_quantized.onnx, .../export/openvino).

A --file has one text per line, or two with a tab between them for a model of pairs. In a table (.csv, .tsv, .jsonl),
kdbench reads the columns that had the texts in training (dataset.text, dataset.text_pair).

Without --json, each answer is one line with tabs between the fields, which depend on the task:
  one class        label, probability, text
  several labels   the labels with a probability above one half, separated by commas; text
  a number         number, text
  tags of words    tags, text, entities; spaces separate words
With --min-confidence, the label is `unsure` if the probability of the likeliest class is lower. compare-runs --format
html shows how many texts a threshold leaves unanswered, and how accurate the others are.
TF-IDF gives scores instead of probabilities. They rank the labels, and mean no more.

Each row of a file gets an answer, in the order of the file. The answer to a blank text is empty (--json: null).

With --out, the answers go to a .parquet, .csv or .jsonl file instead, and a large --file needs no more memory than a
small one. The columns are text (and pair), label and probability:<label> for each label; TF-IDF has score:<label>.
Other tasks have the fields of --json. The file appears when it is complete. If the command is killed, repeat it: it
resumes. If it is started several times, also on several machines, the processes share the rows. If the file is there
already, it is made again only if the model or the texts have changed.

examples:
  kdbench-predict outputs/reuters_r8/theseus/bert_3l-1a2b3c4d/seed0 --text "Oil prices rose again."
  kdbench-predict outputs/.../export/onnx/model_quantized.onnx --file texts.txt > answers.tsv
  kdbench-predict outputs/.../seed0 --file million.csv --out answers.parquet
  kdbench-predict outputs/.../seed0 --file texts.txt --min-confidence 0.8
  cat texts.txt | kdbench-predict outputs/.../seed0 --file - --json

exit codes: 0 answered; 1 a stored file is damaged; 2 the command is wrong, or there is no such model or file;
130 interrupted. Error messages begin with a code: docs/errors.md
"""


def parser() -> argparse.ArgumentParser:
    made = command(
        "kdbench-predict",
        "Predict the labels of texts, with their probabilities, by the model of a finished run.",
        EPILOG,
    )
    add = made.add_argument
    add("model", type=Path, metavar="MODEL", help="a finished run, or its export")
    texts = made.add_mutually_exclusive_group(required=True)
    texts.add_argument("--text", action="append", help="a text; may be repeated")
    texts.add_argument(
        "--file", type=Path, help="one text per line, or a table; in UTF-8 or the training data's encoding; - is stdin"
    )
    add("--pair", action="append", help="the second text of each --text, for a model of pairs")
    add("--json", action="store_true", help="print one JSON document, with the probabilities of all labels")
    add(
        "--min-confidence",
        type=_share,
        metavar="P",
        help="answer `unsure` if the probability of the likeliest class is lower",
    )
    add("--out", type=Path, metavar="FILE", help="write the answers to a .parquet, .csv or .jsonl file")
    add("--quiet", action="store_true", help="print only the answers, no messages")
    return made


def _share(text: str) -> float:
    """Return a number above 0 and below 1."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a probability, above 0 and below 1, such as 0.8")
    return share


def main(argv: list[str] | None = None) -> int:
    """Print the answers. Return the exit code."""
    return obey(parser(), argv, _answer)


def _answer(options: argparse.Namespace) -> int:
    if options.pair and options.file:
        raise UserError(Code.CONFLICTING_OPTIONS, "--pair needs --text: a --file has the second text after a tab")
    if options.pair and len(options.pair) != len(options.text):
        raise UserError(
            Code.MISMATCHED_INPUT,
            f"--pair must be given {len(options.text)} times, as often as --text, not {len(options.pair)}",
        )
    if options.out:
        _check_out(options)
    if graph_file(options.model) is None and not options.model.is_dir():
        raise UserError(Code.MISSING_FILE, f"{options.model}: no such folder")
    from kdbench.inference.classifier import load_classifier  # loads torch: not for --help

    quiet_libraries()
    classifier = load_classifier(options.model)
    if options.min_confidence:
        classifier = classifier.surer_than(options.min_confidence)
    if options.out:
        return _answer_into_file(options, classifier)
    if options.file:
        with texts_file.readable(options.file) as path:
            rows = list(texts_file.texts(path, classifier.dataset))
    else:
        rows = list(zip(options.text, *([options.pair] if options.pair else []), strict=True))
    blank = [is_blank(row) for row in rows]
    say = sayer("kdbench-predict", options.quiet)
    if all(blank):
        say(f"there is no text in {options.file or '--text'}")
    elif any(blank):
        say(f"blank texts have empty answers: {sum(blank)}, the first in row {blank.index(True) + 1}")
    columns = list(zip(*(row for row, empty in zip(rows, blank, strict=True) if not empty), strict=True))
    found = iter(classifier(columns[0], columns[1] if len(columns) > 1 else None) if columns else [])
    answers = [None if empty else next(found) for empty in blank]
    if options.json:
        _print_json(options.model, rows, answers, classifier.answer._fields)
    else:
        for row, answer in zip(rows, answers, strict=True):
            before, after = kind(classifier.task).cells(answer)
            print(*(" ".join(cell.splitlines()).replace("\t", " ") for cell in (*before, *row, *after)), sep="\t")
    sys.stdout.flush()
    return 0


def _check_out(options: argparse.Namespace) -> None:
    if not options.file:
        raise UserError(Code.CONFLICTING_OPTIONS, "--out needs --file: the answers to a --text are printed")
    if options.json:
        raise UserError(Code.CONFLICTING_OPTIONS, "--out excludes --json: use --out answers.jsonl for JSON")
    if options.out.suffix not in OUT:  # whether it exists is asked under its lock: NFS may keep the answer for a minute
        raise UserError(Code.OUT_OF_RANGE, f"--out {options.out}: must be a file that ends in {', '.join(OUT)}")


def _answer_into_file(options: argparse.Namespace, classifier: "Classifier") -> int:
    from kdbench.inference.classifier import model_digest
    from kdbench.inference.out_file import OutFile

    say = sayer("kdbench-predict", options.quiet)
    with texts_file.readable(options.file) as path:
        asked = {"the model": model_digest(options.model), "the texts": texts_file.digest(path, classifier.dataset)}
        asked["--min-confidence"] = str(options.min_confidence)
        answers = OutFile(options.out, asked, say)

        def rows() -> Iterator[Row]:
            return texts_file.texts(path, classifier.dataset)

        def help_others() -> None:
            say(f"another process writes {options.out}: its work is shared")
            with text_bar("kdbench-predict", None, not options.quiet) as told:
                answers.share(classifier, rows(), told)

        with answers.alone(help_others):
            if answers.found():
                say("found: neither the model nor the texts have changed since it was written")
            else:
                total = texts_file.count(path, classifier.dataset, options.quiet)
                with text_bar("kdbench-predict", total.rows, not options.quiet) as told:
                    answers.write(classifier, rows, total.rows, told)
                say(f"{total.rows:,} rows, {total.blank:,} of them blank, which have empty answers")
    print(options.out)
    return 0


def _print_json(model: Path, rows: Sequence[tuple[str, ...]], answers: Sequence[Any], fields: Sequence[str]) -> None:
    """Print the document; `fields` are the parts of an answer, null for a blank text."""
    found = [
        dict(zip(("text", "pair"), row, strict=False)) | (dict.fromkeys(fields) if answer is None else answer._asdict())
        for row, answer in zip(rows, answers, strict=True)
    ]
    print(json.dumps({"schema": SCHEMA, "model": str(model), "answers": found}, indent=2, ensure_ascii=False))
