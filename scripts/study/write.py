"""Write the first study's tables, pictures and pages from the runs that are finished.

    python -m scripts.study.write [--outputs outputs] [--root .] [--question theseus]
    python -m scripts.study.write --kept

A question's rows go to <question>.csv, what its runs report themselves to <question>_<name>.csv, and its times to
times.csv. Then the pictures are drawn, the claims are judged, and the pages are filled in between their markers.
A table with runs that --outputs does not have stays as it is (tables.py). --kept leaves all tables as they are and
needs no outputs: use it when rules, words or the plan have changed.
"""

import argparse
from pathlib import Path

from scripts.study.finished import Finished
from scripts.study.page import fill
from scripts.study.pictures import draw
from scripts.study.plan import ROOT, load_plan
from scripts.study.rows import document
from scripts.study.tables import TIMES, read, with_kept, with_times, write_csv, write_question

PAGES = ("README.md", "plan.md")  # of the first study; scripts.study.second writes its own


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder with docs/study/")
    parser.add_argument("--question", help="only this one")
    parser.add_argument("--kept", action="store_true", help="only the pictures and the pages, from the tables")
    options = parser.parse_args(argv)
    docs, plan = options.root / "docs/study", load_plan()
    before = read(docs, plan.questions)
    if not options.kept:
        if not options.outputs.is_dir():
            parser.error(f"no such folder: {options.outputs}")
        finished = Finished(options.outputs)
        for question in plan.questions if options.question is None else [options.question]:
            made = document(plan, question, finished)
            write_question(docs, question, with_kept(made, before.documents[question], finished.folders))
        write_csv(docs / "times.csv", TIMES, with_times(read(docs, plan.questions)))
    evidence = read(docs, plan.questions)
    draw(evidence, docs)
    lost = []
    for page in (docs / name for name in PAGES if (docs / name).is_file()):
        try:
            page.write_text(fill(page.read_text(encoding="utf8"), evidence, plan), encoding="utf8")
        except LookupError as error:  # a sentence is about a row that has gone, or has another name
            lost.append(f"{page}: {error.args[0]}")
    if lost:
        parser.error("the tables are written, but not these pages:\n" + "\n".join(lost))


if __name__ == "__main__":
    main()
