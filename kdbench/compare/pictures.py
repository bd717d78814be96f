"""The pictures of a table, as matplotlib figures.

Colours are Okabe and Ito's (2008), which colour-blind people can distinguish. Each row also has a marker and a dash of
its own, so that nothing is lost in grey.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from kdbench.compare.collect import NULL
from kdbench.compare.columns import METRICS, NOTHING, metric_in_words, unit
from kdbench.compare.curves import Curve, Detail, detail
from kdbench.compare.table import TRAINED_ON, Row, Table, varying
from kdbench.compare.trust import Trust, mean_coverage, trust
from kdbench.tasks.probabilities import BINS, Bin, ece

matplotlib.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "svg.fonttype": "none",  # text stays text: to be searched, read out, and small
        "svg.hashsalt": "kdbench",  # the same figures give the same file
    }
)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "v", "P", "X", "h", "<", ">")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
NAME = 36  # characters of a legend
FEWEST = 5  # texts in a bin of probabilities; fewer say nothing about a share
LEAST_NUMBERS = 3  # of labelled texts; two make no curve
REFERENCE: dict[str, tuple[str, str, Any]] = {"teacher": ("*", "#000000", ":"), "tfidf": ("D", "#555555", ":")}


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """Return the label; if several rows have it, with the settings that distinguish them, or else with the id."""
    alike = [other for other in rows if other.label == row.label]
    if len(alike) == 1:
        return row.label
    trained = varying(alike)
    settings = {
        other.id: " ".join([other.settings, *(f"{name}={getattr(other.runs[0], name)}" for name in trained)]).strip()
        for other in alike
    }
    named = f"{row.label} {settings[row.id]}"
    if settings[row.id] and len(named) <= NAME and [*settings.values()].count(settings[row.id]) == 1:
        return named
    student = f" {row.runs[0].student}" * (len({other.runs[0].student for other in alike}) > 1)
    return f"{row.label}{student} ({row.id})"


def looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return marker, colour and dash of each row by its id."""
    others = zip(cycle(MARKERS), cycle(COLOURS), cycle(DASHES), strict=False)
    styles = {row.id: REFERENCE[row.role] if row.role in REFERENCE else next(others) for row in rows}
    return {id_: dict(zip(("marker", "color", "dash"), style, strict=True)) for id_, style in styles.items()}


