"""The `kdbench` command: the whole command line is judged, then Hydra runs its jobs.

The only file that imports hydra. Hydra stops at the first fault, in its own words, and after it has made
folders; so `read` composes and checks every job before Hydra's own entry is called.
"""

import logging
import os
import re
import shlex
import shutil
import string
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kdbench import __version__, sweep
from kdbench.command import Command, Composed, Override, differences, judge
from kdbench.config import load
from kdbench.errors import Fault, UserError, print_failures, print_faults
from kdbench.hydra_keys import closed, composed_problem
from kdbench.schema import GROUPS, RunConfig
from kdbench.stopping import Stopped, listening

HYDRA_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)
PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_/][\w./-]*", re.ASCII | re.IGNORECASE)  # needs no quotes


def conf_dir() -> Path:
    """kdbench's YAMLs: in the package where it is installed, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "conf"


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
                problem = "an interval needs a sweeper that searches, such as hydra/sweeper=optuna"
            elif o.is_sweep_override():
                sweep = [f"{key}={value}" for value in o.sweep_string_iterator()]
                problem = "" if sweep else "is a sweep over nothing"
        except HYDRA_ERRORS as error:
            raise UserError("cannot be read as key=value") from error
        plain = o.type in (OverrideType.CHANGE, OverrideType.FORCE_ADD) and not o.is_hydra_override()
        value = None if o.is_sweep_override() else o.value()
        return Override(text, key.lstrip("+~"), o.key_or_group, value, plain, sweep, problem)

    def _compose(self, overrides: tuple[str, ...]) -> Composed:
        try:
            cfg = hydra.compose("config", list(overrides), return_hydra_config=True)
        except HYDRA_ERRORS as error:
            raise UserError(one_line(error)) from error
        choices = group_choices(cfg.hydra.runtime.choices)
        if problem := composed_problem(OmegaConf.to_container(cfg.hydra, resolve=False)):  # type: ignore[arg-type]
            raise UserError(problem)
        grid = {key: str(values) for key, values in (cfg.hydra.sweeper.get("params") or {}).items()}
        with open_dict(cfg):
            del cfg["hydra"]
        return Composed(cfg, choices, grid)


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


def read(argv: list[str]) -> Command:
    """Read and judge a command line; nothing runs and nothing is written."""
    args = get_args_parser().parse_args(argv)
    if found := closed(args):
        return Command(argv, found)
    with composing(args.config_dir) as configs:
        return judge(configs, argv, args.overrides, args.multirun)


def refuse(argv: list[str]) -> list[Fault]:
    """All faults of a command line."""
    return read(argv).faults


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def job(cfg: DictConfig) -> float | None:
    """One run. A failure is kept for the end, so that the other jobs of a sweep go on."""
    command = sweep.current()
    if command.elsewhere:
        os.environ["TTY_COMPATIBLE"] = "0"  # to rich: lines, not bars, where several write to one terminal
    from kdbench.run import execute  # loads torch

    hydra_cfg = HydraConfig.get()
    overrides = [text.lstrip("+") for text in hydra_cfg.overrides.task]
    choices = group_choices(hydra_cfg.runtime.choices)
    label = " ".join(text for text in overrides if text.partition("=")[0] in command.swept)
    number = 0
    if hydra_cfg.mode == RunMode.MULTIRUN:
        number = hydra_cfg.job.num
        print(f"[{number + 1}/{command.jobs}] {label}", flush=True)
    try:
        typed = shlex.join(["kdbench", *command.argv])
        result = execute(load(cfg), choices=choices, command=typed, baseline_command=baseline_command)
        return float(result["metrics"]["dev"]["accuracy"])  # what a search maximises
    except Exception as error:
        sweep.tell(number, label, reason_of(error))
        return None


def reason_of(error: Exception) -> str:
    """What is told of a failed job at the end; what nobody expected also has its traceback, now."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def baseline_command(config: RunConfig) -> str:
    """The shortest command that does the run `config`, in the terms of the job that is running."""
    configs = HydraConfigs(GlobalHydra.instance().config_loader())
    runtime = HydraConfig.get().runtime
    choices = group_choices(runtime.choices) | {"method": config.method.name}
    # A corpus brings data sets of its own, a student an encoder; where the run has none, they go as well.
    without = {"experiment"} | ({"corpus"} if config.corpus is None else set())
    if config.student.encoder is None and (encoder := {group for group in choices if "@student." in group}):
        without |= encoder | {"student"}
    choices = {group: choice for group, choice in choices.items() if group not in without and "@corpus" not in group}
    default = configs.compose(()).choices
    words = [f"{group}={choice}" for group, choice in choices.items() if choice != default.get(group, "default")]
    settings = differences(configs.compose(tuple(words)).cfg, config)
    own = [source.path for source in runtime.config_sources if source.provider == "command-line"]
    words = [word for word in words if not word.startswith("method=")]
    words += [f"{key}={literal(value)}" for key, value in settings]
    folder = ["--config-dir", own[0]] if own else []
    return shlex.join(["kdbench", *folder, f"method={config.method.name}", *words, f"seed={config.seed}"])


def literal(value: Any) -> str:
    """`value` as Hydra's grammar reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str) and not PLAIN.fullmatch(value):
        return QuotedString(value, Quote.double).with_quotes()
    return str(value)


def help_text(config_dir: str | None) -> str:
    """hydra.help.template with the groups in columns; Hydra's own way to it takes half a second."""
    template = OmegaConf.load(conf_dir() / "config.yaml").hydra.help.template
    with composing(config_dir) as configs:
        lines = [f"  {group:12}{', '.join(options)}" for group in GROUPS if (options := configs.options(group))]
    width = shutil.get_terminal_size().columns
    groups = "\n".join(textwrap.fill(line, width, subsequent_indent=" " * 14) for line in lines)
    return string.Template(template).substitute(APP_CONFIG_GROUPS=f"{groups}\n")


def main() -> None:
    """The console script."""
    argv = sys.argv[1:]
    if "--version" in argv:
        print(f"kdbench {__version__} (Hydra {hydra.__version__})")
        return
    args = get_args_parser().parse_args(argv)
    if args.help:
        print(help_text(args.config_dir))
        return
    answered = args.hydra_help or args.cfg or args.info or args.shell_completion
    if answered and not (found := closed(args)):
        job()  # Hydra answers
        return
    command = Command(argv, found) if answered else read(argv)
    if command.faults:
        print_faults(command.faults)
        sys.exit(2)
    run(command)


def run(command: Command) -> None:
    """Let Hydra run the jobs; exit with 1 where one failed, 130, 143 or 75 where they were stopped."""
    # A key that the YAML leaves out but the schema knows is new to Hydra: `++` sets it all the same.
    sys.argv[1:] = [f"++{text}" if text in command.plain else text for text in command.argv]
    logging.getLogger("hydra").setLevel(logging.WARNING)
    failures: list[tuple[str, str]] = []
    try:
        with (
            sweep.shared(sweep.Sweep(command.argv, sorted(command.swept), command.jobs, os.getpid())) as failures,
            listening(),
        ):
            job()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    finally:
        print_failures(failures, command.jobs)
    if failures:
        sys.exit(1)
