"""The LaTeX of compare-runs, compiled: scripts/test --browser."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kdbench.compare.cli import main
from tests.compare.test_compare_runs import student
from tests.compare.test_tests import predict, tree

__all__ = ["tree"]  # the fixture
pytestmark = [pytest.mark.browser, pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")]
AWKWARD = r"[a_b%c&d$e#f{g}h~i^j\k<l>*"
PAPER = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs,graphicx}
\begin{document}
\input{table}
\end{document}
"""


@pytest.mark.parametrize(
    "arguments", [[], ["--group-by", "method.alpha", "--pivot", "student"], ["--diff", "ffff0001", "eeee5555"]]
)
def test_it_compiles(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    for seed in range(2):
        names = {f"identity__{name}": AWKWARD for name in ("student", "teacher")}
        student(tree, "pkd", "ffff0001", seed, 92.0, identity__parameters={"alpha": AWKWARD}, tag=AWKWARD, **names)
        (folder,) = tree.glob(f"r52/pkd/*/seed{seed}")
        predict(folder, 92.0, seed)
    capsys.readouterr()
    assert main([str(tree), "--format", "latex", *arguments]) == 0
    (tmp_path / "table.tex").write_text(capsys.readouterr().out, encoding="utf8")
    (tmp_path / "paper.tex").write_text(PAPER, encoding="utf8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
    assert not re.search(r"Overfull \\hbox", done.stdout), done.stdout  # no table is wider than the page's text
