"""A method, data set, teacher and preset from outside the package: the worked example, and what is refused."""

import copy
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

import kdbench
from kdbench.cli import main as cli
from kdbench.cli.command import judge
from kdbench.cli.compose import composing
from kdbench.errors import Code, UserError
from kdbench.validation import own_method
from kdbench.validation.keys import run_keys
from kdbench.validation.values import faults
from tests.refusals import refused

EXAMPLE = Path(__file__).parents[1] / "examples" / "own"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A copy of the example, to which Python's path and the working folder lead; imported anew."""
    folder = tmp_path / "own"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("outputs", "small-bert", "*.csv", "__pycache__"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield folder
    forget()


def forget(*modules):
    """As a new process."""
    for module in ("mine", "helpers", "pack", "pack.mine", "pack.inner", "pack.losses", *modules):
        sys.modules.pop(module, None)
    own_method.sources.cache_clear()
    run_keys.cache_clear()


def command(monkeypatch, *words):
    """The one run of a command of the example, made quick."""
    quick = ["schedule.epochs=1", "teacher.schedule.epochs=1", "cache_dir=cache"]
    monkeypatch.setattr(sys, "argv", ["kdbench", "--config-dir", "my", "experiment=tickets", *quick, *words])
    cli.main()
    return sorted(Path("outputs/tickets").glob("mine/*/seed0/results.json"), key=lambda path: path.stat().st_mtime_ns)


def change(values, **changes):
    """The method's YAML with these keys; None takes one away."""
    return {key: value for key, value in (values | changes).items() if value is not None}


@pytest.fixture(scope="module")
def composed():
    """The preset, as `kdbench --config-dir my experiment=tickets` composes it."""
    with composing(str(EXAMPLE / "my")) as configs:
        return configs.compose(("experiment=tickets",)).cfg


def test_the_worked_example(example, monkeypatch):
    runpy.run_path("prepare.py", run_name="__main__")
    (first,) = command(monkeypatch)
    result = json.loads(first.read_text())
    assert result["identity"]["method"] == "mine" and result["identity"]["teacher"] == "small"
    assert (
        result["identity"]["choices"] | {"method": "mine", "dataset": "tickets", "experiment": "tickets"}
        == (result["identity"]["choices"])
    )
    assert result["identity"]["parameters"]["module"] == "mine" and result["identity"]["parameters"]["alpha"] == 0.5
    assert result["metrics"]["test"]["n"] == 40 and result["teacher"] is not None
    assert set(result["stages"][0]["epochs"][0]["means"]) == {"regression", "hard"}
    assert kdbench.load(first.parent / "model").config.num_hidden_layers == 1
    assert "--config-dir" in result["baseline_command"] and "method=finetune" in result["baseline_command"]

    source = Path("mine.py").read_text()
    Path("mine.py").write_text(source.replace("p.alpha * mse_loss", "2 * p.alpha * mse_loss"))
    forget()
    before, after = command(monkeypatch)  # another run beside the first, by the same teacher
    again = json.loads(after.read_text())
    assert before == first and again["teacher"]["id"] == result["teacher"]["id"]
    assert again["identity"]["parameters"].pop("source") != result["identity"]["parameters"].pop("source")
    assert again["identity"]["parameters"] == result["identity"]["parameters"]


def test_the_examples_commands_are_legal(example):
    (block,) = re.findall(r"```\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    lines = [line.partition("#")[0] for line in block.splitlines() if line.startswith("kdbench ")]
    runpy.run_path("prepare.py", run_name="__main__")
    assert len(lines) == 3
    with composing("my") as configs:  # once: composing is slow
        for line in lines:
            args = get_args_parser().parse_args(shlex.split(line)[1:])
            assert args.config_dir == "my" and judge(configs, [], args.overrides, args.multirun).faults == []


PARAMS = "from dataclasses import dataclass\nfrom typing import ClassVar\n@dataclass\nclass Params:\n"
NEEDS = "    needs: ClassVar[frozenset[str]] = frozenset()\n"
STAGES = "def stages(run, p): ...\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "PYTHONPATH="),
        ("import none_such", "ModuleNotFoundError: No module named 'none_such'"),
        ("def stages(:", "SyntaxError"),
        ("raise SystemExit('a script')", "SystemExit: a script"),
        ("def stages(run, p): ...", "Params: a @dataclass"),
        ("class Params: ...", "Params: a @dataclass"),
        (PARAMS + NEEDS, "stages(run, p)"),
        (PARAMS + "    ...\n" + STAGES, "attention, corpus, "),
        (PARAMS + NEEDS.replace("()", "(['gpu'])") + STAGES, "Params.needs"),
        (PARAMS + NEEDS + "    a: int\n" + STAGES, "'a'"),
        (PARAMS + NEEDS + "    a: complex = 1j\n" + STAGES, "complex"),
    ],
)  # fmt: skip
def test_a_module_that_is_no_method(example, source, expected):
    Path("mine.py").unlink()
    if source is not None:
        Path("mine.py").write_text(source)
    fault = own_method.own_method_fault("mine", "mine")
    assert (fault.code, fault.subject) == (Code.UNUSABLE_METHOD, "method.module=mine")
    assert expected in fault.problem


