"""Whether the architectures of teacher and student, and the method, go together; and if not, why."""

from collections.abc import Iterator

from kdbench.declared import architecture_traits, architectures
from kdbench.errors import Code, Fault
from kdbench.schema import ENCODERS, OWN_KEYS, RunConfig, starts_from


def kind_faults(config: RunConfig) -> Iterator[Fault]:
    """Architectures that the method has no student or teacher of; keys that an architecture lacks or does not have."""
    method, student = config.method, config.student
    if student.architecture not in method.students:
        choices = (one.choice for name, one in architectures().items() if one.choice and name in method.students)
        close = next((f"student={choice}" for choice in choices), "")
        legal = ", ".join(sorted(method.students))
        problem = f"is not supported by method={method.name} (supported: {legal})"
        lacks = architecture_traits(student.architecture).lacks
        problem += "".join(f": {lacks[need]}" for need in sorted(lacks.keys() & method.needs))
        yield Fault.at(config, Code.UNSUPPORTED_ARCHITECTURE, "student.architecture", problem, close)
        return
    if unfit := list(pair_faults(config)):
        yield from unfit
        return
    own = architecture_traits(student.architecture)
    for name in OWN_KEYS:
        value = getattr(student, name)
        if name in own.keys and value is None:
            problem = f"must be set (student.architecture={student.architecture})"
            yield Fault.at(config, Code.MISSING_VALUE, f"student.{name}", problem)
        elif name not in own.every_key() and value is not None:
            able = " and ".join(kind for kind, one in architectures().items() if name in one.every_key())
            problem = f"must be null: it is a choice of {able}, not of student.architecture={student.architecture}"
            yield Fault.at(config, Code.INAPPLICABLE_KEY, f"student.{name}", problem)
    for code, name, problem in own.conflicts(config):
        yield Fault.at(config, code, name, problem)
    reasons = [kind.no_pairs for kind in (own, architecture_traits(config.teacher.architecture)) if kind.no_pairs]
    if config.dataset.text_pair is not None and reasons:
        yield Fault.at(config, Code.INAPPLICABLE_KEY, "dataset.text_pair", f"must be null: {reasons[0]}")
    if method.init.weights != "random" and not method.general:
        yield from start_faults(config)


def pair_faults(config: RunConfig) -> Iterator[Fault]:
    """A teacher and a student whose kinds the method cannot bring together."""
    method, student, teacher, origin = config.method, config.student, config.teacher, config.origin
    own = architecture_traits(student.architecture)
    reads_layers = "encoder_teacher" in method.needs
    taught = architecture_traits(teacher.architecture)
    if taught.own_words or taught.bare_pieces or (reads_layers and teacher.architecture not in ENCODERS):
        problem = f"must be one of {', '.join(ENCODERS)}: method={method.name} reads its layers"
        yield Fault.at(config, Code.UNSUPPORTED_ARCHITECTURE, "teacher.architecture", problem)
    elif "same_kind" in method.needs and teacher.architecture != student.architecture:
        problem = f"must be {teacher.architecture}, the teacher's: method={method.name} puts the layers of one"
        problem += " in the place of the other's"
        yield Fault.at(config, Code.UNSUPPORTED_ARCHITECTURE, "student.architecture", problem)
    kinds = {student.architecture: "student", teacher.source_architecture: "teacher"}  # one word where they are one
    for kind, group in kinds.items():
        for need in sorted(architecture_traits(kind).lacks.keys() & method.needs):
            problem = f"cannot be used by method={method.name}: {architecture_traits(kind).lacks[need]}"
            yield Fault(Code.UNSUPPORTED_ARCHITECTURE, f"{group}.architecture", kind, problem)
    if student.encoder is not None and own.own_words:
        problem = f"must be null: a {student.architecture} student reads words"
        yield Fault.at(config, Code.INAPPLICABLE_KEY, "student.encoder", problem)
    elif student.encoder is not None and not method.own_encoder:
        problem = f"must be null: method={method.name} compares the two token by token, so they share a tokenizer"
        yield Fault.at(config, Code.INAPPLICABLE_KEY, "student.encoder", problem)
    if own.from_config and own.encoder and student.architecture != origin.source_architecture:
        problem = f"must start from an encoder of its own kind, not from a {origin.source_architecture}: choose the"
        close = "student=own teacher@student.encoder=<choice>"
        problem += f" teacher so, or its own with {close}"
        yield Fault.at(config, Code.UNSUPPORTED_ARCHITECTURE, "student.architecture", problem)


def start_faults(config: RunConfig) -> Iterator[Fault]:
    """Layers that the student cannot start from."""
    init, student, origin = config.method.init, config.student, config.origin
    source = config.teacher.architecture if init.weights == "finetuned" else origin.source_architecture
    if not starts_from(student.architecture, source):
        problem = f"must be random: no checkpoint has layers of student.architecture={student.architecture}"
        if can_be_cut(student.architecture):
            problem = f"must be random: student.architecture={student.architecture} has other layers than a {source}"
        yield Fault.at(config, Code.UNUSABLE_START, "method.init.weights", problem)
    elif init.weights == "finetuned" and student.encoder is not None:
        problem = "must be pretrained or random: student.encoder is its own"
        yield Fault.at(config, Code.INAPPLICABLE_KEY, "method.init.weights", problem)
    else:
        for name, problem in architecture_traits(student.architecture).start_conflicts(config):
            yield Fault.at(config, Code.UNUSABLE_START, name, problem)


def can_be_cut(student: str) -> bool:
    """Return whether a student of this architecture can start from an encoder's layers."""
    own = architecture_traits(student)
    return own.encoder or own.wraps or bool(own.starts_from)
