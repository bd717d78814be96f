"""The pictures of the study, each from a question's JSON alone."""

from collections.abc import Callable, Iterator
from itertools import cycle, groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kdbench.compare.draw import COLOURS, MARKERS, canvas, log_axis
from kdbench.compare.pictures import front
from scripts.study.plan import data_of

Record = dict[str, Any]
KEYS = ("alpha", "temperature", "beta")  # of PKD's grid
LOWEST = 6  # points below the best
FILLS = {None: "full", "onnx": "none", "int8": "left"}


def draw(document: Record, folder: Path) -> list[Path]:
    """The pictures of one question, as SVG; a question without rows has none."""
    makers: dict[str, Callable[[Record], Iterator[tuple[str, Figure]]]] = {
        "theseus": starvation, "pkd": heat, "fastbert": speeds, "together": pareto,
    }  # fmt: skip
    files = []
    for maker in (rows, makers.get(document["question"])):
        for name, figure in maker(document) if maker else ():
            files.append(folder / f"{document['question']}{name}.svg")
            figure.savefig(files[-1], metadata={"Date": None})
    return files


def tables(records: list[Record]) -> Iterator[tuple[str, list[Record]]]:
    """The rows that may be compared, by data set and limits, with a heading."""
    for (data, _), group in groupby(records, lambda row: (data_of(row), row["data_id"])):
        yield data, list(group)


