"""The one training loop: every stage of every method, the teacher's and the baselines' included.

Randomness is a function of (seed, stage, step): the order of the examples, dropout and a method's own
draws are the same whether a stage ran through, was killed and resumed, or follows a teacher that was
found or trained. Several processes: each takes its share of every batch; gradients are summed over the
processes by the loop itself, before clipping. (Wrapping the model in DistributedDataParallel was dropped:
objectives are closures over raw modules, Theseus may use any subset of the parameters or none, and an
unused parameter must count as a zero gradient, here as with one process.)
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench import checkpoint
from kdbench.checkpoint import state_of
from kdbench.errors import UserError
from kdbench.metrics_log import MetricsLog
from kdbench.optim import lr_factor, make_optimizer
from kdbench.progress import Display
from kdbench.results import read_json, write_json
from kdbench.seeds import derive
from kdbench.stage import Batch, Predict, Stage

FLUSH_EVERY = 10  # steps between two reads of the losses from the device
Pass = tuple[list[str], Tensor, dict[str, float]]  # names of the loss terms, their values, other numbers
Score = Callable[[Predict, int], dict[str, float]]  # dev metrics; "accuracy" selects


class NonFiniteLoss(UserError):
    """A loss term became infinite or NaN; the message names the stage, the step and each term."""


def train(
    stage: Stage,
    folder: Path,
    accelerator: Accelerator,
    score: Score,
    *,
    seed: int,
    checkpoint_every: int,
    display: Display,
) -> dict[str, object]:
    """Train `stage` in `folder`, or load what is already there; returns the stage's record.

    Afterwards the student (and `extra`) holds the weights of the best dev score, or the last ones where the
    stage predicts nothing, and is in evaluation mode.
    Raises NonFiniteLoss.
    """
    done = folder / "stage.json"
    if not done.is_file():
        _Trainer(stage, folder, accelerator, score, seed, checkpoint_every, display).run()
    modules = {"student": stage.student, "extra": stage.extra}
    for name, module in modules.items():
        if module is not None:
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))
            module.eval().requires_grad_(False)
    return read_json(done)


class _Trainer:
    def __init__(
        self,
        stage: Stage,
        folder: Path,
        accelerator: Accelerator,
        score: Score,
        seed: int,
        checkpoint_every: int,
        display: Display,
    ) -> None:
        self.stage, self.folder, self.accelerator, self.score = stage, folder, accelerator, score
        self.seed, self.checkpoint_every, self.display = seed, checkpoint_every, display
        self.module = nn.ModuleDict({"student": stage.student})
        if stage.extra is not None:
            self.module["extra"] = stage.extra
        self.module.to(accelerator.device)
        self.trained, self.optimizer = make_optimizer(self.module, stage)
        self.progress, self.best = checkpoint.restore(folder, self.module, self.optimizer)
        self.log = MetricsLog(folder / "metrics.jsonl", self.progress.step, accelerator.is_main_process)
        self.terms: list[Pass] = []

    def run(self) -> None:
        schedule, per_epoch = self.stage.schedule, len(self.stage.data)
        started = time.perf_counter() - self.progress.seconds
        self.display.start(self.stage.name, schedule.steps, self.progress.step)
        while self.progress.step < schedule.steps and not self._out_of_patience():
            epoch, position = divmod(self.progress.step, per_epoch)
            for batch in self._limited(self.stage.data.epoch(epoch, position)):
                self._step(batch)
                self.progress.step += 1
                self.progress.seconds = time.perf_counter() - started
                if self.progress.step % per_epoch == 0 or self.progress.step == schedule.steps:
                    self._flush(epoch)
                    self._evaluate(epoch)
                elif self.progress.step % FLUSH_EVERY == 0 or self.progress.step % self.checkpoint_every == 0:
                    self._flush(epoch)
                if self.progress.step % self.checkpoint_every == 0:
                    self._checkpoint()
        self.progress.seconds = time.perf_counter() - started
        self._finish()

    def _limited(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self.progress.step >= self.stage.schedule.steps:
                return
            yield batch

    def _step(self, batch: Batch) -> None:
        """One optimiser step on `batch`, in `accumulation` passes."""
        step, schedule = self.progress.step, self.stage.schedule
        torch.manual_seed(derive(self.seed, self.stage.name, step, self.accelerator.process_index))
        self.module.train()
        for share, weight in _shares(batch, self.accelerator, schedule.accumulation):
            with self.accelerator.autocast():
                terms = self.stage.objective(share, step)
            loss = sum(terms.losses.values(), torch.zeros((), device=self.accelerator.device)) * weight
            values = torch.stack([value.detach().float() for value in terms.losses.values()]) * weight
            self.terms.append((list(terms.losses), values, terms.logged))
            if loss.requires_grad:  # Theseus may have drawn no successor: nothing to learn from this batch
                loss.backward()
        self._reduce_gradients()
        if schedule.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, schedule.clip)
        factor = lr_factor(step, schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.lr * group["lr_multiplier"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _reduce_gradients(self) -> None:
        """Sum over processes; a parameter without a gradient has a zero one, so that all processes agree."""
        for parameter in self.trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.accelerator.num_processes > 1:
            gradients = [cast(Tensor, parameter.grad) for parameter in self.trained]
            flat = torch._utils._flatten_dense_tensors(gradients)
            flat = self.accelerator.reduce(flat, reduction="sum")
            for gradient, total in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True):
                gradient.copy_(total)

    def _flush(self, epoch: int) -> None:
        """Read the losses of the last steps from the device, check and log them."""
        passes, self.terms = self.terms, []
        if not passes:
            return
        names = passes[0][0]
        values = torch.stack([values for _, values, _ in passes])
        values = self.accelerator.reduce(values.sum(0), reduction="sum").tolist()
        steps = len(passes) // self.stage.schedule.accumulation
        losses = {name: value / steps for name, value in zip(names, values, strict=True)}
        if not all(math.isfinite(value) for value in losses.values()):
            raise NonFiniteLoss(self._first_bad_step(passes, losses))
        logged = {name: sum(log[name] for *_, log in passes) / len(passes) for name in passes[0][2]}
        self.log.steps(self.progress.step, epoch, steps, losses, logged)
        self.display.advance(self.progress.step, losses)

    def _first_bad_step(self, passes: list[Pass], mean: dict[str, float]) -> str:
        """Where the loss went wrong: in this process's passes, or (`mean`) in another process's."""
        accumulation = self.stage.schedule.accumulation
        step, terms = self.progress.step, mean
        for index, (names, values, _) in enumerate(passes):
            if not values.isfinite().all():
                step = self.progress.step - (len(passes) - 1 - index) // accumulation
                terms = dict(zip(names, values.tolist(), strict=True))
                break
        shown = ", ".join(f"{name} {value:g}" for name, value in terms.items())
        return (
            f"stage {self.stage.name}, step {step}: the loss is not finite ({shown}). "
            "Lower schedule.lr, or try hardware.precision=fp32."
        )

    def _evaluate(self, epoch: int) -> None:
        """Score every `predict` on dev; keep the weights of the first one's best accuracy."""
        self.module.eval()
        assert self.stage.predict is not None  # the dispatcher fills in the student's own logits
        dev = {name: self.score(predict, self.progress.step) for name, predict in self.stage.predict.items()}
        accuracy = next(iter(dev.values()))["accuracy"] if dev else None
        if self.progress.best_score is None or accuracy is None or accuracy > self.progress.best_score:
            self.progress.best_score, self.progress.best_step = accuracy, self.progress.step
            self.progress.stale_epochs = 0
            self.best = state_of(self.module)
        else:
            self.progress.stale_epochs += 1
        self.log.epoch(self.progress.step, epoch, dev)
        self.display.epoch(epoch, dev, self.log.epoch_means(epoch))

    def _out_of_patience(self) -> bool:
        patience = self.stage.schedule.patience
        return patience is not None and self.progress.stale_epochs >= patience

    def _checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            checkpoint.save(self.folder, self.module, self.optimizer, self.best, self.progress)

    def _finish(self) -> None:
        """Save the best weights; `stage.json`, written last, marks the stage as done."""
        assert self.best is not None  # the last step is always evaluated
        if self.accelerator.is_main_process:
            for name in self.module:
                prefix = f"{name}."
                state = {k.removeprefix(prefix): v for k, v in self.best.items() if k.startswith(prefix)}
                staged = self.folder / f".{name}.part"
                save_file(state, staged)
                staged.replace(self.folder / f"{name}.safetensors")
            write_json(self.folder / "stage.json", self._record())
            checkpoint.clear(self.folder)
        self.accelerator.wait_for_everyone()
        self.display.finish()

    def _record(self) -> dict[str, object]:
        return {
            "name": self.stage.name,
            "steps": self.progress.step,
            "seconds": self.progress.seconds,
            "best_dev_accuracy": self.progress.best_score,
            "best_step": self.progress.best_step,
            "epochs": self.log.epochs(),
        }


def _shares(batch: Batch, accelerator: Accelerator, accumulation: int) -> Iterator[tuple[Batch, float]]:
    """This process's passes over one step's batch, each with its share of the batch's examples.

    A pass's mean loss times its share, summed over passes and processes, is the whole batch's mean loss.
    Where a last batch has fewer examples than passes, the spare ones run an example at weight zero: every
    process takes part in every step.
    """
    count = len(batch["ids"])
    passes = accelerator.num_processes * accumulation
    for index in range(accumulation):
        first = accelerator.process_index + index * accelerator.num_processes
        rows, weight = slice(first, None, passes), len(range(first, count, passes)) / count
        if not weight:
            rows = slice(0, 1)
        tensors = cast(dict[str, Tensor], batch)
        share = {name: value[rows].to(accelerator.device, non_blocking=True) for name, value in tensors.items()}
        yield cast(Batch, share), weight
