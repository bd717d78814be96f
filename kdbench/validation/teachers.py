"""Whether a teacher that is no single network can do what the command asks of it: an ensemble, or a file of answers."""

from collections.abc import Iterator

from kdbench import tasks
from kdbench.declared import architecture_traits
from kdbench.errors import Code, Fault, SettingError
from kdbench.schema import OF_A_FILE, RunConfig
from kdbench.sources.teacher_source import teacher_files

NEEDS_NETWORK = {  # a word in a method's `needs` -> what the method does with the teacher's network
    "encoder_teacher": "uses the teacher's layers",
    "teacher_model": "asks the teacher's model itself",
}
OWN_ENCODER = "student=own teacher@student.encoder=minilm_l6 student.layers=3"


def teacher_faults(config: RunConfig) -> Iterator[Fault]:
    """Yield what does not fit the kind of the teacher."""
    teacher, encoder = config.teacher, config.student.encoder
    yield from key_faults(config)
    if encoder is not None and not encoder.is_network:
        problem = "must be an encoder: a student starts from layers, which a file or an ensemble does not have"
        yield Fault.at(config, Code.UNUSABLE_START, "student.encoder", problem)
    if not teacher.is_network:
        yield from network_faults(config)
        yield from task_faults(config)
    if teacher.is_file:
        yield from file_faults(config)


def key_faults(config: RunConfig) -> Iterator[Fault]:
    """Yield keys that this kind of teacher does not have, or lacks."""
    teacher = config.teacher
    for key in OF_A_FILE:
        if not teacher.is_file and getattr(teacher, key) is not None:
            problem = "must be null: it is a key of teacher=file"
            yield Fault.at(config, Code.INAPPLICABLE_KEY, f"teacher.{key}", problem)
    for key in ("answer", "values", "floor", "missing") if teacher.is_file else ():
        if getattr(teacher, key) is None:
            yield Fault.at(config, Code.MISSING_VALUE, f"teacher.{key}", "must be set for teacher=file")
    if teacher.is_file and teacher.answer and teacher.answer.count("*") > 1:
        problem = "must have one * at most, which stands for the name of a class"
        yield Fault.at(config, Code.OUT_OF_RANGE, "teacher.answer", problem)
    elif teacher.is_file and teacher.answer and "*" in teacher.answer and teacher.values == "labels":
        problem = "must be one column, because teacher.values=labels: it has the name of a class in each row"
        yield Fault.at(config, Code.CONFLICTING_VALUES, "teacher.answer", problem)
    others = {"path": teacher.path, "members": teacher.members, "join": teacher.join}
    trained = next((key for key, value in others.items() if value is not None), None)
    if teacher.seeds is not None and (trained or teacher.finetune is False):
        known = f"teacher.{trained}" if trained else "teacher.finetune=false"
        problem = f"must be null, because {known} names a teacher that is not trained here"
        yield Fault.at(config, Code.CONFLICTING_VALUES, "teacher.seeds", problem)


def network_faults(config: RunConfig) -> Iterator[Fault]:
    """Yield why the method needs a single network as the teacher."""
    teacher, method = config.teacher, config.method
    kind = "a file" if teacher.is_file else "an ensemble"
    for need in sorted(NEEDS_NETWORK.keys() & method.needs):
        problem = f"is {kind}, which gives answers only, and method={method.name} {NEEDS_NETWORK[need]}"
        yield Fault.at(config, Code.UNSUITABLE_TEACHER, "teacher", problem, "method=logit_kd")
        return
    if method.init is not None and method.init.weights == "finetuned":
        problem = f"must be pretrained or random: the teacher is {kind}, which has no layers to start from"
        yield Fault.at(config, Code.UNUSABLE_START, "method.init.weights", problem)


def task_faults(config: RunConfig) -> Iterator[Fault]:
    """Yield tasks whose answers cannot be read from a file, or averaged."""
    teacher, task = config.teacher, config.dataset.task
    traits = tasks.traits(task)
    if teacher.is_file and not traits.one_class:
        problem = "is not supported by teacher=file, which has one distribution over classes for each text"
        yield Fault.at(config, Code.UNSUPPORTED_TASK, "dataset.task", problem, legal="Supported: classification")
    elif traits.words:
        problem = "is not supported by an ensemble, because its members may read different words"
        yield Fault.at(config, Code.UNSUPPORTED_TASK, "dataset.task", problem)
    elif teacher.average == "probabilities" and not traits.one_class:
        problem = f"must be logits for dataset.task={task}, whose logits are no distribution over classes"
        yield Fault.at(config, Code.UNSUPPORTED_TASK, "teacher.average", problem)


def file_faults(config: RunConfig) -> Iterator[Fault]:
    """Yield what a file cannot give because it has no encoder, and a file that is not there."""
    teacher, student, method = config.teacher, config.student, config.method
    if "corpus" in method.needs:
        problem = f"is a file, which has no encoder, and method={method.name} learns from the teacher's encoder"
        yield Fault.at(config, Code.UNSUITABLE_TEACHER, "teacher", problem, "method=logit_kd")
    elif "encoder" in method.needs and student.encoder is None:
        if not architecture_traits(student.architecture).own_words and student.table is None:
            problem = "must be set: teacher=file has no encoder that the student could start from"
            yield Fault.at(config, Code.MISSING_VALUE, "student.encoder", problem, OWN_ENCODER)
        elif student.word_vectors == "teacher":
            problem = "must be random: teacher=file has no word vectors"
            yield Fault.at(config, Code.UNUSABLE_START, "student.word_vectors", problem)
    try:
        teacher_files(teacher)
    except SettingError as error:
        yield Fault.of(error)