def canvas(title: str, width: float = 8.5, height: float = 4.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    return figure, axes


def described(figure: Figure, axes: Axes, x: str, y: str) -> Figure:
    """Return the figure with the names of its axes, and a legend beside it."""
    axes.set(xlabel=x, ylabel=y)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def points(axes: Axes, x: float, row: Row, look: dict[str, Any], label: str, faint: bool = False) -> None:
    """Draw a row's mean with its 95 % interval; without tests with one s.d. A direct baseline is not filled."""
    mean, sd = row.score.mean, row.score.sd or 0.0
    spread = (mean - row.tests.score.low, row.tests.score.high - mean) if row.tests else (sd, sd)
    filling = "none" if row.role == "baseline" else look["color"]
    size = 11 if row.role == "teacher" else 7
    drawn = axes.errorbar(
        x, mean, yerr=[[spread[0]], [spread[1]]], marker=look["marker"], color=look["color"], markerfacecolor=filling,
        markersize=size, capsize=3, linestyle="none", elinewidth=1, label=f"{label} (n {row.score.n})",
        alpha=0.35 if faint else 1,
    )  # fmt: skip
    drawn[0].set_gid(f"point-{row.id}")  # for the script of the page


def log_axis(axes: Axes) -> None:
    """Make the x axis logarithmic, with plain numbers at 1, 2 and 5."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (cost, score) points that no other point beats in both, the cheapest first."""
    kept: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or score > kept[-1][1]:
            kept.append((cost, score))
    return kept


def pareto(table: Table, details: dict[str, Detail]) -> Figure | None:
    """Draw the score against measured latency. Times of a machine that was not quiet are faint, and on no front."""
    timed = [(row, row.times.batch_1) for row in table.rows if row.times.batch_1 is not None]
    if len(timed) < 2:
        return None
    figure, axes = canvas(f"{table.dataset}: {table.split} {METRICS[table.metric]} against latency")
    look = looks(table.rows)
    quiet = [(row, ms) for row, ms in timed if row.times.quiet]
    if len(quiet) > 1:
        best = front([(ms, row.score.mean) for row, ms in quiet])
        axes.step(*zip(*best, strict=True), where="post", color="#999999", linewidth=1, zorder=1, label="Pareto front")
    for row, ms in timed:
        name = name_of(row, table.rows) + ("" if row.times.quiet else " ? not quiet")
        points(axes, ms, row, look[row.id], name, faint=not row.times.quiet)
    for row, _ in quiet:
        for curve in details[row.id].curves:
            known = [(x, y) for x, y in zip(_in_turns(curve, row), curve.scores, strict=True) if x is not None]
            if len(known) > 1:
                axes.plot(*zip(*known, strict=True), color=look[row.id]["color"], linestyle=look[row.id]["dash"], lw=1)
    log_axis(axes)
    whiskers = "95 % interval" if table.tests else "± 1 s.d. over seeds"
    score = f"{metric_in_words(table)}\nwhiskers: {whiskers}; {table.examples:,} examples"
    return described(figure, axes, "latency, batch 1, ms (median, log scale)", score)


def _in_turns(curve: Curve, row: Row) -> list[float | None]:
    """Scale a curve's times, measured when its command ended, to the row's time, which may be measured later."""
    own = next(run.times.batch_1 for run in row.runs if run.seed == curve.seed)
    now = row.times.batch_1
    return [ms * now / own if ms and own and now else None for ms in curve.latencies]


def seeds(table: Table, details: dict[str, Detail]) -> Figure | None:
    """Draw every seed of every row, to show what a single run can give."""
    if all(len(row.runs) == 1 for row in table.rows):
        return None
    height = 1.4 + 0.32 * len(table.rows)
    figure, axes = canvas(f"{table.dataset}: spread over seeds", height=height)
    look = looks(table.rows)
    for at, row in enumerate(table.rows):
        offsets = np.linspace(-0.18, 0.18, len(row.runs)) if len(row.runs) > 1 else [0.0]
        axes.plot([run.score for run in row.runs], at + np.array(offsets), linestyle="none",
                  marker=look[row.id]["marker"], color=look[row.id]["color"], markersize=5)  # fmt: skip
        axes.plot([row.score.mean] * 2, [at - 0.32, at + 0.32], color="#000000", linewidth=1.5)
    names = [f"{name_of(row, table.rows)} (n {row.score.n})" for row in table.rows]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric_in_words(table)}, one mark for each seed, bar: mean; {table.examples:,} examples")
    return figure


def learning(table: Table, details: dict[str, Detail]) -> Figure | None:
    """Draw the dev score after each epoch, mean and range over seeds, with a bar at the beginning of a stage."""
    rows = [row for row in table.rows if details[row.id].learning]
    if not rows:
        return None
    figure, axes = canvas(f"{table.dataset}: learning curves")
    look, lowest = looks(table.rows), []
    for row in rows:
        every = details[row.id].learning
        length = min(len(one.steps) for one in every)
        steps, scores = every[0].steps[:length], np.array([one.scores[:length] for one in every])
        mean, style = scores.mean(0), look[row.id]
        label = f"{name_of(row, table.rows)} (n {len(every)})"
        marker = style["marker"] if length < 3 else None
        axes.plot(steps, mean, color=style["color"], linestyle=style["dash"], marker=marker, lw=1.4, label=label)
        axes.fill_between(steps, scores.min(0), scores.max(0), color=style["color"], alpha=0.12, linewidth=0)
        for _, start in every[0].stages[1:]:
            axes.plot(start, np.interp(start, steps, mean), marker="|", markersize=14, color=style["color"], mew=2)
        lowest.append(float(np.quantile(mean, 0.15)))
    top = max(max(one.scores) for row in rows for one in details[row.id].learning)
    axes.set_ylim(min(lowest) - 0.15 * (top - min(lowest)) - 0.5, top + 0.5)  # the first epochs may be below
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    steps_taken = "optimiser steps, over all stages\n|: a stage begins; band: lowest to highest seed"
    return described(figure, axes, steps_taken, f"dev {METRICS[table.metric]}, {unit(table.metric)}")


