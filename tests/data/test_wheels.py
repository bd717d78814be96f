"""Wheels made on the spot: what is taken out of them, what is refused, what an interruption leaves."""

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.errors import Code
from kdbench.sources import archive, fetch
from kdbench.sources.fetch import Source, fetch_wheel
from kdbench.storage.files import sha256_of
from tests.refusals import refused
from tests.reliability.forks import forked


def wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel that pip would install, with `files` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kd_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
        opened.writestr("kd_tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: kd-tiny\nVersion: 1.0\n")
        opened.writestr("kd_tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        opened.writestr("kd_tiny-1.0.dist-info/RECORD", "")
    return path


Serve = Callable[[Path], list[Source]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """`serve(wheel)` puts it in pip's place; the list grows by one a download."""

    def make(path: Path) -> list[Source]:
        asked: list[Source] = []

        def download(source: Source, folder: Path) -> Path:
            asked.append(source)
            folder.mkdir()
            return Path(shutil.copy(path, folder))

        monkeypatch.setattr(fetch, "_pip_download", download)
        return asked

    return make


def test_fetch_wheel_takes_the_named_files_once_and_leaves_no_wheel(tmp_path: Path, serve: Serve) -> None:
    path = wheel(tmp_path / "index", {"pkg/a.txt": b"A", "pkg/sub/b.txt": b"B", "pkg/code.py": b"raise SystemExit"})
    asked, digest, cache = serve(path), sha256_of(path), tmp_path / "cache"
    folders = {fetch_wheel("pypi:kd-tiny==1.0", digest, ["pkg/a.txt", "pkg/sub/b.txt"], cache) for _ in range(2)}
    (folder,) = folders
    assert len(asked) == 1
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "MANIFEST.json",
        "pkg/a.txt",
        "pkg/sub/b.txt",
    ]
    assert (folder / "pkg/sub/b.txt").read_bytes() == b"B"
    assert {p.name for p in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_fetch_wheel_through_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheel(tmp_path / "index", {"pkg/a.txt": b"A"})
    for name, value in {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": str(path.parent)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    folder = fetch_wheel("pypi:kd-tiny==1.0", sha256_of(path), ["pkg/a.txt"], tmp_path / "cache")
    assert (folder / "pkg/a.txt").read_bytes() == b"A"
    with refused(Code.UNREACHABLE_SOURCE, "kd-tiny==2.0", "teacher.source=/path"):
        fetch_wheel("pypi:kd-tiny==2.0", "0" * 64, ["pkg/a.txt"], tmp_path / "cache")


def test_fetch_wheel_fetches_again_what_was_deleted_from_the_cache(tmp_path: Path, serve: Serve) -> None:
    path = wheel(tmp_path / "index", {"a": b"A", "b": b"B"})
    asked, digest = serve(path), sha256_of(path)
    folder = fetch_wheel("pypi:kd-tiny==1.0", digest, ["a", "b"], tmp_path)
    (folder / "a").unlink()
    assert fetch_wheel("pypi:kd-tiny==1.0", digest, ["a", "b"], tmp_path) == folder
    assert (folder / "a").read_bytes() == b"A" and len(asked) == 2


def cached(cache: Path) -> list[Path]:
    return [path for path in (cache / "wheels").iterdir() if path.suffix != ".lock"]


def test_what_a_killed_process_left_downloading_does_not_reach_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGKILL takes kdbench and not its pip, which writes on."""
    path = wheel(tmp_path / "index", {"a": b"A"})

    def killed(source: Source, folder: Path) -> Path:
        folder.mkdir()
        if os.fork() == 0:
            time.sleep(0.2)
            if folder.exists():
                (folder / path.name).write_bytes(b"half")
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
        return folder

    def slow(source: Source, folder: Path) -> Path:
        folder.mkdir()
        shutil.copy(path, folder)
        time.sleep(0.5)
        return folder / path.name

    digest = sha256_of(path)
    monkeypatch.setattr(fetch, "_pip_download", killed)
    os.waitpid(forked(lambda: fetch_wheel("pypi:kd-tiny==1.0", digest, ["a"], tmp_path)), 0)
    monkeypatch.setattr(fetch, "_pip_download", slow)
    assert (fetch_wheel("pypi:kd-tiny==1.0", digest, ["a"], tmp_path) / "a").read_bytes() == b"A"


def test_fetch_wheel_refuses_another_digest_and_names_both(tmp_path: Path, serve: Serve) -> None:
    path = wheel(tmp_path / "index", {"a": b"A"})
    serve(path)
    with refused(Code.UNVERIFIED_SOURCE, f"expected {'0' * 64}, found {sha256_of(path)}"):
        fetch_wheel("pypi:kd-tiny==1.0", "0" * 64, ["a"], tmp_path)
    assert cached(tmp_path) == []


@pytest.mark.parametrize("member", ["../evil", "a/../../evil", "/evil", "a\\..\\evil", "link", "folder/", "missing"])
def test_fetch_wheel_refuses_hostile_and_missing_members(tmp_path: Path, serve: Serve, member: str) -> None:
    path = wheel(
        tmp_path / "index", {"good": b"G", "../evil": b"E", "/evil": b"E", "a\\..\\evil": b"E", "folder/": b""}
    )
    with zipfile.ZipFile(path, "a") as opened:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        opened.writestr(link, "/etc/passwd")
    serve(path)
    with refused(Code.UNREADABLE_ARCHIVE if member == "missing" else Code.UNSAFE_CONTENT, repr(member)):
        fetch_wheel("pypi:kd-tiny==1.0", sha256_of(path), ["good", member], tmp_path / "cache")
    assert cached(tmp_path / "cache") == []
    assert not list(tmp_path.rglob("evil"))


def test_fetch_wheel_refuses_a_member_over_the_limit(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wheel(tmp_path / "index", {"big": b"0" * 1001})
    serve(path)
    monkeypatch.setattr(archive, "_LARGEST", 1000)
    with refused(Code.UNSAFE_CONTENT, "'big'"):
        fetch_wheel("pypi:kd-tiny==1.0", sha256_of(path), ["big"], tmp_path)


def test_interrupted_download_leaves_nothing_and_the_next_one_succeeds(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wheel(tmp_path / "index", {"a": b"A"})

    def interrupted(source: Source, folder: Path) -> Path:
        folder.mkdir()
        (folder / "half.whl").write_bytes(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_pip_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel("pypi:kd-tiny==1.0", sha256_of(path), ["a"], tmp_path)
    assert cached(tmp_path) == []
    serve(path)
    folder = fetch_wheel("pypi:kd-tiny==1.0", sha256_of(path), ["a"], tmp_path)
    shutil.move(folder, folder.with_name(f".{folder.name}.part"))  # what a killed process leaves
    assert (fetch_wheel("pypi:kd-tiny==1.0", sha256_of(path), ["a"], tmp_path) / "a").read_bytes() == b"A"
    assert cached(tmp_path) == [folder]


def test_two_processes_download_once(tmp_path: Path) -> None:
    path = wheel(tmp_path / "index", {"a": b"A"})
    script = f"""
import shutil, time
from pathlib import Path
from kdbench.sources import archive, fetch
def download(source, folder):
    with open({str(tmp_path / "log")!r}, "a") as log:
        log.write("download ")
    time.sleep(0.3)
    folder.mkdir()
    return Path(shutil.copy({str(path)!r}, folder))
fetch._pip_download = download
print(fetch.fetch_wheel("pypi:kd-tiny==1.0", {sha256_of(path)!r}, ["a"], Path({str(tmp_path)!r})))
"""
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=600)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0] and len(answers) == 1
    assert (tmp_path / "log").read_text() == "download "
