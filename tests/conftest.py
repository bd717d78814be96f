"""A tiny teacher and data set in a local folder, and runs composed from the real conf/: no network."""

import gc
import json
import locale
import os
import pickle
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import omegaconf._utils
import omegaconf.omegaconf
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf

from kdbench.cli.compose import conf_dir
from kdbench.runs.related import teacher_run
from kdbench.schema import GROUPS, RunConfig
from kdbench.validation.load import load
from tests.kept_graphs import keeping

torch.set_num_threads(
    1
)  # before kdbench.training.hardware takes it as torch's choice; tiny matrices gain nothing by two
for device in (torch.cuda, torch.xpu, torch.mtia):
    if not device.is_available():
        # would note the stack for later, a twentieth of a tiny run
        device.manual_seed_all = lambda seed: None  # type: ignore[attr-defined]

os.fsync = lambda fd: None  # what tests write need not outlive the machine


class QuickDumper(yaml.CSafeDumper):
    """OmegaConf's, in C: a run writes its config in a tenth of the time."""


QuickDumper.add_representer(str, omegaconf._utils.OmegaConfDumper.str_representer)
omegaconf.omegaconf.get_omega_conf_dumper = lambda: QuickDumper  # type: ignore[attr-defined]
plain_yaml = OmegaConf.to_yaml


def to_yaml(cfg: Any, **options: Any) -> str:
    """Write a run's config as it is, not as a DictConfig that is made for this: this takes a third of the time."""
    given = {"default_flow_style": False, "allow_unicode": True, "sort_keys": False, "Dumper": QuickDumper}
    return yaml.dump(cfg, **given) if isinstance(cfg, dict) and not options else plain_yaml(cfg, **options)


OmegaConf.to_yaml = staticmethod(to_yaml)  # type: ignore[method-assign]
with pytest.MonkeyPatch.context() as patch:  # its loader, in C as well: a run's config is read in a tenth of the time
    patch.setattr(yaml, "SafeLoader", yaml.CSafeLoader)
    QuickLoader = omegaconf._utils.get_yaml_loader()
omegaconf._utils.get_yaml_loader = lambda: QuickLoader

# Hypothesis: the same few examples each time; many, and others each time, with scripts/test --slow.
settings.register_profile("fast", max_examples=20, derandomize=True, deadline=None, database=None)
settings.register_profile("slow", max_examples=2000, deadline=None, database=None, print_blob=True)


def one_environment(home: str) -> None:
    """Give every test the same terminal, locale, time zone and home folder; a test of one of them sets its own."""
    matplotlib_fonts = os.environ.get("MPLCONFIGDIR") or str(Path.home() / ".cache" / "matplotlib")
    for name in list(os.environ):
        if name in FROM_THE_USER or name.startswith(("LC_", "XDG_", "KDBENCH_", "HF_", "HYDRA_")):
            del os.environ[name]
    os.environ |= {"COLUMNS": "80", "LINES": "24", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": home}
    os.environ |= {"MPLCONFIGDIR": matplotlib_fonts}  # else each process lists the fonts again, which takes seconds
    locale.setlocale(locale.LC_ALL, "")
    time.tzset()


FROM_THE_USER = {
    "LANG", "LANGUAGE", "TERM", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "PAGER",
}  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hardware", default="cpu_fp32", help="of the tiny runs; auto takes a GPU: scripts/bench/gpu")


def pytest_configure(config: pytest.Config) -> None:
    one_environment(tempfile.mkdtemp(prefix="kdbench-home-"))
    settings.load_profile("slow" if config.option.markexpr.startswith("slow") else "fast")


def pytest_collection_finish() -> None:
    """Look for garbage seldom, and not among the libraries' objects: a tenth of the time of tiny runs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


ROOT = Path(__file__).parents[1]
CONF = conf_dir()


@cache
def kept_yaml(path: str) -> bytes:
    with open(path, encoding="utf8") as file:
        return pickle.dumps(plain_load(file))


def load_yaml(file: Any) -> Any:
    """Parse each of kdbench's own YAMLs once: Hydra does so for each config that it composes, some forty of them."""
    path = str(getattr(file, "name", file))
    return pickle.loads(kept_yaml(path)) if path.startswith(str(CONF)) else plain_load(file)


plain_load = OmegaConf.load
OmegaConf.load = staticmethod(load_yaml)  # type: ignore[method-assign, assignment]

TOPICS = {"fruit": "apple pear plum grape", "metal": "iron gold zinc lead", "water": "lake river sea pond"}
FILLER = ["the", "a", "of", "is", "near", "big", "old", "new", "one", "two"]
ORACLES = json.loads((Path(__file__).parent / "oracles.json").read_text(encoding="utf8"))


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random four-layer BERT encoder with a WordPiece tokenizer of some forty words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("teacher")
    words = sorted({word for topic in TOPICS.values() for word in topic.split()} | set(FILLER))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf8")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: int, seed: int) -> None:
    draw = random.Random(seed)
    lines = ["text,label"]
    for _ in range(rows):
        label = draw.choice(sorted(TOPICS))
        words = draw.choices(TOPICS[label].split(), k=2) + draw.choices(FILLER, k=draw.randint(1, 9))
        draw.shuffle(words)
        lines.append(f"{' '.join(words)},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf8")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, rows) in enumerate({"train": 80, "test": 40}.items()):
        write_rows(folder / f"{name}.csv", rows, seed)
    draw = random.Random(9)
    words = [*FILLER, *(word for topic in TOPICS.values() for word in topic.split())]
    lines = (" ".join(draw.choices(words, k=9)) for _ in range(60))
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n", encoding="utf8")
    return folder


