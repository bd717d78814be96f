"""The sheets of a table: its rows with notes and the commands for what is missing, its tests, its times."""

import re
from collections.abc import Iterable

from kdbench.compare import speed
from kdbench.compare.columns import CONDITIONS, LEGEND, Sheet, columns, heading, values
from kdbench.compare.table import LEAST_GAP, Row, Table, varying

SEED = re.compile(r"(?<=\s)seed=(\S+)(?!.*\sseed=)", re.DOTALL)  # the last one: a quoted word may hold another


def sheets(table: Table) -> list[Sheet]:
    """Return the sheet with a line for each row, and those of the tests and of times measured together, if any."""
    found = [Sheet(heading(table), columns(table), notes(table), missing(table), LEGEND)]
    if table.tests and table.tests.count:
        from kdbench.compare import testing  # numpy

        found.append(testing.sheet(table, table.tests.count))
    if table.session:
        found.append(speed.sheet(table, table.session))
    return found


def notes(table: Table) -> list[str]:
    """Return the sentences that apply to the table's figures."""
    rows = table.rows
    neural = [row for row in rows if row.role in ("baseline", "method")]
    one_pair = [row for row in neural if any(pair and pair.n == 1 for pair in (row.score, *row.differences))]
    found = [
        *_below_tfidf(table),
        (one_pair, "One seed cannot separate a difference from seed noise (add -m seed=0,1,2): {}."),
        (
            [row for row in rows if row.gap_too_small],
            f"The teacher is less than {LEAST_GAP:g} point above direct fine-tuning, so no share of the gap is shown: "
            "{}.",
        ),
        (
            [row for row in rows if row.tests and row.tests.gap_may_be_zero],
            "The gap to the teacher may be zero, so no share of it is shown: {}.",
        ),
        ([row for row in rows if row.selected_on_reported], "† Selected on the reported split, so too optimistic: {}."),
        (
            [row for row in rows if row.runs[0].method == "prune"],
            "vs direct compares with all layers unpruned, because a pruned shape has no twin that is trained directly:"
            " {}.",
        ),
        (
            [row for row in rows if row.times.batch_1 is not None and not row.times.quiet],
            "? The machine was not quiet during timing, so these times give no ratio and no advice"
            " (measure again with compare-runs --latency): {}.",
        ),
        (
            [row for row in rows if row.times.batch_1 is None and row.runs[0].method != "answers"],
            "Not timed, because the command was stopped before or ran elsewhere (compare-runs --latency): {}.",
        ),
        ([row for row in rows if row.dirty], "‡ Ran from a checkout with uncommitted changes: {}."),
    ]
    sentences = _teachers(table) + (_tested(table) if table.tests else [])
    sentences += [text.format("all rows" if len(which) == len(rows) > 2 else _names(which)) for which, text in found
                  if which]  # fmt: skip
    varying = [name for name in sorted(CONDITIONS) if len(values(rows, name)) > 1]
    if machines := [name for name in varying if name in ("device", "threads", "machine")]:
        times = "training times" if table.session else "times (--latency measures them again, together)"
        sentences.append(f"Rows differ in {' and '.join(machines)}: do not compare their {times}.")
    others = [f"{row.times.others:.2f}" for row in rows if row.times.others is not None]
    if others and not table.session:
        load = " to ".join(dict.fromkeys((min(others, key=float), max(others, key=float))))
        sentences.append(f"During timing, other work took {load} processors.")
    if trained := [name for name in varying if name in ("precision", "length")]:
        sentences.append(f"Rows differ in {' and '.join(trained)} (ran on): this may cause part of a difference.")
    if grids := [row for row in rows if row.tried > 1]:
        tried = ", ".join(f"{row.name} of {row.tried}" for row in grids)
        sentences.append(f"Chosen on dev, reported on {table.split}: {tried}. A larger grid favours its best row.")
    if len({run.dev_id for row in rows for run in row.runs}) > 1:
        sentences.append("Rows differ in the dev split that chose their checkpoints.")
    if table.split == "dev":
        sentences.append("Checkpoints and hyperparameters were chosen on dev: report --split test.")
    return sentences