@pytest.mark.parametrize(
    ("changes", "code", "subject", "named"),
    [
        ({"name": None}, Code.MISSING_VALUE, "method.name", ""),
        ({"name": "theseus"}, Code.UNUSABLE_METHOD, "method.name=theseus", "another name"),
        ({"name": "../up"}, Code.OUT_OF_RANGE, "method.name=../up", "letters, digits"),
        ({"name": ["a"]}, Code.OUT_OF_RANGE, "method.name=[a]", "letters, digits"),
        ({"module": None}, Code.UNKNOWN_CHOICE, "method.name=mine", "method.module"),
        ({"module": 3}, Code.UNUSABLE_METHOD, "method.module=3", "my_package.mine"),
        ({"module": "my-package.mine"}, Code.UNUSABLE_METHOD, "method.module=my-package.mine", "my_package.mine"),
        ({"alpha": None}, Code.MISSING_VALUE, "method.alpha", "0 to 1"),
        ({"alpha": 2}, Code.OUT_OF_RANGE, "method.alpha=2", "0 to 1"),
        ({"alhpa": 1}, Code.UNKNOWN_KEY, "method.alhpa=1", "mean method.alpha?"),
        ({"init": None}, Code.MISSING_VALUE, "method.init=null", "method=mine"),
        ({"stages": None}, Code.MISSING_VALUE, "method.stages={}", ""),
        ({"stages": {}}, Code.MISSING_VALUE, "method.stages={}", "{training:{}}"),
    ],
)
def test_a_yaml_that_does_not_fit(example, composed, teacher_folder, data_folder, changes, code, subject, named):
    cfg = copy.deepcopy(composed)
    cfg.method = change(OmegaConf.to_container(cfg.method), **changes)
    cfg.teacher.source, cfg.dataset.source = str(teacher_folder), str(data_folder / "train.csv")
    cfg.dataset.text, cfg.dataset.label = "text", "label"
    (fault,) = faults(cfg)
    assert (fault.code, fault.subject) == (code, subject) and named in str(fault)


def test_what_does_not_fit_is_refused_by_the_command(example, monkeypatch, capsys):
    path = Path("my/method/mine.yaml")
    OmegaConf.save(change(OmegaConf.to_container(OmegaConf.load(path)), module="mime"), path)
    with pytest.raises(SystemExit) as end:
        command(monkeypatch)
    assert end.value.code == 2 and "  KD029 unusable-method  method.module=mime: " in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_a_stage_that_the_yaml_lacks_is_told_before_the_teacher_is_trained(configure, execute, tmp_path):
    config = configure("method=logit_kd")
    del config.method.stages["training"]
    with refused(Code.MISSING_VALUE, "method.stages.training: ", "method=logit_kd", kind=UserError):
        execute(config)
    assert not list((tmp_path / "outputs/topics/finetune").rglob("results.json"))


def digest(module):
    own_method.sources.cache_clear()
    return own_method.sources(module)


def test_the_source_of_a_method_is_all_of_it_that_is_ones_own(example, monkeypatch):
    Path("pack/below").mkdir(parents=True)
    for name, source in {
        "pack/__init__.py": "",
        "pack/mine.py": "from . import losses\nfrom .below import deep\nimport json, helpers, torch.nn\n",
        "pack/losses.py": "from kdbench import losses\n",
        "pack/below/deep.py": "def f():\n    from ..inner import x\n",
        "pack/inner.py": "x = 1\n",
        "pack/other.py": "",
        "helpers.py": "import pack.losses\n",
    }.items():
        Path(name).write_text(source)
    first = digest("pack.mine")
    assert list(first) == ["helpers", "pack", "pack.below.deep", "pack.inner", "pack.losses", "pack.mine"]
    Path("pack/other.py").write_text("y = 2\n")
    assert digest("pack.mine") == first
    Path("pack/inner.py").write_text("x = 2\n")
    second = digest("pack.mine")
    assert {name for name in first if first[name] != second[name]} == {"pack.inner"}

    installed = Path("site-packages")
    installed.mkdir()
    shutil.move("pack", installed)
    shutil.move("helpers.py", installed)  # there it is another package, not of this one
    monkeypatch.syspath_prepend(installed)
    forget()
    assert list(digest("pack.mine")) == [name for name in second if name != "helpers"]
