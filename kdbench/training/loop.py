"""Train a stage: the one loop for every stage of every method, including teachers and baselines.

All randomness is a function of (seed, stage, step). So the order of the examples, dropout and a method's own draws
are the same in an uninterrupted stage, in a resumed one, and in one whose teacher was found or trained.

With several processes, each takes its share of every batch. The loop itself sums the gradients over the processes,
before clipping. (DistributedDataParallel is not used: objectives are closures over raw modules. Theseus may use any
subset of the parameters or none, and an unused parameter must have a zero gradient, as with one process.)
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from kdbench.stage import Batch, Predict, Stage
from kdbench.storage import files as store
from kdbench.storage.results import STAGE
from kdbench.storage.seeds import derive
from kdbench.training import checkpoint, interrupts
from kdbench.training.checkpoint import Best, Pass, state_of
from kdbench.training.finite import bad_loss, require_finite_weights
from kdbench.training.hardware import give_back, give_back_above
from kdbench.training.interrupts import Limits
from kdbench.training.metrics_log import MetricsLog, Tell, read_lines
from kdbench.training.needs import Room, needs, require
from kdbench.training.processes import largest, shares, summed, wait
from kdbench.training.progress import Display
from kdbench.training.updates import Updates

log = logging.getLogger("kdbench")
METRICS = "metrics.jsonl"
# Steps between two reads of the losses from the device. Not by time: metrics.jsonl is equal for a resumed run, and all
# processes of a run read together. The bar moves by time (`Display.taken`).
FLUSH_EVERY = 10
Score = Callable[[Predict, int], dict[str, float]]  # dev metrics


def train(
    stage: Stage,
    folder: Path,
    accelerator: Accelerator,
    score: Score,
    *,
    metric: str,
    seed: int,
    limits: Limits,
    display: Display,
    tell: Tell = lambda line: None,
    room: Room | None = None,
) -> dict[str, Any]:
    """Train `stage` in `folder`, or load it if it is finished there; return the stage's record.

    Afterwards the student (and `extra`) is in evaluation mode. It holds the weights with the best dev `metric`, or
    the last ones if the stage predicts nothing. A finished stage that is damaged is trained again. `tell` receives
    every line of metrics.jsonl, including those of an earlier attempt. With `room`, the log says what the stage needs.

    Raises SettingError if the disk is too small for it; NonFiniteLoss, Stopped, ProcessLost, StoreError, Misfit; and
    Pruned if `limits.watch` raises it.
    """
    record = _finished(folder)
    if record is None:
        _Trainer(stage, folder, accelerator, score, metric, seed, limits, display, tell, room).run()
        give_back()  # before the weights are read back, and before what a method does after its stage
        record = store.read_record(folder / STAGE)
    elif accelerator.is_main_process:
        checkpoint.clear(folder)  # where a crash came between the record and this
        for line in read_lines(folder / METRICS):
            tell(line)
    modules = {"student": stage.student, "extra": stage.extra}
    for name, module in modules.items():
        if module is not None:
            with store.fitting(folder):
                module.load_state_dict(load_file(folder / f"{name}.safetensors"))
            module.eval().requires_grad_(False)
    return record


def _finished(folder: Path) -> dict[str, Any] | None:
    """Return the record of the stage in `folder`; None if it must be trained."""
    if not (folder / STAGE).is_file():
        return None
    try:
        return store.verify(folder / STAGE)
    except store.Damaged as damage:
        log.warning("%s; the stage is trained again", damage)
        return None


class _Trainer:
    def __init__(
        self,
        stage: Stage,
        folder: Path,
        accelerator: Accelerator,
        score: Score,
        metric: str,
        seed: int,
        limits: Limits,
        display: Display,
        tell: Tell,
        room: Room | None = None,
    ) -> None:
        self.stage, self.folder, self.accelerator, self.score = stage, folder, accelerator, score
        self.metric, self.seed, self.limits, self.display = metric, seed, limits, display
        self.room = room
        self.memory: int | None = None  # bytes that the stage was estimated to need, on a CPU
        self.module = nn.ModuleDict({"student": stage.student})
        if stage.extra is not None:
            self.module["extra"] = stage.extra
        self.module.to(accelerator.device)
        self.updates = Updates(self.module, stage, accelerator)
        self.state = checkpoint.restore(folder, self.module, self.updates.optimizer)
        self.updates.begin()
        self.progress = self.state.progress
        self.log = MetricsLog(folder / METRICS, self.state.lines, accelerator.is_main_process, tell)

    def run(self) -> None:
        if self.room is not None and self.accelerator.is_main_process:
            left = self.stage.schedule.steps // self.limits.checkpoint_every + 1  # one more if it is interrupted
            scores = -(-self.stage.schedule.steps // len(self.stage.data))  # after each epoch and the last step
            need = needs(self.module, self.updates.trained, self.room, left, scores, self.stage.through)
            memory = require(self.stage.name, need, self.room, self.folder, self.accelerator)
            self.memory = memory if self.accelerator.device.type == "cpu" else None
        schedule, per_epoch = self.stage.schedule, len(self.stage.data)
        started = time.perf_counter() - self.progress.seconds
        self.display.start(self.stage.name, schedule.steps, self.progress.step, self.progress.step // per_epoch)
        try:
            with interrupts.training():
                while self.progress.step < schedule.steps and not self._out_of_patience():
                    epoch, position = divmod(self.progress.step, per_epoch)
                    for batch in self._limited(self.stage.data.epoch(epoch, position)):
                        self._step(batch)
                        self.progress.step += 1
                        self.progress.seconds = time.perf_counter() - started
                        self._after_step(epoch)
            self.progress.seconds = time.perf_counter() - started
            self._finish()
        finally:
            self.display.finish()

    def _after_step(self, epoch: int) -> None:
        step, every = self.progress.step, self.limits.checkpoint_every
        self.display.taken(step)
        if step % len(self.stage.data) == 0 or step == self.stage.schedule.steps:
            self._flush(epoch)
            self._evaluate(epoch)
        elif step % FLUSH_EVERY == 0 or step % every == 0:
            self._flush(epoch)
            if self.memory is not None:
                give_back_above(self.memory)
        code = largest(interrupts.after_step(self.limits.stop_after, self.limits.preempt_at), self.accelerator)
        if code and (self.accelerator.num_processes > 1 or not self._all_finite()):
            self._flush(epoch)  # of several processes one saves; after a loss that is not finite none does
        if code or step % every == 0:
            self._checkpoint()
        if code:
            wait(self.accelerator)
            where = f"stage {self.stage.name}, step {step} of {self.stage.schedule.steps}"
            raise interrupts.Stopped(f"stopped and saved in {where}: the same command resumes there", code)

    def _all_finite(self) -> bool:
        return all(bool(one.values.isfinite().all()) for one in self.state.passes)

    def _limited(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self.progress.step >= self.stage.schedule.steps:
                return
            yield batch

    def _step(self, batch: Batch) -> None:
        """Take one optimiser step on `batch`, in `accumulation` passes."""
        step = self.progress.step
        torch.manual_seed(derive(self.seed, self.stage.name, step, self.accelerator.process_index))
        self.module.train()
        for share, weights in shares(batch, self.accelerator, self.stage.schedule.accumulation):
            with self.accelerator.autocast():
                terms = self.stage.objective(share, step)
            weighed = [value * weights[terms.over.get(name, "examples")] for name, value in terms.losses.items()]
            loss = sum(weighed, torch.zeros((), device=self.accelerator.device))
            values = torch.stack([value.detach().float() for value in weighed])
            self.state.passes.append(Pass(list(terms.losses), values, terms.logged))
            if loss.requires_grad:  # Theseus may have drawn no successor: nothing to learn from this batch
                loss.backward()
        self.updates.apply(step)

    def _flush(self, epoch: int) -> None:
        """Read the losses of the last steps from the device, check and log them."""
        passes, self.state.passes = self.state.passes, []
        if not passes:
            return
        names = passes[0].names
        totals = summed(torch.stack([values for _, values, _ in passes]).sum(0), self.accelerator).tolist()
        steps = len(passes) // self.stage.schedule.accumulation
        losses = {name: total / steps for name, total in zip(names, totals, strict=True)}
        if not all(math.isfinite(value) for value in losses.values()):
            raise bad_loss(self.stage, self.folder, self.progress.step, passes, losses)
        logged = {name: sum(one.logged[name] for one in passes) / len(passes) for name in passes[0].logged}
        self.log.steps(self.progress.step, epoch, steps, losses, logged)
        self.display.advance(self.progress.step, losses)

    def _evaluate(self, epoch: int) -> None:
        """Score every predictor on dev; keep the weights if the first one's score is the best so far."""
        require_finite_weights(self.stage, self.folder, self.progress.step, self.module)
        self.updates.settle(self.progress.step)
        give_back()  # of the steps: the scores and a copy of the weights come on top of what training holds
        self.module.eval()
        assert self.stage.predict is not None  # the dispatcher fills in the student's own logits
        dev = {name: self.score(predict, self.progress.step) for name, predict in self.stage.predict.items()}
        score = next(iter(dev.values()))[self.metric] if dev else None
        if self.progress.best_score is None or score is None or score > self.progress.best_score:
            self.progress.best_score, self.progress.best_step = score, self.progress.step
            self.progress.stale_epochs = 0
            self.state.best = None  # not two of them at once
            self.state.best = Best(state_of(self.module))
        else:
            self.progress.stale_epochs += 1
        self.log.epoch(self.progress.step, epoch, dev)
        self.display.epoch(epoch, dev, self.metric, self.log.epoch_means(epoch))
        if self.limits.watch is not None and score is not None:
            self.limits.watch(sum("dev" in line for line in self.log.lines) - 1, score)

    def _out_of_patience(self) -> bool:
        patience = self.stage.schedule.patience
        return patience is not None and self.progress.stale_epochs >= patience

    def _checkpoint(self) -> None:
        require_finite_weights(self.stage, self.folder, self.progress.step, self.module)
        self.updates.settle(self.progress.step)
        if self.accelerator.is_main_process:
            give_back()  # as before the scores: it copies the weights and the moments
            checkpoint.save(self.folder, self.module, self.updates.optimizer, self.state)

    def _finish(self) -> None:
        """Save the best weights, then the stage's record, which marks the stage as done."""
        self.updates.end()
        best = self.state.best
        assert best is not None  # the last step is always evaluated
        if self.accelerator.is_main_process:
            files = [self.log.path]
            for name in self.module:
                state = {k.removeprefix(f"{name}."): v for k, v in best.weights.items() if k.startswith(f"{name}.")}
                files.append(self.folder / f"{name}.safetensors")
                with store.explained(files[-1]):
                    save_file(state, files[-1])
            store.write_record(self.folder / STAGE, self._record(), files)
            checkpoint.clear(self.folder)
        wait(self.accelerator)

    def _record(self) -> dict[str, object]:
        return {
            "name": self.stage.name,
            "steps": self.progress.step,
            "seconds": self.progress.seconds,
            f"best_dev_{self.metric}": self.progress.best_score,
            "best_step": self.progress.best_step,
            "epochs": self.log.epochs(),
        }
