"""Sheets in a terminal, as wide as it allows."""

import os
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
    """The columns that go into `width`, and the headers of those left out; figures are never cut."""
    kept = list(found)
    if _least(kept) > width:
        kept = [replace(column, cells=[cell.replace(" ± ", "±") for cell in column.cells]) for column in kept]
    while _least(kept) > width and (last := max(kept, key=lambda column: column.drop)).drop:
        kept.remove(last)
    left = {column.header for column in kept}
    return kept, [column.header.replace("\n", " ") for column in found if column.header not in left]


def _least(kept: list[Column]) -> int:
    """The width these need: of the first its longest word, and no less than WRAPPED."""
    longest_word = max((len(word) for cell in kept[0].cells for word in cell.split()), default=0)
    return max(longest_word + GAP, min(kept[0].width, WRAPPED)) + sum(column.width + GAP for column in kept[1:])


def console(stderr: bool = False) -> "Console":
    """As wide as the terminal; plain and unwrapped where the output is not one. Obeys NO_COLOR."""
    from rich.console import Console  # not at the top: only this format pays for it

    made = Console(highlight=False, markup=False, emoji=False, stderr=stderr)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 1000  # a pipe: nothing is left out or wrapped
    return made


def print_terminal(sheets: list[Sheet]) -> None:
    """Heading, table, sentences and commands of each sheet, and the legends once."""
    screen = console()
    with screen.capture() as text:  # else rich would take a closed pipe for a failure
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
    """Head, rule and rows. Not rich's own table, which takes a millisecond a row."""
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