def rows(document: Record) -> Iterator[tuple[str, Figure]]:
    """Every row's test accuracy with its 95 % interval."""
    found = list(tables(document["rows"]))
    if not found:
        return
    figure = Figure(figsize=(8, 0.8 + sum(0.9 + 0.26 * len(group) for _, group in found)), layout="constrained")
    heights = [2 + len(group) for _, group in found]
    for axes, (heading, group) in zip(
        figure.subplots(len(found), height_ratios=heights, squeeze=False)[:, 0], found, strict=True
    ):
        for at, row in enumerate(group):
            down, up = reach(row)
            look = {"teacher": "*", "tfidf": "D", "baseline": "s"}.get(row["role"], "o")
            axes.errorbar(
                row["score_points"], at, xerr=[[down], [up]], marker=look, color=COLOURS[0], capsize=3, linestyle="none"
            )
        axes.set_yticks(range(len(group)), [f"{row['row']} (n {row['score_n']})" for row in group])
        axes.invert_yaxis()
        axes.set_title(heading, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel(f"test accuracy, %, 95 % interval; {group[0]['examples']:,} examples")
    yield "", figure


def starvation(document: Record) -> Iterator[tuple[str, Figure]]:
    """The bare successor's dev score against how often its least drawn module was drawn, a picture a table."""
    for data, group in tables(document["rows"]):
        points = [one for one in document["details"]["starvation"] if one["data"] == data]
        if not points:
            continue
        figure, axes = canvas(f"{data}: the bare successor in the replacing stage, an epoch a mark", height=5.5)
        looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
        for name in dict.fromkeys(one["row"] for one in points):
            own = [one for one in points if one["row"] == name]
            colour, marker = next(looks)
            label = f"{name} (n {len({one['seed'] for one in own})})"
            axes.plot([one["least_drawn"] for one in own], [one["successor_dev_points"] for one in own], color=colour,
                      marker=marker, markersize=4, linestyle="none", label=label)  # fmt: skip
        axes.set_xlabel("updates in which the least drawn module was drawn")
        axes.set_ylabel("dev accuracy of the successor alone, %")
        figure.legend(loc="outside lower left", ncols=2, fontsize=7)
        yield f"_starvation{suffix(group[0])}", figure


def heat(document: Record) -> Iterator[tuple[str, Figure]]:
    """PKD's grid, a picture a table: a panel a beta, temperature across, alpha down."""
    rows = {(data_of(row), row["row"]): row for row in document["rows"]}
    found = document["details"]["grid"]
    for data in dict.fromkeys(one["data"] for one in found):
        cells = {tuple(one[key] for key in KEYS): rows[data, one["row"]] for one in found if one["data"] == data}
        yield f"_grid{suffix(next(iter(cells.values())))}", grid(cells)


def grid(cells: dict[tuple[float, ...], Record]) -> Figure:
    """Of the rows by alpha, temperature and beta."""
    alphas, temperatures, betas = (sorted({cell[at] for cell in cells}) for at in range(3))
    scores = [row["score_points"] for row in cells.values()]
    figure = Figure(figsize=(3.2 * len(betas), 3.4), layout="constrained")
    for axes, beta in zip(figure.subplots(1, len(betas), squeeze=False)[0], betas, strict=True):
        values = np.full((len(alphas), len(temperatures)), np.nan)
        for (alpha, temperature, at), row in cells.items():
            if at == beta:
                place = (alphas.index(alpha), temperatures.index(temperature))
                values[place] = row["score_points"]
                ink = "white" if row["score_points"] < (min(scores) + max(scores)) / 2 else "black"
                text = f"{row['score_points']:.2f}\nn {row['score_n']}"
                axes.text(place[1], place[0], text, ha="center", va="center", color=ink, fontsize=8)
        image = axes.imshow(values, cmap="cividis", aspect="auto", vmin=min(scores), vmax=max(scores))
        axes.set_xticks(range(len(temperatures)), [f"{one:g}" for one in temperatures])
        axes.set_yticks(range(len(alphas)), [f"{one:g}" for one in alphas])
        axes.set(title=f"beta {beta:g}", xlabel="temperature", ylabel="alpha")
        axes.grid(False)
    figure.colorbar(image, ax=figure.axes, label="mean test accuracy, %")
    return figure


def speeds(document: Record) -> Iterator[tuple[str, Figure]]:
    """FastBERT's accuracy against its measured time at batch 1, by speed, the mean over seeds."""
    points = [one for one in document["details"]["speeds"] if one["latency_batch_1_ms"] is not None]
    if not points:
        return
    figure, axes = canvas("FastBERT: accuracy against measured time")
    for colour, data in zip(COLOURS, dict.fromkeys(one["data"] for one in points), strict=False):
        own = [one for one in points if one["data"] == data]
        found = []
        for speed in sorted({one["speed"] for one in own}):
            at = [one for one in own if one["speed"] == speed]
            found.append(
                (fmean(one["latency_batch_1_ms"] for one in at), 100 * fmean(one["accuracy"] for one in at), speed)
            )
        axes.plot([x for x, _, _ in found], [y for _, y, _ in found], "o-", color=colour,
                  label=f"{data} (n {len({one['seed'] for one in own})})")  # fmt: skip
        for x, y, speed in found:
            axes.annotate(f"speed {speed:g}", (x, y), textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.set_xlabel("latency, batch 1, ms (median)")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize=8)
    yield "_speeds", figure


def pareto(document: Record) -> Iterator[tuple[str, Figure]]:
    """Accuracy against measured latency, a picture a data set: a look a method, the front's rows by their names.

    TF-IDF, no network and a tenth of their time, is a line beside the front.
    """
    for heading, group in tables(document["rows"]):
        networks = [row for row in group if row["latency_batch_1_ms"] is not None and row["role"] != "tfidf"]
        if len(networks) < 2:
            continue
        shown, below = worth_drawing(networks)
        left_out = f"\n{len(below)} rows further down are in the table alone" if below else ""
        figure, axes = canvas(f"{heading}: accuracy against latency{left_out}", height=6.5)
        for row in group:
            if row["role"] == "tfidf":
                label = f"TF-IDF + linear SVM, {row['latency_batch_1_ms']:.2g} ms"
                axes.axhline(row["score_points"], color="#555555", linestyle=":", linewidth=1, label=label)
        kinds = by_kind(shown)
        names = dict.fromkeys(name for name, _ in kinds)
        looks = dict(zip(names, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
        for (name, form), own in kinds.items():
            colour, marker = looks[name]
            low, high = zip(*map(reach, own), strict=True)
            axes.errorbar([row["latency_batch_1_ms"] for row in own], [row["score_points"] for row in own],
                          yerr=[low, high], color=colour, marker=marker, fillstyle=FILLS[form], capsize=2,
                          linestyle="none", elinewidth=0.6,
                          label=f"{name}{f' {form}' if form else ''} ({len(own)})")  # fmt: skip
        named = {(row["latency_batch_1_ms"], row["score_points"]): row for row in shown}
        best = front(list(named))
        axes.step(*zip(*best, strict=True), where="post", color="#999999", linewidth=1, label="front of the networks")
        for point, above in zip(best, cycle((7, -12)), strict=False):  # in turns, as neighbours' names meet
            text = f"{named[point]['row']} (n {named[point]['score_n']})"
            axes.annotate(text, point, textcoords="offset points", xytext=(6, above), fontsize=7)
        log_axis(axes)
        axes.set_xlabel("latency, batch 1, ms (median, log scale)")
        axes.set_ylabel(f"test accuracy, %, 95 % interval; {group[0]['examples']:,} examples")
        figure.legend(loc="outside lower left", ncols=4, fontsize=7, title="rows of", alignment="left")
        yield suffix(group[0]), figure


def headline(named: list[tuple[str, dict[str, str]]], table: str, file: Path) -> None:
    """Draw the README's picture: the rows of its table, accuracy against latency. The PNG carries `table` as text.

    Rows of one network have one latency. They are drawn side by side, so that their intervals can be seen.
    """
    row = named[0][1]
    figure, axes = canvas(f"{data_of(row)}; {int(row['examples']):,} test texts", width=7.6, height=3.7)
    looks = zip(dict.fromkeys(name.removesuffix(", int8") for name, _ in named), cycle(COLOURS), cycle(MARKERS),
                strict=False)  # fmt: skip
    look = {name: (colour, marker) for name, colour, marker in looks}
    for name, row in named:
        colour, marker = look[name.removesuffix(", int8")]
        time = row["latency_batch_1_ms"]
        alike = [other for other, one in named if one["latency_batch_1_ms"] == time]
        at = float(time) * 1.08 ** (alike.index(name) - (len(alike) - 1) / 2)
        score, low, high = (float(row[f"score{part}_points"]) for part in ("", "_low", "_high"))
        axes.errorbar(at, score, yerr=[[score - low], [high - score]], color=colour, marker=marker, markersize=7,
                      fillstyle=FILLS[row["form"] or None], capsize=2, elinewidth=0.8, linestyle="none",
                      label=f"{name} (n {row['score_n']})")  # fmt: skip
    log_axis(axes)
    axes.set_xlabel("latency, batch 1, ms (median, log scale); equal times are drawn side by side")
    axes.set_ylabel("test accuracy, %, 95 % interval")
    figure.legend(loc="outside lower left", ncols=3, fontsize=7.5)
    figure.savefig(file, dpi=100, metadata={"Software": None, "Description": table})


def suffix(row: Record) -> str:
    """Of the file of a picture that shows one table: by a row of it."""
    parts = (row[name] for name in ("dataset", "max_train_samples", "kept"))
    return "".join(f"_{part}".replace(" ", "_") for part in parts if part)


def worth_drawing(rows: list[Record]) -> tuple[list[Record], list[Record]]:
    """Those within LOWEST points of the best, and those below: one of these would press all others into a line."""
    floor = max(row["score_points"] for row in rows) - LOWEST
    return [row for row in rows if row["score_points"] >= floor], [row for row in rows if row["score_points"] < floor]


def by_kind(rows: list[Record]) -> dict[tuple[str, str | None], list[Record]]:
    """The rows of each method, its exports apart."""
    found: dict[tuple[str, str | None], list[Record]] = {}
    for row in rows:
        first = row["row"].split()[0]  # a teacher's export is nobody's teacher
        direct = row["role"] == "baseline" or first.startswith("direct")  # which may teach another student
        name = "teacher" if first == "teacher" else "direct" if direct else row["method"]
        found.setdefault((name, row["form"]), []).append(row)
    return found


def reach(row: Record) -> tuple[float, float]:
    """How far the interval goes down and up; nowhere where there is none."""
    if row["score_low_points"] is None:
        return 0.0, 0.0
    return row["score_points"] - row["score_low_points"], row["score_high_points"] - row["score_points"]