def _below_tfidf(table: Table) -> list[tuple[list[Row], str]]:
    """Return the rows below TF-IDF with a sentence: those significantly below, then the others.

    Each row is compared with TF-IDF on as many labelled texts.
    """
    found = []
    for labelled in sorted({row.runs[0].labelled for row in table.rows}):
        if (floor := table.tfidf(labelled)) is None:
            continue
        own = [row for row in table.rows if row.runs[0].labelled == labelled and row.whole]
        below = [row for row in own if row.score.mean < floor.score.mean]
        beaten = [row for row in below if row.tests and floor.id in row.tests.behind]
        name = f"TF-IDF + linear SVM ({floor.score.mean:.2f})"
        if "labelled" in varying(table.rows):
            name = f"{name} on {labelled:,} labels"
        others = [row for row in below if row not in beaten]
        found += [
            (beaten, f"{name} is significantly better than {{}}."),
            (others, f"{name} has a higher mean than {{}}."),
        ]
    return found


def _teachers(table: Table) -> list[str]:
    """Return what the teachers knew and the runs were not given: more labels, perhaps even test texts."""
    more: dict[tuple[int, int], list[Row]] = {}
    for row in table.rows:
        run = row.runs[0]
        if run.teacher and run.teacher.labelled is not None and run.teacher.labelled > run.labelled:
            more.setdefault((run.teacher.labelled, run.labelled), []).append(row)
    sentences = [
        f"{_names(rows)}: {'its' if len(rows) == 1 else 'their'} teacher saw {theirs:,} labels, "
        f"{'this run' if len(rows) == 1 else 'these runs'} {own:,}."
        for (theirs, own), rows in more.items()
    ]
    if several := [row for row in table.rows if row.teachers > 1]:
        sentences.append(
            f"Each seed has a teacher of its own, so ± and the intervals cover the teachers too: {_names(several)}."
        )
    sentences += [
        f"{row.name}: the file answers {row.runs[0].judged:,} of {row.runs[0].examples:,} texts. Its score is of these"
        " alone, so no share of the gap is shown."
        for row in table.rows
        if not row.whole
    ]
    if elsewhere := [row for row in table.rows if any(run.teacher and run.teacher.other_test for run in row.runs)]:
        sentences.append(
            f"Warning: the teacher's run had another test split, so it may have been trained on these test texts, "
            f"and no share of the gap is shown: {_names(elsewhere)}."
        )
    return sentences


def _tested(table: Table) -> list[str]:
    """Return what the tests found about the best row, and what they leave out."""
    compared = [row for row in table.rows if row.role != "teacher"]
    tied = [row for row in compared if row.tests and row.tests.tied_with_best]
    untested = [row for row in compared if row.tests and row.tests.rank and row.tests.tied_with_best is None]
    taught = {(run.teacher.id, run.teacher.seed) for row in table.rows for run in row.runs if run.teacher}
    best = max(tied, key=lambda row: row.score.mean, default=None)
    sentences = []
    if best and len(tied) > 1:
        ranked = "" if all(row.tests and row.tests.rank for row in compared) else " row with a rank"
        others = _names(row for row in tied if row is not best)
        sentences.append(f"No significant difference from the best{ranked}, {best.name}: {others}.")
    if best and untested:
        sentences.append(
            f"Not tested against {best.name}, because they share fewer than two seeds: {_names(untested)}."
        )
    if len(taught) == 1:
        sentences.append("All students had the same teacher: no interval covers the effect of another teacher seed.")
    several = [row for row in compared if row.teachers > 1]
    one = [row for row in compared if row.teachers == 1 and len(row.runs) > 1]
    if several and one:
        sentences.append(f"Only one teacher, so no interval covers the effect of another teacher seed: {_names(one)}.")
    return sentences


def _names(rows: Iterable[Row]) -> str:
    return ", ".join(row.name for row in rows)


def missing(table: Table) -> list[tuple[str, list[str]]]:
    """Return what a fair table still lacks, and the commands that make it."""
    found = []
    if table.missing:
        found.append(("These baselines have no finished run. Commands that make them", join_seeds(table.missing)))
    if table.missing_tfidf:
        sentence = "TF-IDF, the baseline that every student should beat, is missing. It takes seconds"
        found.append((sentence, table.missing_tfidf))
    return found


def join_seeds(commands: Iterable[str]) -> list[str]:
    """Join commands that differ in the seed: `... seed=0` and `... seed=1` become `kdbench -m ... seed=0,1`."""
    seeds: dict[tuple[str, ...], set[str]] = {}
    for command in commands:
        before, seed, after = [*SEED.split(command), "", ""][:3]
        seeds.setdefault((before, after), set()).add(seed)
    joined = []
    for (before, after), found in sorted(seeds.items()):
        if len(found) > 1:
            before = before.replace("kdbench ", "kdbench -m ", 1)
        seed = f"seed={','.join(sorted(found, key=lambda seed: (len(seed), seed)))}"
        joined.append(f"{before}{seed if any(found) else ''}{after}")
    return joined
