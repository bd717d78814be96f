"""The codes: each is produced by some test, each is on the page of errors, and ten texts are kept word for word."""

import errno
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pandas
import pytest
import torch

from kdbench.best import answer
from kdbench.best.standing import Clock, Standing
from kdbench.cli import main as cli
from kdbench.cli import predict, serve
from kdbench.cli.compose import composing
from kdbench.compare.gate import gate
from kdbench.data import teacher_cache
from kdbench.errors import Code, Fault, SourceError, UserError, print_faults
from kdbench.inference.finished_run import FinishedRun
from kdbench.inference.out_file import OutFile
from kdbench.schema import HardwareConfig
from kdbench.shipping.push import require_token
from kdbench.sources.archive import extract
from kdbench.sources.fetch import Source, ask_hub, parse
from kdbench.storage import files
from kdbench.storage.results import PREDICTIONS
from kdbench.tasks.cells import Place, text_of
from kdbench.training import hardware, processes
from kdbench.training.finite import require_finite_weights
from kdbench.validation.own_method import own_method_fault
from tests import test_cli, test_tasks
from tests.best.test_plan import plan, wish
from tests.compare.test_compare_runs import write as write_run
from tests.data.test_datasets import TEN, config, write
from tests.reliability import test_bad_data, test_bad_models

# Rows that expect a code; the tests beside these tables produce each of them.
ROWS = [
    *test_cli.REFUSALS.values(),
    *test_tasks.REFUSED,
    *test_bad_data.REFUSED.values(),
    *test_bad_models.REFUSED.values(),
]


def asked(*words: str) -> None:
    predict._answer(predict.parser().parse_args(["model", *words]))


def refused_by_the_system(number: int) -> Callable[[Path, pytest.MonkeyPatch], None]:
    def write(folder: Path, _: pytest.MonkeyPatch) -> None:
        with files.explained(folder):
            raise OSError(number, "")

    return write


def command(line: str) -> Callable[[Path, pytest.MonkeyPatch], Fault]:
    def refusal(_: Path, patch: pytest.MonkeyPatch) -> Fault:
        patch.setattr("kdbench.cli.hydra_keys.find_spec", lambda package: None)
        (fault,) = cli.refuse(line.split())
        return fault

    return refusal


