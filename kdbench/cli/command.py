"""The faults of a command line: every job is composed and checked before the first one runs.

This module uses none of Hydra's classes. `kdbench.cli.main` passes what it needs of them as `Configs`.
"""

import itertools
import os
import pickle
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.cli.hydra_keys import OPEN
from kdbench.errors import Code, Fault, UserError, nearest
from kdbench.options import MISSING
from kdbench.schema import GROUPS, ExportConfig, RunConfig, TrackConfig
from kdbench.validation.keys import run_keys
from kdbench.validation.load import filled, load
from kdbench.validation.values import faults, known_keys, references

# Keys that only concern this command. The command for another run, such as its baseline, leaves them out.
OF_THE_COMMAND = {"rerun", "dry_run", "inspect", "stop_after", "preempt_at"}
OF_THE_COMMAND |= {f"export.{field.name}" for field in fields(ExportConfig)}
OF_THE_COMMAND |= {f"track.{field.name}" for field in fields(TrackConfig)}
OF_AN_ENCODER = ("teacher.", "student.", "schedule.")
OF_LABELS = {"schedule.class_weights"}  # and of TF-IDF


class Override(NamedTuple):
    """One `key=value` of a command line."""

    text: str
    key: str  # with the package of a group: schedule@teacher.schedule
    group: str  # the key without the package
    value: Any
    plain: bool  # sets a value, and is not +add, ~delete or Hydra's own
    sweep: list[str]  # one override for each value; empty if this is not a sweep
    problem: str  # why the sweep has no values
    interval: bool = False  # whether `sweep` has the two ends of an interval
    is_text: bool = False  # whether the schema has text for this key
    typed: str = ""  # as typed, if kdbench added quotes to `text` or expanded its glob

    def fault(self, code: Code, problem: str, close: str = "", legal: str = "") -> Fault:
        key, equals, value = (self.typed or self.text).partition("=")
        value = self.value if isinstance(self.value, str) else value
        return Fault(code, key, value if equals else None, problem, close, legal)


class Composed(NamedTuple):
    cfg: DictConfig
    choices: dict[str, str]  # group -> option
    grid: dict[str, str] = {}  # key -> values, if the preset is a sweep  # noqa: RUF012
    launcher: str = "basic"  # hydra/launcher
    trials: Any = None  # the number of trials of a search; None for a sweep over a grid


class Configs(Protocol):
    """The YAMLs that a command can be composed of. `parse` and `compose` raise UserError."""

    def options(self, group: str) -> list[str]: ...
    def parse(self, text: str) -> Override: ...
    def quoted(self, text: str, keep_null: bool) -> str: ...
    def compose(self, overrides: tuple[str, ...]) -> Composed: ...


@dataclass
class Command:
    """A command line and its faults."""

    argv: list[str]
    faults: list[Fault]
    spelt: dict[str, str] = field(default_factory=dict)  # words that Hydra must be given in another spelling
    swept: set[str] = field(default_factory=set)  # keys
    jobs: int = 1
    outputs: str | None = None  # the folder that jobs on other machines share with this one
    taught_by_files: list[DictConfig] = field(default_factory=list)  # the jobs whose teacher is a file
    max_failures: int | None = None

    @property
    def words(self) -> list[str]:
        """Return the words for Hydra.

        A key that the schema has but the YAML leaves out gets `++`, because Hydra does not know it. Text that Hydra
        would read as a number gets quotes.
        """
        return [self.spelt.get(text, text) for text in self.argv]


