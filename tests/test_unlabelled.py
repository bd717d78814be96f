"""Runs with texts without labels: a student learns from them, the same after a kill, and the record says so."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdbench.storage.results import read_result
from kdbench.training.interrupts import Stopped
from kdbench.validation.load import load
from tests.conftest import composed

pytestmark = pytest.mark.usefixtures("taught")


def weights(result) -> dict[str, torch.Tensor]:
    return load_file(Path(result["folder"]) / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def raw(tmp_path, data_folder) -> str:
    """Thirty texts like those of train, in a file with another column."""
    lines = (data_folder / "corpus.txt").read_text(encoding="utf8").splitlines()[:30]
    path = tmp_path / "raw.csv"
    path.write_text("\n".join(["note,text", *(f"x,{line}" for line in lines)]) + "\n", encoding="utf8")
    return f"dataset.unlabelled={path}"


@pytest.mark.parametrize("share", ["null", "0.5"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(configure, execute, finished, raw, share):
    words = ["method=logit_kd", f"method.unlabelled_share={share}", raw]
    whole = execute(configure(*words))
    steps = {"null": 2 * 12, "0.5": 2 * 8}[share]  # of 60 and 30 texts, or of 30 and 30, in batches of 8; two epochs
    assert whole["cost"]["steps"] == steps
    assert whole["data"]["unlabelled"]["rows"] == 30 and whole["data"]["splits"]["unlabelled"]["rows"] == 30
    before = weights(whole)
    alone = finished("logit_kd")
    assert alone["id"] != whole["id"] and not same(before, weights(alone))
    with pytest.raises(Stopped):
        execute(configure(*words, "rerun=true", "preempt_at=7"))
    assert read_result(Path(whole["folder"])) is None
    assert same(before, weights(execute(configure(*words))))


@pytest.mark.parametrize("method", ["pkd", "bilstm", "fastbert", "prune"])
def test_other_methods_learn_from_them_too(configure, execute, finished, raw, method):
    own = ["method.alpha=0.5"] if method in ("prune", "pkd") else []
    result = execute(configure(f"method={method}", *own, raw))
    alone = execute(configure(f"method={method}", *own)) if own else finished(method)
    assert result["data"]["unlabelled"]["rows"] == 30 and alone["data"]["unlabelled"] is None
    assert result["id"] != alone["id"] and result["cost"]["steps"] > alone["cost"]["steps"]
    assert result["baseline_id"] == alone["baseline_id"]


def test_the_teacher_s_answers_are_labels_for_a_network_and_for_tfidf(configure, execute, raw):
    network = execute(configure("method=pseudo_label", raw))
    assert network["reported"]["pseudo_labels"] == {"texts": 30, "kept": 30}
    surer = execute(configure("method=pseudo_label", "method.kept_share=0.5", raw))
    assert surer["reported"]["pseudo_labels"]["kept"] in (15, 16) and surer["id"] != network["id"]
    tfidf = execute(configure("method=tfidf", "method.pseudo_labels=true", raw))
    assert tfidf["reported"]["tried"]["words up to 1"]["train_texts"] == 60 + 30
    assert tfidf["teacher"]["id"] == network["teacher"]["id"]


def test_a_corpus_may_be_the_task_s_own_texts():
    words = ("method=mlm", "corpus=task", "dataset=tweet_sentiment", "dataset.max_train_samples=1000")
    config = load(composed((*words, "+dataset.unlabelled=rest")))
    assert config.corpus is not None
    assert config.corpus.datasets == {"task": config.dataset} and config.dataset.unlabelled == "rest"
    assert config.corpus.max_length == config.dataset.max_length