def speeds(table: Table, details: dict[str, Detail]) -> Figure | None:
    """Draw the score against FLOPs: a curve for a model with several speeds, a point for any other."""
    if not any(details[row.id].curves for row in table.rows):
        return None
    figure, axes = canvas(f"{table.dataset}: {table.split} {METRICS[table.metric]} against work")
    look = looks(table.rows)
    for row in table.rows:
        style, label = look[row.id], name_of(row, table.rows)
        for at, curve in enumerate(details[row.id].curves):
            order = np.argsort(curve.flops)
            axes.plot(np.array(curve.flops)[order] / 1e9, np.array(curve.scores)[order], color=style["color"],
                      linestyle=style["dash"], marker=style["marker"], markersize=4, lw=1.2,
                      label=f"{label}, one curve for each seed" if at == 0 else None)  # fmt: skip
        if not details[row.id].curves and row.runs[0].flops:
            points(axes, row.runs[0].flops / 1e9, row, style, label)
    log_axis(axes)
    score = f"{metric_in_words(table)}; {table.examples:,} examples"
    return described(figure, axes, "mean GFLOPs of an example (log scale)", score)


def exits(table: Table, details: dict[str, Detail]) -> Figure | None:
    """Draw the share of examples that leave at each exit as stacked bars by speed, for the first seed."""
    rows = [row for row in table.rows if details[row.id].curves]
    if not rows:
        return None
    figure = Figure(figsize=(7, 1.0 + 2.2 * len(rows)), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        curve = details[row.id].curves[0]
        shares = np.array(curve.exits)
        left = np.zeros(len(shares))
        for layer in range(shares.shape[1]):
            shade = str(0.85 - 0.8 * layer / max(shares.shape[1] - 1, 1))
            axes.bar([f"{speed:g}" for speed in curve.speeds], shares[:, layer], bottom=left, color=shade,
                     edgecolor="white", label=f"exit {layer + 1}")  # fmt: skip
            left += shares[:, layer]
        axes.set_title(f"{name_of(row, table.rows)}, seed {curve.seed}, {table.examples:,} examples", loc="left")
        axes.set(xlabel="speed", ylabel=f"share of {table.split} rows")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def reliable(table: Table, details: dict[str, Detail]) -> Figure | None:
    """Draw the accuracy of answers against their probability, over all seeds; small bins are left out."""
    found = _trusted(table)
    if not found:
        return None
    figure, axes = canvas(f"{table.dataset}: {table.split} accuracy against probability")
    look = looks(table.rows)
    axes.plot((0, 1), (0, 1), color="#999999", linewidth=1, zorder=1, label="calibrated")
    for row, one in found:
        _, bins = one.bins()
        _bins(axes, bins, look[row.id], f"{name_of(row, table.rows)} (ECE {ece(bins):.3f})")
    few = f"{BINS} bins, those with fewer than {FEWEST} texts are left out"
    return described(figure, axes, f"probability of the likeliest answer; {few}", "share of right answers")


def _trusted(table: Table) -> list[tuple[Row, Trust]]:
    return [(row, one) for row in table.rows if (one := trust(row, table.split)) is not None]


def _bins(axes: Axes, bins: Sequence[Bin], look: dict[str, Any], label: str) -> None:
    shown = [(one.confidence, one.accuracy) for one in bins if one.size >= FEWEST]
    if shown:
        axes.plot(*zip(*shown, strict=True), marker=look["marker"], color=look["color"], linestyle=look["dash"],
                  markersize=5, lw=1.2, label=label)  # fmt: skip


def diagram(title: str, found: Trust) -> Figure:
    """Draw the reliability diagram of a row, before and after its temperatures, with the share of texts in each bin."""
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.set_title(title, loc="left", fontsize=10, fontweight="bold")
    above.plot((0, 1), (0, 1), color="#999999", linewidth=1, zorder=1)
    before, after = found.bins()
    if found.divided:
        plain = {"marker": "s", "color": "#777777", "dash": "--"}
        _bins(above, before, plain, f"before the temperature (ECE {ece(before):.3f})")
    _bins(above, after, {"marker": "o", "color": COLOURS[0], "dash": "-"}, f"as answered (ECE {ece(after):.3f})")
    total = sum(one.size for one in after)
    edges = [(number + 0.5) / len(after) for number in range(len(after))]
    below.bar(edges, [one.size / total for one in after], width=0.9 / len(after), color=COLOURS[0])
    above.set_ylabel("share of right answers")
    below.set(xlabel=f"probability of the likeliest answer, {len(after)} bins", ylabel="share")
    if above.get_legend_handles_labels()[0]:  # else no bin has enough texts
        above.legend(loc="upper left", fontsize=8)
    return figure


def covered(table: Table, details: dict[str, Detail]) -> Figure | None:
    """Draw the accuracy of the answered texts against their share, the surest first: the mean over seeds."""
    found = _trusted(table)
    if not found:
        return None
    figure, axes = canvas(f"{table.dataset}: {table.split} accuracy if unsure texts are not answered")
    look, shares = looks(table.rows), np.linspace(0.05, 1, 96)
    for row, one in found:
        style = look[row.id]
        axes.plot(100 * shares, 100 * mean_coverage(one, shares), color=style["color"], linestyle=style["dash"], lw=1.4,
                  label=name_of(row, table.rows))  # fmt: skip
    right = f"right of these, %; {table.examples:,} examples"
    return described(figure, axes, "answered texts, the surest first, %", right)


def labels(table: Table, details: dict[str, Detail]) -> Figure | None:
    """Draw the score against the number of labelled texts. The bands are 95 % intervals, for rows with tests."""
    if len({row.runs[0].labelled for row in table.rows}) < LEAST_NUMBERS:
        return None
    figure, axes = canvas(f"{table.dataset}: {table.split} {METRICS[table.metric]} against labels")
    lines = _lines(table.rows)
    look = looks([members[0] for members in lines.values()])
    for name, members in lines.items():
        style, counts = look[members[0].id], [row.runs[0].labelled for row in members]
        ends = [(row.tests.score.low, row.tests.score.high) if row.tests else (np.nan, np.nan) for row in members]
        low, high = np.array(ends).T
        axes.plot(counts, [row.score.mean for row in members], marker=style["marker"], color=style["color"],
                  linestyle=style["dash"], markersize=5, lw=1.4, label="\n".join(wrap(name, NAME)))  # fmt: skip
        axes.fill_between(counts, low, high, color=style["color"], alpha=0.12, linewidth=0)
        if len(members) == 1:  # a band needs two points
            axes.vlines(counts, low, high, color=style["color"], linewidth=1)
    _label_ticks(axes, sorted({row.runs[0].labelled for row in table.rows}))
    texts = "labelled train texts (log scale)" + "\nbands: 95 % interval" * (table.tests is not None)
    return described(figure, axes, texts, f"{metric_in_words(table)}; {table.examples:,} examples")


def _label_ticks(axes: Axes, counts: Sequence[int]) -> None:
    """Make the x axis logarithmic, with a tick at each count that has room for its number."""
    ticks = [counts[0]]
    for count in counts[1:]:
        if count >= ticks[-1] * (counts[-1] / counts[0]) ** 0.08:
            ticks.append(count)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each line by its name, fewest labels first: a line for each method, with raw texts or without.

    If two rows of a line had as many labels, lines are also apart by the number of raw texts.
    """
    found = _by_name(rows, exactly=False)
    alone = all(len({row.runs[0].labelled for row in members}) == len(members) for members in found.values())
    return found if alone else _by_name(rows, exactly=True)


def _by_name(rows: Sequence[Row], exactly: bool) -> dict[str, list[Row]]:
    students = {row.runs[0].student for row in rows if row.role in ("baseline", "method")}
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.runs[0].labelled):
        run = row.runs[0]
        raw = (f"with {run.raw:,} raw texts" if exactly else "with raw texts") if run.raw else None
        words = (row.label, run.student if len(students) > 1 else None, row.settings, raw)
        found.setdefault(" ".join(filter(None, words)), []).append(row)
    return found


def grids(table: Table) -> Iterator[tuple[str, Figure]]:
    """Yield a heat map of the two most varied settings for each method and student with several configurations."""
    models: dict[str, dict[str, list[Row]]] = {}
    for row in table.rows:
        if row.role != "teacher" and row.runs[0].settings["form"] == NULL:  # an exported form is not a setting
            models.setdefault(row.runs[0].method, {}).setdefault(str(row.runs[0].student), []).append(row)
    for method, students in models.items():
        for student, rows in students.items():
            trained = {row.id: {name: str(getattr(row.runs[0], name)) for name in TRAINED_ON} for row in rows}
            settings = {row.id: row.runs[0].settings | row.runs[0].training | trained[row.id] for row in rows}
            if varied := _varied(list(settings.values())):
                name = method if len(students) == 1 else f"{method}_{student}"
                yield f"grid_{name}", _heat(table, rows, settings, varied)


def _varied(settings: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """Return the keys with several values, and these values; the most varied key first."""
    found = []
    for key in dict.fromkeys(key for one in settings for key in one):
        if len({one[key] for one in settings if key in one}) > 1:
            found.append((key, sorted({_of(one, key) for one in settings}, key=_number_first)))
    return sorted(found, key=lambda one: -len(one[1]))


def _of(settings: dict[str, str], key: str) -> str:
    value = settings.get(key, NULL)
    return NOTHING if value == NULL else value


def _number_first(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text


def _heat(
    table: Table, rows: list[Row], settings: dict[str, dict[str, str]], varied: list[tuple[str, list[str]]]
) -> Figure:
    (across, columns), (down, lines) = varied[0], varied[1] if len(varied) > 1 else ("", [NOTHING])
    cells: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        one = settings[row.id]
        place = (lines.index(_of(one, down)), columns.index(_of(one, across)))
        cells.setdefault(place, []).extend(run.score for run in row.runs)
    grid = np.full((len(lines), len(columns)), np.nan)
    for place, scores in cells.items():
        grid[place] = np.mean(scores)
    first = rows[0].runs[0]
    title = f"{table.dataset}: {first.method} {first.student}\nmean {metric_in_words(table)}"
    figure, axes = canvas(title, 3.2 + 1.0 * len(columns), 2.0 + 0.55 * len(lines))
    image = axes.imshow(grid, cmap="cividis", aspect="auto")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for (y, x), scores in cells.items():
        ink = "white" if grid[y, x] < middle else "black"
        axes.text(x, y, f"{grid[y, x]:.2f}\nn {len(scores)}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(lines)), lines)
    rest = [key for key, _ in varied[2:]]
    axes.set_xlabel(across + (f"\n(mean over {', '.join(rest)})" if rest else ""))
    axes.set_ylabel(down)
    axes.grid(False)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


ROWS = 30  # of one picture, as a reader cannot distinguish more
PICTURES = {
    "pareto": pareto, "seeds": seeds, "labels": labels, "learning": learning, "speeds": speeds, "exits": exits,
    "reliability": reliable, "coverage": covered,
}  # fmt: skip


def pictures(table: Table) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of each picture for which the table has data."""
    shown = table
    if len(table.rows) > ROWS:
        title = f"{table.dataset}, first {ROWS} of {len(table.rows)} rows"
        shown = replace(table, dataset=title, rows=table.rows[:ROWS])
    details = {row.id: detail(row) for row in shown.rows}
    for name, draw in PICTURES.items():
        # a line of `labels` has several rows, and must keep them all
        if (figure := draw(table if draw is labels else shown, details)) is not None:
            yield name, figure
    yield from grids(table)


def save(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Save all pictures as PNG and SVG and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for table in tables:
        start = table.dataset if len(tables) == 1 else f"{table.dataset}-{table.examples_id}"
        for name, figure in pictures(table):
            stem = re.sub(r"[^\w.-]", "-", f"{start}_{name}")  # names come from records; none may leave the folder
            for kind in ("png", "svg"):
                files.append(folder / f"{stem}.{kind}")
                figure.savefig(files[-1], dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return files