def judge(configs: Configs, argv: list[str], texts: list[str], multirun: bool) -> Command:
    """Return the command of the overrides `texts`, with its sweep expanded and the faults of all jobs."""
    overrides: list[Override] = []
    found: list[Fault] = []
    grid = grid_of(configs, texts)
    if grid and not multirun:
        preset = next(text for text in texts if text.startswith("experiment="))
        found.append(Fault(Code.NEEDS_MULTIRUN, "experiment", preset.partition("=")[2], "is a grid of runs: add -m"))
    if multirun and grid is not None:  # expanded here, because Hydra would nest a key that is swept twice
        argv, texts = [*argv, "hydra.sweeper.params=null", *grid], [*texts, *grid]
    for text in texts:
        try:
            o = configs.parse(text)
            found += [o.fault(Code.UNUSABLE_SWEEP, o.problem)] if o.problem else []
            overrides += [] if o.problem else [o]
        except UserError as error:
            found.append(unreadable(configs, text, str(error)))
    if multirun and (swept_preset := next((o for o in overrides if o.key == "experiment"), None)):
        found += nested_grid_faults(configs, swept_preset, texts)
    idle = [o for o in overrides if o.key.startswith(OPEN) and not (is_choice(configs, o) and chosen(configs, o)[1])]
    if idle and not multirun:
        found.append(
            idle[0].fault(Code.NEEDS_MULTIRUN, "works in a sweep only: add -m", shlex.join(["kdbench", "-m", *argv]))
        )
    overrides = as_typed(configs, overrides)
    paths = [fault for o in overrides if (fault := quoted_path_fault(o))]
    found += paths
    overrides = [o for o in overrides if o.key not in {fault.key for fault in paths}]
    swept = [o for o in overrides if o.sweep]
    if not multirun:
        # Their values are not checked: 0,2 may have been meant as a list.
        found += [needs_multirun(o, is_choice(configs, o)) for o in swept]
        overrides = [o for o in overrides if not o.sweep or is_choice(configs, o)]
    first, _ = compose_rest(configs, [(o.sweep or [o.text])[0] for o in overrides if not is_setting(configs, o)])
    found += search_faults(first, swept) if multirun else []
    jobs = combinations([*{o.key: o.sweep or [o.text] for o in overrides}.values()], first.trials is not None)
    by_files: list[DictConfig] = []
    judged = judge_jobs(configs, jobs, by_files)
    unjudged = {fault.key for fault in found}
    found += [fault for fault in judged if fault.key not in unjudged]
    typed = [text.partition("=")[0].lstrip("+~") for text in texts]
    found.sort(key=lambda fault: typed.index(key) if (key := fault.key.lstrip("+~")) in typed else len(typed))
    spelt = {o.typed or o.text: f"{'++' * is_setting(configs, o)}{o.text}" for o in overrides}
    command = Command(argv, list(dict.fromkeys(found)), spelt, {o.key for o in swept}, first.trials or len(jobs))
    command.taught_by_files = by_files
    if multirun and first.launcher != "basic":
        command.outputs = next((str(o.value) for o in overrides if o.key == "outputs"), first.cfg.outputs)
        command.outputs = os.path.expanduser(command.outputs)
    return command


def as_typed(configs: Configs, overrides: list[Override]) -> list[Override]:
    """Return the overrides with quotes around values that are text by the schema but not to Hydra.

    Hydra reads 2024_01, 1e3, true and NULL as 202401, 1000.0, True and None: another column, class or file.
    """
    structure = [(o.sweep or [o.text])[0] for o in overrides if not is_setting(configs, o)]
    composed = [compose_rest(configs, structure)[0]]
    composed += [
        compose_rest(configs, [*structure, text])[0] for o in overrides if o.key == "method" for text in o.sweep
    ]
    known = [keys for one in composed if (keys := known_keys(one.cfg)) is not None]

    def spelt(o: Override) -> Override:
        leaf = next((keys.leaves[o.key] for keys in known if o.key in keys.leaves), None)
        choice = is_choice(configs, o) and o.group in GROUPS
        is_text = not choice and leaf is not None and leaf.text
        if not (choice or is_text) or o.text.startswith("~"):
            return o
        text = configs.quoted(o.text, keep_null=leaf is None or leaf.optional)
        return configs.parse(text)._replace(typed=o.typed or o.text, is_text=is_text)

    return [spelt(o) for o in overrides]


def is_setting(configs: Configs, o: Override) -> bool:
    """Return whether the override only sets the value of a key of kdbench."""
    return o.plain and not is_choice(configs, o)


