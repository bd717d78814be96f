"""Every method, found by its file: end to end on a tiny teacher, with the properties that all must have."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import kdbench
from kdbench.declared import declared
from kdbench.runs.related import uses_teacher
from kdbench.schema import method_module
from kdbench.training import loop as train

ROOT = Path(__file__).parents[1]
METHODS = sorted(path.stem for path in (ROOT / "kdbench/methods").glob("*.py") if path.stem[0] != "_")
NETWORKS = [method for method in METHODS if method not in ("tfidf", "cascade", "answers")]
GENERAL = ("mlm", "distilbert", "tinybert", "minilm", "mobilebert")  # have stages before the task
OWN_FORM = ("bilstm", "fastbert", "frozen", "static")  # exports that only kdbench.load reads


def weights(result: dict) -> dict[str, torch.Tensor]:
    if result["identity"]["method"] not in NETWORKS:
        return {}
    return load_file(Path(result["folder"]) / "model" / "model.safetensors")


def done_at(result: dict) -> int:
    return (Path(result["folder"]) / "results.json").stat().st_mtime_ns


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steady(result: dict) -> dict:
    """What the method reported, without measured times."""
    return {name: value for name, value in result["reported"].items() if not name.startswith("latency")}


def test_each_method_has_its_yaml_and_the_other_way_round():
    assert sorted(path.stem for path in (ROOT / "conf/method").glob("*.yaml")) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_the_declared_keys_are_those_of_the_imported_file(method):
    """`declared` runs a part of a method's file, so that a refusal loads no torch."""

    def said(params):
        fields = [(field.name, field.type, field.default) for field in dataclasses.fields(params)]
        return fields, {name: value for name, value in vars(params).items() if isinstance(value, frozenset | tuple)}

    assert said(declared(f"kdbench.methods.{method}", "Params")) == said(method_module(method).Params)


@pytest.mark.parametrize("method", METHODS)
def test_end_to_end(finished, method):
    result = finished(method)
    folder = Path(result["folder"])
    assert folder.parts[-3] == method and folder.name == "seed0"
    assert result["metrics"]["test"]["n"] == 40 and 0 <= result["metrics"]["test"]["accuracy"] <= 1
    assert json.loads((folder / "results.json").read_text())["metrics"] == result["metrics"]
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "env.json", "run.log", "predictions.parquet"}


@pytest.mark.parametrize("method", ["theseus", *(name for name in METHODS if name not in NETWORKS)])
def test_done_again_with_the_teacher_found_it_is_the_same(configure, execute, finished, tmp_path, method):
    first = finished(method, tmp_path / "outputs")
    before, done = weights(first), done_at(first)
    teachers = {path: path.read_bytes() for path in (tmp_path / "outputs/topics/finetune").rglob("model.safetensors")}
    config = configure(f"method={method}", "rerun=true")
    again = execute(config)
    assert again["folder"] == first["folder"] and done_at(again) > done
    assert same(before, weights(again))
    assert first["metrics"] == again["metrics"]
    if uses_teacher(config):
        assert teachers and all(path.read_bytes() == content for path, content in teachers.items())
        assert again["teacher"] == first["teacher"]
    done = done_at(again)
    assert execute(configure(f"method={method}")) == again  # found, not done a third time
    assert done_at(again) == done


@pytest.mark.parametrize("method", NETWORKS)
@pytest.mark.parametrize("broken_at", [3, pytest.param(13, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_unbroken(configure, execute, finished, tmp_path, monkeypatch, method, broken_at):
    """It breaks in a stage of its own or before the task; its teacher is found."""
    whole = finished(method, tmp_path / "outputs")
    before, done, config = weights(whole), done_at(whole), configure(f"method={method}")
    teachers = {path: path.read_bytes() for path in (tmp_path / "outputs/topics/finetune").rglob("model.safetensors")}
    shutil.rmtree(tmp_path / "outputs/tiny", ignore_errors=True)
    step = train._Trainer._step
    taken: list[tuple[str, int]] = []

    def counted(self, batch, stop_at=None):
        if len(taken) == stop_at:
            raise KeyboardInterrupt
        taken.append((str(self.folder), self.progress.step))
        step(self, batch)

    monkeypatch.setattr(train._Trainer, "_step", lambda self, batch: counted(self, batch, broken_at))
    with pytest.raises(KeyboardInterrupt):
        execute(replace(config, rerun=True, checkpoint_every=2))  # so that the third step has one to go on from
    monkeypatch.setattr(train._Trainer, "_step", counted)
    resumed = execute(config)
    assert resumed["folder"] == whole["folder"] and done_at(resumed) > done
    assert same(before, weights(resumed))
    assert whole["metrics"] == resumed["metrics"] and steady(whole) == steady(resumed)
    if uses_teacher(config):
        assert teachers and all(path.read_bytes() == content for path, content in teachers.items())
        assert resumed["teacher"] == whole["teacher"]
    assert execute(config) == resumed  # found
    assert len(taken) - len(set(taken)) <= 5  # checkpoint_every


@pytest.mark.parametrize("method", NETWORKS)
def test_the_export_gives_the_same_logits(finished, method):
    folder = Path(finished(method)["folder"])
    loaders: list[Callable[[Path], Any]] = [kdbench.load]
    if method not in OWN_FORM:
        loaders.append(AutoModelForSequenceClassification.from_pretrained)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    import pyarrow.parquet

    rows = [r for r in pyarrow.parquet.read_table(folder / "predictions.parquet").to_pylist() if r["split"] == "test"]
    texts = [line.rsplit(",", 1)[0] for line in data_lines(folder)]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    for load in loaders:
        model = load(folder / "model").eval()
        with torch.inference_mode():
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        torch.testing.assert_close(logits, torch.tensor([row["logits"] for row in rows]), rtol=1e-4, atol=1e-5)
        assert [model.config.id2label[index] for index in range(3)] == ["fruit", "metal", "water"]


def data_lines(folder: Path) -> list[str]:
    from omegaconf import OmegaConf

    config = OmegaConf.load(folder / "config.yaml")
    return (Path(config.dataset.source) / "test.csv").read_text().splitlines()[1:]


@pytest.mark.parametrize("method", NETWORKS)
def test_the_seed_decides(configure, execute, finished, tmp_path, method):
    results = [finished(method, tmp_path / "outputs"), execute(configure(f"method={method}", "seed=1"))]
    assert results[0]["id"] == results[1]["id"]
    assert not same(weights(results[0]), weights(results[1]))
    general = [path for path in (tmp_path / "outputs/tiny" / method).glob("*/seed*") if path.is_dir()]
    assert len(general) == (method in GENERAL)  # which the seeds share
    if general:
        assert results[0]["cost"]["general_seconds"] == results[1]["cost"]["general_seconds"] > 0
