"""Whether the architectures of teacher and student, and the method, go together; and if not, why."""

from collections.abc import Iterator
from dataclasses import asdict

from kdbench.errors import Code, Fault, shown
from kdbench.schema import ENCODERS, RunConfig, choose_layers, starts_from

LACKS = {  # what a method may need of teacher and student: the architectures that do not have it, and why
    "distinct_layers": {"albert": "its layers are one set of weights: there is none to be replaced"},
    "attention": {
        "deberta-v2": "its attention scores have terms of position besides queries times keys, which others have not",
        "modernbert": "two of three layers see a window of the text only: their scores are not those of others",
    },
}
OWN = {  # architecture: the keys of a student that it has besides layers, hidden and ffn
    **{architecture: {"heads"} for architecture in (*ENCODERS, "fastbert")},
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
CUT = {*ENCODERS, "fastbert"}  # students that can start from an encoder's layers


def kind_faults(config: RunConfig) -> Iterator[Fault]:
    """Architectures that the method has no student or teacher of; keys that an architecture lacks or does not have."""
    method, student = config.method, config.student
    if student.architecture not in method.students:
        close = next((f"student={name}" for name in STUDENTS if STUDENTS[name] in method.students), "")
        legal = ", ".join(sorted(method.students))
        problem = f"is not supported by method={method.name} (supported: {legal})"
        yield Fault(Code.UNSUPPORTED_ARCHITECTURE, "student.architecture", student.architecture, problem, close)
        return
    if unfit := list(pair_faults(config)):
        yield from unfit
        return
    values = asdict(student)
    for key in ("heads", "embedding", "bottleneck", "ffn_blocks", "multichannel", "word_vectors"):
        if key in OWN[student.architecture] and values[key] is None:
            yield Fault(
                Code.MISSING_VALUE,
                f"student.{key}",
                "null",
                f"must be set (student.architecture={student.architecture})",
            )
    if student.architecture == "bilstm" and student.layers != 1:
        yield Fault(
            Code.MISMATCHED_SHAPE,
            "student.layers",
            shown(student.layers),
            "must be 1: the BiLSTM of Tang et al. 2019 has one layer",
        )
    if config.dataset.text_pair is not None and "distilbert" in (student.architecture, config.teacher.architecture):
        problem = "must be null: DistilBERT has no token types to tell two sentences apart"
        yield Fault(Code.INAPPLICABLE_KEY, "dataset.text_pair", config.dataset.text_pair, problem)
    if method.init.weights != "random" and not method.general:
        yield from start_faults(config)


def pair_faults(config: RunConfig) -> Iterator[Fault]:
    """A teacher and a student whose kinds the method cannot bring together."""
    method, student, teacher, origin = config.method, config.student, config.teacher, config.origin
    reads_layers = "encoder_teacher" in method.needs
    if teacher.architecture == "bilstm" or (reads_layers and teacher.architecture not in ENCODERS):
        problem = f"must be one of {', '.join(ENCODERS)}"
        yield Fault(
            Code.UNSUPPORTED_ARCHITECTURE,
            "teacher.architecture",
            teacher.architecture,
            problem + f": method={method.name} reads its layers",
        )
    elif "same_kind" in method.needs and teacher.architecture != student.architecture:
        problem = f"must be {teacher.architecture}, the teacher's: method={method.name} puts the layers of one"
        yield Fault(
            Code.UNSUPPORTED_ARCHITECTURE,
            "student.architecture",
            student.architecture,
            f"{problem} in the place of the other's",
        )
    for need in sorted(LACKS.keys() & method.needs):
        kinds = {student.architecture: "student", teacher.source_architecture: "teacher"}  # one word where they are one
        for kind, group in kinds.items():
            if kind in LACKS[need]:
                problem = f"cannot be used by method={method.name}: {LACKS[need][kind]}"
                yield Fault(Code.UNSUPPORTED_ARCHITECTURE, f"{group}.architecture", kind, problem)
    if student.encoder is not None and student.architecture == "bilstm":
        yield Fault(Code.INAPPLICABLE_KEY, "student.encoder", "a group", "must be null: a BiLSTM reads words")
    elif student.encoder is not None and not method.own_encoder:
        problem = f"must be null: method={method.name} compares the two token by token, so they share a tokenizer"
        yield Fault(Code.INAPPLICABLE_KEY, "student.encoder", student.encoder.name, problem)
    built_after = student.architecture in ENCODERS and student.architecture not in ("bert", "distilbert")
    if built_after and student.architecture != origin.source_architecture:
        problem = f"must start from an encoder of its own kind, not from a {origin.source_architecture}: choose the"
        close = "student=own teacher@student.encoder=<choice>"
        yield Fault(
            Code.UNSUPPORTED_ARCHITECTURE,
            "student.architecture",
            student.architecture,
            f"{problem} teacher so, or its own with {close}",
        )


def start_faults(config: RunConfig) -> Iterator[Fault]:
    """Layers that the student cannot start from."""
    init, student, origin = config.method.init, config.student, config.origin
    source = config.teacher.architecture if init.weights == "finetuned" else origin.source_architecture
    if not starts_from(student.architecture, source):
        problem = f"must be random: no checkpoint has layers of student.architecture={student.architecture}"
        if student.architecture in CUT:
            problem = f"must be random: student.architecture={student.architecture} has other layers than a {source}"
        yield Fault(Code.UNUSABLE_START, "method.init.weights", init.weights, problem)
    elif init.weights == "finetuned" and student.encoder is not None:
        yield Fault(
            Code.INAPPLICABLE_KEY,
            "method.init.weights",
            "finetuned",
            "must be pretrained or random: student.encoder is its own",
        )
    elif student.architecture == "albert" and init.layers != "first":
        yield Fault(
            Code.UNUSABLE_START,
            "method.init.layers",
            shown(init.layers),
            "must be first: ALBERT's layers are one and the same",
        )
    elif student.architecture == "modernbert" and student.layers <= origin.layers:
        first, *others = choose_layers(init.layers, origin.layers, student.layers)
        if first != 0 or 0 in others:
            problem = "must begin with layer 0, the only one without a norm before its attention (ModernBERT)"
            yield Fault(Code.UNUSABLE_START, "method.init.layers", shown(init.layers), problem)
