"""kdbench's YAMLs and a user's own, composed by Hydra; with `kdbench.cli.main` all that imports it."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser import overrides_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kdbench.cli.command import Composed, Override
from kdbench.cli.hydra_keys import composed_problem
from kdbench.errors import UserError
from kdbench.schema import GROUPS

CHOICE = re.compile(r"choice\((.*)\)")
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


def conf_dir() -> Path:
    """kdbench's YAMLs: in the package where it is installed, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


class HydraConfigs:
    """kdbench's YAMLs and the user's own, as hydra.main composes them, with Hydra's errors in one line."""

    def __init__(self, loader: ConfigLoader) -> None:
        self.parser = OverridesParser.create(loader)
        self.options = cache(lambda group: sorted(loader.get_group_options(group)) if group else [])
        self.parse = cache(self._parse)
        self.compose = cache(self._compose)

    def _parse(self, text: str) -> Override:
        try:
            (o,) = self.parser.parse_overrides([text])
            key, sweep, problem = o.get_key_element(), [], ""
            if o.is_interval_sweep():
                ends: Any = o.value()
                sweep = [f"{key}={ends.start}", f"{key}={ends.end}"]
            elif o.is_sweep_override():
                sweep = [f"{key}={value}" for value in o.sweep_string_iterator()]
                problem = "" if sweep else "is a sweep over nothing"
        except HYDRA_ERRORS as error:
            raise UserError("cannot be read as key=value") from error
        plain = o.type in (OverrideType.CHANGE, OverrideType.FORCE_ADD) and not o.is_hydra_override()
        value = None if o.is_sweep_override() else o.value()
        return Override(text, key.lstrip("+~"), o.key_or_group, value, plain, sweep, problem, o.is_interval_sweep())

    def quoted(self, text: str, keep_null: bool) -> str:
        """The override with quotes around each value that Hydra would turn into a number, a truth value or null."""
        at = text.index("=") + 1
        value = text[at:]
        if simple := CHOICE.fullmatch(value):
            value = simple[1]  # choice("1","2") is without quotes again when Hydra has evaluated it; "1","2" keeps them
        for start, end in reversed(_retyped(value)):
            word = value[start:end]
            if not (keep_null and word == value.strip() == "null"):
                value = value[:start] + QuotedString(word, Quote.double).with_quotes() + value[end:]
        return text[:at] + value

    def _compose(self, overrides: tuple[str, ...]) -> Composed:
        try:
            cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
        except HYDRA_ERRORS as error:
            raise UserError(one_line(error)) from error
        choices = group_choices(cfg.hydra.runtime.choices)
        if problem := composed_problem(OmegaConf.to_container(cfg.hydra, resolve=False)):  # type: ignore[arg-type]
            raise UserError(problem)
        grid = {key: str(values) for key, values in (cfg.hydra.sweeper.get("params") or {}).items()}
        launcher, trials = cfg.hydra.runtime.choices["hydra/launcher"], cfg.hydra.sweeper.get("n_trials")
        with open_dict(cfg):
            del cfg["hydra"]
        return Composed(cfg, choices, grid, launcher, trials)


class _Retyped(HydraOverrideVisitor):
    """Notes where in a value Hydra takes what was typed for something else than text."""

    def __init__(self) -> None:
        super().__init__(overrides_parser.create_functions())
        self.places: list[tuple[int, int]] = []

    def visitPrimitive(self, ctx: Any) -> Any:
        value = super().visitPrimitive(ctx)
        if value is None or isinstance(value, bool | int | float):
            tokens = [child.symbol for child in ctx.getChildren() if not self.is_ws(child)]
            self.places.append((tokens[0].start, tokens[-1].stop + 1))
        return value

    def visitFunction(self, ctx: Any) -> Any:
        before = len(self.places)
        value = super().visitFunction(ctx)
        del self.places[before:]  # the numbers of range(1,5) are numbers
        return value


def _retyped(value: str) -> list[tuple[int, int]]:
    """(start, end) of each such piece of a value that can be parsed."""
    lexer = overrides_parser.OverrideLexer(overrides_parser.InputStream(value))
    lexer.mode(lexer.VALUE_MODE)
    parser = overrides_parser.OverrideParser(overrides_parser.CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(HydraErrorListener())
    visitor = _Retyped()
    if value.strip():
        visitor.visit(parser.value())
    return visitor.places


def one_line(error: Exception) -> str:
    """Hydra's message, without its list of folders."""
    text = str(error) or str(error.__cause__)
    lines = [line.strip() for line in text.split("\nConfig search path:")[0].splitlines()]
    noise = ("full_key:", "object_type=", "See https", "To append")
    return " ".join(line for line in lines if line and not line.startswith(noise))


def group_choices(choices: Mapping[str, Any]) -> dict[str, str]:
    """group -> option, of kdbench's own, in their order (schedule@teacher.schedule by teacher); none is null."""
    ours = [key for key, value in choices.items() if key.split("@")[0] in GROUPS and value is not None]
    return {key: choices[key] for key in sorted(ours, key=lambda key: GROUPS.index(key.split("@")[-1].split(".")[0]))}


@contextmanager
def composing(config_dir: str | None) -> Iterator[HydraConfigs]:
    """Hydra over the same folders as hydra.main's."""
    search_path = create_config_search_path(str(conf_dir()))
    if config_dir is not None:
        own = f"file://{Path(config_dir).absolute()}"
        search_path.prepend("command-line", own, SearchPathQuery(provider="schema"))
    Hydra.create_main_hydra2("kdbench", search_path)
    try:
        yield HydraConfigs(GlobalHydra.instance().config_loader())
    finally:
        GlobalHydra.instance().clear()
