"""compare-runs in a real terminal of 80 columns and 24 lines: scripts/test --browser."""

import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.compare.test_compare_runs import make_tree
from tests.compare.test_watch import begun, dead_process, failed

pexpect, pyte = pytest.importorskip("pexpect"), pytest.importorskip("pyte")
pytestmark = pytest.mark.browser
COMMAND = "import sys; from kdbench.compare import cli, watch; watch.PAUSE = 3; sys.exit(cli.main())"


class Terminal:
    """compare-runs, and the screen that it draws on."""

    def __init__(self, *arguments: object) -> None:
        words = ["-c", COMMAND, *map(str, arguments)]
        environment = {
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(sys.path),
        }
        self.process = pexpect.spawn(sys.executable, words, dimensions=(24, 80), env=environment, encoding="utf8")
        self.screen = pyte.Screen(80, 24)
        self.stream = pyte.Stream(self.screen)

    def until(self, words: str, seconds: float = 60) -> list[str]:
        """The lines of the screen once these words stand on it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not any(words in line for line in self.screen.display):
            try:
                self.stream.feed(self.process.read_nonblocking(4096, timeout=0.2))
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                break
        lines = [line.rstrip() for line in self.screen.display]
        assert any(words in line for line in lines), lines
        return lines

    def ended(self) -> int:
        """The exit code, after the last of what it writes."""
        self.stream.feed(self.process.read())
        self.process.close()
        return int(self.process.exitstatus)


def test_a_sweep_is_watched_until_it_ends(tmp_path: Path) -> None:
    make_tree(tmp_path)
    folder = begun(tmp_path, 0)
    failed(tmp_path, 1)
    terminal = Terminal(tmp_path, "--watch")
    lines = terminal.until("pkd/bert_3l-ffff0001/seed1 failed: RuntimeError: loss is nan")
    assert lines[0] == "1 failed, 1 running, 11 done" and any("40/100" in line for line in lines)
    shutil.rmtree(folder)
    begun(tmp_path, 0, pid=dead_process())
    terminal.until("1 stopped")
    assert terminal.ended() == 0
    assert not terminal.screen.cursor.hidden


def test_ctrl_c_ends_the_watch_and_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    begun(tmp_path, 0)
    terminal = Terminal(tmp_path, "--watch")
    terminal.until("40/100")
    started = time.monotonic()
    terminal.process.sendintr()
    assert terminal.ended() == 130
    assert time.monotonic() - started < 5
    assert not terminal.screen.cursor.hidden
    assert "Traceback" not in "\n".join(terminal.screen.display)


def test_a_long_sweep_fits_the_screen(tmp_path: Path) -> None:
    for seed in range(40):
        begun(tmp_path, seed)
    terminal = Terminal(tmp_path, "--watch")
    lines = terminal.until("40/100")
    assert lines[0] == "40 running" and any("more" in line for line in lines)
    terminal.process.sendintr()
    assert terminal.ended() == 130


def test_the_table_fits_eighty_columns(tmp_path: Path) -> None:
    terminal = Terminal(make_tree(tmp_path), "--no-tests")
    lines = terminal.until("94.00")
    assert any(line.startswith("theseus") and "94.00±1.73" in line.replace(" ± ", "±") for line in lines)
    assert terminal.ended() == 0
