"""What the command answers without running anything."""

import logging
import re
import shlex
import sys

import pytest
from omegaconf import OmegaConf

from kdbench.cli import help as helped
from kdbench.cli import main as cli
from kdbench.cli.compose import composing, conf_dir
from kdbench.schema import GROUPS

CONF = conf_dir() / "experiment"


@pytest.fixture
def ask(monkeypatch, tmp_path, capsys):
    """`ask(line)` -> exit code, stdout, stderr; nothing may be written."""

    def do(line):
        monkeypatch.setattr(sys, "argv", ["kdbench", *shlex.split(line)])
        monkeypatch.chdir(tmp_path)
        logging.getLogger("hydra").setLevel(logging.NOTSET)  # as in a new process: a run silences it
        before = sorted(tmp_path.rglob("*"))
        code: str | int | None = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        assert sorted(tmp_path.rglob("*")) == before
        said = capsys.readouterr()
        return code, said.out, said.err

    return do


@pytest.mark.parametrize("width", [60, 100, 140, 220])
@pytest.mark.parametrize("group", GROUPS)
def test_each_choice_has_a_line(group, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    with composing(None) as configs:
        options = configs.options(group)
    files = [file for file in (conf_dir() / group).rglob("*.yaml") if not re.search(r"/_", file.as_posix())]
    assert len(options) == len(files) > 1
    lines = list(helped.choices(group, options, [conf_dir()]))
    for option, line in zip(options, lines, strict=True):
        name, _, words = line.partition(" ")
        assert name == f"{group}={option}" and len(words.strip()) > 10, line
        assert "kdbench " not in words and "@package" not in words
        assert len(line) <= max(width, len(name) + 40), "a terminal of 60 columns still shows 20 characters of it"


def test_the_first_sentence_of_a_comment():
    assert helped.said("# Distilled BiLSTM (Tang et al. 2019). Needs a teacher.\nname: x\n# no") == (
        "Distilled BiLSTM (Tang et al. 2019)"
    )
    assert helped.said("# @package _global_\n# kdbench -m experiment=x\n# A grid of 1.5 rows\n# and more.\nx: 1") == (
        "A grid of 1.5 rows and more"
    )
    assert helped.said("name: x") == ""


def test_choices_and_keys(ask, tmp_path):
    (tmp_path / "my" / "method").mkdir(parents=True)
    (tmp_path / "my" / "method" / "mine.yaml").write_text("# Of my own. More.\nname: mine\nmodule: mine\n")
    code, out, _ = ask("--config-dir my 'method=?' 'schedule@teacher.schedule=?'")
    assert code == 0 and re.search("^method=mine +Of my own$", out, re.MULTILINE) and "schedule=smoke  " in out
    code, out, _ = ask("'experiment=study/?' 'experiment=blog/?'")
    names = [line.split()[0] for line in out.splitlines()]
    assert code == 0 and {name.partition("/")[0] for name in names} == {"experiment=study", "experiment=blog"}
    assert len(names) == len([path for name in ("study", "blog") for path in (CONF / name).iterdir()])
    assert len(ask("'experiment=?'")[1].splitlines()) == len([*CONF.rglob("*.yaml")])
    code, _, err = ask("'experiment=stduy/?'")
    assert code == 2 and "KD011 unknown-choice  experiment=stduy/?: " in err and "Did you mean study/?" in err
    code, out, _ = ask("method=logit_kd 'method.alpha=?' 'method.stages=?' 'track=?' 'student.heads=?'")
    assert code == 0
    assert "method.alpha=0.5  (a number: 0 to 1)\n" in out
    assert "method.stages.training: a group of epochs, steps, lr" in out
    assert (
        "track.mlflow=false  (true or false)\n" in out and "student.heads=12  (an integer: null, or 1 or more)" in out
    )
    code, _, err = ask("method=logit_kd 'method.alhpa=?'")
    assert code == 2 and "KD012 unknown-key  method.alhpa=?: " in err and "Did you mean method.alpha?" in err


@pytest.fixture
def root_logger():
    """As it was: Hydra's own answers leave it a handler of a stdout that is closed when the test ends, and DEBUG."""
    handlers, level = [*logging.root.handlers], logging.root.level
    yield
    logging.root.setLevel(level)
    for handler in {*logging.root.handlers} - {*handlers}:
        if type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)


@pytest.mark.usefixtures("root_logger")
def test_info(ask):
    code, out, _ = ask("--info")
    assert code == 0
    for name in ("kdbench:", "versions: python 3.", "auto:", "trackers:", "configs:", "cache:", "outputs:"):
        assert f"\n{name}" in f"\n{out}", name
    assert ask("--info plugins")[1].startswith("Installed Hydra Plugins")


def test_a_config_is_shown_where_it_only_lacks_something(ask):
    assert "source: ???" in ask("dataset=files --cfg job")[1]
    assert "threads: 2" in ask("hardware.threads=2 --cfg job --resolve --package hardware")[1]  # no YAML has it
    code, _, err = ask("dataset=files --cfg job --resolve")  # a whole one
    assert code == 2 and "KD013 missing-value  dataset.source: " in err
    whole = OmegaConf.create(ask("method=theseus student.layers=2 --cfg job --resolve")[1])
    assert whole.method.stages.replacing.batch_size == whole.schedule.batch_size == 32
    assert whole.student.architecture == "bert" and whole.student.name == "bert_2l"
    code, out, err = ask("method=logit_kd method.alhpa=1 --cfg job")
    assert (code, out) == (
        2,
        "",
    ) and "KD012 unknown-key  method.alhpa=1: " in err
    assert "--cfg=job: shows the config of one run: leave out -m" in ask("-m seed=0,1 --cfg job")[2]
    assert "Did you mean theseus?" in ask("method=thesues --cfg job")[2]


def test_keys_that_take_a_word_or_a_list(ask):
    named = "first, last, every_other, odd_alternate, even_alternate, symmetric, contribution"
    layers = f"a value: {named}, or a list of layers counted from 0 such as [0,2,4]"
    weights = "method.init.weights=finetuned  (text: pretrained, finetuned or random)"
    assert ask("'method.init=?'")[:2] == (0, f"{weights}\nmethod.init.layers=first  ({layers})\n")
