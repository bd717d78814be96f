"""Execute a run: from one RunConfig to one finished run folder."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from kdbench.console import quiet_libraries
from kdbench.data.batches import TrainBatches
from kdbench.data.report import ReadReport
from kdbench.errors import UserError
from kdbench.models import students
from kdbench.models.network import view
from kdbench.runs import elsewhere, record
from kdbench.runs.context import Run
from kdbench.runs.identity import run_id
from kdbench.runs.look import show_rows, tell
from kdbench.runs.record import About, write_start
from kdbench.runs.related import found_teacher_run, teacher_run, uses_teacher, uses_unlabelled
from kdbench.runs.texts import RunData
from kdbench.runs.trackers import Tracking, tracked
from kdbench.schema import RunConfig, TrackConfig, method_module
from kdbench.shipping.export import export_run, has_export
from kdbench.stage import Predict, Stage, Words
from kdbench.storage.cache import locked_hidden
from kdbench.storage.files import Damaged, explained, remove, remove_leftovers
from kdbench.storage.results import DEMO, EXPORT, MEASURED, RESULTS, Runs, verify_run, write_result
from kdbench.storage.seeds import derive
from kdbench.storage.status import StatusFile
from kdbench.training.dropout import cheap
from kdbench.training.hardware import Hardware, accelerator, settle
from kdbench.training.interrupts import Limits, Pruned, Stopped, Watch
from kdbench.training.loop import train
from kdbench.training.needs import Room
from kdbench.training.processes import wait
from kdbench.training.progress import Display, console, logged_to, show_log
from kdbench.validation.load import cache_folder

log = logging.getLogger("kdbench")


def execute(
    config: RunConfig,
    *,
    choices: dict[str, Any],
    command: str,
    baseline_command: Callable[[RunConfig], str],
    watch: Watch | None = None,
    runs: Runs | None = None,
) -> dict[str, Any]:
    """Do the run, or find it finished; return its results.json (with `inspect`, only the key `data`).

    `watch` is called after each epoch of this run, not of runs that it needs, with the epoch and the dev score.
    `runs` collects the folders of all runs that are then finished, this one and those that it needs. Their latency is
    measured when the command ends.

    Raises UserError (including StoreError) and Stopped; and Pruned if `watch` raises it.
    """
    with explained(Path(config.outputs)):
        return _execute(config, About(choices, command, baseline_command, watch, {} if runs is None else runs))


def _execute(config: RunConfig, about: About) -> dict[str, Any]:
    hardware = settle(config.hardware)
    processes = accelerator(hardware)
    if processes.is_main_process:
        show_log()
    shown = _look(RunData(config, hardware, processes))  # which is not kept: its answers may be large
    if config.inspect:
        return {"data": shown}
    if config.dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            result, _ = ensure(_small(config, scratch), hardware, processes, about)
            log.info("dry run: every stage took one step, and nothing was kept. The scores above mean nothing")
            return result
    result, folder = ensure(config, hardware, processes, about)
    wanted = config.export
    if wanted.forms and processes.is_main_process and not has_export(folder, wanted):
        log.info("exported: %s", export_run(folder, wanted))
    return result


def _look(found: RunData) -> ReadReport | None:
    """Read what the run learns from, so that its faults are found before anything is written.

    Tell how it was read, and return it, for `inspect` and `dry_run`.
    """
    config = found.config
    if uses_unlabelled(config):
        _ = found.unlabelled
    elif config.dataset.unlabelled is not None and config.phase == "task" and config.corpus is None:
        log.info("dataset.unlabelled: method=%s learns from labels alone, and does not read it", config.method.name)
    if config.phase == "task":
        found.require_classes()
    if config.teacher.is_file and uses_teacher(config):
        found.require_answers()
    if not config.inspect and not (config.dry_run and config.phase == "task"):
        return None
    if found.accelerator.is_main_process:
        tell(found.read)  # all of it: a dry run trains on little
        if config.inspect:
            show_rows(found.data)
    return found.read


def _small(config: RunConfig, outputs: str) -> RunConfig:
    """Limit each split to one batch: all data are read and checked, but the models see little."""
    stages = config.method.stages
    rows = max(stage.batch_size for stage in (config.schedule, config.teacher.schedule, *stages.values()))
    splits = ("train", "dev", "test") if stages else ("dev", "test")  # TF-IDF needs its classes, and is quick
    given = {key: getattr(config.dataset, key) for key in (f"max_{split}_samples" for split in (*splits, "unlabelled"))}
    limits = {key: min(limit or rows, rows) for key, limit in given.items()}
    return replace(config, dataset=replace(config.dataset, **limits), outputs=outputs, track=TrackConfig())


def ensure(
    config: RunConfig, hardware: Hardware, accelerator: Accelerator, about: About, needed: bool = False
) -> tuple[dict[str, Any], Path]:
    """Return the finished run of `config` and its folder; make it if it is missing, one process at a time.

    A run that another run `needed`, such as its teacher, is also looked for in other outputs folders.
    """
    folder = run_folder(config, hardware)
    with torch.random.fork_rng(devices=[]), _locked(folder, accelerator):
        result = None if config.rerun else _found(config, hardware, folder, accelerator, needed)
        if result is None:
            wait(accelerator)
            if accelerator.is_main_process:
                _make_ready(folder, config.rerun)
                if not config.dry_run:
                    elsewhere.begin(cache_folder(config), folder)
            wait(accelerator)
            status = StatusFile(folder, accelerator.is_main_process)
            with logged_to(folder / "run.log", accelerator.is_main_process):

                def finished(other: RunConfig) -> tuple[dict[str, Any], Path]:
                    with status.waiting(run_folder(other, hardware)):
                        return ensure(other, hardware, accelerator, about.of_needed(other), needed=True)

                result = _do(Run(config, hardware, accelerator, folder, finished), about, status)
        if accelerator.is_main_process and not config.dry_run:
            elsewhere.remember(cache_folder(config), folder)
    if not config.dry_run and config.phase == "task":
        about.runs[folder.absolute()] = _teacher_folder(config, hardware)
    return result | {"folder": str(folder)}, folder


def _teacher_folder(config: RunConfig, hardware: Hardware) -> Path | None:
    """Return the folder of the teacher that the run is compared with, which may not exist yet.

    A direct fine-tune needs no teacher, but is compared with one. None if the method, or the teacher, has no network,
    or if a student with vectors from a file learns labels alone: it has nothing of any encoder.
    """
    if "encoder" not in config.method.needs or not config.teacher.is_network:
        return None
    if config.student.table is not None and not uses_teacher(config):
        return None
    if config.teacher.path is not None:
        return Path(config.teacher.path).absolute()
    found, trained = (run_folder(one(config), hardware).absolute() for one in (found_teacher_run, teacher_run))
    return found if not config.teacher.finetune and (found / RESULTS).is_file() else trained


def _found(
    config: RunConfig, hardware: Hardware, folder: Path, accelerator: Accelerator, needed: bool
) -> dict[str, Any] | None:
    """Return the result of a finished run; one that is `needed` is also looked for in other outputs folders."""
    result = _finished(folder)
    if result is None and needed:
        wait(accelerator)
        if accelerator.is_main_process:
            source = elsewhere.bring(cache_folder(config), run_id(config, hardware), config.seed, folder)
            if source is not None:
                log.info("copied: %s", source)
        wait(accelerator)
        result = _finished(folder)
    if result is not None:
        log.info("found: %s", folder)
    return result


def _finished(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished and intact run; else None."""
    try:
        return verify_run(folder)
    except Damaged as damage:
        log.warning("%s; it is made again, with everything that depends on it", damage)
        return None


