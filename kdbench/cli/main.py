"""The `kdbench` command: check the command line, then let Hydra run its jobs.

Hydra itself stops at the first fault, with its own message, after it has made folders. So `read` composes and checks
every job before Hydra starts.
"""

import argparse
import logging
import os
import re
import shlex
import shutil
import string
import sys
import textwrap
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdbench import __version__
from kdbench.cli import help as answers
from kdbench.cli import sweep
from kdbench.cli.command import OF_AN_ENCODER, Command, differences, judge, overview
from kdbench.cli.compose import composing, conf_dir, group_choices, of_command
from kdbench.cli.hydra_keys import closed
from kdbench.cli.job import bad_answers, do, reason_of
from kdbench.console import guarded
from kdbench.errors import Code, Fault, print_failures, print_faults
from kdbench.schema import GROUPS, RunConfig
from kdbench.training.interrupts import Stopped, listening
from kdbench.validation.load import complete

PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_/][\w./-]*", re.ASCII | re.IGNORECASE)  # needs no quotes


def read(argv: list[str]) -> Command:
    """Read and check a command line. Nothing runs, and nothing is written."""
    args = get_args_parser().parse_args(argv)
    if found := closed(args):
        return Command(argv, found)
    with composing(args.config_dir) as configs:
        return judge(configs, argv, args.overrides, args.multirun)


def refuse(argv: list[str]) -> list[Fault]:
    """Return all faults of a command line."""
    return read(argv).faults


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def job(cfg: DictConfig) -> None:
    """Do one run, in the process that the launcher has chosen."""
    hydra_cfg = HydraConfig.get()
    number = hydra_cfg.job.num if hydra_cfg.mode == RunMode.MULTIRUN else None
    overrides = [text.lstrip("+") for text in hydra_cfg.overrides.task]
    known: dict[str, str] = {}  # a run and its teacher have commands in common

    def command(config: RunConfig) -> str:
        key = repr(config)
        if key not in known:
            known[key] = baseline_command(config)
        return known[key]

    do(cfg, number, overrides, group_choices(hydra_cfg.runtime.choices), command)


def baseline_command(config: RunConfig) -> str:
    """Return the shortest command for the run `config`, with the YAMLs of the job that is running."""
    configs = of_command(GlobalHydra.instance().config_loader())
    runtime = HydraConfig.get().runtime
    choices = group_choices(runtime.choices) | {"method": config.method.name}
    # A corpus has data sets of its own, and a student may have an encoder. Without the one, the other goes too.
    without = {"experiment"} | ({"corpus"} if config.corpus is None else set())
    if config.student.encoder is None and (encoder := {group for group in choices if "@student." in group}):
        without |= encoder | {"student"}
    if "encoder" not in config.method.needs:
        without |= {group for group in choices if f"{group.partition('@')[2] or group}.".startswith(OF_AN_ENCODER)}
    choices = {group: choice for group, choice in choices.items() if group not in without and "@corpus" not in group}
    default = configs.compose(()).choices
    words = [
        f"{group}={literal(choice)}" for group, choice in choices.items() if choice != default.get(group, "default")
    ]
    settings = differences(configs.compose(tuple(words)).cfg, config)
    own = [source.path for source in runtime.config_sources if source.provider == "command-line"]
    words = [word for word in words if not word.startswith("method=")]
    words += [f"{key}={literal(value)}" for key, value in settings]
    folder = ["--config-dir", own[0]] if own else []
    return shlex.join(["kdbench", *folder, f"method={config.method.name}", *words, f"seed={config.seed}"])


def literal(value: Any) -> str:
    """Return `value` as written in Hydra's grammar."""
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
    """Return hydra.help.template with the groups in columns. Hydra itself takes half a second for that."""
    template = OmegaConf.load(conf_dir() / "config.yaml").hydra.help.template
    with composing(config_dir) as configs:
        lines = [f"  {group:12}{overview(options)}" for group in GROUPS if (options := configs.options(group))]
    width = shutil.get_terminal_size().columns
    groups = "\n".join(textwrap.fill(line, width, subsequent_indent=" " * 14) for line in lines)
    return string.Template(template).substitute(APP_CONFIG_GROUPS=f"{groups}\n")


def own_flags(argv: list[str]) -> tuple[list[str], int | None, list[Fault]]:
    """Return the words for Hydra, the number of failed jobs after which none starts, and the faults of these flags."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--fail-fast", action="store_true")
    parser.add_argument("--max-failures", nargs="?", const="")
    flags, rest = parser.parse_known_args(argv)
    given = flags.max_failures
    if given is not None and not (given.isdecimal() and int(given)):
        problem = "must be an integer (1 or more), e.g. --max-failures 3"
        return rest, None, [Fault(Code.OUT_OF_RANGE, "--max-failures", given, problem)]
    return rest, 1 if flags.fail_fast else given and int(given), []


def gathered(argv: list[str]) -> list[str]:
    """Return the words with settings after flags. People type both in any order, Hydra's parser needs this one."""
    flags, settings = list(argv), get_args_parser().parse_intermixed_args(argv).overrides
    for text in settings:
        flags.remove(text)
    return [*flags, *settings]


def yaml_folders(args: argparse.Namespace) -> list[Path]:
    return [*([Path(args.config_dir)] if args.config_dir else []), conf_dir()]


