"""A search with optuna's ask-and-tell interface.

A study is one journal file, which commands on several machines may share. A trial is an ordinary run with a content
id, so settings that are asked for twice are found done, and a killed trial resumes. optuna sees only dev scores. The
test score is read once, for the best trial, after all trials. It is imported where a search runs only: optuna is an
extra.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from kdbench.cli.sweep import TRIAL
from kdbench.storage.results import metric_of, read_result
from kdbench.storage.seeds import derive
from kdbench.training.interrupts import Pruned

_NAME = "kdbench"  # name of the only study in a file
_LOST = "lost"  # user attribute of a trial whose command died; it is repeated
_WORKER = "worker"  # user attribute: the command that asked for the trial


class Rules(NamedTuple):
    """The settings of a search, as in conf/hydra/sweeper/optuna.yaml."""

    seed: int
    prune: bool
    startup_trials: int
    warmup_epochs: int


def open_study(file: Path, rules: Rules) -> optuna.Study:
    """Return the study in `file`, created if needed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file.parent.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(file))),
        study_name=_NAME,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(rules.startup_trials, rules.warmup_epochs)
        if rules.prune
        else optuna.pruners.NopPruner(),
    )


class Search:
    """The part of one command in a study."""

    def __init__(self, file: Path, space: dict[str, BaseDistribution], rules: Rules) -> None:
        self.file, self.space, self.rules = file, space, rules
        self.study = open_study(file, rules)
        self.worker = os.urandom(4).hex()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Mark this command as alive within the block. At its start, repeat the trials of commands that died."""
        with FileLock(self._lock(self.worker)):
            for trial in self.study.get_trials(deepcopy=False):
                if not trial.state.is_finished() and _WORKER in trial.user_attrs:
                    self._ask_again_if_dead(trial)
            yield
        Path(self._lock(self.worker)).unlink(missing_ok=True)

    def ask(self, limit: int) -> optuna.Trial | None:
        """Return the next trial with its values, or None if all commands together have asked for `limit`.

        The values depend only on the seed and on the number and scores of the trials before. So a search that resumes
        after a kill asks for the same values.
        """
        with FileLock(self._lock("asking")):
            before = len(self.asked())
            if before >= limit:
                return None
            seed = derive(self.rules.seed, "trial", before) % 2**32  # numpy takes no more
            self.study.sampler = optuna.samplers.TPESampler(seed=seed)
            trial = self.study.ask(self.space)
            trial.set_user_attr(_WORKER, self.worker)
            return trial

    def asked(self) -> list[FrozenTrial]:
        """Return all trials of the study so far, without those that are repeated."""
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if t.state != TrialState.WAITING and not t.user_attrs.get(_LOST)]

    def close(self, trials: list[optuna.Trial]) -> None:
        """Mark the trials without a result as failed."""
        running = {t.number for t in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))}
        for trial in trials:
            if trial.number in running:
                self.study.tell(trial.number, state=TrialState.FAIL)

    def environment(self, trial: optuna.Trial) -> str:
        """Return the text that `of_this_job` reads."""
        return ":".join([str(trial.number), *(str(int(value)) for value in self.rules), str(self.file)])

    def _ask_again_if_dead(self, trial: FrozenTrial) -> None:
        lock = FileLock(self._lock(trial.user_attrs[_WORKER]))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return
        _live(self.study, trial.number).set_user_attr(_LOST, True)
        self.study.tell(trial.number, state=TrialState.FAIL)
        if trial.params.keys() == self.space.keys():
            self.study.enqueue_trial(trial.params)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)

    def _lock(self, worker: str) -> str:
        return f"{self.file}.{worker}.lock"


def _live(study: optuna.Study, number: int) -> optuna.Trial:
    return optuna.Trial(study, number)  # a file has one study, so optuna's id is the number


class OfThisJob:
    """The trial that this process does."""

    def __init__(self, number: int, file: Path, rules: Rules) -> None:
        self.study = open_study(file, rules)
        self.trial = _live(self.study, number)

    def watch(self, epoch: int, score: float) -> None:
        """Report a dev score. Raises Pruned if it is below the median of the other trials at that epoch."""
        self.trial.report(score, epoch)
        if self.trial.should_prune():
            self.study.tell(self.trial.number, state=TrialState.PRUNED)
            raise Pruned(
                f"stopped by the search after epoch {epoch + 1}: dev score {100 * score:.2f}; its best is below the"
                " median of the trials before it"
            )

    def done(self, result: dict[str, Any]) -> None:
        """Report the dev score of a finished run in the metric that chooses."""
        self.trial.set_user_attr("folder", result["folder"])
        self.study.tell(self.trial.number, result["metrics"]["dev"][metric_of(result)])


def of_this_job() -> OfThisJob:
    """Return the trial of this job, which is part of a search."""
    number, seed, prune, startup, warmup, file = os.environ[TRIAL].split(":", 5)
    return OfThisJob(int(number), Path(file), Rules(int(seed), bool(int(prune)), int(startup), int(warmup)))


def announce(trials: list[FrozenTrial], file: Path) -> None:
    """Print the result: the number of trials, the best on dev, and its test score, which chose nothing."""
    counts = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    print(
        f"search: {len(trials)} trials ({counts[TrialState.COMPLETE]} finished, {counts[TrialState.PRUNED]} pruned,"
        f" {counts[TrialState.FAIL]} failed), kept in {file}"
    )
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not finished:
        return
    best = max(finished, key=lambda trial: (trial.value, -trial.number))
    result = read_result(Path(best.user_attrs["folder"])) or {}
    dev, test, metric = result["metrics"]["dev"], result["metrics"]["test"], metric_of(result)
    values = " ".join(f"{key.lstrip('+')}={value}" for key, value in best.params.items())
    print(
        f"best on dev of {len(trials)}: {values}\n"
        f"  dev {metric} {100 * dev[metric]:.2f} (n {dev['n']}), the highest of {len(trials)}, so biased upwards;"
        f" test {100 * test[metric]:.2f} (n {test['n']})\n  {best.user_attrs['folder']}"
    )
