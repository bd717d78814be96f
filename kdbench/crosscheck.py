"""What no single key can know: whether teacher, student, method and data fit each other."""

from collections.abc import Iterator
from pathlib import Path

from kdbench.config import RunConfig
from kdbench.errors import Fault, shown

NEEDS = {"encoder", "teacher", "layers_divide", "same_width"}  # the words of a method's `needs`
WIDTHS = ("hidden", "heads", "ffn")


def cross_faults(config: RunConfig) -> list[Fault]:
    """The faults of a typed run that only show where two keys meet."""
    assert config.method.needs <= NEEDS, f"{config.method.name}: unknown need in {set(config.method.needs)}"
    found = list(source_faults(config))
    if "encoder" in config.method.needs and config.method.init is None:
        found.append(Fault("method.init", "null", f"method={config.method.name} needs method.init.weights and .layers"))
    elif "encoder" in config.method.needs:
        found += [*shape_faults(config), *width_faults(config), *layer_faults(config)]
    return found


def shape_faults(config: RunConfig) -> Iterator[Fault]:
    """Shapes that no Transformer has, texts that the teacher cannot read."""
    teacher, student = config.teacher, config.student
    own_shape = (student.hidden, student.heads) != (teacher.hidden, teacher.heads)
    for group, shape in (("teacher", teacher), ("student", student))[: 1 + own_shape]:
        if shape.hidden % shape.heads:
            problem = f"must divide {group}.hidden={shape.hidden}"
            yield Fault(f"{group}.heads", shown(shape.heads), problem, legal=divisors(shape.hidden))
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
    if not needed and config.method.init.weights == "random":
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
    if init.weights == "random":
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
    root = Path(config.dataset.source).expanduser()
    try:
        for split, name in (table_files(config.dataset) or {}).items() if root.exists() else ():
            existing(root, split, name)
    except SourceError as error:  # "<key>=<value>: <problem>"
        subject, _, problem = str(error).replace("\n", " ").partition(": ")
        key, _, value = subject.partition("=")
        yield Fault(key, value, problem)


def divisors(number: int) -> str:
    return "Legal: " + ", ".join(str(k) for k in range(1, number + 1) if number % k == 0)
