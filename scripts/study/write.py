"""Write the study's tables, pictures and pages from the runs that are finished.

    python -m scripts.study.write [--outputs outputs] [--root .] [--question theseus]
    python -m scripts.study.write --kept

A question's rows go to <question>.csv and .json (there also what is missing, and what methods report themselves), its
pictures to <question>*.svg, its times to times.csv; then the claims are judged, the README's picture is drawn
(headline.png), and the pages are filled in between their markers. Tables with runs that --outputs has not stay as they
are (keep.py). --kept leaves all tables as they are and needs no outputs: for rules and words that have changed.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from scripts.study import claims
from scripts.study.details import details
from scripts.study.evidence import remember_times
from scripts.study.finished import Finished
from scripts.study.keep import done_before, with_kept, written
from scripts.study.page import IN_README, fill, headline, headline_rows, pictures
from scripts.study.pictures import draw
from scripts.study.pictures import headline as draw_headline
from scripts.study.plan import ROOT, Plan, load_plan
from scripts.study.rows import COLUMNS, missing, rows_of, tables


def document(plan: Plan, question: str, finished: Finished) -> dict[str, Any]:
    """All that --outputs has of a question."""
    found = tables(plan, question, finished)
    return {
        "question": question,
        "rows": rows_of(plan, question, found, finished),
        "missing": missing(plan, question, finished),
        "details": details(plan, question, found, finished),
    }


def write_question(made: dict[str, Any], folder: Path) -> None:
    """The CSV, the JSON and the pictures of a question; pictures of before go."""
    name = made["question"]
    with (folder / f"{name}.csv").open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(made["rows"])
    text = json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf8")
    for path in pictures(folder, name):
        path.unlink()
    draw(made, folder)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs")
    parser.add_argument("--root", type=Path, default=ROOT, help="with docs/study/ and README.md")
    parser.add_argument("--question", help="only this one")
    parser.add_argument("--kept", action="store_true", help="only what is made of the tables: pictures, claims, pages")
    options = parser.parse_args(argv)
    if not options.kept and not options.outputs.is_dir():
        parser.error(f"no such folder: {options.outputs}")
    docs = options.root / "docs/study"
    plan, before = load_plan(), written(docs)
    finished = None if options.kept else Finished(options.outputs, done_before(before))
    for question in plan.questions if options.question is None else [options.question]:
        made = document(plan, question, finished) if finished else before[question]
        kept = with_kept(made, before[question], finished.folders) if finished and question in before else made
        write_question(kept, docs)
    remember_times(docs, written(docs))
    claims.write(docs)
    if named := headline_rows(docs, IN_README):
        draw_headline(named, headline(docs, IN_README), docs / "headline.png")
    lost = []
    for page in [*docs.glob("*.md"), options.root / "README.md"]:
        try:
            page.write_text(fill(page.read_text(encoding="utf8"), docs, plan), encoding="utf8")
        except LookupError as error:  # a sentence is about a row that has gone, or has another name
            lost.append(f"{page}: {error.args[0]}")
    if lost:
        parser.error("the tables are written, but not these pages:\n" + "\n".join(lost))


if __name__ == "__main__":
    main()
