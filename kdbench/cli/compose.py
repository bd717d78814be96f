"""The YAMLs of kdbench and of the user, composed by Hydra. Only this module and `kdbench.cli.main` import Hydra."""

import copy
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import hydra
import omegaconf.base
import yaml
from hydra._internal import defaults_list as hydra_defaults
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.default_element import InputDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser import overrides_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.core.override_parser.types import OverrideType, Quote, QuotedString, ValueType
from hydra.errors import HydraException
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kdbench.cli.command import Composed, Override
from kdbench.cli.hydra_keys import composed_problem
from kdbench.errors import Code, UserError
from kdbench.schema import GROUPS

CHOICE = re.compile(r"choice\((.*)\)")
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)

# Half of a composition's time goes into two parts of Hydra that do the same again, or what is not needed.
_interpolation_map = hydra_defaults._create_interpolation_map


def _needed_interpolation_map(
    overrides: hydra_defaults.Overrides, defaults_list: list[InputDefault], self_added: bool
) -> Any:
    """Return the choices so far if the YAML's defaults refer to one. Hydra makes this map for every YAML."""
    refers = any(not one.is_self() and one.is_interpolation() for one in defaults_list)
    return _interpolation_map(overrides, defaults_list, self_added) if refers else None


hydra_defaults._create_interpolation_map = _needed_interpolation_map
omegaconf.base.parse = cache(omegaconf.base.parse)  # type: ignore[attr-defined]  # each ${...} once


def conf_dir() -> Path:
    """Return the folder of kdbench's YAMLs: in an installed package, or beside it in a checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


class ReadOnce(CachingConfigRepository):
    """The YAMLs of one composition; those that an earlier one has read, in `kept`, are copied and not parsed again.

    Each composition merges into its own copy. To unpickle one takes less than half of the time of a deep copy.
    """

    def __init__(self, delegate: IConfigRepository, kept: dict[tuple[str, ...], bytes]) -> None:
        self.delegate = copy.copy(delegate)  # only its list of sources is ever replaced, so it needs no deep copy
        self.cache: dict[str, ConfigResult | None] = {}
        self.kept = kept

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self.cache:
            key = (config_path, *(source.path for source in self.get_sources()))
            if key not in self.kept:
                self.kept[key] = pickle.dumps(self.delegate.load_config(config_path))
            self.cache[config_path] = pickle.loads(self.kept[key])
        return self.cache[config_path]


class FolderLoader(ConfigLoaderImpl):
    """Hydra's loader, which also lists the choices in a group's folders, such as experiment=study/theseus.

    Hydra itself composes such a choice, but its lists for completion and glob end at the first level. It also parses
    each YAML anew for each job of a sweep; this loader parses it once.
    """

    def __init__(self, search_path: ConfigSearchPath) -> None:
        super().__init__(search_path)
        self.kept: dict[tuple[str, ...], bytes] = {}

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[HydraOverride], CachingConfigRepository]:
        parsed = OverridesParser.create().parse_overrides(overrides)
        repository = ReadOnce(self.repository, self.kept)
        self._process_config_searchpath(config_name, parsed, repository)
        return parsed, repository

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        if group_name.partition("/")[0] not in GROUPS:
            return super().get_group_options(group_name, results_filter, config_name, overrides)
        if results_filter != ObjectType.CONFIG:
            return []  # a folder is no group: study/theseus is chosen by experiment=
        found = self.repository.get_group_options(group_name)
        for folder in self.repository.get_group_options(group_name, ObjectType.GROUP):
            found += [f"{folder}/{option}" for option in self.get_group_options(f"{group_name}/{folder}")]
        return [option for option in found if not option.startswith("_")]  # _name: a part of other YAMLs


class HydraConfigs:
    """The YAMLs of kdbench and of the user, composed as hydra.main does, with Hydra's errors in one line."""

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader = loader
        self.parser = OverridesParser.create(loader)
        self.options = cache(self._options)
        self.parse = cache(self._parse)
        self.compose = cache(self._compose)

    def completions(self, line: str) -> list[str]:
        """Complete the last word of a command line, one level of folders at a time."""
        plugin = DefaultCompletionPlugin(self.loader)
        found = plugin._query("config", plugin.strip_python_or_app_name(line))
        return one_level(found, line.rpartition(" ")[2])

    def _options(self, group: str) -> list[str]:
        folder = group.partition("/")[0] in GROUPS and "/" in group
        return sorted(self.loader.get_group_options(group)) if group and not folder else []

    def _parse(self, text: str) -> Override:
        try:
            (o,) = self.parser.parse_overrides([text])
            key, sweep, problem, typed = o.get_key_element(), [], "", ""
            if o.is_interval_sweep():
                ends: Any = o.value()
                sweep = [f"{key}={ends.start}", f"{key}={ends.end}"]
            elif o.is_sweep_override():
                sweep = [f"{key}={value}" for value in o.sweep_string_iterator()]
                problem = "" if sweep else "must have at least one value"
            if o.value_type == ValueType.GLOB_CHOICE_SWEEP and sweep:  # expanded here, as Hydra's glob skips folders
                typed, text = text, f"{key}={','.join(one.partition('=')[2] for one in sweep)}"
        except HYDRA_ERRORS as error:
            raise UserError(Code.UNREADABLE_WORD, "cannot be read as key=value") from error
        plain = o.type in (OverrideType.CHANGE, OverrideType.FORCE_ADD) and not o.is_hydra_override()
        value = None if o.is_sweep_override() else o.value()
        interval = o.is_interval_sweep()
        return Override(text, key.lstrip("+~"), o.key_or_group, value, plain, sweep, problem, interval, typed=typed)

    def quoted(self, text: str, keep_null: bool) -> str:
        """Return the override with quotes around each value that Hydra would read as a number, boolean or null."""
        at = text.index("=") + 1
        value = text[at:]
        if simple := CHOICE.fullmatch(value):
            value = simple[1]  # Hydra drops the quotes in choice("1","2"), but keeps those in "1","2"
        for start, end in reversed(_retyped(value)):
            word = value[start:end]
            if not (keep_null and word == value.strip() == "null"):
                value = value[:start] + QuotedString(word, Quote.double).with_quotes() + value[end:]
        return text[:at] + value

    def _compose(self, overrides: tuple[str, ...]) -> Composed:
        try:
            cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
        except HYDRA_ERRORS as error:
            raise UserError(Code.UNREADABLE_CONFIG, one_line(error)) from error
        choices = group_choices(cfg.hydra.runtime.choices)
        if problem := composed_problem(OmegaConf.to_container(cfg.hydra, resolve=False)):  # type: ignore[arg-type]
            raise UserError(Code.CLOSED_OPTION, problem)
        grid = {key: str(values) for key, values in (cfg.hydra.sweeper.get("params") or {}).items()}
        launcher, trials = cfg.hydra.runtime.choices["hydra/launcher"], cfg.hydra.sweeper.get("n_trials")
        with open_dict(cfg):
            del cfg["hydra"]
        return Composed(cfg, choices, grid, launcher, trials)


