"""Sheets for documents: Markdown and LaTeX."""

import re

from kdbench.compare.columns import Column, Sheet

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
    """Tables of GitHub's Markdown with all columns, notes as a list, commands as code."""
    for sheet in sheets:
        head = [column.header.replace("\n", " ") for column in sheet.columns]
        print(f"### {sheet.heading}\n")
        rule = ["---" if column.left else "---:" for column in sheet.columns]
        for line in (head, rule, *zip(*map(_bold_cells, sheet.columns), strict=True)):
            print("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |")
        print("".join(f"\n- {sentence}" for sentence in sheet.notes))
        for sentence, commands in sheet.missing:
            print(f"\n{sentence}:\n\n```sh", *commands, "```", sep="\n")
        print()
    print(*dict.fromkeys(sheet.legend for sheet in sheets if sheet.legend), sep="\n\n")


def _bold_cells(column: Column) -> list[str]:
    styles = column.styles or [""] * len(column.cells)
    return [f"**{cell}**" if "bold" in style else cell for cell, style in zip(column.cells, styles, strict=True)]


def print_latex(sheets: list[Sheet]) -> None:
    r"""A `table` each, to be \input into a paper, no wider than its text; notes become the caption's end."""
    print("% needs \\usepackage{booktabs,graphicx}")
    for sheet in sheets:
        align = "".join("l" if column.left else "r" for column in sheet.columns)
        head = [column.header.replace("\n", " ") for column in sheet.columns]
        print(r"\begin{table}", r"\centering\small", NARROWED, sep="\n")
        print(rf"\begin{{tabular}}{{{align}}}", r"\toprule", sep="\n")
        print(_latex_row(head), r"\midrule", sep="\n")
        for at in range(len(sheet.columns[0].cells)):
            bold = [bool(column.styles) and "bold" in column.styles[at] for column in sheet.columns]
            print(_latex_row([column.cells[at] for column in sheet.columns], bold))
        print(r"\bottomrule", r"\end{tabular}}", sep="\n")
        words = " ".join([f"{sheet.heading}.", *sheet.notes, sheet.legend]).strip()
        print(rf"\caption{{{latex(words)}}}", r"\end{table}", sep="\n")


def _latex_row(cells: list[str], bold: list[bool] | None = None) -> str:
    marks = bold or [False] * len(cells)
    texts = [rf"\textbf{{{latex(cell)}}}" if mark else latex(cell) for cell, mark in zip(cells, marks, strict=True)]
    return " & ".join(texts) + r" \\"


def latex(text: str) -> str:
    """`text` with everything that LaTeX reads as a command written out."""
    return SPECIAL.sub(lambda found: LATEX[found[0]], text)
