"""How rows look in every picture. Colours are Okabe and Ito's (2008), told apart by colour-blind
people; each row also has a marker and a dash of its own, so that grey paper loses nothing."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kdbench.compare.table import Row, Table

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
REFERENCE = {"teacher": ("*", "#000000"), "tfidf": ("D", "#555555")}


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """The label; where several rows have it, with the settings that tell them apart, or if these do not, the id."""
    alike = [other for other in rows if other.label == row.label]
    if len(alike) == 1:
        return row.label
    named = f"{row.label} {row.settings}"
    if row.settings and len(named) <= NAME and [other.settings for other in alike].count(row.settings) == 1:
        return named
    student = f" {row.runs[0].student}" * (len({other.runs[0].student for other in alike}) > 1)
    return f"{row.label}{student} ({row.id})"


def looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dash of each row, by id; direct baselines have no filling."""
    others = [row for row in rows if row.role not in REFERENCE]
    found = {row.id: {"marker": REFERENCE[row.role][0], "color": REFERENCE[row.role][1], "dash": ":"} for row in rows
             if row.role in REFERENCE}  # fmt: skip
    styles = zip(others, cycle(COLOURS), cycle(MARKERS), islice(cycle(DASHES), len(others)), strict=False)
    for row, color, marker, dash in styles:
        found[row.id] = {"marker": marker, "color": color, "dash": dash}
    return found


def canvas(title: str, width: float = 8.5, height: float = 4.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    return figure, axes


def points(axes: Axes, x: float, row: Row, table: Table, look: dict[str, Any], label: str, faint: bool = False) -> None:
    """A row's mean with its 95 % interval; without tests with one s.d."""
    test = table.tests.rows.get(row.id) if table.tests else None
    mean = row.score.mean
    spread = (mean - test.score.low, test.score.high - mean) if test else (row.score.sd or 0.0,) * 2
    filling = "none" if row.role == "baseline" else look["color"]
    size = 11 if row.role == "teacher" else 7
    drawn = axes.errorbar(
        x, mean, yerr=[[spread[0]], [spread[1]]], marker=look["marker"], color=look["color"], markerfacecolor=filling,
        markersize=size, capsize=3, linestyle="none", elinewidth=1, label=f"{label} (n {row.score.n})",
        alpha=0.35 if faint else 1,
    )  # fmt: skip
    drawn[0].set_gid(f"point-{row.id}")  # the page finds it by this


def log_axis(axes: Axes) -> None:
    """Plain numbers, at 1, 2 and 5."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
