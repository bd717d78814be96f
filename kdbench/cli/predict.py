"""kdbench-predict: ask a finished model. Answers go to stdout, words about them to stderr."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.cli import texts_file
from kdbench.console import guarded, quiet_libraries
from kdbench.errors import UserError

if TYPE_CHECKING:
    from kdbench.inference.classifier import AnyAnswer

SCHEMA = 1  # of --json
EPILOG = """\
MODEL is a finished run (outputs/<...>/seed0), what kdbench-export made of it (.../seed0/export), or a form of that
(.../export/onnx, .../export/int8). A file has a text a line; for a model of pairs, two with a tab between them. Of a
table (.csv, .tsv, .jsonl) the columns are read that had the texts in training (dataset.text, dataset.text_pair).
Without --json a line an answer: label, its probability, the text, with tabs between. Of several labels: those above one
half, with commas between, and the text. Of a number: it and the text. Of labels of words, which are what has spaces
between: the tags, the text, the entities. TF-IDF has no probabilities: in their place are its scores (--json: scores),
which say no more than which label is above which.
Each row of a file has an answer, in the file's order. That of a blank text is empty (--json: null): no model knows it.

examples:
  kdbench-predict outputs/reuters_r8/theseus/bert_3l-1a2b3c4d/seed0 --text "Oil prices rose again."
  kdbench-predict outputs/.../seed0/export/int8 --file texts.txt > answers.tsv
  cat texts.txt | kdbench-predict outputs/.../seed0 --file - --json

exit codes: 0 answered; 1 a stored file is damaged; 2 the command line is wrong, or there is no such model or file;
130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="kdbench-predict",
        description="Labels and probabilities of texts, by the model of a finished run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("model", type=Path, metavar="MODEL", help="a finished run, or what was exported of it")
    texts = made.add_mutually_exclusive_group(required=True)
    texts.add_argument("--text", action="append", help="a text; may be given again")
    texts.add_argument(
        "--file", type=Path, help="a text a line, or a table, in UTF-8 or as the training data; - is stdin"
    )
    made.add_argument("--pair", action="append", help="the second text of each --text, for a model of pairs")
    made.add_argument("--json", action="store_true", help="one document, with the probabilities of all labels")
    made.add_argument("--quiet", action="store_true", help="no words, only the answers")
    return made


def main(argv: list[str] | None = None) -> int:
    """Print the answers; returns the exit code."""
    options = parser().parse_args(argv)
    return guarded("kdbench-predict", lambda: _answer(options))


def _answer(options: argparse.Namespace) -> int:
    if options.pair and options.file:
        raise UserError("--pair goes with --text: in a --file, the second text stands behind a tab")
    if options.pair and len(options.pair) != len(options.text):
        raise UserError(f"--pair must be given as often as --text: {len(options.text)} times, not {len(options.pair)}")
    if not options.model.is_dir():
        raise UserError(f"{options.model}: no such folder")
    from kdbench.inference.classifier import load_classifier  # loads torch: not for --help

    quiet_libraries()
    classifier = load_classifier(options.model)
    if options.file:
        rows = texts_file.read(options.file, classifier.dataset)
    else:
        rows = list(zip(options.text, *([options.pair] if options.pair else []), strict=True))
    blank = [not "".join(row).strip() for row in rows]
    if all(blank) and not options.quiet:
        print(f"kdbench-predict: there is no text in {options.file or '--text'}", file=sys.stderr)
    elif any(blank) and not options.quiet:
        first = blank.index(True) + 1
        print(f"kdbench-predict: {sum(blank)} blank texts, row {first} first, have empty answers", file=sys.stderr)
    columns = list(zip(*(row for row, empty in zip(rows, blank, strict=True) if not empty), strict=True))
    found = iter(classifier(columns[0], columns[1] if len(columns) > 1 else None) if columns else [])
    answers = [None if empty else next(found) for empty in blank]
    if options.json:
        _print_json(options.model, rows, answers, classifier.answer._fields)
    else:
        for row, answer in zip(rows, answers, strict=True):
            cells = _cells(answer, row, classifier.task)
            print(*(" ".join(cell.splitlines()).replace("\t", " ") for cell in cells), sep="\t")
    sys.stdout.flush()
    return 0


def _cells(answer: "AnyAnswer | None", row: tuple[str, ...], task: str) -> tuple[str, ...]:
    """Of a plain line: as many for a blank text as for others."""
    from kdbench.inference.classifier import Answer, Labels, Scored, ScoredLabels, Value

    match answer:
        case None:
            before, after = {"classification": (2, 0), "token_classification": (1, 1)}.get(task, (1, 0))
            return *("",) * before, *row, *("",) * after
        case Answer(label, probabilities):
            return label, f"{probabilities[label]:.4f}", *row
        case Scored(label, scores):
            return label, f"{scores[label]:.4f}", *row
        case Labels(labels, _) | ScoredLabels(labels, _):
            return ",".join(labels), *row
        case Value(value):
            return f"{value:.4f}", *row
        case _:
            return " ".join(answer.tags), *row, "; ".join(f"{kind}: {words}" for kind, words in answer.entities)


def _print_json(
    model: Path, rows: Sequence[tuple[str, ...]], answers: Sequence["AnyAnswer | None"], fields: Sequence[str]
) -> None:
    """`fields`: of an answer; null where there is none."""
    found = [
        dict(zip(("text", "pair"), row, strict=False)) | (dict.fromkeys(fields) if answer is None else answer._asdict())
        for row, answer in zip(rows, answers, strict=True)
    ]
    print(json.dumps({"schema": SCHEMA, "model": str(model), "answers": found}, indent=2, ensure_ascii=False))
