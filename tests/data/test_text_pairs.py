"""Pairs for contrastive learning: of which texts, how many, and in which order."""

from collections import Counter

import numpy as np
import pytest
import torch

from kdbench.data.batches import Examples
from kdbench.data.text_pairs import PairBatches, drawn
from kdbench.data.tokenize import Tokens

LABELS = np.array([2, 0, 2, 1, 0, 0, 2, 5, 2])  # class 1 and class 5 have one text each


def batches(labels=LABELS, each=3, size=4):
    offsets = np.arange(len(labels) + 1) * 2
    tokens = Tokens("", np.arange(2 * len(labels), dtype=np.int32), offsets)
    return PairBatches(Examples(tokens, np.arange(len(labels)), labels, 0), each, size, 7)


def test_a_text_has_so_many_pairs_of_each_kind_and_never_itself():
    pairs = drawn(LABELS, 50, np.random.default_rng(0))
    assert ((LABELS[pairs.left] == LABELS[pairs.right]) == pairs.same).all() and (pairs.left != pairs.right).all()
    alike, unlike = (Counter(pairs.left[pairs.same == kind].tolist()) for kind in (True, False))
    assert alike == dict.fromkeys([0, 1, 2, 4, 5, 6, 8], 50) and unlike == dict.fromkeys(range(9), 50)
    for row in range(9):  # each partner there is has its turn
        for kind in (True, False):
            met = set(pairs.right[(pairs.left == row) & (pairs.same == kind)].tolist())
            assert met == {other for other in range(9) if other != row and (LABELS[other] == LABELS[row]) == kind}


def test_partners_are_equally_likely():
    pairs = drawn(LABELS, 6000, np.random.default_rng(1))
    counts = np.bincount(pairs.right[(pairs.left == 0) & ~pairs.same], minlength=9)
    assert counts[LABELS != 2] == pytest.approx(6000 / 5, rel=0.1) and not counts[LABELS == 2].any()


@pytest.mark.parametrize(("labels", "size"), [([0, 0, 0], 9), ([0, 1], 6), ([3], 0), ([0, 0, 1], 6 + 9)])
def test_the_size_is_known_beforehand(labels, size):
    given = np.array(labels)
    assert batches(given).size == len(drawn(given, 3, np.random.default_rng(0)).left) == size


def test_batches_are_resumed_at_any_step_and_differ_by_epoch():
    data = batches()
    whole = [*data.epoch(1)]
    assert len(whole) == len(data) and sum(len(one["ids"]) for one in whole) == data.size
    for start in (0, 5, len(data) - 1):
        for ours, theirs in zip(data.epoch(1, start), whole[start:], strict=True):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(whole[0]["input_ids"], next(data.epoch(2))["input_ids"])
    batch = whole[0]
    other = batch["other_input_ids"][:, 0] // 2  # its tokens say which text it is
    assert ((LABELS[batch["ids"]] == LABELS[other]) == batch["same"].numpy()).all()
