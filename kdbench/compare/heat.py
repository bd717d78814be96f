"""The heat map of a method's grid."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from kdbench.compare.collect import NULL
from kdbench.compare.columns import METRICS, NOTHING
from kdbench.compare.draw import canvas
from kdbench.compare.rows import Row, Table


def grids(table: Table, metric: str, split: str) -> Iterator[tuple[str, Figure]]:
    """For each method with several configurations: the mean score at the values of its two most varied settings."""
    for method in dict.fromkeys(row.runs[0].method for row in table.rows if row.role != "teacher"):
        rows = [row for row in table.rows if row.runs[0].method == method and row.role != "teacher"]
        settings = {row.id: row.runs[0].settings | row.runs[0].training for row in rows}
        values = {key: sorted({_of(one, key) for one in settings.values()}, key=_number_first)
                  for key in dict.fromkeys(key for one in settings.values() for key in one)}  # fmt: skip
        varied = sorted((key for key in values if len(values[key]) > 1), key=lambda key: -len(values[key]))
        if varied:
            yield f"grid_{method}", _heat(table, metric, split, rows, settings, [(k, values[k]) for k in varied])


def _of(settings: dict[str, str], key: str) -> str:
    """The setting; what older runs do not have is as what is not set."""
    value = settings.get(key, NULL)
    return NOTHING if value == NULL else value


def _number_first(text: str) -> tuple[bool, float, str]:
    try:
        return False, float(text), text
    except ValueError:
        return True, 0.0, text


def _heat(
    table: Table, metric: str, split: str, rows: list[Row], settings: dict[str, dict[str, str]],
    varied: list[tuple[str, list[str]]],
) -> Figure:  # fmt: skip
    (across, columns), (down, lines) = varied[0], varied[1] if len(varied) > 1 else ("", [NOTHING])
    cells: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        one = settings[row.id]
        place = (lines.index(_of(one, down)), columns.index(_of(one, across)))
        cells.setdefault(place, []).extend(run.score for run in row.runs)
    grid = np.full((len(lines), len(columns)), np.nan)
    for place, scores in cells.items():
        grid[place] = np.mean(scores)
    title = f"{table.dataset}: {rows[0].runs[0].method}, mean {split} {METRICS[metric]}, %"
    figure, axes = canvas(title, 2.2 + 1.0 * len(columns), 1.8 + 0.55 * len(lines))
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
