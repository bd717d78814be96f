"""List the papers and published code behind the YAMLs' values: docs/papers.md, which scripts/docs.py writes.

A comment ends with the sources of its value: `lr: 4e-5  # what it is [code, README; paper, 4.2: 2e-5 to 5e-5]`.
The head of the file names `paper` and `code`: "# Paper: Tang et al. 2019. Code: castorini/d-bert." `ours` is our own
choice.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CONF = Path(__file__).resolve().parents[1] / "conf"
FOLDERS = ("experiment/paper", "experiment/reference", "experiment/blog", "experiment/grid", "method")
HEAD = re.compile(
    r"^#(?= Paper| Code)(?: Paper: (?P<paper>.+ \d{4})\.)?(?: Code: (?P<code>[\w./-]+)\.)?$", re.MULTILINE
)
LINE = re.compile(r"(?P<indent> *)(?P<key>[\w.]+):(?: +(?P<value>[^#\s].*?))?(?:\s+# (?P<comment>.*))?")
TAG = re.compile(r"\[([^\[\]]+)\]$")
SOURCE = re.compile(r"(?P<name>.+?)(?:, (?P<place>.+?))?(?:: (?P<note>.+))?")
NUMBER = re.compile(r"(?<![\w.])\d")


class Value(NamedTuple):
    file: str  # paper/theseus, method=theseus
    key: str
    text: str
    sources: list[tuple[str, str, str]]  # name, place and note of each; empty: none given


def files() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (CONF / folder).glob("*.yaml"))


def values(path: Path) -> Iterator[Value]:
    """Yield each line of a YAML that has a value, with its full key."""
    text = path.read_text(encoding="utf8")
    head = HEAD.search(text)
    named = head.groupdict() if head else {}
    name = f"{path.parent.name}{'=' if path.parent.name == 'method' else '/'}{path.stem}"
    above: list[tuple[int, str]] = [] if "@package _global_" in text else [(-1, path.parent.name)]
    for found in filter(None, map(LINE.fullmatch, text.splitlines())):
        while above and above[-1][0] >= len(found["indent"]):
            above.pop()
        above.append((len(found["indent"]), found["key"]))
        if found["value"] and not found["value"].startswith("&"):
            key = ".".join(key for _, key in above).removeprefix("hydra.sweeper.params.")
            tag = TAG.search(found["comment"] or "")
            yield Value(name, key, found["value"], [source(one, named) for one in tag[1].split("; ")] if tag else [])


def source(text: str, named: dict[str, str | None]) -> tuple[str, str, str]:
    """Return name, place and note of one source. Raises AssertionError if the head of the file does not name it."""
    found = SOURCE.fullmatch(text)
    assert found, text
    name = named.get(found["name"], found["name"])
    assert name not in (None, "paper", "code"), f"{text}: the head of the file names no {found['name']}"
    return name, found["place"] or "", found["note"] or ""


def index() -> str:
    """Return a table for each source: the place in it, the key, our value, and the YAMLs that have it."""
    tables: dict[str, dict[tuple[str, str, str, str], list[str]]] = defaultdict(lambda: defaultdict(list))
    for value in (value for path in files() for value in values(path)):
        for name, place, note in value.sources:
            tables[name][place, value.key, value.text, note].append(value.file)
    return "\n\n".join(table(name, tables[name]) for name in sorted(tables, key=order))


def order(name: str) -> tuple[int, str]:
    """Sort papers first, then code, then the configurations of checkpoints, then our own choices."""
    return (3 if name == "ours" else 0 if "et al." in name else 1 if "/" in name else 2), name.lower()


def table(name: str, rows: dict[tuple[str, str, str, str], list[str]]) -> str:
    title = "Our own choices" if name == "ours" else name
    lines = [f"### {title}", "", "| where | key | value | in | |", "|---|---|---|---|---|"]
    for (place, key, value, note), names in sorted(rows.items(), key=lambda row: (by_number(row[0][0]), row[0])):
        where = f"section {place}" if re.fullmatch(r"[A-Z]?[\d.]+", place) else place
        cells = [where, f"`{key}`", f"`{value}`", ", ".join(f"`{one}`" for one in names), note]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |".replace("  |", " |"))
    return "\n".join(lines)


def by_number(place: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", place)]
