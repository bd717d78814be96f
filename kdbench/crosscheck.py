"""What no single key can know: whether teacher, student, method and data fit each other."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from kdbench.errors import Fault, shown
from kdbench.schema import DatasetConfig, RunConfig

# The words of a method's `needs`.
NEEDS = {"encoder", "teacher", "bert_teacher", "layers_divide", "same_width", "corpus"}
WIDTHS = ("hidden", "heads", "ffn")
OWN = {  # architecture: the keys of a student that it has besides layers, hidden and ffn
    "bert": {"heads"},
    "distilbert": {"heads"},
    "fastbert": {"heads"},
    "mobilebert": {"heads", "embedding", "bottleneck", "ffn_blocks"},
    "ib_bert": {"heads", "embedding", "bottleneck", "ffn_blocks"},
    "bilstm": {"embedding", "multichannel", "word_vectors"},
}
STUDENTS = {  # the choice of `student` that goes with an architecture
    "bert_3l": "bert",
    "distilbert": "distilbert",
    "mobilebert_6l": "mobilebert",
    "fastbert": "fastbert",
    "bilstm_300": "bilstm",
}
KEEPS_NONE = {  # methods whose runs have no model of their own, and what to do instead
    "tfidf": "method=tfidf keeps no model (it is refitted in seconds): there is nothing to load or to export",
    "cascade": "method=cascade keeps no model: name the runs of the two it is made of, its small one and its teacher",
}
CUT = {"bert", "distilbert", "fastbert"}  # students that can start from a BERT's layers


def cross_faults(config: RunConfig) -> list[Fault]:
    """The faults of a typed run that only show where two keys meet."""
    assert config.method.needs <= NEEDS, f"{config.method.name}: unknown need in {set(config.method.needs)}"
    found = [*source_faults(config), *export_faults(config), *track_faults(config)]
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


def kind_faults(config: RunConfig) -> Iterator[Fault]:
    """Architectures that the method has no student or teacher of; keys that an architecture lacks or does not have."""
    method, student, teacher = config.method, config.student, config.teacher
    if student.architecture not in method.students:
        close = next((f"student={name}" for name in STUDENTS if STUDENTS[name] in method.students), "")
        legal = ", ".join(sorted(method.students))
        problem = f"is none that method={method.name} can train ({legal})"
        yield Fault("student.architecture", student.architecture, problem, close)
        return
    if teacher.architecture == "bilstm" or (teacher.architecture != "bert" and "bert_teacher" in method.needs):
        yield Fault(
            "teacher.architecture", teacher.architecture, f"must be bert: method={method.name} reads its layers"
        )
    values = asdict(student)
    for key in ("heads", "embedding", "bottleneck", "ffn_blocks", "multichannel", "word_vectors"):
        if key in OWN[student.architecture] and values[key] is None:
            yield Fault(f"student.{key}", "null", f"must be set (student.architecture={student.architecture})")
    if student.architecture == "bilstm" and student.layers != 1:
        yield Fault("student.layers", shown(student.layers), "must be 1: the BiLSTM of Tang et al. 2019 has one layer")
    if config.dataset.text_pair is not None and student.architecture == "distilbert":
        problem = "must be null: DistilBERT has no token types to tell two sentences apart"
        yield Fault("dataset.text_pair", config.dataset.text_pair, problem)
    if method.init.weights != "random" and student.architecture not in CUT and not config.method.general:
        problem = f"must be random: no checkpoint has layers of student.architecture={student.architecture}"
        yield Fault("method.init.weights", method.init.weights, problem)


def export_faults(config: RunConfig) -> Iterator[Fault]:
    name = "onnx" if config.export.onnx else "int8"
    if not (config.export.onnx or config.export.int8):
        return
    if config.method.name in KEEPS_NONE:
        yield Fault(f"export.{name}", "true", KEEPS_NONE[config.method.name])
    elif config.student.architecture == "bilstm":
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


def shape_faults(config: RunConfig) -> Iterator[Fault]:
    """Shapes that no Transformer has, texts that the teacher cannot read."""
    teacher, student = config.teacher, config.student
    own_shape = (student.hidden, student.heads) != (teacher.hidden, teacher.heads)
    for group, shape in (("teacher", teacher), ("student", student))[: 1 + own_shape]:
        inside = getattr(shape, "bottleneck", None) or shape.hidden
        if shape.heads and inside % shape.heads:
            problem = f"must divide {group}.{'hidden' if inside == shape.hidden else 'bottleneck'}={inside}"
            yield Fault(f"{group}.heads", shown(shape.heads), problem, legal=divisors(inside))
    longest = config.teacher.max_positions
    if config.dataset.max_length > longest:
        yield Fault(
            "dataset.max_length",
            shown(config.dataset.max_length),
            f"must be {longest} or less (teacher.max_positions)",
        )


def width_faults(config: RunConfig) -> Iterator[Fault]:
    """Layers can only be copied, or put in each other's place, where they are equally wide."""
    needed = "same_width" in config.method.needs
    if config.student.architecture not in CUT or (not needed and config.method.init.weights == "random"):
        return
    for width in WIDTHS:
        student, teacher = getattr(config.student, width), getattr(config.teacher, width)
        if student != teacher:
            why = f"method={config.method.name} needs it" if needed else "or set method.init.weights=random"
            yield Fault(f"student.{width}", shown(student), f"must equal teacher.{width}={teacher} ({why})")


def layer_faults(config: RunConfig) -> Iterator[Fault]:
    student, teacher, init = config.student.layers, config.teacher.layers, config.method.init
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
    from kdbench.data.sources import SourceError, check_source, existing, table_files  # here: --help must be quick

    for group in ("dataset", "teacher") if "encoder" in config.method.needs else ("dataset",):
        part = getattr(config, group)
        if problem := check_source(part.source, part.sha256, f"{group}.source"):
            yield Fault(f"{group}.source", shown(part.source), problem)
        elif group == "teacher" and (problem := local_model_fault(Path(part.source).expanduser() / part.folder)):
            yield Fault("teacher.source", shown(part.source), problem)
    root = Path(config.dataset.source).expanduser()
    try:
        for split, name in (table_files(config.dataset) or {}).items() if root.exists() else ():
            if faults := list(column_faults(existing(root, split, name), config.dataset)):
                yield from faults
                return  # the other splits have the same columns
    except SourceError as error:  # "<key>=<value>: <problem>"
        subject, _, problem = str(error).replace("\n", " ").partition(": ")
        key, _, value = subject.partition("=")
        yield Fault(key, value, problem)


def column_faults(path: Path, dataset: DatasetConfig) -> Iterator[Fault]:
    from kdbench.data.columns import columns_at_start, missing_columns

    if columns := columns_at_start(path, dataset.encoding):
        for key, name, problem in missing_columns(path, columns, dataset):
            yield Fault(f"dataset.{key}", name, problem)


def local_model_fault(folder: Path) -> str | None:
    """What is wrong with a teacher that lies here; one that must be fetched is judged when it is there."""
    from kdbench.data.model_folder import verify
    from kdbench.data.sources import SourceError

    try:
        if folder.is_dir():
            verify(folder)
    except SourceError as error:
        return str(error)
    return None


def divisors(number: int) -> str:
    low = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]  # quick for a mistyped width, too
    return "Legal: " + ", ".join(map(str, sorted({*low, *(number // k for k in low)})))
