"""The sheet of a table: its rows, and what is said in words below them, the same in every format."""

from kdbench.compare.columns import CONDITIONS, LEGEND, Sheet, columns, heading, row_tests, values
from kdbench.compare.commands import join_seeds, tfidf_command
from kdbench.compare.statistics import LEAST_GAP
from kdbench.compare.table import Row, Table


def sheet(table: Table, metric: str, split: str) -> Sheet:
    """One row a configuration."""
    return Sheet(heading(table, metric, split), columns(table, metric), notes(table, split), missing(table), LEGEND)


def notes(table: Table, split: str) -> list[str]:
    """What the figures mean, in sentences; only those that apply."""
    rows = table.rows
    neural = [row for row in rows if row.role in ("baseline", "method")]
    one_pair = [row for row in neural if any(pair and pair.n == 1 for pair in (row.score, *row.differences))]
    found = [
        *_below_tfidf(table),
        (one_pair, "A difference from one seed cannot be told from seed noise (add -m seed=0,1,2): {}."),
        (
            [row for row in rows if row.gap_too_small],
            f"The teacher is not {LEAST_GAP:g} point above direct fine-tuning, so no share of that gap is shown: {{}}.",
        ),
        (
            [row for row in rows if (tests := row_tests(table, row)) and tests.gap_may_be_zero],
            "The gap to the teacher may be zero, its share anything: {}.",
        ),
        ([row for row in rows if row.selected_on_reported], "† selected on the reported split, so too good: {}."),
        (
            [row for row in rows if row.times.batch_1 is not None and not row.times.quiet],
            "? The machine was not quiet while these were timed, so no ratio and no advice follows from their times"
            " (measure again with compare-runs --latency): {}.",
        ),
        (
            [row for row in rows if row.times.batch_1 is None],
            "Not timed: their command was stopped before it measured, or ran elsewhere (compare-runs --latency): {}.",
        ),
        ([row for row in rows if row.dirty], "‡ ran from a checkout with uncommitted changes: {}."),
    ]
    sentences = certainty(table) if table.tests else []
    sentences += [text.format(_names(which, rows)) for which, text in found if which]
    if machines := {"device", "threads", "machine"} & {name for name in CONDITIONS if len(values(rows, name)) > 1}:
        times = "training times" if table.session else "times (--latency measures them anew, together)"
        sentences.append(f"Not all rows ran alike (other {_listed(machines)}): compare no {times} across them.")
    others = [row.times.others for row in rows if row.times.others is not None]
    if others and not table.session:
        sentences.append(f"While times were measured, other work took {_range(others)} processors.")
    if trained := {name for name in ("precision", "length") if len(values(rows, name)) > 1}:
        sentences.append(
            f"Rows differ in {_listed(trained)} (ran on): part of a difference between such rows may be that."
        )
    if grids := [row for row in rows if row.tried > 1]:
        tried = ", ".join(f"{row.label} ({row.id}) of {row.tried}" for row in grids)
        sentences.append(f"Chosen on dev, reported on {split}: {tried}; a larger grid flatters what it chose.")
    if split == "dev":
        sentences.append("Checkpoints and hyperparameters were chosen on dev: report --split test.")
    return sentences


def _below_tfidf(table: Table) -> list[tuple[list[Row], str]]:
    """The rows below TF-IDF, each with a sentence for them: first those that a test finds to be."""
    floor = max((row for row in table.every if row.role == "tfidf"), key=lambda row: row.score.mean, default=None)
    if floor is None:
        return []
    below = [row for row in table.rows if row.score.mean < floor.score.mean]
    beaten = [row for row in below if (found := row_tests(table, row)) and floor.id in found.behind]
    name = f"TF-IDF + linear SVM ({floor.score.mean:.2f})"
    others = [row for row in below if row not in beaten]
    return [(beaten, f"{name} beats: {{}}."), (others, f"{name} is above: {{}}.")]


def certainty(table: Table) -> list[str]:
    """What the tests say and what they leave out."""
    compared = [row for row in table.rows if row.role != "teacher"]
    tied = [row for row in compared if (found := row_tests(table, row)) and found.tied_with_best]
    untested = [row for row in compared if (found := row_tests(table, row)) and found.untested]
    all_ranked = all((found := row_tests(table, row)) and found.rank for row in compared)
    taught = {(run.teacher.id, run.teacher.seed) for row in table.rows for run in row.runs if run.teacher}
    best = max(tied, key=lambda row: row.score.mean, default=None)
    said = []
    if best and len(tied) > 1:
        others = _names([row for row in tied if row is not best], [])
        of = "" if all_ranked else " of those with a rank"
        said.append(f"Cannot be told from the best{of}, {best.label} ({best.id}): {others}.")
    if best and untested:
        said.append(
            f"Not tested against {best.label} ({best.id}), for want of two common seeds: {_names(untested, [])}."
        )
    if len(taught) == 1:
        said.append("All students had one teacher: what another teacher's seed would change is in no interval.")
    return said


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _listed(words: set[str]) -> str:
    return " and ".join(sorted(words))


def _names(which: list[Row], rows: list[Row]) -> str:
    return "all rows" if len(which) == len(rows) > 2 else ", ".join(f"{row.label} ({row.id})" for row in which)


def missing(table: Table) -> list[tuple[str, list[str]]]:
    """What a fair table still lacks, and the commands that make it."""
    found = []
    if table.missing:
        found.append(("No finished run of these baselines was found; they are made by", join_seeds(table.missing)))
    if command := tfidf_command(table.runs):
        found.append(("TF-IDF, the floor for every student, is missing; it takes seconds", [command]))
    return found
