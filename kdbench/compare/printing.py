"""Sheets as text: in a terminal as wide as it allows, in Markdown, in LaTeX."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from textwrap import wrap
from typing import TYPE_CHECKING

from kdbench.compare.columns import Column, Sheet

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

GAP = 2  # blanks between columns
WRAPPED = len("teacher (finetune)")  # the method column is not made narrower than this


def fit(found: list[Column], width: int) -> tuple[list[Column], list[str]]:
    """Return the columns that fit into `width`, and the headers of those left out. Figures are never cut."""
    kept = list(found)
    if _least(kept) > width:
        kept = [replace(column, cells=[cell.replace(" ± ", "±") for cell in column.cells]) for column in kept]
    while _least(kept) > width and (last := max(kept, key=lambda column: column.drop)).drop:
        kept.remove(last)
    headers = {column.header for column in kept}
    return kept, [column.title for column in found if column.header not in headers]


def _least(kept: list[Column]) -> int:
    """Return the width that the columns need, if the first is wrapped at its longest word, but not below WRAPPED."""
    longest_word = max((len(word) for cell in kept[0].cells for word in cell.split()), default=0)
    return max(longest_word + GAP, min(kept[0].width, WRAPPED)) + sum(column.width + GAP for column in kept[1:])


def console() -> "Console":
    """Return a console as wide as the terminal; without one it is plain and never wraps. Obeys NO_COLOR."""
    from rich.console import Console  # not at the top: only this format pays for it

    made = Console(highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 1000  # a pipe: no column is left out, no line is wrapped
    return made


def print_terminal(sheets: list[Sheet]) -> None:
    """Print heading, table, notes and commands of each sheet, and the legends once."""
    screen = console()
    with screen.capture() as text:  # else rich reports a closed pipe as a failure
        for sheet in sheets:
            _print_sheet(screen, sheet)
        for legend in dict.fromkeys(sheet.legend for sheet in sheets if sheet.legend):
            screen.print(legend, style="dim")
    print(text.get(), end="")


def _print_sheet(screen: "Console", sheet: Sheet) -> None:
    shown, left_out = fit(sheet.columns, screen.width)
    screen.print(sheet.heading, style="bold", end="\n\n")
    for line in lines(shown, screen.width):
        screen.print(line, soft_wrap=True)  # a figure is never cut, however narrow the terminal
    screen.print()
    for sentence in sheet.notes:
        screen.print(sentence)
    for sentence, commands in sheet.missing:
        screen.print(f"{sentence}:")
        for command in commands:
            screen.print(f"  {command}", style="cyan", soft_wrap=True)  # whole, to be copied
    if left_out:
        screen.print(f"Left out at this width: {', '.join(left_out)}.", style="dim")
    if sheet.notes or sheet.missing or left_out:
        screen.print()


def lines(shown: list[Column], width: int) -> Iterator["Text"]:
    """Yield head, rule and rows. Rich's own table takes a millisecond for each row and cannot drop columns."""
    from rich.text import Text

    others = sum(column.width + GAP for column in shown[1:])
    first = max(_least(shown) - others, min(shown[0].width, width - others))
    widths = [first, *(column.width for column in shown[1:])]

    def line(cells: list[str], styles: list[str]) -> Text:
        text = Text()
        for cell, style, column, room in zip(cells, styles, shown, widths, strict=True):
            padded = cell.ljust(room) if column.left else cell.rjust(room)
            text.append(padded, style).append(" " * GAP)
        text.rstrip()
        return text

    heads = [["", *column.header.split("\n")][-2:] for column in shown]
    yield from (line([head[at] for head in heads], ["bold"] * len(shown)) for at in (0, 1))
    yield Text("─" * (first + others))
    for at, cell in enumerate(shown[0].cells):
        method, *more = wrap(cell, first, subsequent_indent=" " * GAP, break_on_hyphens=False) or [""]
        styles = [column.styles[at] if column.styles else "" for column in shown]
        yield line([method, *(column.cells[at] for column in shown[1:])], styles)
        yield from map(Text, more)


LATEX = {
    **{char: f"\\{char}" for char in "&%$#{}"},
    "_": r"\_\allowbreak{}",  # a caption has paths
    "/": r"/\allowbreak{}",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "…": r"\ldots{}",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "<": "$<$",
    ">": "$>$",
    "≤": r"$\le$",
    "[": "{[}",  # at the start of a line it would be an option of the line before, as would *
    "*": "{*}",
}
NARROWED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
SPECIAL = re.compile("|".join(map(re.escape, LATEX)))


def print_markdown(sheets: list[Sheet]) -> None:
    """Print tables of GitHub's Markdown with all columns, notes as a list, commands as code."""
    for sheet in sheets:
        print(f"### {sheet.heading}\n")
        lines = [[column.title, "---" if column.left else "---:"] for column in sheet.columns]
        for column, line in zip(sheet.columns, lines, strict=True):
            line += [f"**{cell}**" if bold else cell for cell, bold in zip(column.cells, column.bold, strict=True)]
        for cells in zip(*lines, strict=True):
            print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        print("".join(f"\n- {sentence}" for sentence in sheet.notes))
        for sentence, commands in sheet.missing:
            print(f"\n{sentence}:\n\n```sh", *commands, "```", sep="\n")
        print()
    print(*dict.fromkeys(sheet.legend for sheet in sheets if sheet.legend), sep="\n\n")


def print_latex(sheets: list[Sheet]) -> None:
    r"""Print a `table` for each sheet, to be \input into a paper, no wider than its text. Notes end the caption."""
    print("% needs \\usepackage{booktabs,graphicx}")
    for sheet in sheets:
        align = "".join("l" if column.left else "r" for column in sheet.columns)
        words = " ".join([f"{sheet.heading}.", *sheet.notes, sheet.legend]).strip()
        print(r"\begin{table}", r"\centering\small", NARROWED, rf"\begin{{tabular}}{{{align}}}", r"\toprule", sep="\n")
        print(" & ".join(latex(column.title) for column in sheet.columns) + r" \\", r"\midrule", sep="\n")
        for at in range(len(sheet.columns[0].cells)):
            cells = ((latex(column.cells[at]), column.bold[at]) for column in sheet.columns)
            print(" & ".join(rf"\textbf{{{cell}}}" if bold else cell for cell, bold in cells) + r" \\")
        print(r"\bottomrule", r"\end{tabular}}", rf"\caption{{{latex(words)}}}", r"\end{table}", sep="\n")


def latex(text: str) -> str:
    """Escape everything that LaTeX reads as a command."""
    return SPECIAL.sub(lambda found: LATEX[found[0]], text)
