"""Texts without labels: which are left, how batches mix them, and what a student learns from them."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdbench.data.batches import Examples, TrainBatches
from kdbench.data.datasets import Split, load_dataset
from kdbench.data.stored import stored_dataset
from kdbench.data.tokenize import Tokens
from kdbench.data.unlabelled import NEAR, normalised, stored_unlabelled
from kdbench.errors import Code, SettingError
from kdbench.losses import IGNORED
from kdbench.objectives import soft_and_hard
from kdbench.options import SoftAndHard
from kdbench.runs.identity import run_id
from kdbench.runs.pseudo_labels import surest
from kdbench.training.hardware import settle
from kdbench.training.processes import shares
from tests.data.test_datasets import config, write
from tests.refusals import refused

WORDS = ["alpha", "bravo", "delta", "echo", "golf", "hotel", "india", "kilo", "lima", "mike", "oscar", "papa"]


def sentence(number: int) -> str:
    """A sentence that is like no other: eight words, drawn by its number."""
    return " ".join(np.random.default_rng(number).choice(WORDS, 8))


def rows(numbers: range) -> list[tuple[str, str]]:
    return [(sentence(number), "ab"[number % 2]) for number in numbers]


def transfer(tmp_path: Path, raw: list[str], **keys: object):
    """The data set of 40 train, 10 dev and 10 test rows, and `raw` beside it."""
    write(tmp_path / "train.csv", rows(range(40)))
    write(tmp_path / "dev.csv", rows(range(40, 50)))
    write(tmp_path / "test.csv", rows(range(50, 60)))
    with (tmp_path / "raw.csv").open("w", encoding="utf8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in raw)])
    made = config(tmp_path, "train.csv", "dev.csv", "test.csv", unlabelled=str(tmp_path / "raw.csv"), **keys)
    data = stored_dataset(made, tmp_path / "cache")
    return data, stored_unlabelled(made, data, tmp_path / "cache")


def test_blank_repeated_and_known_texts_are_dropped_and_counted(tmp_path):
    new = [sentence(100), sentence(101)]
    shouted = sentence(55).upper().replace(" ", "   ")
    raw = ["", new[0], "  ", new[0] + "  ", sentence(3), sentence(41), shouted, new[1]]
    data, found = transfer(tmp_path, raw)
    assert list(found.split.texts) == new
    dropped = {"blank": 2, "repeated": 1, "in_train": 1, "in_dev_or_test": 2, "near_dev_or_test": 0}
    assert found.report["dropped"] == dropped
    assert (found.report["rows"], found.report["read"]) == (2, 8)
    assert found.split.labelled is not None and not found.split.labelled.any()
    assert not set(found.split.ids) & {*data.train.ids, *data.dev.ids, *data.test.ids}


def test_near_copies_are_those_with_most_character_5_grams_in_common(tmp_path):
    text = " ".join(sentence(50 + part) for part in range(2))  # of two test texts: like neither of them
    near, far = sentence(51) + "!", sentence(51).replace("a", "o").replace("i", "u")

    def index(one: str, two: str) -> float:
        a, b = ({t[at : at + 5] for at in range(len(t) - 4)} for t in (normalised(one), normalised(two)))
        return len(a & b) / len(a | b)

    assert index(near, sentence(51)) >= NEAR > index(far, sentence(51))
    _, found = transfer(tmp_path, [near, far, text])
    assert list(found.split.texts) == [far, text]
    assert found.report["dropped"]["near_dev_or_test"] == 1


@pytest.mark.parametrize(
    ("one", "two", "alike"),
    [
        ("See https://a.b/c now", "see http://x.y now", True),
        ("Flight 123 was late", "flight  9 was LATE", True),
        ("good", "good.", False),
        ("天气 很好", "天气很好", False),
    ],
)
def test_what_counts_as_the_same_text(one, two, alike):
    assert (normalised(one) == normalised(two)) == alike


def test_the_rest_is_what_the_limit_leaves_of_train(tmp_path):
    path = write(tmp_path / "x.csv", rows(range(60)))
    made = config(path, max_train_samples=10, max_dev_samples=4, unlabelled="rest")
    data = stored_dataset(made, tmp_path)
    whole = load_dataset(replace(made, max_train_samples=None), tmp_path).train
    found = stored_unlabelled(made, data, tmp_path).split
    assert sorted([*found.ids, *data.train.ids]) == sorted(whole.ids)
    assert list(found.texts) == [sentence(number) for number in found.ids]
    assert not found.labels.any()  # placeholders: the labels of these rows are not known to the run


def test_a_limit_takes_a_subset_and_a_smaller_one_a_subset_of_that(tmp_path):
    raw = [sentence(number) for number in range(100, 160)]
    found = [set(transfer(tmp_path, raw, max_unlabelled_samples=most)[1].split.texts) for most in (10, 30, None)]
    assert [len(one) for one in found] == [10, 30, 60] and found[0] < found[1] < found[2]


def test_the_same_content_elsewhere_is_the_same_and_comes_from_the_cache(tmp_path):
    data, first = transfer(tmp_path, [sentence(100)])
    moved = (tmp_path / "raw.csv").rename(tmp_path / "moved.csv")
    made = config(tmp_path, "train.csv", "dev.csv", "test.csv", unlabelled=str(moved))
    again = stored_unlabelled(made, data, tmp_path / "cache")
    assert list(again.split.texts) == list(first.split.texts)
    assert again.report == first.report | {"source": str(moved)}
    assert len(list((tmp_path / "cache/unlabelled").glob("[!.]*/about.json"))) == 1


def test_pairs_are_read_and_compared_as_pairs(tmp_path):
    for name, numbers in {"train": range(20), "dev": range(20, 30), "test": range(30, 40)}.items():
        lines = [f"{sentence(n)},{sentence(n + 1000)},{'ab'[n % 2]}" for n in numbers]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,other,label", *lines]) + "\n", encoding="utf8")
    known, new = (sentence(35), sentence(1035)), (sentence(35), sentence(2000))
    raw = "\n".join(["text,other", *(",".join(one) for one in (known, new))])
    (tmp_path / "raw.csv").write_text(raw + "\n", encoding="utf8")
    keys = {"text_pair": "other", "unlabelled": str(tmp_path / "raw.csv")}
    made = config(tmp_path, "train.csv", "dev.csv", "test.csv", **keys)
    found = stored_unlabelled(made, stored_dataset(made, tmp_path / "cache"), tmp_path / "cache").split
    assert found.inputs == [new]


class TestRefusals:
    @pytest.mark.parametrize("raw", [[], ["", " "], [sentence(3), sentence(45), sentence(55).upper()]])
    def test_no_text_is_left(self, tmp_path, raw):
        with refused(Code.TOO_FEW_ROWS, "dataset.unlabelled"):
            transfer(tmp_path, raw)
        assert not [one for one in (tmp_path / "cache/unlabelled").glob("*") if one.is_dir()]

    @pytest.mark.parametrize(
        ("given", "code"),
        [
            ("rest", Code.CONFLICTING_VALUES),
            ("nowhere.csv", Code.MISSING_FILE),
            ("pypi:a==1", Code.INVALID_SOURCE),
            ("hub:org/name", Code.INVALID_SOURCE),
            ("empty", Code.INVALID_SOURCE),
        ],
    )
    def test_a_source_that_is_none(self, tmp_path, monkeypatch, given, code):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        made = config(write(tmp_path / "x.csv", rows(range(30))), unlabelled=given)
        with refused(code, "dataset.unlabelled", given, kind=SettingError):
            stored_unlabelled(made, stored_dataset(made, tmp_path), tmp_path)

    @pytest.mark.parametrize(
        ("content", "code", "told"),
        [
            (b"body\nsome text\n", Code.MISSING_COLUMN, "body"),
            (b"", Code.UNREADABLE_TABLE, ""),
            ("text\ncaf\xe9\n".encode("latin-1"), Code.WRONG_ENCODING, "UTF-8"),
        ],
    )
    def test_a_file_that_cannot_be_read(self, tmp_path, content, code, told):
        made = config(write(tmp_path / "x.csv", rows(range(30))), unlabelled=str(tmp_path / "raw.csv"))
        (tmp_path / "raw.csv").write_bytes(content)
        with refused(code, "dataset.unlabelled", "raw.csv", told, kind=SettingError):
            stored_unlabelled(made, stored_dataset(made, tmp_path), tmp_path)


def examples(labelled: list[bool], answered: list[bool] | None = None) -> Examples:
    """Texts of three classes. One without an answer has NaN, which must reach no sum."""
    n = len(labelled)
    lengths = np.arange(n) % 5 + 3
    flat = np.random.default_rng(0).integers(1, 30, lengths.sum()).astype(np.int32)
    tokens = Tokens("t", flat, np.concatenate([[0], lengths.cumsum()]))
    teacher = {"teacher_logits": torch.randn(n, 3, generator=torch.Generator().manual_seed(0))}
    if answered is not None:
        teacher["teacher_logits"][~torch.tensor(answered)] = torch.nan
    known = None if answered is None else np.array(answered)
    return Examples(tokens, np.arange(n), np.arange(n) % 3, 0, teacher, np.array(labelled), answered=known)


def test_an_epoch_has_each_text_once_or_the_asked_share_without_labels():
    made = examples([True] * 6 + [False] * 30)

    def epoch(share: float | None, number: int) -> list[int]:
        batches = TrainBatches(made, 8, 0, share)
        got = [batch["ids"].tolist() for batch in batches.epoch(number)]
        assert len(got) == len(batches)
        return [row for rows in got for row in rows]

    assert sorted(epoch(None, 0)) == list(range(36))
    for share in (0.1, 0.5, 0.9):
        counts = Counter(epoch(share, 1))
        assert all(counts[row] == 1 for row in range(6, 36))
        of_labelled = [counts[row] for row in range(6)]
        assert max(of_labelled) - min(of_labelled) <= 1  # each once before one of them again
        assert 30 / sum(counts.values()) == pytest.approx(share, abs=0.01)
    assert epoch(0.5, 1) != epoch(0.5, 2) and epoch(0.5, 1) == epoch(0.5, 1)


SOFT = SoftAndHard(0.3, None, 2.0, "batchmean", True)
MEAN = SoftAndHard(0.3, None, 2.0, "elementmean", True)


@pytest.mark.parametrize("p", [SOFT, MEAN])
@pytest.mark.parametrize("answered", [None, [True, True, False, False, True]])
def test_terms_are_means_over_all_texts_to_which_one_without_a_label_or_answer_adds_nothing(p, answered):
    labelled = [True, False, False, True, False]
    batch = examples(labelled, answered).batch(np.arange(5))
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = soft_and_hard("classification", z, batch, p)
    soft, hard = 0.0, 0.0
    elements = 5 * {"batchmean": 1, "elementmean": 3}[p.reduction]
    for row in range(5):  # by hand, a text at a time
        if answered is None or answered[row]:
            t = (batch["teacher_logits"][row].double() / 2).softmax(-1)
            q = (z[row].detach() / 2).log_softmax(-1)
            soft += 0.3 * 4 * float((t * (t.log() - q)).sum()) / elements
        if labelled[row]:
            hard -= 0.7 * float(z[row].detach().log_softmax(-1)[batch["labels"][row]]) / 5
    assert found["soft"].item() == pytest.approx(soft, rel=1e-5)
    assert found["hard"].item() == pytest.approx(hard, rel=1e-5)
    (of_soft,) = torch.autograd.grad(found["soft"], z, retain_graph=True)
    known = torch.tensor(answered or [True] * 5)
    assert of_soft.isfinite().all() and not of_soft[~known].any() and of_soft[known].any(1).all()


def test_a_batch_without_any_answer_has_no_soft_term():
    batch = examples([True] * 3, [False] * 3).batch(np.arange(3))
    z = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = soft_and_hard("classification", z, batch, SOFT)
    (gradient,) = torch.autograd.grad(found["soft"], z, retain_graph=True)
    assert found["soft"].item() == 0 and not gradient.any() and found["hard"].item() > 0


@pytest.mark.parametrize("passes", [2, 3, 5])
def test_shares_of_a_batch_add_up_to_its_loss(passes):
    batch = examples(
        [True, False, False, True, False, False, True], [True, True, False, False, False, True, True]
    ).batch(np.arange(7))
    table = torch.randn(30, 3, generator=torch.Generator().manual_seed(2))

    class One:
        num_processes, process_index, device = 1, 0, torch.device("cpu")

    def losses(part):
        return soft_and_hard("classification", table[part["input_ids"][:, 0]], part, SOFT)

    for name, whole in losses(batch).items():
        total = sum(losses(part)[name] * weights["examples"] for part, weights in shares(batch, One, passes))
        torch.testing.assert_close(total, whole)


def test_words_of_a_text_without_labels_have_a_soft_term_only():
    labels = torch.tensor([[IGNORED, 1, 0, IGNORED], [IGNORED, 0, 0, 0]])
    z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(3))
    batch: Any = {"labels": labels, "labelled": torch.tensor([True, False]), "teacher_logits": torch.zeros(2, 4, 3)}
    found = soft_and_hard("token_classification", z, batch, SOFT)
    by_hand = F.cross_entropy(z[0, 1:3], labels[0, 1:3], reduction="sum") / 5  # of five words with logits
    torch.testing.assert_close(found["hard"], 0.7 * by_hand)
    other: Any = batch | {"labels": torch.where(labels == IGNORED, IGNORED, 2)}
    torch.testing.assert_close(found["soft"], soft_and_hard("token_classification", z, other, SOFT)["soft"])


def test_joined_splits_keep_order_and_say_what_has_a_label():
    train = Split(np.arange(3), ["a", "b", "c"], np.array([0, 1, 1]))
    raw = Split(np.array([7, 9]), ["d", "e"], np.zeros(2, np.int64), None, np.zeros(2, np.bool_))
    both = train.followed_by(raw)
    assert list(both.texts) == ["a", "b", "c", "d", "e"] and both.ids.tolist() == [0, 1, 2, 7, 9]
    assert both.labelled is not None and both.labelled.tolist() == [True, True, True, False, False]
    part = both.take(np.array([4, 0]))
    assert part.labelled is not None and part.labelled.tolist() == [False, True]


def test_only_a_method_that_reads_them_has_them_in_its_id(configure, data_folder, tmp_path):
    texts = [data_folder / "corpus.txt", tmp_path / "other.txt"]
    texts[1].write_text("another text\n", encoding="utf8")

    def id_of(*words: str) -> str:
        made = configure(*words)
        return run_id(made, settle(made.hardware))

    for method, reads in (("finetune", False), ("tfidf", False), ("theseus", False), ("logit_kd", True)):
        choices = [[], *([f"dataset.unlabelled={path}"] for path in texts)]
        given = [id_of(f"method={method}", *choice) for choice in choices]
        assert len(set(given)) == (3 if reads else 1), method
    one = f"dataset.unlabelled={texts[0]}"
    assert id_of("method=logit_kd", "method.alpha=0") == id_of("method=logit_kd", "method.alpha=0", one)
    assert len({id_of("method=logit_kd", one, *more) for more in ([], ["method.unlabelled_share=0.5"])}) == 2
    assert len({id_of("method=logit_kd", *more) for more in ([], ["method.unlabelled_share=0.5"])}) == 1


def test_the_surest_share_of_each_answer_above_the_threshold():
    answers = np.array([0, 0, 0, 0, 1, 1, 2])
    sure = torch.tensor([0.9, 0.5, 0.8, 0.6, 0.55, 0.95, 0.4])
    assert surest(sure, answers, 0.0, 1.0).tolist() == list(range(7))
    assert surest(sure, answers, 0.6, 1.0).tolist() == [0, 2, 3, 5]
    assert surest(sure, answers, 0.0, 0.5).tolist() == [0, 2, 5, 6]
    assert surest(sure, answers, 0.85, 0.5).tolist() == [0, 5]


def test_a_limited_train_has_a_small_dev(tmp_path):
    path = write(tmp_path / "x.csv", rows(range(1000)))
    whole = load_dataset(config(path, dev_fraction=0.1), tmp_path)
    assert [len(whole.train), len(whole.dev)] == [720, 80]
    limited = load_dataset(config(path, dev_fraction=0.1, max_train_samples=360), tmp_path)
    assert [len(limited.train), len(limited.dev)] == [360, 40]  # in proportion
    few = load_dataset(config(path, dev_fraction=0.1, max_train_samples=36), tmp_path)
    assert [len(few.train), len(few.dev)] == [36, 20]  # the floor: ten of each class
    fewest = load_dataset(config(path, dev_fraction=0.1, max_train_samples=12), tmp_path)
    assert [len(fewest.train), len(fewest.dev)] == [12, 12]  # never larger than train
    asked = load_dataset(config(path, dev_fraction=0.1, max_train_samples=36, max_dev_samples=50), tmp_path)
    assert len(asked.dev) == 50
    for one in (limited, few, fewest):
        assert set(one.dev.ids) <= set(whole.dev.ids) and np.array_equal(one.test.ids, whole.test.ids)


def test_a_stratified_limit_keeps_the_shares_and_a_smaller_one_is_a_subset(tmp_path):
    path = write(tmp_path / "x.csv", [(sentence(n), "a" if n % 10 else "b") for n in range(500)])
    made = {n: load_dataset(config(path, max_train_samples=n, stratified=True), tmp_path) for n in (50, 100)}
    assert {n: np.bincount(one.train.labels).tolist() for n, one in made.items()} == {50: [45, 5], 100: [90, 10]}
    assert set(made[50].train.ids) < set(made[100].train.ids)