Configure = Callable[..., RunConfig]

# What makes each method's own student and stages tiny.
NARROW = ["student.hidden=8", "student.heads=2", "student.ffn=16"]
TINY = {
    "bilstm": ["student.hidden=6", "student.ffn=8", "student.embedding=8", "method.rounds=1"],
    "tinybert": [
        "student=tinybert_2l", *NARROW, "method.stages.general.steps=4", "method.stages.intermediate.epochs=1",
    ],
    "mobilebert": [
        *NARROW, "student.embedding=4", "student.bottleneck=4", "student.ffn_blocks=2", "method.ib_bottleneck=16",
        "method.ib_ffn=16", "method.stages.transfer.steps=4", "method.stages.distillation.steps=3",
    ],
    "distilbert": ["method.stages.pretraining.steps=4"],
    "minilm": ["method.stages.distillation.steps=4", "method.stages.assistant.steps=2"],
    "fastbert": ["student.layers=3"],
    "frozen": ["student.layers=4", "method.contrastive=true", "method.pairs=2"],
    "static": ["student.hidden=8", "student.ffn=6"],
    "prune": ["student=full", "student.layers=4", "method.rounds=2", "method.texts=40"],
}  # fmt: skip


@pytest.fixture
def command_line(
    teacher_folder: Path, data_folder: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> Callable[..., list[str]]:
    """`command_line("method=theseus", ...)` -> the words of a command that does a tiny run."""
    hardware = pytestconfig.getoption("--hardware")

    def make(*overrides: str) -> list[str]:
        tiny = [
            "teacher=local", f"teacher.source={teacher_folder}",
            "dataset=files", "dataset.name=topics", f"dataset.source={data_folder}",
            "dataset.splits.train=train.csv", "dataset.splits.test=test.csv", "dataset.max_length=16",
            "dataset.dev_fraction=0.25", "student.layers=2", "schedule.batch_size=8", "schedule.epochs=2",
            "schedule.steps=null", "teacher.schedule.epochs=1", "teacher.schedule.batch_size=8",
            "schedule.lr=1e-2", "teacher.schedule.lr=1e-2", "corpus=files", "corpus.name=tiny",
            f"corpus.running.source={data_folder}", "corpus.running.files={corpus.txt:''}", "corpus.max_length=12",
            "corpus.schedule.steps=3", "corpus.schedule.batch_size=8", f"hardware={hardware}", "checkpoint_every=5",
            f"outputs={tmp_path / 'outputs'}", f"cache_dir={tmp_path / 'cache'}",
        ]  # fmt: skip
        method = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("method=")), "theseus")
        own = [] if any(o.startswith("student=") for o in overrides) else TINY.get(method, [])
        raw = [f"dataset.unlabelled={data_folder / 'corpus.txt'}"] if method == "pseudo_label" else []
        return [*tiny, *own, *raw, *overrides]

    return make