def judge_jobs(configs: Configs, jobs: list[tuple[str, ...]], by_files: list[DictConfig]) -> list[Fault]:
    """Return the faults of a sweep's jobs. If single values are wrong, combinations of values are not checked.

    `by_files` gets the jobs whose teacher is a file, one for each combination of values without the seed.
    """
    judged: list[Fault] = []
    seen: set[Any] = set()

    def changed(job: tuple[str, ...]) -> int:
        """Return 0 for the first job, 1 if one key differs, else 2. Wrong single values are found with 0 and 1."""
        return min(2, sum(text != first for text, first in zip(job, jobs[0], strict=True)))

    for job in sorted(jobs, key=changed):
        if judged and changed(job) == 2:
            break  # so that a large grid is refused as quickly as a small one
        parts = {frozenset(text for text in job if text.startswith("seed=") is seed) for seed in (True, False)}
        if not parts <= seen:  # no other key depends on the seed, so seeds and settings are each checked once
            judged += judge_job(configs, [configs.parse(text) for text in job], by_files)
        seen |= parts
    return judged


def unreadable(configs: Configs, text: str, problem: str) -> Fault:
    """Return the fault of a word that is not an override."""
    key, equals, value = text.partition("=")
    if not equals:
        close = next((f"{group}={text}" for group in GROUPS if text in configs.options(group)), "")
        return Fault(Code.UNREADABLE_WORD, text, None, "must have the form key=value", close)
    if value[:1] in ("[", "{", "'", '"'):
        return Fault(Code.UNREADABLE_WORD, key, value, "has a bracket or a quote that is not closed")
    try:
        configs.parse(in_quotes(key, value))
    except UserError:
        return Fault(Code.UNREADABLE_WORD, key, value, problem)
    return Fault(Code.UNREADABLE_WORD, key, value, "must be in its own quotes", shlex.quote(in_quotes(key, value)))


def is_choice(configs: Configs, o: Override) -> bool:
    """Return whether the override chooses from a group, or was meant to."""
    return o.key != o.group or "/" in o.key or (bool(configs.options(o.group)) and not isinstance(o.value, dict))


def judge_job(configs: Configs, overrides: list[Override], by_files: list[DictConfig]) -> list[Fault]:
    """Return the faults of one job. A choice that does not exist is guessed or left out to check the rest.

    `by_files` gets the job if its teacher is a file.
    """
    found: list[Fault] = []
    structure: list[str] = []
    unsure: set[str] = set()  # groups whose choice could not be guessed
    for o in overrides:
        if is_choice(configs, o):
            choice, fault = chosen(configs, o)
            found += [fault] if fault else []
            structure += [choice] if choice else []
            unsure |= set() if choice else {o.group}
        elif not o.plain:
            structure.append(o.text)
    composed, refused = compose_rest(configs, structure)
    method = composed.cfg.method  # before the overrides that only set a value
    if "experiment" in composed.choices or any(text[0] in "+~" for text in structure):  # may misname a stage
        method = configs.compose((f"method={composed.choices['method']}",)).cfg.method
    cfg, settings = composed.cfg, [o for o in overrides if is_setting(configs, o)]
    if settings:
        cfg = pickle.loads(pickle.dumps(cfg))  # a deep copy takes twice as long
    for o in settings:
        try:
            OmegaConf.update(cfg, o.key, o.value, force_add=True)
        except OmegaConfBaseException:  # an incomplete reference
            found.append(o.fault(Code.UNREADABLE_WORD, "cannot be read"))
    typed = {
        o.key: str(o.value) if isinstance(o.value, str) else o.text.partition("=")[2] for o in overrides if o.plain
    }
    for fault in faults(cfg, method.get("stages", {})):
        if fault.key.split(".")[0] not in unsure:
            value = None if fault.value is None else typed.get(fault.key, fault.value)
            found.append(fault._replace(value=value))
    every = [*found, *refused]
    if not every and cfg.teacher.get("join") is not None:
        by_files.append(cfg)
    mistyped = {fault.nearest for fault in every} - {o.key for o in overrides}  # whose defaults are no faults
    return [fault for fault in every if fault.key not in mistyped]