def answer(argv: list[str], args: argparse.Namespace) -> Command:
    """Answer --info, --hydra-help and completion. Return a command without jobs, with the faults of the words."""
    found = closed(args)
    if not found and args.info == "all":
        print(answers.info(yaml_folders(args)))
    elif not found and args.shell_completion and any(text.startswith("query=") for text in args.overrides):
        with composing(args.config_dir) as configs:
            print("\n".join(configs.completions(os.environ["COMP_LINE"])))
    elif not found:
        sys.argv[1:] = argv
        job()  # Hydra answers
    return Command(argv, found, jobs=0)


def main() -> None:
    """The console script."""
    if code := guarded("kdbench", entry):
        sys.exit(code)


def entry() -> int:
    """Do what the command line asks for. Return the exit code."""
    argv, max_failures, found = own_flags(sys.argv[1:])
    if "--version" in argv:
        print(f"kdbench {__version__} (Hydra {hydra.__version__})")
        return 0
    argv = gathered(argv)
    args = get_args_parser().parse_args(argv)
    if args.help:
        print(help_text(args.config_dir))
        return 0
    if args.hydra_help or args.info or args.shell_completion:
        command = answer(argv, args)
    elif any(map(answers.QUESTION.fullmatch, args.overrides)):
        with composing(args.config_dir) as configs:
            command = Command(argv, answers.asked(configs, args.overrides, yaml_folders(args)), jobs=0)
    else:
        command = read(argv)
    if args.cfg and not args.resolve:  # a missing value may be what the user looks for
        typed = {text.partition("=")[0].lstrip("+~") for text in args.overrides}
        command.faults = [one for one in command.faults if one.value is not None or one.key.lstrip("~") in typed]
    if args.cfg and args.multirun:
        found.append(Fault(Code.CONFLICTING_OPTIONS, "--cfg", args.cfg, "shows the config of one run: leave out -m"))
    found += command.faults
    if not found and command.jobs > 1:  # a single job looks first itself
        found += bad_answers(command.taught_by_files)
    if found:
        print_faults(found)
        return 2
    if args.cfg and command.jobs:
        show(command, args)
    elif command.jobs:
        command.max_failures = max_failures
        return run(command)
    return 0


def show(command: Command, args: argparse.Namespace) -> None:
    """Print the config for `--cfg`. With --resolve it is what the run records, which Hydra cannot know."""
    if args.cfg != "job" or not args.resolve:
        sys.argv[1:] = command.words
        job()  # Hydra answers
        return
    with composing(args.config_dir) as configs:
        words = (command.spelt.get(text, text) for text in args.overrides)
        cfg = complete(configs.compose(tuple(words)).cfg)
    part = OmegaConf.select(cfg, args.package) if args.package else cfg
    print(OmegaConf.to_yaml(part) if OmegaConf.is_config(part) else part)


def _measure(runs: dict[Path, Path | None]) -> None:
    """Measure the times of all models of a command. A search and a dry run may have none."""
    if runs:
        from kdbench.runs.times import at_the_end  # too slow to load for --help

        at_the_end(runs)


def run(command: Command) -> int:
    """Let Hydra run the jobs. Return 1 if one failed, or 2 if all that failed could not read their source.

    Return 130, 143 or 75 if they were stopped, else 0.
    """
    logging.getLogger("hydra").setLevel(logging.WARNING)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise the errors of a launcher
    # torchrun's processes must do the same jobs, so none starts another job after a failure.
    limit = 1 if "WORLD_SIZE" in os.environ else command.max_failures
    about = sweep.Sweep(command.argv, sorted(command.swept), command.jobs, sweep.here(), limit)
    told: list[sweep.Told] = []
    stopped: Stopped | None = None
    failures: list[tuple[str, str]] = []
    try:
        with sweep.shared(about, Path(command.outputs) if command.outputs else None) as folder, listening():
            words, settings = [*command.words], get_args_parser().parse_args(command.argv).overrides
            # Beside the other settings, because argparse needs them together.
            at = command.argv.index(settings[0]) if settings else len(words)
            words.insert(at, f"++hydra.job.env_set.{sweep.ENVIRONMENT}={literal(str(folder))}")
            sys.argv[1:] = words
            try:
                job()
            finally:
                told = sweep.told(folder, command.jobs)
            _measure({Path(run): None if at is None else Path(at) for one in told for run, at in one.runs})
    except Stopped as asked:
        stopped = asked
        print(stopped, file=sys.stderr)
    except Exception as error:  # the process of a launcher died
        failures.append(("the launcher", reason_of(error)))
    if command.jobs == 1 and told and told[0].state == "done" and told[0].reason:
        print(told[0].reason)
    failures += sweep.failures(told, stopped is not None)
    print_failures(failures, command.jobs)
    left = command.jobs - len(told)
    if limit and left and len(failures) >= limit:
        print(f"{left} of {command.jobs} jobs were not started; the same command starts them", file=sys.stderr)
    codes = [one.exit_code for one in told if one.state == "stopped"]
    if codes and not stopped:
        print(f"{len(codes)} of {command.jobs} jobs were stopped; the same command resumes them", file=sys.stderr)
    if stopped:
        return stopped.exit_code
    if failures:
        refused = sum(one.state == "failed" and one.exit_code == 2 for one in told)
        return 2 if refused == len(failures) else 1
    return next(iter(codes), 0)