@cache
def chosen(words: tuple[str, ...]) -> bytes:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return pickle.dumps(compose("config", overrides=[*words]))


@cache
def parsed(word: str) -> tuple[str, Any]:
    (override,) = OverridesParser.create().parse_overrides([word])
    return override.key_or_group, override.value()


def composed(words: tuple[str, ...]) -> DictConfig:
    """Compose as Hydra does: the choices, kept for other tests, and after them the values, as Hydra sets them."""
    values = [word for word in words if VALUE.match(word)]
    cfg: DictConfig = pickle.loads(chosen(tuple(word for word in words if not VALUE.match(word))))
    for word in values:
        key, value = parsed(word)
        OmegaConf.update(cfg, key, value, merge=True, force_add=word.startswith("++"))
    return cfg


TOP = "|".join(field.name for field in fields(RunConfig) if field.name not in (*GROUPS, "export", "track"))
VALUE = re.compile(rf"(?:(?:\+\+)?[a-z]\w*\.[\w.]+|{TOP})=")  # a key; a choice has no dot, or an @


@cache
def loaded(words: tuple[str, ...]) -> RunConfig:
    return load(composed(words))


@pytest.fixture
def configure(command_line: Callable[..., list[str]]) -> Configure:
    """`configure("method=theseus", ...)` -> a tiny RunConfig from the real conf/."""

    def make(*overrides: str) -> RunConfig:
        words = command_line(*overrides)
        places = [word for word in words if word.startswith(("outputs=", "cache_dir="))]
        others = tuple(word for word in words if word not in places)  # many tests have the same
        anew = any(word.startswith("teacher.") for word in overrides)  # its folder may be another by now
        config = load(composed(others)) if anew else deepcopy(loaded(others))
        given = dict(word.split("=", 1) for word in places)
        return replace(config, outputs=given["outputs"], cache_dir=given["cache_dir"])

    return make


@pytest.fixture(scope="session")
def oracles() -> dict[str, Any]:
    return ORACLES


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the time of a tiny model only as long as it takes to have one."""
    from kdbench.inference import measure

    monkeypatch.setattr(measure, "latency", partial(measure.latency, rounds=2, seconds=1e-6))


@pytest.fixture
def execute() -> Callable[[RunConfig], dict[str, Any]]:
    """Do a run as the command does."""
    from kdbench.runs import execute as run

    def do(config: RunConfig) -> dict[str, Any]:
        return run.execute(config, choices={}, command="test", baseline_command=lambda other: "kdbench ...")

    return do


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once and read by many tests, the same for all of xdist's workers."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"


@pytest.fixture(scope="session", autouse=True)
def each_structure_is_exported_once(shared_folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", keeping(shared_folder / "graphs"))
        yield


@pytest.fixture
def taught(
    configure: Configure, execute: Callable[[RunConfig], dict[str, Any]], shared_folder: Path, tmp_path: Path
) -> None:
    """Put the teacher of the tiny runs into the test's outputs; it is trained once for all tests."""
    made = shared_folder / "teacher"
    execute(teacher_run(configure(f"outputs={made}", f"cache_dir={shared_folder / 'cache'}")))
    shutil.copytree(made, tmp_path / "outputs", dirs_exist_ok=True)


@pytest.fixture
def finished(
    configure: Configure,
    execute: Callable[[RunConfig], dict[str, Any]],
    shared_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., dict[str, Any]]:
    """`finished(method)` -> the result of its tiny run, done by the first test that asks for it; a test only reads it.

    `finished(method, copy)` is that run in a copy of its outputs, which a test may change.
    """

    def find(method: str, copy: Path | None = None) -> dict[str, Any]:
        made = shared_folder / method  # the teacher comes from another's outputs, by the cache that all have
        result = execute(configure(f"method={method}", f"outputs={made}", f"cache_dir={shared_folder / 'cache'}"))
        capsys.readouterr()
        if copy is None:
            return result
        shutil.copytree(made, copy)
        return result | {"folder": str(copy / Path(result["folder"]).relative_to(made))}

    return find


@pytest.fixture
def finetuned(finished: Callable[..., dict[str, Any]]) -> str:
    """Return the folder of a finished run of method=finetune, which a test only reads."""
    return str(finished("finetune")["folder"])