def offline(_: Path, patch: pytest.MonkeyPatch) -> None:
    def no_route(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    patch.setattr(huggingface_hub.HfApi, "repo_info", no_route)
    ask_hub(Source("hub", "some/bert", "main"), "model")


def nan_logits(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(teacher_cache, "compute_outputs", lambda examples, predict: torch.tensor([float("nan")]))
    (folder / "weights").write_bytes(b"")
    examples = SimpleNamespace(tokens=SimpleNamespace(key="k"), ids=np.zeros(1, np.int64))
    teacher_cache.cached_outputs("logits", examples, lambda batch: batch, folder / "weights", "fp32", folder)  # type: ignore[arg-type]


def changed_data(folder: Path, _: pytest.MonkeyPatch) -> None:
    dataset = asdict(config(write(folder / "x.csv", TEN)))
    pandas.DataFrame({"split": ["dev"], "id": [99], "label": [0]}).to_parquet(folder / PREDICTIONS)
    assert FinishedRun(folder, {}, {"dataset": dataset, "cache_dir": str(folder / "cache")}).data


def same_runs(folder: Path, _: pytest.MonkeyPatch) -> None:
    write_run(folder, "finetune", "aaaa1111", 0, 90.0)
    gate([str(folder / "r52/finetune/bert_3l-aaaa1111")] * 2, 1.0, None, None, "test", [])


def foreign_file(folder: Path, _: pytest.MonkeyPatch) -> None:
    with files.fitting(folder):
        raise ValueError("another program's")


def open_to_all(folder: Path, _: pytest.MonkeyPatch) -> None:
    (folder / "cache").mkdir()
    (folder / "cache").chmod(0o777)
    files.private(folder / "cache")


def anothers_file(folder: Path, _: pytest.MonkeyPatch) -> None:
    (folder / "answers.csv").write_text("mine")
    OutFile(folder / "answers.csv", {}, print).found()


def broken_archive(folder: Path, _: pytest.MonkeyPatch) -> None:
    (folder / "x.whl").write_bytes(b"no archive")
    extract(folder / "x.whl", ["a"], folder / "out")


def nan_weight(folder: Path, _: pytest.MonkeyPatch) -> None:
    module = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(module.weight, float("nan"))
    require_finite_weights(SimpleNamespace(name="toy"), folder, 3, module)  # type: ignore[arg-type]


def lost_process(_: Path, __: pytest.MonkeyPatch) -> None:
    with processes._together():
        raise RuntimeError("connection closed by peer")


def no_gpu(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hardware, "_devices", lambda: ["cpu"])
    hardware.settle(HardwareConfig("cuda", "auto", "auto", None))


def no_token(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("huggingface_hub.get_token", lambda: None)
    require_token()


def taken_port(folder: Path, _: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        words = ["model", "--port", str(other.getsockname()[1])]
        serve._listener(serve.parser().parse_args(words))


# The codes that no table has: what returns a fault or raises an error with the code.
OTHERS: dict[Code, Callable[[Path, pytest.MonkeyPatch], object]] = {
    Code.CONFLICTING_OPTIONS: lambda _, __: asked("--file", "x", "--pair", "b"),
    Code.UNSUPPORTED_EXPORT: command("method=cascade export.onnx=true"),
    Code.NOT_INSTALLED: command("-m hydra/launcher=slurm seed=0,1"),
    Code.UNUSABLE_METHOD: lambda _, __: own_method_fault("mine", "no-module"),
    Code.MISSING_DEVICE: no_gpu,
    Code.INVALID_SOURCE: lambda _, __: parse("git:a/b"),
    Code.UNREACHABLE_SOURCE: offline,
    Code.UNREADABLE_ARCHIVE: broken_archive,
    Code.INVALID_TEXT: lambda _, __: text_of(3, "text", Place("x.jsonl, line", 1), False),
    Code.UNSUITABLE_TEACHER: nan_logits,
    Code.CHANGED_DATA: changed_data,
    Code.INCOMPARABLE_RUNS: same_runs,
    Code.DAMAGED_FILE: lambda folder, _: files.verify(folder / "MANIFEST.json"),
    Code.FOREIGN_FILE: foreign_file,
    Code.DISK_FULL: refused_by_the_system(errno.ENOSPC),
    Code.NOT_WRITABLE: refused_by_the_system(errno.EACCES),
    Code.SYSTEM_ERROR: refused_by_the_system(errno.EMFILE),
    Code.UNSAFE_FOLDER: open_to_all,
    Code.WOULD_OVERWRITE: anothers_file,
    Code.LOSS_NOT_FINITE: nan_weight,
    Code.PROCESS_LOST: lost_process,
    Code.REFUSED_UPLOAD: no_token,
    Code.UNUSABLE_ADDRESS: taken_port,
    Code.NOTHING_FITS: lambda folder, _: answer.refuse(
        Standing(plan(wish(folder)), Clock(wish(folder)), folder / "log")
    ),
    Code.MISMATCHED_INPUT: lambda _, __: asked("--text", "a", "--pair", "b", "--pair", "c"),
}


@pytest.mark.parametrize("code", OTHERS, ids=lambda code: code.name)
def test_what_has_a_code_of_its_own(code: Code, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        found = OTHERS[code](tmp_path, monkeypatch)
    except UserError as error:
        found = error
    assert isinstance(found, Fault | UserError) and found.code == code, found


def test_each_code_is_produced_by_a_test() -> None:
    assert set(Code) == set(OTHERS) | {cell for row in ROWS for cell in row if isinstance(cell, Code)}


def test_codes_are_unique_and_explained() -> None:
    assert len({code.number for code in Code}) == len({str(code) for code in Code}) == len(Code)
    for code in Code:
        assert code.meaning.endswith(".") and code.remedy.endswith("."), code
        assert all(len(text.split()) <= 25 for text in (code.meaning, code.remedy)), code


GOLDEN = {  # one of each family, as it is printed
    "theseus": "KD001 unreadable-word  theseus: must have the form key=value. Did you mean method=theseus?",
    "method=theseus,finetune": "KD002 needs-multirun  method=theseus,finetune: is a sweep: add -m",
    "seeed=1": "KD012 unknown-key  seeed=1: unknown key. Did you mean seed?",
    "teacher=local student.layers=2": (
        "KD013 missing-value  teacher.source: must be set, e.g. teacher.source=path/to/model"
    ),
    "schedule.epochs=2.5": "KD014 wrong-type  schedule.epochs=2.5: must be an integer (1 or more)",
    "schedule.lr=-1": "KD015 out-of-range  schedule.lr=-1: must be above 0",
    "schedule.lr=${oc.env:LR}": (
        "KD018 code-in-config  schedule.lr=${oc.env:LR}: must be a value, or refer to a key such as ${schedule.lr}"
    ),
    "student.hidden=312": (
        "KD024 mismatched-shape  student.hidden=312: must equal teacher.hidden=384 (method=theseus needs it)"
    ),
    "dataset=files dataset.source=/none": (
        "KD042 missing-file  dataset.source=/none: no such file or folder (looked for /none)"
    ),
    "teacher=run teacher.path=/none": (
        "KD071 not-a-run  teacher.path=/none: is not a finished run: name the folder of a seed, such as"
        " outputs/<...>/seed0"
    ),
}


def test_how_a_refusal_reads(capsys: pytest.CaptureFixture[str]) -> None:
    with composing(None) as configs, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "composing", lambda config_dir: nullcontext(configs))
        for line, expected in GOLDEN.items():
            print_faults(cli.refuse(line.split()))
            head, first, *_ = capsys.readouterr().err.splitlines()
            assert (head, first.strip()) == ("kdbench: 1 fault, nothing was run", expected)


def test_an_error_shows_its_code_in_front_of_the_message() -> None:
    error = SourceError(Code.INVALID_LABEL, "x.csv, line 2, has the label 0.5")
    assert (str(error), error.line) == (
        "x.csv, line 2, has the label 0.5",
        "KD055 invalid-label  x.csv, line 2, has the label 0.5",
    )
