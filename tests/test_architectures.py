"""Runs with encoders of each architecture as teacher and student: what works, what is refused, and in which words."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdbench.cli import main as cli
from kdbench.errors import Code
from kdbench.models import students
from kdbench.runs.identity import run_id
from kdbench.runs.related import baseline
from kdbench.training import loop as train
from kdbench.training.hardware import settle
from kdbench.validation.architectures import kind_faults
from tests.conftest import ROOT
from tests.encoders import KINDS, write_encoder
from tests.test_methods import data_lines, same, weights

NEW = KINDS[1:]
FEW = ["schedule.steps=3", "teacher.schedule.steps=2", "dataset.max_train_samples=30", "dataset.max_length=14"]
SERVED = {  # method -> the architectures that it can bring together with themselves
    "finetune": KINDS, "logit_kd": KINDS, "two_stage": KINDS, "pkd": KINDS, "cascade": KINDS, "mlm": KINDS,
    "theseus": [kind for kind in KINDS if kind != "albert"],
    "bilstm": KINDS,
    "minilm": ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "mpnet"],
    "tinybert": ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "mpnet"],
    "distilbert": KINDS, "fastbert": KINDS,
    "prune": ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "mpnet"],
}  # fmt: skip
OWN = {  # what a method's own choice of student, made for a BERT, becomes
    "tinybert": ["student=full", "student.layers=2"],
    "distilbert": ["student=full", "student.layers=2"],
    "prune": ["student=full", "student.layers=4", "method.rounds=2"],
}
PLAIN = {kind: ["method.augment=false"] for kind in ("roberta", "xlm-roberta", "albert")}  # no word pieces


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_encoder(tmp_path_factory.mktemp("encoders") / kind, kind) for kind in KINDS}


def words(encoders: dict[str, Path], method: str, kind: str) -> list[str]:
    own = OWN.get(method, []) + (PLAIN.get(kind, []) if method == "tinybert" else [])
    return [f"method={method}", f"teacher.source={encoders[kind]}", *own]


def check_export(folder: Path) -> None:
    """The model's folder is one that transformers loads, FastBERT's kdbench, and gives the predictions of the run."""
    read = students.load if "fastbert" in folder.parent.name else AutoModelForSequenceClassification.from_pretrained
    model: Any = read(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    texts = [line.rsplit(",", 1)[0] for line in data_lines(folder)]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=14, return_tensors="pt")
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        logits = model(**given).logits
    rows = [r for r in pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist() if r["split"] == "test"]
    torch.testing.assert_close(logits, torch.tensor([row["logits"] for row in rows]), rtol=1e-4, atol=1e-5)
    assert [model.config.id2label[index] for index in range(3)] == ["fruit", "metal", "water"]


@pytest.mark.parametrize("kind", NEW)
def test_a_student_of_each_kind_learns_from_its_teacher(encoders, configure, execute, kind):
    result = execute(configure(*words(encoders, "logit_kd", kind), *FEW))
    folder = Path(result["folder"])
    assert folder.parent.name.startswith(f"{kind}_2l-") and result["flops_per_example"] > 0
    check_export(folder)
    before, after = load_file(encoders[kind] / "model.safetensors"), weights(result)
    shared = [name for name in before for own in after if own.endswith(name)]
    assert len(shared) > 10 and len(after) < len(before) + 5  # two layers of four, and a head


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), [(method, kind) for method in SERVED for kind in SERVED[method]])
def test_every_method_serves_the_kinds_that_it_says(encoders, configure, execute, method, kind):
    result = execute(configure(*words(encoders, method, kind), *FEW))
    if method not in ("cascade", "bilstm"):
        check_export(Path(result["folder"]))


def broken_off(configure: Any, execute: Any, monkeypatch: pytest.MonkeyPatch, at: int, given: Any) -> Any:
    """The run, killed after `at` steps of all its stages, and done again."""
    step, taken = train._Trainer._step, [0]

    def counted(self, batch):
        if taken[0] == at:
            raise KeyboardInterrupt
        taken[0] += 1
        step(self, batch)

    monkeypatch.setattr(train._Trainer, "_step", counted)
    with pytest.raises(KeyboardInterrupt):
        execute(configure(*given))
    monkeypatch.setattr(train._Trainer, "_step", step)
    return execute(configure(*given))


RESUMED = [("theseus", kind) for kind in SERVED["theseus"]] + [("logit_kd", kind) for kind in NEW]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), RESUMED)
def test_a_killed_run_ends_as_one_that_was_not(encoders, configure, execute, monkeypatch, tmp_path, method, kind):
    given = [*words(encoders, method, kind), *FEW, "checkpoint_every=1", "schedule.dropout=0.1"]
    whole = execute(configure(*given))
    elsewhere = [f"{key}={tmp_path / 'elsewhere' / key}" for key in ("outputs", "cache_dir")]  # it finds no teacher
    resumed = broken_off(configure, execute, monkeypatch, 4, [*given, *elsewhere])
    assert same(weights(whole), weights(resumed)) and whole["metrics"] == resumed["metrics"]


class TestAnEncoderOfTheStudentsOwn:
    @pytest.fixture
    def pair(self, encoders):
        return [
            "method=logit_kd", f"teacher.source={encoders['roberta']}", "student=own",
            "teacher@student.encoder=local", f"student.encoder.source={encoders['bert']}", "student.layers=2", *FEW,
        ]  # fmt: skip

    @pytest.fixture
    def bare_run(self, configure, execute, tmp_path):
        from kdbench.runs.context import Run
        from kdbench.training.hardware import accelerator

        def make(given):
            config = configure(*given)
            hardware = settle(config.hardware)

            def ensure(other):
                result = execute(other)
                return result, Path(result["folder"])

            return Run(config, hardware, accelerator(hardware), tmp_path / "run", ensure)

        return make

    def test_it_learns_the_logits_of_a_teacher_with_another_tokenizer(
        self, encoders, pair, configure, execute, bare_run
    ):
        result = execute(configure(*pair))
        folder = Path(result["folder"])
        check_export(folder)
        assert folder.parent.name.startswith("local_2l-")
        tokens = AutoTokenizer.from_pretrained(folder / "model")("apple pear")["input_ids"]
        assert tokens == AutoTokenizer.from_pretrained(encoders["bert"])("apple pear")["input_ids"]
        other = AutoTokenizer.from_pretrained(encoders["roberta"])
        assert tokens != other("apple pear")["input_ids"]
        self.check_targets(bare_run(pair), other)

    def check_targets(self, run, tokenizer):
        """The cached logits are those of the teacher on its own tokens, row by row."""
        batch = next(run.batches("training", "logits").epoch(0))
        rows = [run.data.train.ids.tolist().index(id_) for id_ in batch["ids"].tolist()]
        texts = [run.data.train.texts[row] for row in rows]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=14, return_tensors="pt")
        with torch.inference_mode():
            expected = run.teacher(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        torch.testing.assert_close(batch["teacher_logits"], expected, rtol=1e-5, atol=1e-5)

    def test_its_baseline_is_the_fine_tune_that_knows_no_teacher(self, encoders, pair, configure):
        alone = configure("method=finetune", f"teacher.source={encoders['bert']}", "student.layers=2", *FEW)
        config = configure(*pair)
        assert config.teacher.vocab_size != config.student.encoder.vocab_size
        assert run_id(baseline(config), settle(config.hardware)) == run_id(alone, settle(alone.hardware))
        assert baseline(config).method.init.weights == "pretrained"

    def test_where_tokens_are_compared_it_is_refused(self, pair, command_line):
        (fault,) = cli.refuse([*command_line(*pair[1:], "method=pkd")])
        assert (fault.code, fault.key) == (Code.INAPPLICABLE_KEY, "student.encoder") and "null" in fault.problem

    def test_a_folder_that_cannot_be_read_is_told_by_its_key(self, pair, command_line, tmp_path):
        (fault,) = cli.refuse(command_line(*pair, f"student.encoder.source={tmp_path / 'none'}"))
        assert (fault.code, fault.key) == (Code.MISSING_FILE, "student.encoder.source")


REFUSED = {  # what is asked -> code, key, what is legal
    "theseus albert": (Code.UNSUPPORTED_ARCHITECTURE, "teacher.architecture", "method=theseus"),
    "minilm deberta-v2": (Code.UNSUPPORTED_ARCHITECTURE, "teacher.architecture", "method=minilm"),
    "tinybert modernbert": (Code.UNSUPPORTED_ARCHITECTURE, "teacher.architecture", "method=tinybert"),
    "tinybert roberta method.augment=true": (Code.CONFLICTING_VALUES, "method.augment", ""),
    "tinybert electra method.relu_head=true": (Code.CONFLICTING_VALUES, "method.relu_head", ""),
    "logit_kd albert method.init.layers=last": (Code.UNUSABLE_START, "method.init.layers", "first"),
    "logit_kd modernbert method.init.layers=last": (Code.UNUSABLE_START, "method.init.layers", "layer 0"),
    "logit_kd roberta student.architecture=bert": (Code.UNUSABLE_START, "method.init.weights", "random"),
    "logit_kd bert student.architecture=electra": (
        Code.UNSUPPORTED_ARCHITECTURE,
        "student.architecture",
        "student.encoder",
    ),
    "prune albert": (Code.UNSUPPORTED_ARCHITECTURE, "teacher.architecture", "one set of weights"),
    "prune deberta-v2": (Code.UNSUPPORTED_ARCHITECTURE, "teacher.architecture", "further matrices"),
    "prune modernbert": (Code.UNSUPPORTED_ARCHITECTURE, "teacher.architecture", "share one matrix"),
    "finetune modernbert method.init.layers=contribution": (Code.UNUSABLE_START, "method.init.layers", "layer 0"),
    "theseus bert student.architecture=distilbert": (Code.UNSUPPORTED_ARCHITECTURE, "student.architecture", "bert"),
    "fastbert deberta-v2 export.onnx=true": (Code.UNSUPPORTED_EXPORT, "export.onnx", "branches"),
    "fastbert modernbert student=fastbert student.layers=2 method.init.layers=last": (
        Code.UNUSABLE_START,
        "method.init.layers",
        "layer 0",
    ),
    "logit_kd roberta dataset.max_length=33": (Code.MISMATCHED_SHAPE, "dataset.max_length", "32 or less"),
    "bilstm electra student.layers=1 student.embedding=9": (Code.MISMATCHED_SHAPE, "student.embedding", "8 or less"),
}


SAMPLE = ("theseus albert", "tinybert roberta", "logit_kd modernbert", "logit_kd roberta dataset")


@pytest.mark.parametrize(
    "asked", [asked if asked.startswith(SAMPLE) else pytest.param(asked, marks=pytest.mark.slow) for asked in REFUSED]
)
def test_what_cannot_be_is_refused_with_its_reason(encoders, command_line, tmp_path, asked):
    method, kind, *rest = asked.split()
    code, key, legal = REFUSED[asked]
    (fault,) = cli.refuse(command_line(*words(encoders, method, kind), *FEW, *rest))
    assert (fault.code, fault.key) == (code, key) and legal in str(fault)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("method", SERVED)
def test_what_a_method_says_it_serves_is_legal_and_all_else_is_refused(configure, method):
    config = configure(f"method={method}", *OWN.get(method, []), "student.layers=1")
    if method == "tinybert":
        config = replace(config, method=replace(config.method, augment=False))
    for kind in KINDS:
        student = config.student if method in ("bilstm", "fastbert") else replace(config.student, architecture=kind)
        teacher = replace(config.teacher, architecture=kind, source_architecture=kind)
        found = list(kind_faults(replace(config, teacher=teacher, student=student)))
        assert (found == []) == (kind in SERVED[method]), (kind, found)


CAMEMBERT = '''
"""CamemBERT (Martin et al. 2020): RoBERTa in French."""

from kdbench.declared import Architecture
from kdbench.models import roberta


class Traits(Architecture):
    model_type = "camembert"
    token_types = False
    prefix = "roberta."
    first_position = 2
    tokenizers = frozenset({"RobertaTokenizer"})


class Model(roberta.Model):
    pass
'''


@pytest.mark.slow
def test_a_new_encoder_is_one_file(encoders, command_line, tmp_path):
    for package in ("kdbench", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / package, tmp_path / "copy" / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "copy/kdbench/models/camembert.py").write_text(CAMEMBERT)
    encoder = shutil.copytree(encoders["roberta"], tmp_path / "camembert")
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(config | {"model_type": "camembert"}))
    for method in ("theseus", "minilm"):
        typed = command_line(f"method={method}", f"teacher.source={encoder}", *FEW)
        command = [sys.executable, "-m", "kdbench", *typed]
        done = subprocess.run(command, cwd=tmp_path / "copy", env=os.environ | {"PYTHONPATH": ""}, check=False)
        assert done.returncode == 0
        (folder,) = (tmp_path / "outputs/topics" / method).glob("camembert_2l-*/seed0")
        check_export(folder)
