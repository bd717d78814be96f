"""The pictures of a table, as matplotlib figures."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdbench.compare.columns import METRICS, unit
from kdbench.compare.curves import Curve, Detail, detail
from kdbench.compare.draw import canvas, log_axis, looks, name_of, points
from kdbench.compare.heat import grids
from kdbench.compare.table import Row, Table


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, score) those that no other beats in both, from the cheapest."""
    kept: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or score > kept[-1][1]:
            kept.append((cost, score))
    return kept


def pareto(table: Table, metric: str, split: str, details: dict[str, Detail]) -> Figure | None:
    """Score against measured latency; what was not timed on a quiet machine is faint, and on no front."""
    timed = [(row, row.times.batch_1) for row in table.rows if row.times.batch_1 is not None]
    if len(timed) < 2:
        return None
    figure, axes = canvas(f"{table.dataset}: {split} {METRICS[metric]} against latency")
    look = looks(table.rows)
    quiet = [(row, ms) for row, ms in timed if row.times.quiet]
    if len(quiet) > 1:
        best = front([(ms, row.score.mean) for row, ms in quiet])
        axes.step(*zip(*best, strict=True), where="post", color="#999999", linewidth=1, zorder=1, label="Pareto front")
    for row, ms in timed:
        name = name_of(row, table.rows) + ("" if row.times.quiet else " ? not quiet")
        points(axes, ms, row, table, look[row.id], name, faint=not row.times.quiet)
    for row, _ in quiet:
        for curve in details[row.id].curves:
            known = [(x, y) for x, y in zip(_in_turns(curve, row), curve.scores, strict=True) if x is not None]
            if len(known) > 1:
                axes.plot(*zip(*known, strict=True), color=look[row.id]["color"], linestyle=look[row.id]["dash"], lw=1)
    log_axis(axes)
    whiskers = "95 % interval" if table.tests else "± 1 s.d. over seeds"
    axes.set_xlabel("latency, batch 1, ms (median, log scale)")
    axes.set_ylabel(f"{split} {METRICS[metric]}, {unit(metric)}\nwhiskers: {whiskers}; {table.examples:,} examples")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _in_turns(curve: Curve, row: Row) -> list[float | None]:
    """A curve's times, of when its command ended, in proportion to what the row shows, which may be of later."""
    own = next(run.latency.batch_1 for run in row.runs if run.seed == curve.seed)
    now = row.times.batch_1
    return [ms * now / own if ms and own and now else None for ms in curve.latencies]


def seeds(table: Table, metric: str, split: str, details: dict[str, Detail]) -> Figure | None:
    """Every seed of every row: what one run alone would have said."""
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
    axes.set_xlabel(
        f"{split} {METRICS[metric]}, {unit(metric)}, one mark a seed, bar: mean; {table.examples:,} examples"
    )
    return figure


def learning(table: Table, metric: str, split: str, details: dict[str, Detail]) -> Figure | None:
    """Dev score after each epoch, the mean over seeds and their range; a bar where a stage begins."""
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
    axes.set_ylim(min(lowest) - 0.15 * (top - min(lowest)) - 0.5, top + 0.5)  # the first epochs are below
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimiser steps, over all stages\n| begins a stage; band: lowest to highest seed")
    axes.set_ylabel(f"dev {METRICS[metric]}, {unit(metric)}")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def speeds(table: Table, metric: str, split: str, details: dict[str, Detail]) -> Figure | None:
    """The curves of models with several speeds over the points of the others, by FLOPs."""
    if not any(details[row.id].curves for row in table.rows):
        return None
    figure, axes = canvas(f"{table.dataset}: {split} {METRICS[metric]} against work")
    look = looks(table.rows)
    for row in table.rows:
        style, label = look[row.id], name_of(row, table.rows)
        for at, curve in enumerate(details[row.id].curves):
            order = np.argsort(curve.flops)
            axes.plot(np.array(curve.flops)[order] / 1e9, np.array(curve.scores)[order], color=style["color"],
                      linestyle=style["dash"], marker=style["marker"], markersize=4, lw=1.2,
                      label=f"{label}, a curve a seed" if at == 0 else None)  # fmt: skip
        if not details[row.id].curves and row.runs[0].flops:
            points(axes, row.runs[0].flops / 1e9, row, table, style, label)
    log_axis(axes)
    axes.set_xlabel("mean GFLOPs of an example (log scale)")
    axes.set_ylabel(f"{split} {METRICS[metric]}, {unit(metric)}; {table.examples:,} examples")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def exits(table: Table, metric: str, split: str, details: dict[str, Detail]) -> Figure | None:
    """Where the rows leave, at each speed: a stacked bar, of the first seed."""
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
        axes.set(xlabel="speed", ylabel=f"share of {split} rows")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


ROWS = 30  # of one picture
PICTURES = {"pareto": pareto, "seeds": seeds, "learning": learning, "speeds": speeds, "exits": exits}


def pictures(table: Table, metric: str, split: str) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of all that the table has something for."""
    whole = table
    if len(table.rows) > ROWS:  # more than a reader can tell apart
        title = f"{table.dataset}, first {ROWS} of {len(table.rows)} rows"
        table = replace(table, dataset=title, rows=table.rows[:ROWS])
    details = {row.id: detail(row, metric, split) for row in table.rows}
    for name, draw in PICTURES.items():
        if (figure := draw(table, metric, split, details)) is not None:
            yield name, figure
    yield from grids(whole, metric, split)


def save(tables: Sequence[Table], split: str, folder: Path) -> list[Path]:
    """All pictures as PNG and SVG; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for table in tables:
        start = table.dataset if len(tables) == 1 else f"{table.dataset}-{table.data_id}"
        for name, figure in pictures(table, table.metric, split):
            stem = re.sub(r"[^\w.-]", "-", f"{start}_{name}")  # names are of records: none leads out of the folder
            for kind in ("png", "svg"):
                files.append(folder / f"{stem}.{kind}")
                figure.savefig(files[-1], dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return files