def chosen(configs: Configs, o: Override) -> tuple[str | None, Fault | None]:
    """Return the override of a group and its fault. A choice that does not exist is replaced by the nearest one."""
    options = configs.options(o.group)
    legal = legal_choices(o.group, options)
    if not options:
        return None, o.fault(
            Code.UNKNOWN_CHOICE, "is not a group", nearest(o.group, GROUPS), f"Groups: {', '.join(GROUPS)}"
        )
    if not isinstance(o.value, str):
        return None, o.fault(Code.MISUSED_GROUP, "must be one choice; leave it out for the default", legal=legal)
    if o.text.startswith("+") and o.key in GROUPS:
        return o.text[1:], o.fault(Code.MISUSED_GROUP, "must be chosen without the +", o.text[1:])
    if o.value in options:
        return o.text, None
    close = meant(o.value, options)
    if len(close) != 1:
        return None, o.fault(
            Code.UNKNOWN_CHOICE, "is not a choice", legal=f"Choices: {', '.join(close)}" if close else legal
        )
    return f"{o.text.partition('=')[0]}={close[0]}", o.fault(Code.UNKNOWN_CHOICE, "is not a choice", close[0], legal)


def overview(options: list[str]) -> str:
    """Return the options as one line; a folder stands for the options in it, with their number."""
    folders = Counter(option.partition("/")[0] for option in options if "/" in option)
    plain = [option for option in options if "/" not in option]
    return ", ".join([*plain, *(f"{name}/ ({count})" for name, count in folders.items())])


def legal_choices(group: str, options: list[str]) -> str:
    """Return the choices of a group in words, with the command that lists those in folders."""
    more = f": kdbench '{group}=?'" if any("/" in option for option in options) else ""
    return f"Choices: {overview(options)}{more}"


def meant(word: str, options: list[str]) -> list[str]:
    """Return the options that `word` was probably meant to be: of this name, in this folder, or the nearest one.

    A folder may be typed as a part of the name too, as in theseus_reference and study_theseus.
    """
    spellings: dict[str, list[str]] = {}
    for option in options:
        parts = option.split("/")
        for spelling in {option, parts[0], parts[-1], "_".join(parts), "_".join(reversed(parts))}:
            spellings.setdefault(spelling, []).append(option)
    if word.rstrip("/") in spellings:
        return spellings[word.rstrip("/")]
    close = nearest(word, [spelling for spelling, named in spellings.items() if len(named) == 1])
    return spellings[close] if close else []


def compose_rest(configs: Configs, structure: list[str]) -> tuple[Composed, list[Fault]]:
    """Return the composed config, and a fault for each override that cannot be composed."""
    try:
        return configs.compose(tuple(structure)), []
    except UserError:
        good: list[str] = []
        found: list[Fault] = []
        for text in structure:
            try:
                configs.compose((*good, text))
                good.append(text)
            except UserError as error:
                found.append(configs.parse(text).fault(error.code, str(error)))
        return configs.compose(tuple(good)), found


def differences(cfg: DictConfig, target: RunConfig) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of the fewest settings that turn `cfg` into `target`.

    Three kinds of keys are left out: the command's own, those that are MISSING in `target`, and those of an encoder if
    the method has none.
    """
    datasets = tuple(target.corpus.datasets) if target.corpus else ()
    keys = run_keys(target.method.name, tuple(target.method.stages), datasets, target.method.module)
    wanted, cfg = dict(keys.flat(asdict(target))), pickle.loads(pickle.dumps(cfg))

    def written() -> dict[str, Any]:
        return dict(keys.flat(filled(OmegaConf.to_container(cfg, resolve=False))))  # type: ignore[arg-type]

    raw = written()
    # A local teacher's source brings its shape along, so the keys that are not set are set one at a time.
    while unset := next((key for key, value in raw.items() if value == MISSING), None):
        OmegaConf.update(cfg, unset, wanted[unset])
        yield unset, wanted[unset]
        raw = written()

    def depth(key: str) -> int:
        """Return the number of references between the value and `key`."""
        return max((1 + depth(source) for source in references(key, raw.get(key))), default=0)

    unused = () if "encoder" in target.method.needs else OF_AN_ENCODER
    used = (
        key for key, value in wanted.items()
        if value != MISSING and (key in OF_LABELS or not key.startswith(unused))
    )  # fmt: skip
    depths = {key: depth(key) for key in used if key not in {"seed", *OF_THE_COMMAND}}
    now: dict[str, Any] = {}  # empty: to be read again
    for level in sorted(set(depths.values())):
        now = now or dict(keys.flat(asdict(load(cfg))))
        for key in [key for key, deep in depths.items() if deep == level and now[key] != wanted[key]]:
            OmegaConf.update(cfg, key, wanted[key], force_add=True, merge=False)
            yield key, wanted[key]
            now = {}


# A command with several jobs: the grid of a preset, the jobs that are checked, the limits of a search.


def grid_of(configs: Configs, texts: list[str]) -> list[str] | None:
    """Return a preset's sweep without the keys that are set on the command line, or None if it is not a sweep."""
    preset = [text for text in texts if text.startswith("experiment=")]
    try:
        grid = configs.compose(tuple(preset)).grid if preset else {}
    except UserError:  # its fault is found with the others
        return None
    typed = {text.partition("=")[0].lstrip("+~") for text in texts}
    return [f"{key}={values}" for key, values in grid.items() if key not in typed] if grid else None


