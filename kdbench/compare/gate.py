"""`--gate BASE CANDIDATE`: may CANDIDATE replace BASE? It passes if it is less than a margin worse.

The interval of the difference covers other texts, and other seeds where a side is a setting with its seeds. It is the
two-sided 90 % interval of `statistics.paired`, so each of its ends errs in at most 5 % of the cases
(scripts/study/error_rates.py gate). Hence a candidate that is worse by exactly the margin passes in at most 5 % of the
cases, and fails in at most 5 %.

A side that is one run is that very model, and nothing is claimed about other seeds of its setting. A side that is a
setting is a sample of its seeds. If the sides share only one seed, the spread between seeds is unknown. Then the gate
cannot tell, however many texts there are.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from kdbench.compare import diff
from kdbench.compare.collect import NULL, Run, read_runs
from kdbench.compare.columns import METRICS, NOTHING, Column, Sheet, unit
from kdbench.compare.confusions import label_names, parted
from kdbench.compare.keys import Wanted
from kdbench.compare.statistics import Paired, Points, Scores, difference, paired
from kdbench.compare.texts import Texts, texts
from kdbench.errors import Code, UserError, shortened
from kdbench.inference.forms import FORMS
from kdbench.storage.predictions import NoPredictionsError, Predictions, read
from kdbench.storage.results import EXPORT, RESULTS
from kdbench.tasks import traits

PASSED, FAILED, CANNOT_TELL = "passed", "failed", "cannot tell"
EXIT_CODES = {PASSED: 0, FAILED: 1, CANNOT_TELL: 3}  # 2 is a wrong command
LEVEL = 0.1  # of the interval: 5 % at each end
MOST_SEEDS, MOST_TEXTS = 30, 100  # seeds, and times as many texts: beyond, no number is suggested
STEP = 1.05  # factor between the numbers of texts that are tried
SHOWN = 12  # classes and texts in a table; the JSON has all
LONGEST = 60  # characters of a text in a table


@dataclass(frozen=True)
class Side:
    """The runs of BASE or of CANDIDATE, ordered by seed."""

    name: str  # as given
    runs: list[Run]
    single: bool  # one run was named, not a setting

    @property
    def seedless(self) -> bool:
        """Return whether this side is one model, and not a sample of seeds."""
        return self.single or (self.runs[0].method == "tfidf" and not self.runs[0].raw)

    @cached_property
    def predictions(self) -> dict[int, Predictions]:
        """The predictions by seed. Raises UserError if a run has none."""
        try:
            return {run.seed: read(run.path, run.split) for run in self.runs}
        except NoPredictionsError as error:
            raise _incomparable(f"{error}, and the gate compares text by text: repeat the run") from None

    def scores(self) -> Scores:
        """Return the (N,) points of the metric by seed."""
        metric = self.runs[0].metric
        return Scores({seed: one.points(metric) for seed, one in self.predictions.items()}, self.seedless)

    def used(self, seeds: Iterable[int]) -> list[Run]:
        """Return the runs that are compared where the sides share these seeds."""
        return self.runs[:1] if self.seedless else [run for run in self.runs if run.seed in seeds]

    def of(self, seeds: Iterable[int]) -> dict[int, Predictions]:
        """Return the predictions for these seeds; one model has the same for each."""
        first = next(iter(self.predictions.values()))
        return {seed: first if self.seedless else self.predictions[seed] for seed in seeds}


class WorseClass(NamedTuple):
    """A class of which CANDIDATE gets fewer texts right."""

    label: str
    texts: int
    base: float  # % of its texts that are right, mean over the seeds
    candidate: float
    sure: bool  # also for other seeds and texts, adjusted for the number of classes


class Flipped(NamedTuple):
    """A text that one side gets right in more seeds than the other."""

    id: int
    label: str
    answer: str  # of the side that is wrong
    seeds: int  # in which only the other side is right, minus those of the reverse
    text: str | None  # None: the data set is not in this machine's cache
    pair: str | None


@dataclass(frozen=True)
class Flips:
    lost: list[Flipped]  # only BASE is right
    gained: list[Flipped]  # only CANDIDATE is right
    why_no_texts: str


class Wrong(NamedTuple):
    """A text of --must-stay that CANDIDATE gets wrong."""

    text: str
    pair: str | None
    label: str
    answers: dict[int, str]  # the wrong ones, by seed


@dataclass(frozen=True)
class MustStay:
    path: Path
    checked: int
    wrong: list[Wrong]


class Deciding(NamedTuple):
    """Numbers that would decide if the difference stayed as it is; None: not within MOST_SEEDS and MOST_TEXTS."""

    texts: int | None = None  # with the seeds there are
    seeds: int | None = None  # with the texts there are
    both: tuple[int, int] | None = None  # (seeds, texts), if neither alone decides

    def sentence(self, found: Paired) -> str:
        """Return what would decide."""
        parts = [f"about {self.texts:,} texts with as many seeds"] if self.texts else []
        parts += [f"about {self.seeds} seeds on the same texts"] if self.seeds else []
        parts += [f"about {self.both[0]} seeds with {self.both[1]:,} texts"] if self.both else []
        there = f"There are {found.examples:,} texts and {found.seeds} shared seed{'s' * (found.seeds != 1)}."
        if not parts:
            return f"{there} No number within reach would decide: the difference is too close to the margin."
        return f"{there} If the difference stays as it is, what would decide: {', or '.join(parts)}."


@dataclass(frozen=True)
class Gate:
    """The verdict and its reasons."""

    base: Side
    candidate: Side
    margin: float
    found: Paired
    seeds: list[int]  # shared ones
    models_only: bool  # both sides are one model each
    by_scores: str  # the verdict without --must-stay
    classes: list[WorseClass] | None  # None: texts do not have one class each
    class_count: int
    flips: Flips | None
    must_stay: MustStay | None

    @property
    def verdict(self) -> str:
        return FAILED if self.must_stay and self.must_stay.wrong else self.by_scores

    @property
    def interval(self) -> tuple[float, float]:
        return self.found.interval(LEVEL)

    @property
    def words(self) -> str:
        """Return the verdict as one sentence, or as two if --must-stay decided it."""
        than = f"{self.margin:g} point{'s' * (self.margin != 1)} worse than BASE"
        words = {
            PASSED: f"passed: CANDIDATE is less than {than}",
            FAILED: f"failed: CANDIDATE is more than {than}",
            CANNOT_TELL: f"cannot tell whether CANDIDATE is less than {than}",
        }[self.by_scores] + " (these two models only)" * self.models_only
        stay = self.must_stay
        if stay is None:
            return words
        if not stay.wrong:
            return f"{words}; all {stay.checked} texts of {stay.path} are right"
        return (
            f"failed: CANDIDATE is wrong about {len(stay.wrong)} of the {stay.checked} texts of {stay.path}"
            f"\nby its scores alone: {words}"
        )

    @property
    def deciding(self) -> Deciding | None:
        """Return what would decide; None if the scores decide, or if the spread between seeds is unknown."""
        if self.by_scores != CANNOT_TELL or (self.found.seeds == 1 and not self.models_only):
            return None
        return deciding(self.found, self.margin)

    @property
    def notes(self) -> list[str]:
        low, high = self.interval
        other = "other texts" if self.found.seeds == 1 else "other seeds and other texts"
        notes = [
            f"The difference is {self.found.mean:+.2f} points. Its 90 % interval for {other} is {low:+.2f} to"
            f" {high:+.2f}. passed: all of it is above {-self.margin:g}; failed: all of it is below."
        ]
        if self.models_only:
            notes.append(
                "This is about these two models only, not about their settings: another seed may be worse. To judge"
                " the settings, name the folders that hold their seeds."
            )
        elif self.found.seeds == 1:
            notes.append(
                f"BASE and CANDIDATE share one seed ({self.seeds[0]}), and one seed says nothing about others, however"
                " many texts there are: run more seeds of both. To judge the two models of this seed, name their"
                " folders."
            )
        notes += [
            f"Seeds of {name} that were not used, because the other side does not have them: {_join(left)}."
            for name, side in (("BASE", self.base), ("CANDIDATE", self.candidate))
            if not side.seedless and (left := [run.seed for run in side.runs if run.seed not in self.seeds])
        ]
        if self.deciding:
            notes.append(self.deciding.sentence(self.found))
        if self.classes is None:
            notes.append("Classes and flipped texts are listed only for tasks with one class per text.")
        if self.flips and self.flips.why_no_texts:
            notes.append(f"The texts cannot be shown: {self.flips.why_no_texts}.")
        return notes


def gate(
    names: Sequence[str], margin: float, must_stay: Path | None, metric: str | None, split: str, roots: list[Path]
) -> tuple[Gate, list[str]]:
    """Judge CANDIDATE against BASE, both given in `names`; return warnings about files that were left out.

    `margin`: points of the metric. Raises UserError if the two cannot be compared.
    """
    warnings: list[str] = []
    base, candidate = (_side(name, metric, split, roots, warnings) for name in names)
    _check(base, candidate)
    values = difference(candidate.scores(), base.scores())
    if values is None or (base.single and candidate.single and base.runs[0].seed != candidate.runs[0].seed):
        raise _incomparable(
            f"BASE and CANDIDATE share no seed: BASE has {_join(run.seed for run in base.runs)}, CANDIDATE"
            f" {_join(run.seed for run in candidate.runs)}. Run the same seeds of both"
        )
    seeds = _shared(base, candidate)
    models_only = base.seedless and candidate.seedless
    found = paired(values)
    mine, theirs = candidate.of(seeds), base.of(seeds)
    one_class = traits(base.runs[0].task).one_class
    labels = np.unique(next(iter(mine.values())).labels) if one_class else np.zeros(0)
    made = Gate(
        base, candidate, margin, found, seeds, models_only,
        judged(found, margin, models_only),
        _worse(mine, theirs, _names(candidate), models_only) if one_class else None,
        len(labels),
        _flips(mine, theirs, candidate) if one_class else None,
        _must_stay(must_stay, candidate) if must_stay else None,
    )  # fmt: skip
    return made, warnings


def judged(found: Paired, margin: float, models_only: bool, level: float = LEVEL) -> str:
    """Return the verdict. `models_only`: both sides are one model each, so there is no spread between seeds."""
    low, high = found.interval(level)
    if found.seeds == 1 and not models_only:
        return CANNOT_TELL
    return PASSED if low > -margin else FAILED if high < -margin else CANNOT_TELL


def deciding(found: Paired, margin: float) -> Deciding:
    """Return which numbers of texts and seeds would decide if the difference and the variances stayed as they are."""

    def decided(seeds: int, examples: int) -> bool:
        low, high = found.interval(LEVEL, seeds, examples)
        return low > -margin or high < -margin

    tried = [math.ceil(found.examples * STEP**power) for power in range(math.ceil(math.log(MOST_TEXTS, STEP)))]

    def of_texts(seeds: int) -> int | None:
        enough = next((count for count in tried if decided(seeds, count)), None)
        return None if enough is None else _rounded_up(enough)

    more = range(found.seeds + 1, MOST_SEEDS + 1) if found.seeds > 1 else range(0)
    texts_alone = of_texts(found.seeds)
    seeds_alone = next((seeds for seeds in more if decided(seeds, found.examples)), None)
    both = None
    if texts_alone is None and seeds_alone is None:
        both = next(((seeds, count) for seeds in more if (count := of_texts(seeds)) is not None), None)
    return Deciding(texts_alone, seeds_alone, both)


def _rounded_up(count: int) -> int:
    """Return `count` rounded up to two digits, because it is a rough estimate."""
    step = int(10 ** max(len(str(count)) - 2, 0))
    return -(-count // step) * step


def _side(name: str, metric: str | None, split: str, roots: list[Path], warnings: list[str]) -> Side:
    """Return the runs of a run's folder, of a setting's folder, or of an id. Raises UserError."""
    folder = Path(name)
    single = (folder / RESULTS).is_file()
    runs, skipped = read_runs([folder] if folder.is_dir() else [*filter(Path.is_dir, roots)], metric, split, Wanted())
    if not folder.is_dir():
        runs, single = diff.named(name, runs), "/seed" in name
    else:
        paths = [folder / RESULTS] if single else [one / RESULTS for one in sorted(folder.glob("seed*"))]
        left_out = [line for line in skipped if any(line.startswith(f"{path}: ") for path in paths)]
        left_out += [f"{path.parent}: left out, it is not finished" for path in paths if not path.is_file()]
        runs = [run for run in runs if run.path in paths]
        if not runs:
            why = left_out or [
                f"{name} is neither a finished run (outputs/<...>/seed0) nor the folder with the seeds of a setting"
            ]
            raise UserError(Code.NOT_A_RUN, f"--gate {why[0]}")
        warnings += left_out
    if len(ids := sorted({run.row_id for run in runs})) > 1:
        raise UserError(Code.NOT_A_RUN, f"--gate {name} holds several settings: name one of {', '.join(ids)}")
    return Side(name, sorted(runs, key=lambda run: run.seed), single)


def _check(base: Side, candidate: Side) -> None:
    """Raise UserError if the two sides have different tests or metrics, or are the same runs."""
    runs = [*base.runs, *candidate.runs]
    if {run.path for run in base.runs} & {run.path for run in candidate.runs}:
        raise _incomparable(f"BASE and CANDIDATE are the same runs: {base.name}")
    if len(tests := sorted({run.examples_id for run in runs})) > 1:
        raise _incomparable(
            f"the runs have different {runs[0].split} texts or labels ({', '.join(tests)}), so their scores"
            " cannot be compared. Run both on the same data"
        )
    if part := next((run for run in runs if run.judged < run.examples), None):
        raise _incomparable(
            f"{part.path.parent} judges a file that answers {part.judged} of {part.examples} {part.split}"
            " texts, and the gate compares text by text: complete the file"
        )
    if len(metrics := sorted({run.metric for run in runs})) > 1:
        raise _incomparable(
            f"the runs were chosen by different metrics ({', '.join(metrics)}): add --metric {metrics[0]}"
        )


def _incomparable(problem: str) -> UserError:
    return UserError(Code.INCOMPARABLE_RUNS, f"--gate: {problem}")


def _shared(base: Side, candidate: Side) -> list[int]:
    """Return the seeds that the two sides share. One model has whatever seed the other side has."""
    every = [{run.seed for run in side.runs} for side in (base, candidate)]
    if base.seedless != candidate.seedless:
        return sorted(every[1] if base.seedless else every[0])
    return sorted(every[1])[:1] if base.seedless else sorted(every[0] & every[1])


def _names(side: Side) -> Mapping[int, str]:
    stored = next(iter(side.predictions.values())).names
    return dict(enumerate(stored)) if stored else label_names(side.runs[0])


def _right(every: Mapping[int, Predictions]) -> Points:
    """Return (S, N) 100 where the answer is right, else 0."""
    return np.stack([100.0 * (one.labels == one.predicted) for one in every.values()])


def _worse(
    mine: Mapping[int, Predictions], theirs: Mapping[int, Predictions], names: Mapping[int, str], models_only: bool
) -> list[WorseClass]:
    """Return the classes of which CANDIDATE (`mine`) gets fewer texts right, those with most texts lost first."""
    labels = next(iter(mine.values())).labels
    classes = np.unique(labels)
    ours, bases = _right(mine), _right(theirs)
    found = []
    for one in classes.tolist():
        of_class = labels == one
        values = (ours - bases)[:, of_class]
        if values.mean() < 0:
            sure = judged(paired(values), 0.0, models_only, LEVEL / len(classes)) == FAILED
            before, after = (float(side[:, of_class].mean()) for side in (bases, ours))
            found.append(WorseClass(names.get(one, str(one)), int(of_class.sum()), before, after, sure))
    return sorted(found, key=lambda one: (one.candidate - one.base) * one.texts)


def _flips(mine: Mapping[int, Predictions], theirs: Mapping[int, Predictions], candidate: Side) -> Flips:
    """Return the texts on which the sides differ, in both directions, the clearest first."""
    known = texts(candidate.runs)
    count = len(next(iter(mine.values())).ids)
    gained, lost = (
        [
            Flipped(one.id, one.label, one.wrong, one.ahead, *_text(known, one.at))
            for one in (part.examples if part else [])
        ]
        for part in parted(mine, theirs, _names(candidate), count)
    )
    return Flips(lost, gained, known.why_not)


def _text(known: Texts, at: int) -> tuple[str | None, str | None]:
    if known.split is None:
        return None, None
    return known.split.texts[at], None if known.split.pairs is None else known.split.pairs[at]


def _must_stay(path: Path, candidate: Side) -> MustStay:
    """Answer the texts of the file with each model of CANDIDATE. Raises UserError."""
    from kdbench.inference.classifier import load_classifier  # torch: only for --must-stay

    if not traits(candidate.runs[0].task).one_class:
        raise UserError(
            Code.UNSUPPORTED_TASK,
            f"--must-stay needs a task with one class per text, and the task of {candidate.name} is"
            f" {candidate.runs[0].task}",
        )
    rows: list[tuple[str, str | None, str]] = []
    answers: dict[int, list[str]] = {}
    for run in candidate.runs:
        classify = load_classifier(_model(run))
        rows = rows or read_must_stay(path, classify.pairs)
        if unknown := sorted({label for *_, label in rows} - set(classify.labels)):
            raise UserError(
                Code.MISMATCHED_CLASSES,
                f"--must-stay {path}: the model has no class {unknown[0]}. Its classes:"
                f" {', '.join(classify.labels[:SHOWN])}{', ...' * (len(classify.labels) > SHOWN)}",
            )
        pairs = [str(pair) for _, pair, _ in rows] if classify.pairs else None
        answers[run.seed] = [answer.label for answer in classify([text for text, *_ in rows], pairs)]
    wrong = [
        Wrong(text, pair, label, missed)
        for at, (text, pair, label) in enumerate(rows)
        if (missed := {seed: given[at] for seed, given in answers.items() if given[at] != label})
    ]
    return MustStay(path, len(rows), wrong)


def _model(run: Run) -> Path:
    """Return what `load_classifier` reads of a run, or the graph of an exported form, whose record is not beside it."""
    folder, form = run.path.parent, run.settings["form"]
    return folder if form == NULL else folder.parents[1] / EXPORT / FORMS[form].file


def read_must_stay(path: Path, pairs: bool) -> list[tuple[str, str | None, str]]:
    """Return (text, pair, label) of each row of a CSV in UTF-8. `pairs`: whether it must have a column `pair`.

    Raises UserError if the file is missing, is not such a table, or has an empty cell.
    """
    columns = ["text", *(["pair"] if pairs else []), "label"]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            if absent := [name for name in columns if name not in (table.fieldnames or ())]:
                raise UserError(
                    Code.MISSING_COLUMN,
                    f"--must-stay {path}: there is no column {absent[0]}. Its first line must be {','.join(columns)}",
                )
            rows = []
            for row in table:
                if empty := [name for name in columns if not (row[name] or "").strip()]:
                    raise UserError(
                        Code.INVALID_TEXT,
                        f"--must-stay {path}, line {table.line_num}: {empty[0]} is empty; give each row"
                        f" {' and '.join(columns)}",
                    )
                rows.append((row["text"], row["pair"] if pairs else None, row["label"].strip()))
    except FileNotFoundError:
        raise UserError(Code.MISSING_FILE, f"--must-stay {path}: there is no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            Code.UNREADABLE_TABLE, f"--must-stay {path} is not a CSV file in UTF-8: {str(error).splitlines()[0]}"
        ) from None
    if not rows:
        raise UserError(Code.UNREADABLE_TABLE, f"--must-stay {path} has no rows: give at least one text with its label")
    return rows


def _join(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def sheets(made: Gate) -> list[Sheet]:
    """Return the verdict, the classes that got worse, the texts that flipped, the texts that had to stay right."""
    found = [_verdict(made)]
    if made.classes:
        found.append(_classes(made.classes, made.class_count))
    if made.flips and made.flips.lost:
        found.append(_lost(made.flips, len(made.seeds)))
    if made.must_stay and made.must_stay.wrong:
        found.append(_wrong(made.must_stay))
    return found


def _verdict(made: Gate) -> Sheet:
    sides = [side.used(made.seeds) for side in (made.base, made.candidate)]
    run = made.base.runs[0]
    low, high = made.interval
    means = [f"{fmean(one.score for one in side):.2f}" for side in sides]
    metric = f"{run.split} {METRICS[run.metric]}, {unit(run.metric)}"
    return Sheet(
        f"{made.words}\n{run.dataset}, {metric}, {run.examples:,} examples",
        [
            Column("", ["BASE", "CANDIDATE", "difference"], left=True),
            Column("method", [*(side[0].method for side in sides), NOTHING], left=True),
            Column("id", [*(side[0].row_id for side in sides), NOTHING], left=True),
            Column("seeds", [*(_join(one.seed for one in side) for side in sides), NOTHING], left=True),
            Column(f"{METRICS[run.metric]}\n{unit(run.metric)}", [*means, f"{made.found.mean:+.2f}"]),
            Column("90 %\ninterval", [NOTHING, NOTHING, f"{low:+.2f} to {high:+.2f}"]),
        ],
        notes=made.notes,
    )


def _classes(found: list[WorseClass], every: int) -> Sheet:
    shown = found[:SHOWN]
    return Sheet(
        f"classes of which CANDIDATE gets fewer texts right: {len(found)} of {every}",
        [
            Column("class", [_cell(one.label) for one in shown], left=True),
            Column("texts", [str(one.texts) for one in shown]),
            Column("BASE\n% right", [f"{one.base:.1f}" for one in shown]),
            Column("CANDIDATE\n% right", [f"{one.candidate:.1f}" for one in shown]),
            Column("points", [f"{one.candidate - one.base:+.1f}{'*' * one.sure}" for one in shown]),
        ],
        notes=[f"*: surely worse, adjusted for {every} classes. The others may be chance.{_more(found)}"],
    )


def _lost(flips: Flips, seeds: int) -> Sheet:
    shown = flips.lost[:SHOWN]
    columns = [
        Column("row", [str(one.id) for one in shown]),
        Column("label", [_cell(one.label) for one in shown], left=True),
        Column("CANDIDATE\nanswers", [_cell(one.answer) for one in shown], left=True),
        Column("seeds", [f"{one.seeds} of {seeds}" for one in shown], drop=2),
    ]
    if not flips.why_no_texts:
        columns.append(Column("text", [_both(one.text, one.pair) for one in shown], drop=1, left=True))
    return Sheet(
        f"texts that only BASE gets right: {len(flips.lost)} (only CANDIDATE: {len(flips.gained)})",
        columns,
        notes=[f"The clearest are shown first.{_more(flips.lost)}"],
    )


def _more(found: Sequence[Any]) -> str:
    return f" The other {len(found) - SHOWN} are in --format json." if len(found) > SHOWN else ""


def _wrong(found: MustStay) -> Sheet:
    return Sheet(
        f"texts of {found.path} that CANDIDATE gets wrong: {len(found.wrong)} of {found.checked}",
        [
            Column("label", [_cell(one.label) for one in found.wrong], left=True),
            Column("CANDIDATE\nanswers", [_cell(" or ".join(sorted({*one.answers.values()}))) for one in found.wrong],
                   left=True),
            Column("with\nseeds", [_join(one.answers) for one in found.wrong], left=True),
            Column("text", [_both(one.text, one.pair) for one in found.wrong], drop=1, left=True),
        ],
    )  # fmt: skip


def _both(text: str | None, pair: str | None) -> str:
    return _cell(" | ".join(part for part in (text, pair) if part is not None))


def _cell(text: str) -> str:
    """Return a text in one line, without characters that a terminal would obey, cut after LONGEST characters."""
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))
    return shortened(line, LONGEST)


def document(made: Gate) -> dict[str, Any]:
    """Return everything for programs."""
    run, (low, high) = made.base.runs[0], made.interval
    stay, flips = made.must_stay, made.flips
    return {
        "verdict": made.verdict,
        "exit_code": EXIT_CODES[made.verdict],
        "verdict_by_scores": made.by_scores,
        "margin_points": made.margin,
        "dataset": run.dataset,
        "split": run.split,
        "metric": run.metric,
        "examples_id": run.examples_id,
        "examples": made.found.examples,
        "base": _record(made.base),
        "candidate": _record(made.candidate),
        "seeds": made.seeds,
        "models_only": made.models_only,
        "difference_points": made.found.mean,
        "low_points": low,
        "high_points": high,
        "would_decide": made.deciding._asdict() if made.deciding else None,
        "worse_classes": None if made.classes is None else [one._asdict() for one in made.classes],
        "lost_texts": flips and [one._asdict() for one in flips.lost],
        "gained_texts": flips and [one._asdict() for one in flips.gained],
        "must_stay": stay
        and {"file": str(stay.path), "checked": stay.checked, "wrong": [one._asdict() for one in stay.wrong]},
        "notes": made.notes,
    }


def _record(side: Side) -> dict[str, Any]:
    return {"name": side.name, "id": side.runs[0].row_id, "scores_points": {run.seed: run.score for run in side.runs}}


def records(made: Gate) -> list[dict[str, Any]]:
    """Return the verdict as one flat record, for CSV and Parquet."""
    full = document(made)
    flat = {key: value for key, value in full.items() if not isinstance(value, (dict, list))}
    flat |= {f"{name}_id": full[name]["id"] for name in ("base", "candidate")}
    flat |= {"seeds": " ".join(map(str, made.seeds))}
    flat |= {f"{name}_texts": made.flips and len(getattr(made.flips, name)) for name in ("lost", "gained")}
    return [flat | {"must_stay_wrong": made.must_stay and len(made.must_stay.wrong)}]
