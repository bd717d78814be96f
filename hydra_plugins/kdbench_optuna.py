"""`hydra/sweeper=optuna`: Hydra's side of kdbench.cli.search. Hydra finds sweepers in package `hydra_plugins` alone.

Instead of hydra-optuna-sweeper, which needs optuna below 3.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from kdbench.cli import sweep

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

    from kdbench.cli.search import Search


class OptunaSweeper(Sweeper):
    """Asks for `n_jobs` trials, lets the launcher do them, and asks again until `n_trials` have been asked."""

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        study: str | None,
        seed: int,
        prune: bool,
        startup_trials: int,
        warmup_epochs: int,
        params: None,  # of a preset: kdbench.cli.command has spelt it out
    ) -> None:
        from kdbench.cli.search import Rules

        self.n_trials, self.n_jobs, self.study = n_trials, n_jobs, study
        self.rules = Rules(seed, prune, startup_trials, warmup_epochs)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from kdbench.cli.search import Search, announce
        from kdbench.validation.load import digest

        assert self.config is not None and self.launcher is not None  # Hydra has called setup

        overrides = OverridesParser.create().parse_overrides(arguments)
        fixed = [text for text, o in zip(arguments, overrides, strict=True) if not o.is_sweep_override()]
        space = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
        about = {"fixed": sorted(fixed), "space": {key: str(value) for key, value in space.items()}}
        file = Path(self.config.hydra.sweep.dir, "searches", f"{self.study or digest(about)}.journal").absolute()
        search = Search(file, space, self.rules)
        number = 0
        with search.working():
            while trials := self._asked(search, self.config):
                jobs = [(*fixed, *_values(trial), _set(sweep.TRIAL, search.environment(trial))) for trial in trials]
                self.launcher.launch(jobs, initial_job_idx=number)
                search.close(trials)
                number += len(trials)
        announce(search.asked(), file)

    def _asked(self, search: "Search", config: DictConfig) -> "list[optuna.Trial]":
        """The next trials; none where enough have been asked, by whichever command, or too many jobs have failed."""
        if sweep.enough_failed(Path(config.hydra.job.env_set[sweep.ENVIRONMENT])):
            return []
        return [trial for _ in range(self.n_jobs) if (trial := search.ask(self.n_trials)) is not None]


def _values(trial: "optuna.Trial") -> list[str]:
    return [f"{key}={value}" for key, value in trial.params.items()]


def _set(variable: str, value: str) -> str:
    """The override with which Hydra sets an environment variable of a job."""
    return f"++hydra.job.env_set.{variable}={QuotedString(value, Quote.double).with_quotes()}"


def distribution(o: Override) -> "BaseDistribution":
    """What optuna draws from, for a sweep in Hydra's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = o.value()
    whole = isinstance(value, RangeSweep | IntervalSweep) and all(isinstance(end, int) for end in _ends(value))
    if isinstance(value, IntervalSweep):
        start, end = _ends(value)
        kind = IntDistribution if whole else FloatDistribution
        return kind(start, end, log="log" in value.tags)
    if isinstance(value, RangeSweep) and not value.shuffle:
        values = [float(text) for text in o.sweep_string_iterator()]
        low, high, step = min(values), max(values), abs(value.step)
        if whole:
            return IntDistribution(int(low), int(high), step=int(step))
        return FloatDistribution(low, high, step=step)
    return CategoricalDistribution(list(o.sweep_string_iterator()))


def _ends(value: RangeSweep | IntervalSweep) -> Iterator[Any]:
    yield value.start
    yield value.stop if isinstance(value, RangeSweep) else value.end
    if isinstance(value, RangeSweep):
        yield value.step