def nested_grid_faults(configs: Configs, preset: Override, texts: list[str]) -> list[Fault]:
    """Return the fault of a sweep over presets if one of them is a sweep: Hydra would ignore its values."""
    others = [text for text in texts if not text.startswith("experiment=")]
    for text in preset.sweep:
        if grid := grid_of(configs, [text, *others]):
            name, keys = text.partition("=")[2], ", ".join(word.partition("=")[0] for word in grid)
            problem = f"must not have {name}, a grid over {keys}: set these keys here, or run it in its own command"
            return [preset.fault(Code.UNUSABLE_SWEEP, problem)]
    return []


def needs_multirun(o: Override, choice: bool) -> Fault:
    key, _, value = (o.typed or o.text).partition("=")
    if o.is_text:
        return o.fault(
            Code.NEEDS_MULTIRUN,
            f"is a sweep: add -m, or, for one value with a comma, write {shlex.quote(in_quotes(key, value))}",
        )
    as_list = "" if choice else f", or write [{value}] for a list"
    return o.fault(Code.NEEDS_MULTIRUN, f"is a sweep: add -m{as_list}")


def quoted_path_fault(o: Override) -> Fault | None:
    """Return the fault of an existing path with a comma, which would become a sweep, or None."""
    key, _, value = (o.typed or o.text).partition("=")
    if not (o.sweep and o.is_text and Path(value).expanduser().exists()):
        return None
    return o.fault(
        Code.UNREADABLE_WORD, "has a comma, so it must be in its own quotes", shlex.quote(in_quotes(key, value))
    )


def in_quotes(key: str, value: str) -> str:
    """Return the override with `value` as one text."""
    return f'{key}="{value}"'


def combinations(values: list[list[str]], search: bool) -> list[tuple[str, ...]]:
    """Return the jobs of a sweep, or those of a search that differ in one key, as its trials are not known yet."""
    if not search:
        return list(itertools.product(*values))
    first = tuple(options[0] for options in values)
    others = [(*first[:i], value, *first[i + 1 :]) for i, options in enumerate(values) for value in options[1:]]
    return [first, *others]


def search_faults(first: Composed, swept: list[Override]) -> list[Fault]:
    """Return the faults of a search, or of an interval without one."""
    if first.trials is None:
        problem = "is an interval, which needs a search: add hydra/sweeper=optuna"
        return [o.fault(Code.UNUSABLE_SEARCH, problem) for o in swept if o.interval]
    problems = []
    if not swept:
        example = "e.g. 'method.alpha=interval(0.1,0.9)' or method.temperature=5,10,20"
        problems.append(f"has nothing to search: give a key several values, {example}")
    if "WORLD_SIZE" in os.environ:
        problems.append("must run in one process, not under torchrun")
    found = [Fault(Code.UNUSABLE_SEARCH, "hydra/sweeper", "optuna", problem) for problem in problems]
    if type(first.trials) is not int or first.trials < 1:
        problem = "must be an integer (1 or more)"
        found.append(Fault(Code.OUT_OF_RANGE, "hydra.sweeper.n_trials", str(first.trials), problem))
    chosen_by = "must be one seed: search with it, then run the best setting with several"
    return found + [o.fault(Code.UNUSABLE_SEARCH, chosen_by) for o in swept if o.key == "seed"]
