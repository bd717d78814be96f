"""Figures to trust: the seed decides all, test labels nothing, and nothing is evaluated in training mode."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from kdbench.models import students
from kdbench.training.checkpoint import restore
from kdbench.training.finite import NonFiniteLoss
from tests.test_methods import METHODS
from tests.test_train import run, supervised, toy

FAST = ("logit_kd", "tfidf")
EACH = [method if method in FAST else pytest.param(method, marks=pytest.mark.slow) for method in METHODS]


def with_test_labels_moved(data_folder: Path, folder: Path) -> Path:
    """The data, in which every test row has another class's label."""
    names = ["fruit", "metal", "water"]
    header, *rows = (data_folder / "test.csv").read_text().splitlines()
    moved = [f"{text},{names[names.index(label) - 1]}" for text, label in (row.rsplit(",", 1) for row in rows)]
    folder.mkdir()
    for name in ("train.csv", "corpus.txt"):
        (folder / name).write_text((data_folder / name).read_text())
    (folder / "test.csv").write_text("\n".join([header, *moved]) + "\n")
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights that a run wrote, its stages' too."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.relative_to(folder)}:{name}": tensor for name, tensor in load_file(path).items()}
    return found


def losses(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.rglob("metrics.jsonl"))]


def logits(folder: Path) -> dict[str, list]:
    return {
        f"{row['split']}{row['id']}": row["logits"]
        for row in pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist()
    }


@pytest.mark.parametrize("method", EACH)
def test_the_same_seed_gives_the_same_run_whatever_the_test_labels_say(
    configure, execute, data_folder, tmp_path, method
):
    """Bit for bit, in other folders and from other states of the global generators. kdbench has no data workers:
    the order of the examples is a function of seed, epoch and position (tests/reliability/test_properties.py)."""
    results = []
    for number, data in enumerate((data_folder, with_test_labels_moved(data_folder, tmp_path / "moved"))):
        random.seed(number), np.random.seed(number), torch.manual_seed(number)
        places = [f"{key}={tmp_path / f'{key}{number}'}" for key in ("outputs", "cache_dir")]
        results.append(execute(configure(f"method={method}", f"dataset.source={data}", *places)))
    one, other = (Path(result["folder"]) for result in results)
    assert tensors(one).keys() == tensors(other).keys()
    assert all(torch.equal(a, b) for a, b in zip(tensors(one).values(), tensors(other).values(), strict=True))
    assert losses(one) == losses(other) and logits(one) == logits(other)
    assert results[0]["metrics"]["dev"] == results[1]["metrics"]["dev"]
    assert results[0]["metrics"]["test"] != results[1]["metrics"]["test"]


class Modes:
    """The modules that ran in training mode under inference, and how many ran at all."""

    def __init__(self) -> None:
        self.training: list[str] = []
        self.ran = 0

    def __call__(self, module: nn.Module, _: object) -> None:
        if torch.is_inference_mode_enabled():
            self.ran += 1
            # transformers makes a ReLU anew at each call of DistilBERT's head; it knows no mode
            self.training += [type(module).__name__] * (module.training and not isinstance(module, nn.ReLU))


@pytest.fixture
def modes():
    watch = Modes()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(watch)
    yield watch
    handle.remove()


def exports(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether any module was in training mode, for each model that is exported from now on."""
    seen: list[bool] = []
    save = students.save

    def watched(model, *others, **more):
        seen.append(any(module.training for module in model.modules()))
        save(model, *others, **more)

    monkeypatch.setattr(students, "save", watched)
    return seen


@pytest.mark.parametrize(
    "method", ["theseus", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m not in ("theseus", "tfidf"))]
)
def test_nothing_is_evaluated_or_exported_in_training_mode(configure, execute, monkeypatch, modes, method):
    exported = exports(monkeypatch)
    result = execute(configure(f"method={method}", "schedule.dropout=0.1"))
    assert modes.ran > 100 and modes.training == []
    assert exported and not any(exported)
    assert (result["precision"], result["device"], result["threads"]) == ("fp32", "cpu", 1)
    environment = json.loads((Path(result["folder"]) / "env.json").read_text())
    assert (environment["precision"], environment["device"], environment["threads"]) == ("fp32", "cpu", 1)


def test_the_watch_sees_a_model_that_was_left_in_training_mode(configure, execute, monkeypatch, modes):
    for kind in (nn.Module, transformers.PreTrainedModel):
        monkeypatch.setattr(kind, "eval", lambda self: self)
    exported = exports(monkeypatch)
    execute(configure("method=finetune", "schedule.steps=2"))
    assert "Dropout" in modes.training and any(exported)


def test_a_weight_that_is_not_finite_is_neither_saved_nor_kept(tmp_path):
    """A gradient can overflow under a finite loss: at 0 the root's slope is infinite."""
    model = toy()

    def objective(batch, step):
        terms = supervised(model)(batch, step)
        broken = (model.head.weight.sum() * 0).sqrt() if step == 9 else 0
        return terms._replace(losses={"ce": terms.losses["ce"] + broken})

    with pytest.raises(
        NonFiniteLoss, match=r"stage toy, step 10: student\.\S+ is not finite, but.*is .*checkpoint-5\."
    ):
        run(model, tmp_path, objective)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]
    modules = nn.ModuleDict({"student": toy()})
    ordered = sorted(modules.parameters(), key=lambda parameter: parameter.ndim < 2)  # as make_optimizer has them
    restore(tmp_path, modules, torch.optim.AdamW(ordered))
    assert all(parameter.isfinite().all() for parameter in modules.parameters())