def _make_ready(folder: Path, rerun: bool) -> None:
    """Remove everything of an earlier attempt from which this one cannot resume."""
    if rerun:
        remove(folder)
    (folder / RESULTS).unlink(missing_ok=True)  # of a damaged run: from here on it is not done
    for name in (EXPORT, MEASURED, DEMO):  # of the damaged model
        remove(folder / name)
    remove_leftovers(folder)


def run_folder(config: RunConfig, hardware: Hardware) -> Path:
    """Return outputs/<dataset>/<method>/<student>-<id>/seed<k>; for general stages outputs/<corpus>/..."""
    student = config.student.name if "encoder" in config.method.needs else "no_network"
    name = f"{student}-{run_id(config, hardware)}"
    place = config.corpus.name if config.phase == "general" and config.corpus else config.dataset.name
    return Path(config.outputs, place, config.method.name, name, f"seed{config.seed}")


@contextmanager
def _locked(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Lock the folder, so that only one run works in it; the main process of several holds the lock."""
    with locked_hidden(folder) if accelerator.is_main_process else nullcontext():
        wait(accelerator)
        yield
        wait(accelerator)


def _do(run: Run, about: About, status: StatusFile) -> dict[str, Any]:
    log.info("run: %s", run.folder)
    if plan := _plan(run.config):
        log.info("  %s; the remaining time is shown after ten steps", plan)
    if "encoder" in run.config.method.needs:  # else transformers may not even be needed
        quiet_libraries()
    if run.accelerator.is_main_process:
        write_start(run, about)
    with _told(status), tracked(run) as tracking:
        if run.accelerator.is_main_process and run.config.phase == "task" and not run.config.dry_run:
            tell(run.read)
        stages, student = train_stages(run, tracking, about.watch, status)
        result = record.finish(run, about, stages, student)
        if run.accelerator.is_main_process:
            result = write_result(run.folder, result)
        record.announce(run, result)
        tracking.finished(result)
    return result


@contextmanager
def _told(status: StatusFile) -> Iterator[None]:
    """Write to `status.json` that the run has begun, and why it stopped or failed; remove the file at its end."""
    status.tell(now=True)
    try:
        yield
    except (Stopped, Pruned) as stopped:
        status.end("stopped", str(stopped))
        raise
    except KeyboardInterrupt:
        status.end("stopped", "interrupted: the same command resumes")
        raise
    except BaseException as error:
        status.end("failed", error.line if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        raise
    status.remove()


def _plan(config: RunConfig) -> str:
    """Return the names and lengths of the run's stages, in words."""
    before, general = config.method.general_stages, config.phase == "general"
    stages = ((name, one) for name, one in config.method.stages.items() if name in config.method.used_stages)
    return ", then ".join(f"{name} for {one.length}" for name, one in stages if (name in before) == general)


def train_stages(
    run: Run, tracking: Tracking, watch: Watch | None, status: StatusFile
) -> tuple[list[dict[str, Any]], Any]:
    """Train each stage as the method yields it; return their records and the last stage's student."""
    config = run.config
    method = method_module(config.method.name, config.method.module)
    of_phase = method.general if config.phase == "general" else method.stages
    stages: Iterator[Stage] = iter(of_phase(run, config.method))
    records: list[dict[str, Any]] = []
    student = None
    while True:
        torch.manual_seed(derive(config.seed, "stage", len(records)))
        stage = next(stages, None)
        if stage is None:
            trained_nothing = not records and run.predictions is None
            return records, run.student if trained_nothing else student
        stage, student = prepared(run, stage), stage.student
        name, key = f"{len(records):02d}_{stage.name}", stage.key or stage.name
        given = run.stage(key)
        view(student).set_dropout(given.dropout)
        watch_stage = _after(watch, sum(len(one["epochs"]) for one in records))
        if run.hardware.compile:
            students.compile_layers(student)
        with cheap(run.hardware, given.dropout):
            record_ = train(
                stage,
                run.folder / name,
                run.accelerator,
                run.score,
                metric=run.metric,
                seed=config.seed,
                limits=Limits(config.checkpoint_every, config.stop_after, config.preempt_at, watch_stage),
                display=Display(console, given.batch_size * given.accumulation, status),
                tell=partial(tracking.line, stage.name, sum(one["steps"] for one in records)),
                room=None if config.dry_run else _room(run, key),
            )
        records.append(record_ | {"folder": name, "key": key})


def _room(run: Run, key: str) -> Room:
    """Return the size of one pass of a stage over the student's texts."""
    config, student, corpus = run.config, run.config.student, run.config.corpus
    return Room(
        config.outputs,
        texts=-(-run.stage(key).batch_size // run.accelerator.num_processes),
        length=corpus.max_length if config.phase == "general" and corpus else config.dataset.max_length,
        heads=student.layers * (student.heads or 0),
        autocast=run.hardware.precision == "bf16",
    )


def prepared(run: Run, stage: Stage) -> Stage:
    """Add what a method leaves out: how the student is scored, and which of its word embeddings are trained."""
    if run.config.dry_run:
        stage = replace(stage, schedule=replace(stage.schedule, steps=1))
    if stage.predict is None:
        stage = replace(stage, predict={} if run.config.phase == "general" else {"student": _logits_of(stage.student)})
    if isinstance(stage.data, TrainBatches):  # a corpus' masked-LM head reads the whole table
        table = view(stage.student).word_table
        stage = replace(stage, words=None if table is None else Words(table, stage.data.used_ids()))
    return stage


def _after(watch: Watch | None, epochs: int) -> Watch | None:
    """Return `watch` for a stage that begins after `epochs` epochs of the run."""
    return None if watch is None else lambda epoch, score: watch(epochs + epoch, score)


def _logits_of(student: Any) -> Predict:
    return lambda batch, step: students.logits(student, batch)
