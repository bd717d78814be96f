"""What no single key can know: whether teacher, student, method and data fit each other."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from kdbench import tasks
from kdbench.errors import Fault, SettingError, SourceError, shown
from kdbench.schema import TASKS, DatasetConfig, RunConfig
from kdbench.validation.architectures import CUT, kind_faults

# The words of a method's `needs`.
NEEDS = {
    *("encoder", "teacher", "encoder_teacher", "same_kind", "layers_divide", "same_width", "corpus"),
    *("distinct_layers", "attention"),
}
WIDTHS = ("hidden", "heads", "ffn")
KEEPS_NONE = {  # methods whose runs have no model of their own, and what to do instead
    "cascade": "method=cascade keeps no model: name the runs of the two it is made of, its small one and its teacher",
}
NO_INT8 = "TF-IDF has no int8 form: rare words would be rounded away. Its ONNX graph is small and exact"
TAGGERS = {"bert", "distilbert"}  # encoders that can label words


def cross_faults(config: RunConfig) -> list[Fault]:
    """The faults of a typed run that only show where two keys meet."""
    assert config.method.needs <= NEEDS, f"{config.method.name}: unknown need in {set(config.method.needs)}"
    found = [*task_faults(config), *source_faults(config), *export_faults(config), *track_faults(config)]
    if "encoder" in config.method.needs and config.method.init is None:
        found.append(Fault("method.init", "null", f"method={config.method.name} needs method.init.weights and .layers"))
    elif "encoder" in config.method.needs and not config.method.stages:
        found.append(Fault("method.stages", "{}", "must name the schedule of each stage, such as {training:{}}"))
    elif "encoder" in config.method.needs:
        found += [*kind_faults(config), *corpus_faults(config)]
        found += [] if found else [*shape_faults(config), *width_faults(config), *layer_faults(config)]
        values = asdict(config)
        for key, problem in () if found else config.method.conflicts(config):
            group, _, name = key.partition(".")
            found.append(Fault(key, shown(values[group][name]), problem))
    return found


def task_faults(config: RunConfig) -> Iterator[Fault]:
    """Tasks that the method or its student cannot do, metrics and keys that a task does not have."""
    dataset, method, student = config.dataset, config.method, config.student
    task = dataset.task
    if task not in method.tasks:
        supported = f"(supported: {', '.join(sorted(method.tasks))})"
        yield Fault("dataset.task", task, f"is not supported by method={method.name} {supported}: {method.not_others}")
    traits = tasks.traits(task)
    legal = [*traits.metrics]
    if dataset.metric is not None and dataset.metric not in legal:
        yield Fault("dataset.metric", dataset.metric, f"is no metric of {task}", legal=f"Legal: {_or(legal)}")
    if isinstance(dataset.label, list) and not traits.several:
        able = _or([name for name in TASKS if tasks.traits(name).several])
        problem = f"a column for each label is for dataset.task={able}; name one column"
        yield Fault("dataset.label", shown(dataset.label), problem)
    values = asdict(dataset)
    for key, problem in traits.conflicts(config):
        yield Fault(key, shown(values[key.removeprefix("dataset.")]), problem)
    kinds = {"student": student.architecture}
    if "teacher" in method.needs:
        kinds["teacher"] = config.teacher.architecture
    for group, architecture in kinds.items() if traits.words and task in method.tasks else ():
        if architecture not in TAGGERS:
            problem = f"has no head for words; {' and '.join(sorted(TAGGERS))} have"
            yield Fault(f"{group}.architecture", architecture, problem)


def _or(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]][len(names) == 1 :])


def export_faults(config: RunConfig) -> Iterator[Fault]:
    name = "onnx" if config.export.onnx else "int8"
    if not (config.export.onnx or config.export.int8):
        return
    if config.method.name in KEEPS_NONE:
        yield Fault(f"export.{name}", "true", KEEPS_NONE[config.method.name])
    elif config.method.name == "tfidf" and config.export.int8:
        yield Fault("export.int8", "true", NO_INT8, "export.onnx=true")
    elif config.method.name != "tfidf" and config.student.architecture == "bilstm":
        yield Fault(f"export.{name}", "true", "a BiLSTM has no ONNX graph: torch.onnx cannot trace packed sequences")
    elif config.phase == "general":
        yield Fault(f"export.{name}", "true", "stages before a task (phase=general) make no classifier to export")


def track_faults(config: RunConfig) -> Iterator[Fault]:
    """Trackers that are not installed; none is imported, and a folder of the same name here is none."""
    for name, asked in asdict(config.track).items():
        spec = find_spec(name) if asked else None
        if asked and (spec is None or spec.origin is None):
            yield Fault(f"track.{name}", "true", f"is not installed: pip install 'kdbench[{name}]'")


def corpus_faults(config: RunConfig) -> Iterator[Fault]:
    method = config.method
    needs_corpus = "corpus" in method.needs and (method.general or config.phase == "general")
    if needs_corpus and config.corpus is None:
        problem = f"method={method.name} has stages before the task: choose one, or set method.general=false"
        yield Fault("corpus", "null", problem, "corpus=bundled")
    if config.phase == "general" and "corpus" not in method.needs:
        yield Fault("phase", "general", f"method={method.name} has no stages before the task")
    if config.phase == "general" and config.inspect:
        yield Fault("inspect", "true", "shows a data set, and phase=general reads a corpus: leave out phase=general")


def shape_faults(config: RunConfig) -> Iterator[Fault]:
    """Shapes that no Transformer has, texts that the teacher cannot read."""
    teacher, student = config.teacher, config.student
    own_shape = (student.hidden, student.heads) != (teacher.hidden, teacher.heads)
    for group, shape in (("teacher", teacher), ("student", student))[: 1 + own_shape]:
        inside = getattr(shape, "bottleneck", None) or shape.hidden
        if shape.heads and inside % shape.heads:
            problem = f"must divide {group}.{'hidden' if inside == shape.hidden else 'bottleneck'}={inside}"
            yield Fault(f"{group}.heads", shown(shape.heads), problem, legal=divisors(inside))
    for group, encoder in (("teacher", teacher), ("student.encoder", student.encoder)):
        if encoder is None:
            continue
        # RoBERTa and XLM-R count their positions from 2
        longest = encoder.max_positions - (2 if encoder.source_architecture in ("roberta", "xlm-roberta") else 0)
        if config.dataset.max_length > longest:
            problem = f"must be {longest} or less ({group}.max_positions)"
            yield Fault("dataset.max_length", shown(config.dataset.max_length), problem)
    width = teacher.embedding or teacher.hidden
    if student.word_vectors == "teacher" and student.embedding and student.embedding > width:
        problem = f"must be {width} or less, the width of the teacher's, or set student.word_vectors=random"
        yield Fault("student.embedding", shown(student.embedding), problem)


def width_faults(config: RunConfig) -> Iterator[Fault]:
    """Layers can only be copied, or put in each other's place, where they are equally wide."""
    needed = "same_width" in config.method.needs
    if config.student.architecture not in CUT or (not needed and config.method.init.weights == "random"):
        return
    for width in WIDTHS:
        student, origin = getattr(config.student, width), getattr(config.origin, width)
        if student != origin:
            why = f"method={config.method.name} needs it" if needed else "or set method.init.weights=random"
            group = "teacher" if config.student.encoder is None else "student.encoder"
            yield Fault(f"student.{width}", shown(student), f"must equal {group}.{width}={origin} ({why})")


