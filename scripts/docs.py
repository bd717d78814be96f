"""Write the parts of docs/ that come from the code: `python -m scripts.docs`. A test compares them.

<!-- options theseus --> ... <!-- end -->   a method's keys, from its YAML and its Params
<!-- codes --> ... <!-- end -->             the codes of errors, from kdbench.errors
<!-- papers --> ... <!-- end -->            the sources of the YAMLs' values: scripts/papers.py
<!-- imports --> ... <!-- end -->           which package imports which: scripts/imports.py
a ```console block                          each `$ kdbench ...`, which is refused, with its output
"""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from kdbench.cli.command import judge
from kdbench.cli.compose import HydraConfigs, composing, conf_dir
from kdbench.cli.help import keys_text
from kdbench.errors import Code, print_faults
from kdbench.validation.load import fill
from kdbench.validation.values import keys_of
from scripts import imports, papers

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = re.compile(r"(<!-- options (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WRITTEN = re.compile(r"(<!-- (papers|imports) -->\n).*?(<!-- end -->)", re.DOTALL)
CODES = re.compile(r"(<!-- codes -->\n).*?(<!-- end -->)", re.DOTALL)
CONSOLE = re.compile(r"(?<=```console\n).*?(?=```$)", re.DOTALL | re.MULTILINE)
LINE = re.compile(r"(?P<key>[\w.]+)=(?P<value>.*?)  \((?P<legal>.*)\)")
COMMENT = re.compile(r"^\s*(\w+):.*?\s#\s(.*)$", re.MULTILINE)
NOT_OPTIONS = ("name", "module", "init", "stages")  # the method's name, and the groups, which come below the keys


def pages() -> list[Path]:
    return sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "study")


def fill_page(text: str, configs: HydraConfigs) -> str:
    """Return a page with everything between its markers written anew."""
    text = OPTIONS.sub(lambda found: f"{found[1]}{options(found[2], configs)}\n{found[3]}", text)
    text = WRITTEN.sub(lambda found: f"{found[1]}{written(found[2])}\n{found[3]}", text)
    text = CODES.sub(lambda found: f"{found[1]}{codes()}\n{found[2]}", text)
    return CONSOLE.sub(lambda found: refusals(found[0], configs), text)


def written(part: str) -> str:
    return papers.index() if part == "papers" else f"```text\n{imports.picture()}\n```"


def codes() -> str:
    """Return a line for each code, with its meaning and what to do."""
    lines = ["| code | meaning | what to do |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{code}` | {code.meaning} | {code.remedy} |" for code in Code)])


def options(method: str, configs: HydraConfigs) -> str:
    """Return a line for each key, with its default, its legal values and its comment in the YAML."""
    cfg = configs.compose((f"method={method}",)).cfg
    keys, filled = keys_of(OmegaConf.to_container(cfg, resolve=False)), fill(cfg)  # type: ignore[arg-type]
    source = (conf_dir() / "method" / f"{method}.yaml").read_text(encoding="utf8")
    of_keys, of_stages = re.split(r"^\s*stages:", source, maxsplit=1, flags=re.MULTILINE)
    comments = dict(COMMENT.findall(of_keys))
    lines = ["| `method.` | default | legal | |", "|---|---|---|---|"]
    placed = {name: at for at, name in enumerate(cfg.method)}  # as the YAML has them
    of_method = [name for name in keys.groups["method"] if name not in NOT_OPTIONS]
    of_method.sort(key=lambda name: placed.get(name, len(placed)))
    of_init = [f"init.{name}" for name in keys.groups.get("method.init", [])]
    for name in [*of_method, *(of_init if cfg.method.init is not None else [])]:
        (text,) = keys_text(f"method.{name}", keys, filled)
        found = LINE.fullmatch(text)
        assert found, text
        if not (name == "general" and cfg.method.get("general") is None):  # the method has no such stage
            lines.append(row(name, found["value"], found["legal"], comments.get(name.rpartition(".")[2], "")))
    return "\n".join([*lines, *stages(source, dict(COMMENT.findall(of_stages)))])


def stages(source: str, comments: dict[str, str]) -> Iterator[str]:
    """Yield a line for each stage with the values in its YAML; `schedule` gives the others."""
    values = yaml.safe_load(source)
    for name, given in (values.get("method", values).get("stages") or {}).items():
        yield row(
            f"stages.{name}",
            ", ".join(f"{key} {value}" for key, value in given.items()),
            "keys of a schedule",
            comments.get(name, ""),
        )


def row(name: str, value: str, legal: str, words: str) -> str:
    cells = [f"`{name}`", f"`{value}`", legal, words]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |".replace("  |", " |")


def refusals(block: str, configs: HydraConfigs) -> str:
    """Return the commands of a block, each with its output."""
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"{line}\n{refusal(line[2:], configs)}" for line in commands)


def refusal(line: str, configs: HydraConfigs) -> str:
    """Return the output of a refused `kdbench ...`. Raises AssertionError if it is not refused."""
    args = get_args_parser().parse_args(shlex.split(line)[1:])
    faults = judge(configs, [], args.overrides, args.multirun).faults
    assert faults, f"{line}: is not refused"
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        print_faults(faults)
    return "".join(f"{text.rstrip()}\n" for text in printed.getvalue().splitlines())


def main() -> None:
    with composing(None) as configs:
        for page in pages():
            text = page.read_text(encoding="utf8")
            page.write_text(fill_page(text, configs), encoding="utf8")


if __name__ == "__main__":
    main()
