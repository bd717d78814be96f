"""Derive related runs from a run: its teacher, its baselines, its stages before the task."""

import dataclasses
from typing import Any

from kdbench.declared import architecture_traits
from kdbench.schema import (
    DatasetConfig,
    ExportConfig,
    InitConfig,
    RunConfig,
    ScheduleConfig,
    StudentConfig,
    as_architecture,
    method_schema,
    starts_from,
)


def uses_teacher(config: RunConfig) -> bool:
    """Return whether the run needs the teacher fine-tuned on the task."""
    init = config.method.init
    return config.method.reads_teacher or (init is not None and init.weights == "finetuned")


def uses_unlabelled(config: RunConfig) -> bool:
    """Return whether the task's stages learn from texts without labels."""
    return config.phase == "task" and config.dataset.unlabelled is not None and config.method.reads_unlabelled


def uses_general(config: RunConfig) -> bool:
    """Return whether the student comes from stages before the task."""
    return config.phase == "task" and bool(config.method.general)


def labelled_alone(config: RunConfig) -> DatasetConfig:
    """Return the data set without the texts that have no labels."""
    return dataclasses.replace(config.dataset, unlabelled=None, max_unlabelled_samples=None)


def _another(config: RunConfig, **changes: Any) -> RunConfig:
    """Return a run beside that of `config`: what its command asks of this one run alone does not hold for it."""
    return dataclasses.replace(config, rerun=False, export=ExportConfig(), tag=None, **changes)


def _of_the_task(config: RunConfig, **changes: Any) -> RunConfig:
    """Return another run on the data set, without stages before the task."""
    return _another(config, corpus=None, phase="task", **changes)


def finetune(config: RunConfig, student: StudentConfig, schedule: ScheduleConfig, seed: int) -> RunConfig:
    """Return the direct fine-tune of `student` on the data set of `config`.

    It starts from the first pretrained layers if the shapes fit, else from random weights.
    """
    origin = student.encoder or config.teacher
    if architecture_traits(student.architecture).wraps:
        kind = origin.source_architecture
        student = as_architecture(student, kind, name=f"{kind}_{student.layers}l")
    fits = starts_from(student.architecture, origin.source_architecture) and all(
        getattr(student, key) == getattr(origin, key) for key in ("hidden", "heads", "ffn")
    )
    init = InitConfig("pretrained" if fits and student.layers <= origin.layers else "random", "first")
    method = method_schema("finetune")(name="finetune", init=init, stages={"training": schedule})
    given = {"method": method, "student": student, "schedule": schedule, "seed": seed}
    return _of_the_task(config, dataset=labelled_alone(config), **given)


def general_run(config: RunConfig) -> RunConfig:
    """Return the run of the stages before the task, which all data sets and seeds share."""
    assert config.corpus is not None  # crosscheck
    return _another(config, phase="general", seed=config.corpus.seed)


def mlm_run(config: RunConfig, student: StudentConfig, weights: str) -> RunConfig:
    """Return the run that trains `student` with a masked-LM head on the corpus: DistilBERT's teacher, IB-BERT."""
    assert config.corpus is not None
    stages = {"adaptation": config.corpus.schedule, "training": config.schedule}
    init = InitConfig(weights, "first")
    method = method_schema("mlm")(name="mlm", init=init, general=True, stages=stages)
    return general_run(dataclasses.replace(config, method=method, student=student))


def full_depth(config: RunConfig) -> StudentConfig:
    """Return the shape of the teacher."""
    teacher = config.teacher
    return StudentConfig(
        name=f"{teacher.architecture}_{teacher.layers}l",
        architecture=teacher.architecture,
        layers=teacher.layers,
        hidden=teacher.hidden,
        heads=teacher.heads,
        ffn=teacher.ffn,
    )


def teacher_run(config: RunConfig) -> RunConfig:
    """Return the run that fine-tunes the teacher: all layers, by the teacher's own schedule and seed."""
    teacher = config.teacher
    return finetune(config, full_depth(config), teacher.schedule, teacher.seed)


def member_runs(config: RunConfig) -> list[RunConfig]:
    """Return the runs that fine-tune the teacher once with each of `teacher.seeds`."""
    each = (dataclasses.replace(config.teacher, seed=seed, seeds=None) for seed in config.teacher.seeds or ())
    return [teacher_run(dataclasses.replace(config, teacher=teacher)) for teacher in each]


def answers_run(config: RunConfig) -> RunConfig:
    """Return the run that judges a teacher which is no network; it trains nothing itself."""
    return _of_the_task(config, method=method_schema("answers")(name="answers"), seed=0)


def found_teacher_run(config: RunConfig) -> RunConfig:
    """Return the run that only evaluates the teacher, whose source already has a head for the data set's classes."""
    config = teacher_run(config)
    return dataclasses.replace(
        config, method=dataclasses.replace(config.method, init=InitConfig("classifier", "first"))
    )


def baseline(config: RunConfig) -> RunConfig:
    """Return the direct fine-tune of the same student with the same schedule."""
    return finetune(config, config.student, config.schedule, config.seed)


def row_to_beat(config: RunConfig) -> RunConfig | None:
    """Return TF-IDF on the same data; None if it does not support the task.

    Its own keys are MISSING, so they have the values of its YAML.
    """
    made: Any = method_schema("tfidf")
    if config.dataset.task not in made.tasks:
        return None
    return _of_the_task(config, method=made(name="tfidf"), dataset=labelled_alone(config), seed=0)


def total_baseline(config: RunConfig, updates: int, per_epoch: int) -> RunConfig:
    """Return the direct fine-tune of the same student with the same total number of updates on the task.

    If the updates are whole epochs of `per_epoch` updates, epochs are set, as a user would write it; else steps.
    """
    if updates == 0:  # nothing was trained (cascade)
        return baseline(config)
    epochs, rest = divmod(updates, per_epoch)
    if rest or config.schedule.steps is not None:
        schedule = dataclasses.replace(config.schedule, steps=updates)
    else:
        schedule = dataclasses.replace(config.schedule, epochs=epochs)
    return finetune(config, config.student, schedule, config.seed)
