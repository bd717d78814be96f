"""Faults of composed configs, and of typed runs: what the command line's tests do not reach."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from kdbench.errors import Code, Fault, nearest, print_faults, shown
from kdbench.options import above, option, or_none
from kdbench.schema import InitConfig, RunConfig, method_schema
from kdbench.validation import keys
from kdbench.validation import load as load_module
from kdbench.validation.fit import NEEDS
from kdbench.validation.load import load
from kdbench.validation.values import cross_faults, faults
from tests import conftest

CONF = Path(__file__).parents[1] / "conf"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides=list(overrides))


def said(found: list[Fault]) -> list[str]:
    return [fault.subject for fault in found]


@pytest.fixture(scope="module")
def theseus() -> DictConfig:
    return composed("method=theseus")


@pytest.fixture
def cfg(theseus: DictConfig) -> Iterator[DictConfig]:
    cfg = theseus.copy()
    OmegaConf.set_struct(cfg, False)
    yield cfg


@pytest.mark.parametrize("method", ["theseus", "mobilebert", "tinybert", "prune"])
def test_the_shared_fixture_composes_as_hydra_does(command_line, method: str) -> None:
    words = command_line(f"method={method}", "schedule@teacher.schedule=smoke", "+tag=null", "method.init.layers=[0,2]")
    assert conftest.composed(tuple(words)) == composed(*words)


def test_the_defaults_are_legal(cfg: DictConfig) -> None:
    assert faults(cfg) == []


def test_a_fault_in_a_preset_is_named_like_one_of_the_command_line(cfg: DictConfig) -> None:
    cfg.merge_with({"schedule": {"lrr": 1}, "method": {"stages": {"replacing": {"clip": "tight"}}}})
    assert said(faults(cfg)) == ["schedule.lrr=1", "method.stages.replacing.clip=tight"]


def test_a_stage_that_the_method_lacks_is_told_from_its_own(cfg: DictConfig) -> None:
    cfg.method.stages.extra = {"lr": 1}
    assert faults(cfg) == []
    assert said(faults(cfg, ["replacing", "successor"])) == ["method.stages.extra.lr=1"]
    del cfg.method.stages["extra"], cfg.method.stages["successor"]
    assert said(faults(cfg, ["replacing", "successor"])) == ["method.stages.successor"]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"teacher": None}, "teacher"),
        ({"schedule": 3}, "schedule"),
        ({"method": {"name": "os"}}, "method.name"),
        ({"method": {"name": "__init__"}}, "method.name"),
        ({"method": "theseus"}, "method.name"),
        ({"method": {"stages": 3}}, "method.stages"),
        ({"dataset": {"text": {"_target_": "os.system"}}}, "dataset.text"),
        ({"method": {"init": {"layers": [{"_target_": "os.system"}]}}}, "method.init.layers"),
        ({"method": {"init": {"layers": ["${oc.env:HOME}"]}}}, "method.init.layers"),
        ({"schedule": {"lr": "${half:${oc.env:LR}}"}}, "schedule.lr"),
    ],
)
def test_odd_values(cfg: DictConfig, values: dict[str, Any], key: str) -> None:
    cfg.merge_with(values)
    assert [fault.key for fault in faults(cfg)] == [key]


def test_a_group_that_is_not_there_is_one_fault(cfg: DictConfig) -> None:
    del cfg["teacher"]
    del cfg["hardware"]
    assert said(faults(cfg)) == ["teacher", "hardware"]


def test_a_refused_value_leaves_the_rest_to_be_judged(cfg: DictConfig) -> None:
    cfg.schedule = {"lr": "${oc.env:LR}"}
    cfg.dataset.epochs = 0
    found = said(faults(cfg))
    assert found[0] == "schedule.lr=${oc.env:LR}" and "dataset.epochs=0" in found
    assert "schedule.clip" in found and not any(subject.startswith("method.stages") for subject in found)


def test_a_value_that_is_handed_on_is_told_once(cfg: DictConfig) -> None:
    cfg.dataset.epochs = "many"  # schedule.epochs, teacher.schedule.epochs and two stages draw on it
    cfg.student.layers = "???"  # student.name draws on it
    del cfg.schedule["clip"]  # the stages would have it from here
    assert sorted(said(faults(cfg))) == ["dataset.epochs=many", "schedule.clip", "student.layers"]


def test_each_key_of_a_circle_is_told(cfg: DictConfig) -> None:
    cfg.schedule.lr, cfg.schedule.warmup = "${schedule.warmup}", "${schedule.lr}"
    assert sorted(fault.key for fault in faults(cfg)) == ["schedule.lr", "schedule.warmup"]


def test_a_local_teachers_shape_is_read(teacher_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "model"))
    local = composed("teacher=local", f"teacher.source={folder}", "student.layers=3", "dataset.max_length=64")
    assert said(faults(local)) == ["dataset.max_length=64", "student.layers=3"]
    (folder / "config.json").unlink()
    (fault,) = faults(local)
    assert fault.key == "teacher.source" and "config.json" in fault.problem


@dataclass
class Params:
    needs: ClassVar[frozenset[str]] = frozenset()
    low: float | None = option(or_none(above(0)))
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.low == 2:
            raise ValueError("method.low must not be 2 on Tuesdays")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"low": None, "weights": {"a": 1}}, []),
        ({"low": "high"}, ["KD014 wrong-type  method.low=high: must be a number (null, or above 0)"]),
        ({"low": 0}, ["KD015 out-of-range  method.low=0: must be null, or above 0"]),
        ({"low": 1, "weights": {"a": "b"}}, ["KD014 wrong-type  method.weights={a:b}: must be keys with values, {..}"]),
        ({"low": 1, "weights": {"a": {"_target_": "b"}}}, ["KD018 code-in-config  method.weights={a:{_target_:b}}: "]),
        ({"low": 2}, ["KD021 conflicting-values  method: method.low must not be 2 on Tuesdays"]),
    ],
)
def test_a_methods_own_parameters(
    cfg: DictConfig, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], expected: list[str]
) -> None:
    monkeypatch.setattr("kdbench.schema.declared", lambda module, name: Params)
    monkeypatch.setattr("kdbench.validation.values.run_keys", keys.run_keys.__wrapped__)  # without its cache
    monkeypatch.setattr("kdbench.validation.load._schema", load_module._schema.__wrapped__)
    cfg.method = {"name": "tfidf", **values}
    found = [str(fault) for fault in faults(cfg)]
    assert len(found) == len(expected) and all(map(str.startswith, found, expected)), found


# What no single key can know


@pytest.fixture
def run(theseus: DictConfig) -> RunConfig:
    return load(theseus)


def by(run: RunConfig, method: str, weights: str, layers: Any = "first") -> RunConfig:
    values = {"name": method, "init": InitConfig(weights, layers), "stages": {"training": run.schedule}}
    return replace(run, method=method_schema(method)(**values))


def test_widths(run: RunConfig) -> None:
    narrow = replace(run, student=replace(run.student, hidden=312, ffn=1200))
    assert said(cross_faults(narrow)) == ["student.hidden=312", "student.ffn=1200"]
    assert said(cross_faults(by(narrow, "finetune", "pretrained"))) == ["student.hidden=312", "student.ffn=1200"]
    assert cross_faults(by(narrow, "finetune", "random")) == []
    assert cross_faults(by(narrow, "tfidf", "random")) == []  # it builds no network


def test_heads(run: RunConfig) -> None:
    odd = replace(run, student=replace(run.student, hidden=100, heads=7))
    (fault,) = cross_faults(by(odd, "finetune", "random"))
    assert fault.text == "student.heads=7: must divide student.hidden=100. Legal: 1, 2, 4, 5, 10, 20, 25, 50, 100"


def test_layers(run: RunConfig) -> None:
    def deep(layers: int) -> RunConfig:
        return replace(run, student=replace(run.student, layers=layers))

    assert cross_faults(deep(2)) == cross_faults(deep(6)) == []
    (fault,) = cross_faults(deep(4))
    assert "teacher.layers=6" in fault.problem and fault.legal == "Legal: 1, 2, 3, 6"
    assert cross_faults(by(deep(4), "finetune", "pretrained")) == []
    assert said(cross_faults(by(deep(8), "finetune", "pretrained"))) == ["student.layers=8"]
    assert cross_faults(by(deep(8), "finetune", "random")) == []


@pytest.mark.parametrize(("layers", "fits"), [([0, 2, 5], True), ([0, 2], False), ([0, 2, 6], False), ("last", True)])
def test_lists_of_layers(run: RunConfig, layers: Any, fits: bool) -> None:
    assert (cross_faults(by(run, "finetune", "pretrained", layers)) == []) is fits


def test_a_method_with_an_encoder_needs_its_start(run: RunConfig) -> None:
    run.method.init = None
    assert said(cross_faults(run)) == ["method.init=null"]


def test_split_files_are_looked_for(run: RunConfig, data_folder: Path) -> None:
    dataset = replace(run.dataset, source=str(data_folder), sha256=None, text="text", label="label")
    there = replace(run, dataset=replace(dataset, splits=replace(dataset.splits, train="train.csv", test=None)))
    assert cross_faults(there) == []
    (fault,) = cross_faults(replace(run, dataset=replace(dataset, splits=replace(dataset.splits, train="trian.csv"))))
    assert fault.subject == "dataset.splits.train=trian.csv" and "train.csv" in fault.problem


@pytest.mark.parametrize("name", keys.method_names())
def test_needs_are_known_words(name: str) -> None:
    assert method_schema(name).needs <= NEEDS  # type: ignore[attr-defined]


# How it reads


def test_values_read_as_they_are_typed() -> None:
    assert shown([None, True, 0.1, "a", {"b": 2}]) == "[null,true,0.1,a,{b:2}]"
    assert len(shown("x" * 100)) == 60


def test_nearest() -> None:
    assert nearest("alhpa", ["alpha", "beta"]) == "alpha"
    assert nearest("zzz", ["alpha", "beta"]) == ""


def test_colours_are_for_terminals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault(Code.UNKNOWN_KEY, "a.b", "[bold]", "unknown key", "a.c", "Legal under a: c")
    print_faults([fault])
    plain = (
        "kdbench: 1 fault, nothing was run\n  KD012 unknown-key  a.b=[bold]: unknown key. Did you mean a.c?\n"
        "      Legal under a: c\n"
    )
    assert capsys.readouterr().err == plain
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_faults([fault])
    assert "\x1b[1;31ma.b" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    print_faults([fault])
    assert "\x1b[1;31m" not in capsys.readouterr().err


# --- data sets of one's own: what is refused at once is what the reader would refuse


def own(source: str, *overrides: str) -> DictConfig:
    return composed("method=tfidf", "dataset=files", "dataset.name=own", f'dataset.source="{source}"', *overrides)


@pytest.mark.parametrize(
    ("name", "content", "overrides"),
    [
        ("x.csv", "text;label\n", []),
        ("x.csv", "sep=;\ntext;label\n", []),
        ("x.csv", "\n\ntext,label\n", []),
        ("x.csv", "text~label\n", ['dataset.delimiter="~"']),
        ("x.tsv", "text\tlabel\n", ["dataset.delimiter=tab"]),
        ("x.csv", "a,b\n", ["dataset.header=false", "dataset.text=1", "dataset.label=2"]),
        ("x.csv", "text,a,b\n", ["dataset.label=[a,b]", "dataset.task=multi_label"]),
        ("x.jsonl", '{"m": {"b": "t"}}\n{"label": "x"}', ["dataset.text=m.b"]),
        ("x.json", '[{"text": "t", "label": "x"}]', []),
        ("x.json", '{"text": "t", "label": "x"}\n{"text": "t"}', []),
        ("ab:c.csv", "text,label\n", []),
        ("~t.csv", "text,label\n", []),
    ],
)
def test_what_the_reader_reads_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, overrides: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    assert faults(own(name, *overrides)) == []


@pytest.mark.parametrize(
    ("name", "content", "given", "subjects"),
    [
        ("x.csv", "text;label\n", ["dataset.delimiter=comma"], ["dataset.text=text", "dataset.label=label"]),
        ("x.csv", "body;stars\n", [], ["dataset.text=text", "dataset.label=label"]),
        ("x.csv", "a,b\n", ["dataset.header=false", "dataset.text=1"], ["dataset.label=label"]),
        ("x.jsonl", '{"m": {"c": "t"}, "label": "x"}', ["dataset.text=m.b"], ["dataset.text=m.b"]),
        ("x.docx", "", [], ["dataset.source=x.docx"]),
        ("none: at all.csv", None, [], ["dataset.source=none: at all.csv"]),
        ("zz:none.csv", None, [], ["dataset.source=zz:none.csv"]),
    ],
)
def test_one_fault_is_told_once_and_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str | None,
    given: list[str],
    subjects: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    found = faults(own(name, *given))
    assert said(found) == subjects and not any("\n" in fault.problem for fault in found)


def test_a_split_that_is_not_there_is_named_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "a: b.csv").write_text("text,label\n")
    (found,) = faults(own(str(tmp_path), 'dataset.splits.train="a: b.csv"', 'dataset.splits.test="c: d.csv"'))
    assert found.subject == "dataset.splits.test=c: d.csv" and "a: b.csv" in found.problem


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    (tmp_path / "x.csv").write_text("text,label\n")
    cfg = own("~/x.csv", 'outputs="~/runs"', 'cache_dir="~/cache"')
    assert faults(cfg) == []
    config = load(cfg)
    assert (config.dataset.source, config.outputs, config.cache_dir) == (
        str(tmp_path / "x.csv"), str(tmp_path / "runs"), str(tmp_path / "cache"),
    )  # fmt: skip
    teachers = composed("teacher=local", 'teacher.source="~/bert"', "student.layers=2")
    assert [fault.key for fault in faults(teachers)] == ["teacher.source"]  # looked for, and not there
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        whole = compose("config", overrides=['outputs="~/runs"'], return_hydra_config=True)
    assert whole.hydra.run.dir == whole.hydra.sweep.dir == str(tmp_path / "runs"), "Hydra makes that folder itself"


@pytest.mark.parametrize(
    ("words", "lr"),
    [
        (["teacher=bert_base_chinese"], 5e-5),
        (["teacher=mpnet_base"], 1e-4),
        (["teacher=mpnet_base", "student=own"], 3e-4),  # made of minilm_l6
        (["teacher=mpnet_base", "student=own", "teacher@student.encoder=roberta_base"], 2e-5),
        (["teacher=mpnet_base", "schedule=study"], 1.5e-4),
        (["teacher=mpnet_base", "schedule.lr=1e-3"], 1e-3),
        (["teacher=mpnet_base", "teacher.student_lr=2e-3"], 2e-3),
    ],
)
def test_the_learning_rate_follows_the_encoder_that_the_student_is_made_of(words, lr):
    made = load(composed("method=logit_kd", *words))
    assert made.schedule.lr == made.method.stages["training"].lr == lr
    assert made.teacher.schedule.lr == 2e-5 or words[0] != "teacher=mpnet_base"
