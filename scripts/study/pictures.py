"""The pictures of the first study, drawn from its tables. Each PNG carries what it shows as text (Description)."""

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.compare.pictures import COLOURS, MARKERS, canvas, log_axis
from scripts.study.page import TWEETS, headline_rows, shown
from scripts.study.plan import data_of
from scripts.study.tables import Evidence, Record

Drawn = tuple[Figure, str]  # the text has the rows that the figure shows, as a table
FILLS = {None: "full", "onnx": "none", "int8": "left"}
GAINS = {  # rows of question 9 -> their names in the picture of the gains
    "direct_longer": "direct, 1.5 times the updates",
    "direct_layers .*": "direct, other 3 layers",
    "logit_kd": "logit KD",
    "pkd_layers .*": "PKD",
    "theseus": "BERT-of-Theseus",
    "two_stage .*": "two-stage",
}

VARIANTS = {  # rows of question 2 on the tweets -> their names in the picture
    "theseus": "default: Bernoulli, rising rate",
    "theseus_bernoulli replace_rate 0.3": "Bernoulli, rate 0.3",
    "theseus_bernoulli replace_rate 0.5": "Bernoulli, rate 0.5",
    "theseus_bernoulli replace_rate 0.7": "Bernoulli, rate 0.7",
    "theseus_epsilon variant mix": "constant mix",
    "theseus_epsilon variant uniform": "uniform epsilon",
    "theseus_epsilon variant annealed": "annealed epsilon",
    "theseus_example variant bernoulli": "Bernoulli, one draw an example",
    "theseus_share replacing_share 0.0": "no replacing stage",
    "theseus_share replacing_share 0.25": "1/4 of the updates replace",
    "theseus_share replacing_share 0.5": "1/2 of the updates replace",
    "theseus_share replacing_share 1.0": "all updates replace",
    "theseus_successor successor_trains head": "second stage: head alone",
    "theseus_embeddings embeddings trained": "embeddings trained",
    "theseus_embeddings embeddings replaced": "embeddings replaced",
}


def headline(evidence: Evidence) -> Drawn:
    """Draw accuracy against latency of the headline rows on the tweets.

    Rows of one network have one latency. They are drawn side by side, so that their intervals can be seen.
    """
    named = headline_rows(evidence, TWEETS)
    row = named[0][1]
    figure, axes = canvas(f"{data_of(row)}; {row['examples']:,} test texts", width=7.6, height=3.7)
    names = dict.fromkeys(name.removesuffix(", int8") for name, _ in named)
    looks = dict(zip(names, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
    for name, row in named:
        colour, marker = looks[name.removesuffix(", int8")]
        time = row["latency_batch_1_ms"]
        alike = [other for other, one in named if one["latency_batch_1_ms"] == time]
        at = time * 1.08 ** (alike.index(name) - (len(alike) - 1) / 2)
        mean, low, high = (row[f"score{part}_points"] for part in ("", "_low", "_high"))
        axes.errorbar(at, mean, yerr=[[mean - low], [high - mean]], color=colour, marker=marker, markersize=7,
                      fillstyle=FILLS[row["form"]], capsize=2, elinewidth=0.8, linestyle="none",
                      label=f"{name} (n {row['score_n']})")  # fmt: skip
    log_axis(axes)
    axes.set_xlabel("latency, batch 1, ms (median, log scale); equal times are drawn side by side")
    axes.set_ylabel("test accuracy, %, 95 % interval")
    figure.legend(loc="outside lower left", ncols=3, fontsize=7.5)
    return figure, shown([(name, row) for name, row in named], ("latency_batch_1_ms", "score"))


def gains(evidence: Evidence) -> Drawn:
    """Draw the difference of each method to its direct fine-tune, a panel for each data set."""
    places = (TWEETS, "reuters_r52, AMD EPYC", "newsgroups20")
    figure = Figure(figsize=(8.5, 2.7), layout="constrained")
    panels, every = figure.subplots(1, len(places), sharex=True, sharey=True), []
    heights = {name: at for at, name in enumerate(GAINS.values())}
    for axes, data in zip(panels, places, strict=True):
        named = headline_rows(evidence, data, GAINS)
        forest(axes, named, "difference", [heights[name.partition(" (best")[0]] for name, _ in named])
        axes.set_title(data.replace(", ", ",\n", 1), loc="left", fontsize=9, fontweight="bold")
        every += [(f"{name}, {data}", row) for name, row in named]
    panels[0].set_yticks(range(len(GAINS)), list(GAINS.values()))
    panels[0].invert_yaxis()
    figure.supxlabel("points over the direct fine-tune, 95 % interval of one test; hollow: one seed", fontsize=9)
    return figure, shown(every, ("difference",))


def theseus(evidence: Evidence) -> Drawn:
    """Draw the difference of each variant of Theseus to the direct fine-tune of as many updates, on the tweets."""
    named = [(name, evidence.row("theseus", row, TWEETS)) for row, name in VARIANTS.items()]
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    forest(axes, named, "total_difference", range(len(named)))
    axes.set_yticks(range(len(named)), [name for name, _ in named])
    axes.invert_yaxis()
    figure.supxlabel("points over the direct fine-tune of as many updates, 95 % interval of one test; hollow: one seed",
                     fontsize=9)  # fmt: skip
    return figure, shown(named, ("total_difference",))


def forest(axes: Axes, named: Sequence[tuple[str, Record]], name: str, heights: Sequence[int]) -> None:
    """Draw a difference with its interval and n for each row, at its height. A row of one seed is hollow."""
    axes.axvline(0, color="#555555", linewidth=0.8)
    for at, (_, row) in zip(heights, named, strict=True):
        mean, low, high = (row[f"{name}{part}_points"] for part in ("", "_low", "_high"))
        lone = row["score_n"] == 1
        axes.errorbar(mean, at, xerr=[[mean - low], [high - mean]], marker="o", color=COLOURS[lone], capsize=2,
                      markersize=5, markerfacecolor="white" if lone else COLOURS[0], elinewidth=1)  # fmt: skip
        axes.annotate(f"n {row['score_n']}", (high, at), textcoords="offset points", xytext=(4, -3), fontsize=7)


PICTURES: dict[str, Callable[[Evidence], Drawn]] = {
    "headline": headline, "gains": gains, "theseus": theseus,
}  # fmt: skip


def draw(evidence: Evidence, folder: Path) -> None:
    """Draw each picture whose rows exist."""
    for name, make in PICTURES.items():
        try:
            figure, text = make(evidence)
        except LookupError:  # not run
            continue
        figure.savefig(folder / f"{name}.png", dpi=100, metadata={"Software": None, "Description": text})