class _Retyped(HydraOverrideVisitor):
    """Records the places in a value that Hydra reads as something other than text."""

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
    """Return (start, end) of each part of a value that Hydra does not read as text."""
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


def one_level(names: list[str], word: str) -> list[str]:
    """Cut the names at the first / that `word` has not reached; where only one folder is left, return them in full."""
    at = word.rfind("/") + 1
    heads = {name[:at] + "".join(name[at:].partition("/")[:2]) for name in names}
    return names if len(heads) == 1 else sorted(heads)


def one_line(error: Exception) -> str:
    """Return Hydra's message in one line, without its list of folders."""
    text = str(error) or str(error.__cause__)
    lines = [line.strip() for line in text.split("\nConfig search path:")[0].splitlines()]
    noise = ("full_key:", "object_type=", "See https", "To append")
    return " ".join(line for line in lines if line and not line.startswith(noise))


def group_choices(choices: Mapping[str, Any]) -> dict[str, str]:
    """Return group -> option for kdbench's groups in their order, without null ones.

    schedule@teacher.schedule is ordered like teacher.
    """
    ours = [key for key, value in choices.items() if key.split("@")[0] in GROUPS and value is not None]
    return {key: choices[key] for key in sorted(ours, key=lambda key: GROUPS.index(key.split("@")[-1].split(".")[0]))}


@lru_cache(maxsize=1)
def of_command(loader: ConfigLoader) -> HydraConfigs:
    """Return the configs of the loader that Hydra has made for a command; all its jobs compose the same few."""
    return HydraConfigs(loader)


@contextmanager
def composing(config_dir: str | None) -> Iterator[HydraConfigs]:
    """Set up Hydra over the folders that hydra.main uses."""
    search_path = create_config_search_path(str(conf_dir()))
    if config_dir is not None:
        own = f"file://{Path(config_dir).absolute()}"
        search_path.prepend("command-line", own, SearchPathQuery(provider="schema"))
    loader = FolderLoader(search_path)
    GlobalHydra.instance().initialize(Hydra("kdbench", loader))
    try:
        yield HydraConfigs(loader)
    finally:
        GlobalHydra.instance().clear()
