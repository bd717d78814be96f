"""What ships: the wheel holds the package with its YAMLs and templates, and works installed, away from the checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

import kdbench

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))
    return Path(path)


def test_the_wheel_holds_all_that_the_package_reads(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
        scripts = opened.read(f"kdbench-{kdbench.__version__}.dist-info/entry_points.txt").decode()
    files = [path for root in ("kdbench", "hydra_plugins") for path in (ROOT / root).rglob("*") if path.is_file()]
    package = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    configs = {f"kdbench/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(configs) > 50 and names == package | configs
    assert "kdbench/conf/experiment/study/theseus.yaml" in names
    assert "kdbench/shipping/card.md.j2" in names and "kdbench/compare/page.html.j2" in names
    commands = ("clean", "export", "label", "predict", "serve")
    for script in ("kdbench", "compare-runs", *(f"kdbench-{one}" for one in commands)):
        assert f"\n{script} = kdbench." in scripts


def test_the_wheel_has_its_licence_and_the_citation_its_version(wheel):
    with zipfile.ZipFile(wheel) as opened:
        folder = f"kdbench-{kdbench.__version__}.dist-info"
        licence = opened.read(f"{folder}/licenses/LICENSE").decode()
        assert "Version 2.0, January 2004" in licence and "END OF TERMS AND CONDITIONS" in licence
        assert "License-Expression: Apache-2.0" in opened.read(f"{folder}/METADATA").decode()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
    assert (citation["version"], citation["license"]) == (kdbench.__version__, "Apache-2.0")


@pytest.mark.slow
def test_the_wheel_works_installed(wheel, command_line, tmp_path):
    """In an environment of its own, which sees the dependencies of this one but nothing of the checkout."""
    venv.create(tmp_path / "env", symlinks=True)
    bin_, home = tmp_path / "env" / "bin", tmp_path / "empty"
    pip = [sys.executable, "-m", "pip", "--python", bin_ / "python", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("*/site-packages")
    # Plain lines: .pth files of these folders are not read, so an editable kdbench there is not seen.
    there = [path for path in sys.path if Path(path).is_dir() and not Path(path, "kdbench/__init__.py").is_file()]
    (site / "dependencies.pth").write_text("\n".join(there) + "\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    home.mkdir()

    def run(*words):
        done = subprocess.run(
            [bin_ / words[0], *words[1:]], cwd=home, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert run("python", "-c", "import kdbench; print(kdbench.__file__)").startswith(str(site))
    assert f"configs:  {site}/kdbench/conf" in run("kdbench", "--info")
    assert "method=theseus" in run("kdbench", "method=?")
    assert "layers: 3" in run("kdbench", "--cfg", "job", "--resolve")
    assert list(home.iterdir()) == []
    said = run("kdbench", *command_line("method=theseus", "schedule.epochs=1"))
    assert said.count("done: ") == 2  # the teacher's, and its own
    assert "theseus" in run("compare-runs", tmp_path / "outputs")
