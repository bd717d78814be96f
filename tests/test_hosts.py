"""Two hosts with one shared folder: one makes a run while the other waits, and both answer the rows of one file.

The folder is the same for both, or a mount of it in each, whose caches are those of NFS (bindfs).
"""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdbench.cli import predict
from tests.conftest import FILLER
from tests.hosts import ended, finished, on_host, two_hosts

pytestmark = pytest.mark.slow


@pytest.fixture(params=["files", "mounts"])
def server(request, tmp_path) -> Path | None:
    """The folder to mount, or None: both hosts see the files themselves."""
    folder = tmp_path / "shared"
    folder.mkdir()
    if request.param == "files":
        return None
    if shutil.which("bindfs") is None:
        pytest.skip("needs bindfs")
    return folder


@pytest.fixture
def shared(server, tmp_path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def command(command_line, shared) -> list[str]:
    long = ["method=finetune", "student=full", "schedule.steps=400", "checkpoint_every=20"]
    return ["-m", "kdbench", *command_line(*long, f"outputs={shared / 'outputs'}", f"cache_dir={shared / 'cache'}")]


def wait_for_a_checkpoint(shared: Path, process: subprocess.Popen[str]) -> None:
    while not list(shared.rglob("checkpoint-*/MANIFEST.json")):
        assert process.poll() is None
        time.sleep(0.1)


def test_a_host_that_dies_leaves_its_run_to_another(command, shared, server):
    with two_hosts():
        first = on_host(1, command, server)
        wait_for_a_checkpoint(shared, first)
        second = on_host(2, command, server)
        time.sleep(5)
        assert second.poll() is None and not list(shared.rglob("results.json"))  # it waits for the first
        first.kill()
        ended(first)
        assert "resumes at step" in finished(second)
    assert len(list(shared.rglob("results.json"))) == 1


def test_a_run_that_another_host_has_finished_is_found(command, shared, server):
    with two_hosts():
        first = on_host(1, command, server)
        wait_for_a_checkpoint(shared, first)
        second = on_host(2, command, server)
        assert "stage training" in finished(first)
        assert "stage training" not in finished(second)
    assert len(list(shared.rglob("results.json"))) == 1


def test_two_hosts_answer_the_rows_of_one_file(finetuned, shared, server, monkeypatch):
    draw = random.Random(0)
    texts, alone, out = shared / "texts.txt", shared.with_name("alone.csv"), shared / "answers.csv"
    texts.write_text("".join(" ".join(draw.choices(FILLER, k=9)) + "\n" for _ in range(60_000)))
    assert predict.main([finetuned, "--file", str(texts), "--out", str(alone)]) == 0
    words = [str(Path(sys.executable).with_name("kdbench-predict")), finetuned, "--file", str(texts), "--out", str(out)]
    with two_hosts():
        hosts = [on_host(number, words, server) for number in (1, 2)]
        said = [ended(host) for host in hosts]
    assert [code for code, _, _ in said] == [0, 0], "".join(err for _, _, err in said)
    helped = sum("its work is shared" in err for _, _, err in said)
    assert helped == 1 or (server and not helped)  # a mount may learn of the work only when it is done
    assert out.read_bytes() == alone.read_bytes() and not list(shared.glob(".*shards*"))