def layer_faults(config: RunConfig) -> Iterator[Fault]:
    student, teacher, init = config.student.layers, config.origin.layers, config.method.init
    if "layers_divide" in config.method.needs and teacher % student:
        problem = f"must divide teacher.layers={teacher} (method={config.method.name} needs it)"
        yield Fault("student.layers", shown(student), problem, legal=divisors(teacher))
        return
    if init.weights == "random" or config.student.architecture not in CUT:
        return
    if not isinstance(init.layers, list):
        if student > teacher:
            problem = (
                f"must be {teacher} or less, to start from the teacher's layers, or set method.init.weights=random"
            )
            yield Fault("student.layers", shown(student), problem)
        return
    if len(init.layers) != student:
        problem = f"must name as many layers as student.layers={student}"
        yield Fault("method.init.layers", shown(init.layers), problem)
    if max(init.layers) >= teacher:
        problem = f"must be from 0 to {teacher - 1} (teacher.layers={teacher})"
        yield Fault("method.init.layers", shown(init.layers), problem)


def source_faults(config: RunConfig) -> Iterator[Fault]:
    """Sources that cannot be read, judged without a download."""
    from kdbench.sources.sources import check_source, existing, table_files  # here: --help must be quick

    wrong = check_source(config.dataset.source, config.dataset.sha256, "dataset.source")
    if wrong:
        yield Fault("dataset.source", shown(config.dataset.source), wrong)
    encoders = {"teacher": config.teacher, "student.encoder": config.student.encoder}
    for group, part in encoders.items() if "encoder" in config.method.needs else ():
        if part is not None:
            problem = check_source(part.source, part.sha256, f"{group}.source")
            problem = problem or local_model_fault(Path(part.source) / part.folder)
            if problem:
                yield Fault(f"{group}.source", shown(part.source), problem)
    if wrong:
        return  # nothing can be said of its files
    root = Path(config.dataset.source)
    try:
        for split, name in (table_files(config.dataset) or {}).items() if root.exists() else ():
            if faults := list(column_faults(existing(root, split, name), config.dataset)):
                yield from faults
                return  # the other splits have the same columns
    except SettingError as error:
        yield Fault(error.key, shown(error.value), error.problem.replace("\n", " "))


def column_faults(path: Path, dataset: DatasetConfig) -> Iterator[Fault]:
    from kdbench.data.tables import missing, names_at_start

    if columns := names_at_start(path, dataset):
        for key, name, problem in missing(path, columns, dataset):
            yield Fault(f"dataset.{key}", name, problem)


def local_model_fault(folder: Path) -> str | None:
    """What is wrong with a teacher that lies here; one that must be fetched is judged when it is there."""
    from kdbench.sources.model_folder import verify

    try:
        if folder.is_dir():
            verify(folder)
    except SourceError as error:
        return str(error)
    return None


def divisors(number: int) -> str:
    low = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]  # quick for a mistyped width, too
    return "Legal: " + ", ".join(map(str, sorted({*low, *(number // k for k in low)})))
