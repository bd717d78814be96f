"""The heat map of a method's grid."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from kdbench.compare.collect import NULL
from kdbench.compare.columns import METRICS, NOTHING, unit
from kdbench.compare.draw import canvas
from kdbench.compare.table import Row, Table


def grids(table: Table, metric: str, split: str) -> Iterator[tuple[str, Figure]]:
    """For each method and student with several configurations: the mean score at its two most varied settings."""
    models: dict[str, dict[str, list[Row]]] = {}
    for row in table.rows:
        if row.role != "teacher" and row.runs[0].settings["form"] == NULL:  # a model's form is no setting of it
            models.setdefault(row.runs[0].method, {}).setdefault(str(row.runs[0].student), []).append(row)
    for method, students in models.items():
        for student, rows in students.items():
            settings = {row.id: row.runs[0].settings | row.runs[0].training for row in rows}
            if varied := _varied(list(settings.values())):
                name = method if len(students) == 1 else f"{method}_{student}"
                yield f"grid_{name}", _heat(table, metric, split, rows, settings, varied)


def _varied(settings: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """The keys with several values, and these; the most varied first. A key that older runs lack is no difference."""
    found = []
    for key in dict.fromkeys(key for one in settings for key in one):
        if len({one[key] for one in settings if key in one}) > 1:
            found.append((key, sorted({_of(one, key) for one in settings}, key=_number_first)))
    return sorted(found, key=lambda one: -len(one[1]))


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
    first = rows[0].runs[0]
    title = f"{table.dataset}: {first.method} {first.student}\nmean {split} {METRICS[metric]}, {unit(metric)}"
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
