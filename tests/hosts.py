"""Two hosts on one machine, each with its own network, host name and process numbers, and a folder that both see."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCAL = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
# As NFS does by its default mount options, up to `acdirmax`: a host keeps for 60 s what it has looked up, also that a
# name is not there. A lock is one of the server.
CACHES = "attr_timeout=60,entry_timeout=60,negative_timeout=60"


def on_host(number: int, command: Sequence[str], server: Path | None = None) -> subprocess.Popen[str]:
    """Begin `python <command>` on one of the two hosts.

    Both see the files of this machine. With `server`, each has a mount of this folder, with caches of its own, in its
    place.
    """
    name = f"kdbench{number}"
    mount = f'bindfs --multithreaded --enable-lock-forwarding -o {CACHES} "{server}" "{server}" && ' if server else ""
    host = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
    host += ["sh", "-c", f'hostname {name} && {mount}exec "$@"', name]
    environment = os.environ | LOCAL | {"GLOO_SOCKET_IFNAME": "eth0"}
    return subprocess.Popen(
        ["ip", "netns", "exec", name, *host, sys.executable, *command],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@contextmanager
def two_hosts() -> Iterator[None]:
    """Two network namespaces with a cable between them."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("namespaces need root and iproute2")

    def ip(words: str) -> None:
        subprocess.run(["ip", *words.split()], check=True)

    ip("netns add kdbench1")
    try:
        ip("netns add kdbench2")
        ip("link add eth0 netns kdbench1 type veth peer name eth0 netns kdbench2")
        for number in (1, 2):
            ip(f"-n kdbench{number} addr add 10.77.0.{number}/24 dev eth0")
            ip(f"-n kdbench{number} link set eth0 up")
            ip(f"-n kdbench{number} link set lo up")
        yield
    finally:
        for number in (1, 2):
            subprocess.run(["ip", "netns", "delete", f"kdbench{number}"], check=False)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def finished(process: subprocess.Popen[str]) -> str:
    code, out, err = ended(process)
    assert code == 0, err[-3000:]
    return out
