"""Faults that depend on several keys: whether teacher, student, method and data fit each other."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from kdbench import tasks
from kdbench.declared import architecture_traits, architectures
from kdbench.errors import Code, Fault, SettingError, SourceError, shown
from kdbench.options import NO_WEIGHTS
from kdbench.schema import TASKS, DatasetConfig, RunConfig, TeacherConfig
from kdbench.validation.architectures import can_be_cut, kind_faults
from kdbench.validation.teachers import teacher_faults

# The legal words in a method's `needs`.
NEEDS = {
    *("encoder", "teacher", "encoder_teacher", "teacher_model", "same_kind", "layers_divide", "same_width", "corpus"),
    *("distinct_layers", "attention", "heads"),
}
WIDTHS = ("hidden", "heads", "ffn")
KEEPS_NONE = {  # methods whose runs have no model of their own, and what to do instead
    "cascade": "method=cascade saves no model: name the run of its small model or of its teacher",
    "answers": "method=answers saves no model: it only judges answers. Name the run of a student",
}


ALTERNATE: dict[str, Callable[[int], int]] = {  # value of method.init.layers -> how many layers it leaves at least
    "odd_alternate": lambda of: of // 2,
    "even_alternate": lambda of: of - of // 2,
}


def cross_faults(config: RunConfig) -> list[Fault]:
    """Return the faults of a typed run that depend on more than one key."""
    assert config.method.needs <= NEEDS, f"{config.method.name}: unknown need in {set(config.method.needs)}"
    found = [*task_faults(config), *teacher_faults(config), *weight_faults(config)]
    found += [*source_faults(config), *export_faults(config), *track_faults(config)]
    if "encoder" in config.method.needs and config.method.init is None:
        problem = f"must set weights and layers for method={config.method.name}"
        found.append(Fault.at(config, Code.MISSING_VALUE, "method.init", problem))
    elif "encoder" in config.method.needs and not config.method.stages:
        problem = "must name the schedule of each stage, such as {training:{}}"
        found.append(Fault.at(config, Code.MISSING_VALUE, "method.stages", problem))
    elif "encoder" not in config.method.needs:
        found += method_faults(config)
    elif not (found and config.teacher.is_file):  # a file has no shape to check
        found += [*kind_faults(config), *corpus_faults(config)]
        found += [] if found else [*shape_faults(config), *width_faults(config), *layer_faults(config)]
        found += [] if found else method_faults(config)
    return found


def method_faults(config: RunConfig) -> Iterator[Fault]:
    """Yield what the method itself finds."""
    for key, problem in config.method.conflicts(config):
        yield Fault.at(config, Code.CONFLICTING_VALUES, key, problem)


def task_faults(config: RunConfig) -> Iterator[Fault]:
    """Tasks that the method or its student cannot do, metrics and keys that a task does not have."""
    dataset, method, student = config.dataset, config.method, config.student
    task = dataset.task
    if task not in method.tasks:
        supported = f"(supported: {', '.join(sorted(method.tasks))})"
        problem = f"is not supported by method={method.name} {supported}: {method.not_others}"
        yield Fault.at(config, Code.UNSUPPORTED_TASK, "dataset.task", problem)
    traits = tasks.traits(task)
    legal = [*traits.metrics]
    if dataset.metric is not None and dataset.metric not in legal:
        problem = f"is not a metric of {task}"
        yield Fault.at(config, Code.UNSUPPORTED_TASK, "dataset.metric", problem, legal=f"Legal: {_or(legal)}")
    if isinstance(dataset.label, list) and not traits.several:
        able = _or([name for name in TASKS if tasks.traits(name).several])
        problem = f"a column for each label is for dataset.task={able}; name one column"
        yield Fault.at(config, Code.INAPPLICABLE_KEY, "dataset.label", problem)
    for code, key, problem in traits.conflicts(config):
        yield Fault.at(config, code, key, problem)
    kinds = {"student": student.architecture}
    if "teacher" in method.needs:
        kinds["teacher"] = config.teacher.architecture
    for group, architecture in kinds.items() if traits.words and task in method.tasks else ():
        if not architecture_traits(architecture).words:
            able = " and ".join(name for name, one in architectures().items() if one.words)
            problem = f"has no head for words; {able} have"
            yield Fault.at(config, Code.UNSUPPORTED_ARCHITECTURE, f"{group}.architecture", problem)


def weight_faults(config: RunConfig) -> Iterator[Fault]:
    """Yield weights of classes where there are no classes, or no loss of the labels."""
    schedules = {"schedule": config.schedule, "teacher.schedule": config.teacher.schedule}
    schedules |= {f"method.stages.{name}": stage for name, stage in config.method.stages.items()}
    for key, schedule in schedules.items():
        given = schedule.class_weights
        if given == NO_WEIGHTS or (key.startswith("method.") and given == config.schedule.class_weights):
            continue
        problem = ""
        if not tasks.traits(config.dataset.task).classes:
            problem = f"must be {NO_WEIGHTS}: dataset.task={config.dataset.task} has no classes"
        elif key != "teacher.schedule" and not config.method.reads_labels:
            problem = f"must be {NO_WEIGHTS}: method={config.method.name} with these keys does not learn from labels"
        if problem:
            yield Fault(Code.INAPPLICABLE_KEY, f"{key}.class_weights", shown(given), problem)
    if config.corpus is not None and config.corpus.schedule.class_weights != NO_WEIGHTS:
        problem = f"must be {NO_WEIGHTS}: texts of a corpus have no labels"
        yield Fault.at(config, Code.INAPPLICABLE_KEY, "corpus.schedule.class_weights", problem)


def _or(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]][len(names) == 1 :])


def export_faults(config: RunConfig) -> Iterator[Fault]:
    if not config.export.forms:
        return
    name = next(name for name, wanted in asdict(config.export).items() if wanted)
    problem, close = "", ""
    own = architecture_traits("tfidf" if config.method.name == "tfidf" else config.student.architecture)
    branches = "is not supported for FastBERT, whose graph branches" if own.early_exit else ""
    if config.method.name in KEEPS_NONE:
        problem = KEEPS_NONE[config.method.name]
    elif own.no_int8 and "int8" in config.export.forms:
        name, problem, close = "qat" if config.export.qat else "int8", own.no_int8, "export.onnx=true"
    else:
        problem = own.no_onnx
    if not problem and config.phase == "general":
        problem = "needs a classifier, which phase=general does not train"
    if problem:
        yield Fault.at(config, Code.UNSUPPORTED_EXPORT, f"export.{name}", problem, close)
        return
    no = {"fp16": branches or own.no_int8, "openvino": own.no_openvino, "qat": branches}
    for name, problem in no.items():
        if getattr(config.export, name) and problem:
            yield Fault.at(config, Code.UNSUPPORTED_EXPORT, f"export.{name}", problem, "export.onnx=true")
    if config.export.openvino and find_spec("openvino") is None:
        problem = "is not installed: pip install 'kdbench[openvino]'"
        yield Fault.at(config, Code.NOT_INSTALLED, "export.openvino", problem)


def track_faults(config: RunConfig) -> Iterator[Fault]:
    """Yield the trackers that are not installed. None is imported; a folder of the same name does not count."""
    for name, asked in asdict(config.track).items():
        spec = find_spec(name) if asked else None
        if asked and (spec is None or spec.origin is None):
            problem = f"is not installed: pip install 'kdbench[{name}]'"
            yield Fault.at(config, Code.NOT_INSTALLED, f"track.{name}", problem)


def corpus_faults(config: RunConfig) -> Iterator[Fault]:
    method = config.method
    needs_corpus = "corpus" in method.needs and (method.general or config.phase == "general")
    if needs_corpus and config.corpus is None:
        problem = f"must be chosen for the general stage of method={method.name}, or set method.general=false"
        yield Fault.at(config, Code.MISSING_VALUE, "corpus", problem, "corpus=bundled")
    if config.phase == "general" and "corpus" not in method.needs:
        problem = f"is not supported by method={method.name}, which has no general stage"
        yield Fault.at(config, Code.INAPPLICABLE_KEY, "phase", problem)
    if config.phase == "general" and config.inspect:
        problem = "shows a data set: leave out phase=general, which reads a corpus"
        yield Fault.at(config, Code.INAPPLICABLE_KEY, "inspect", problem)


def shape_faults(config: RunConfig) -> Iterator[Fault]:
    """Yield shapes that no Transformer can have, and texts longer than the teacher can read."""
    teacher, student = config.teacher, config.student
    own_shape = (student.hidden, student.heads) != (teacher.hidden, teacher.heads)
    for group, shape in (("teacher", teacher), ("student", student))[: 1 + own_shape]:
        inside = getattr(shape, "bottleneck", None) or shape.hidden
        if shape.heads and inside % shape.heads:
            problem = f"must divide {group}.{'hidden' if inside == shape.hidden else 'bottleneck'}={inside}"
            yield Fault.at(config, Code.MISMATCHED_SHAPE, f"{group}.heads", problem, legal=divisors(inside))
    for group, encoder in (("teacher", teacher), ("student.encoder", student.encoder)):
        if encoder is None or encoder.is_file:
            continue
        longest = encoder.max_positions - architecture_traits(encoder.source_architecture).first_position
        if config.dataset.max_length > longest:
            problem = f"must be {longest} or less ({group}.max_positions)"
            yield Fault.at(config, Code.MISMATCHED_SHAPE, "dataset.max_length", problem)
    width = teacher.embedding or teacher.hidden
    if student.word_vectors == "teacher" and student.embedding and student.embedding > width:
        problem = f"must be {width} or less, the teacher's width, or set student.word_vectors=random"
        yield Fault.at(config, Code.MISMATCHED_SHAPE, "student.embedding", problem)


def width_faults(config: RunConfig) -> Iterator[Fault]:
    """Yield widths that differ although the method copies or replaces layers."""
    needed = "same_width" in config.method.needs
    if not can_be_cut(config.student.architecture) or (not needed and config.method.init.weights == "random"):
        return
    for width in WIDTHS:
        student, origin = getattr(config.student, width), getattr(config.origin, width)
        if student != origin:
            why = f"method={config.method.name} needs it" if needed else "or set method.init.weights=random"
            group = "teacher" if config.student.encoder is None else "student.encoder"
            problem = f"must equal {group}.{width}={origin} ({why})"
            yield Fault.at(config, Code.MISMATCHED_SHAPE, f"student.{width}", problem)


def layer_faults(config: RunConfig) -> Iterator[Fault]:
    student, teacher, method, init = config.student.layers, config.origin.layers, config.method, config.method.init
    if "layers_divide" in config.method.needs and teacher % student:
        problem = f"must divide teacher.layers={teacher} (method={config.method.name} needs it)"
        yield Fault.at(config, Code.MISMATCHED_SHAPE, "student.layers", problem, legal=divisors(teacher))
        return
    if init.weights == "random" or not can_be_cut(config.student.architecture):
        return
    if init.layers == "contribution" and (method.general or config.phase == "general"):
        problem = "must be another choice: it is measured on texts of the task, and stages before the task have none"
        yield Fault.at(config, Code.UNUSABLE_START, "method.init.layers", problem)
        return
    if not isinstance(init.layers, list):
        if student > teacher:
            problem = (
                f"must be {teacher} or less, to start from the teacher's layers, or set method.init.weights=random"
            )
            yield Fault.at(config, Code.MISMATCHED_SHAPE, "student.layers", problem)
        elif init.layers in ALTERNATE and (least := ALTERNATE[init.layers](teacher)) > student:
            problem = f"must be {least} or more: method.init.layers={init.layers} drops one of two layers at most"
            yield Fault.at(config, Code.MISMATCHED_SHAPE, "student.layers", problem)
        return
    if len(init.layers) != student:
        problem = f"must name {student} layers (student.layers={student})"
        yield Fault.at(config, Code.UNUSABLE_START, "method.init.layers", problem)
    if max(init.layers) >= teacher:
        problem = f"must be from 0 to {teacher - 1} (teacher.layers={teacher})"
        yield Fault.at(config, Code.UNUSABLE_START, "method.init.layers", problem)


def source_faults(config: RunConfig) -> Iterator[Fault]:
    """Yield sources that cannot be read, as far as that is known without a download."""
    from kdbench.sources.sources import check_unlabelled  # here: --help must be quick
    from kdbench.sources.word_table import check_table

    encoders = {"teacher": config.teacher, "student.encoder": config.student.encoder}
    for group, part in encoders.items() if "encoder" in config.method.needs or config.method.reads_teacher else ():
        if part is not None and not part.is_file and (error := model_error(part, group)):
            yield Fault.of(error)
    try:
        if config.student.table is not None and "encoder" in config.method.needs:
            check_table(config.student.table)
        if config.dataset.unlabelled is not None:
            check_unlabelled(config.dataset)
        yield from table_faults(config.dataset)
    except SettingError as error:
        yield Fault.of(error)


def table_faults(dataset: DatasetConfig) -> Iterator[Fault]:
    """Yield the missing columns of a local data set. Raises SettingError if its source or files cannot be used."""
    from kdbench.data.tables import missing, names_at_start  # here: --help must be quick
    from kdbench.sources.sources import check_source, existing, table_files

    check_source(dataset, "dataset")
    root = Path(dataset.source)
    for split, name in (table_files(dataset) or {}).items() if root.exists() else ():
        path = existing(root, split, name)
        columns = names_at_start(path, dataset)
        if columns and (faults := [Fault.of(error) for error in missing(path, columns, dataset)]):
            yield from faults
            return  # the other splits have the same columns


def model_error(model: TeacherConfig, group: str) -> SettingError | None:
    """Return what is wrong with the source of the model at `group`; one that is not local is checked when fetched."""
    from kdbench.sources.model_folder import verify
    from kdbench.sources.sources import check_source

    try:
        check_source(model, group)
        if (folder := Path(model.source) / model.folder).is_dir():
            verify(folder)
    except SettingError as error:
        return error
    except SourceError as error:
        return SettingError(error.code, f"{group}.source", model.source, str(error))
    return None


def divisors(number: int) -> str:
    low = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]  # quick for a mistyped width, too
    return "Legal: " + ", ".join(map(str, sorted({*low, *(number // k for k in low)})))
