"""Optimising only the word embeddings that the texts have gives what optimising all of them gives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.data.batches import TrainBatches
from kdbench.stage import ParamGroup, Words
from tests.test_train import Toy, equal, examples, run, supervised, toy

UNUSED = slice(20, 25)


def words(model: Toy) -> Words:
    return Words(model.embeddings, TrainBatches(examples(), 8, seed=3).used_ids())


def assert_equal(a: Toy, b: Toy) -> None:
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


def test_the_ids_of_the_texts_and_padding():
    assert words(toy()).used.tolist() == list(range(20))


@pytest.mark.parametrize(
    "changes", [{}, {"schedule": {"accumulation": 4}}, {"schedule": {"clip": None, "weight_decay": 0.3}}]
)
def test_it_is_as_optimising_all_rows(tmp_path, changes):
    whole, used = toy(), toy()
    for model, folder, which in ((whole, "a", None), (used, "b", words(used))):
        run(model, tmp_path / folder, words=which, **{name: dict(value) for name, value in changes.items()})
    assert_equal(whole, used)
    assert not equal(used, toy())
    assert not torch.equal(used.embeddings.weight[UNUSED], toy().embeddings.weight[UNUSED])  # decayed
    assert not used.embeddings.sparse


def test_a_learning_rate_of_its_own_reaches_both_kinds_of_rows(tmp_path):
    whole, used = toy(), toy()
    for model, folder, which in ((whole, "a", None), (used, "b", words(used))):
        groups = [ParamGroup(model.embeddings, 5.0), ParamGroup(model.head)]
        run(model, tmp_path / folder, words=which, params=groups, schedule={"weight_decay": 0.3})
    assert_equal(whole, used)


def test_dev_is_scored_with_every_row_where_it_belongs(tmp_path):
    """Texts of dev may have words that those of train do not."""
    seen: dict[str, list[Tensor]] = {"a": [], "b": []}
    for folder in seen:
        model = toy()

        inner = model.forward

        def forward(batch: Any, model: Toy = model, folder: str = folder, inner: Any = inner) -> Tensor:
            if not model.training:
                seen[folder].append(model.embeddings.weight[UNUSED].clone())
            return inner(batch)

        model.forward = forward  # type: ignore[method-assign]
        run(model, tmp_path / folder, words=words(model) if folder == "b" else None, schedule={"weight_decay": 0.3})
    assert len(seen["a"]) > 2
    for x, y in zip(seen["a"], seen["b"], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fail_at", [3, 5, 8])
def test_resumed_equals_unbroken_bitwise(tmp_path, fail_at):
    whole = toy(dropout=0.3)
    run(whole, tmp_path / "whole", words=words(whole))
    broken = toy(dropout=0.3)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path / "broken", supervised(broken, fail_at), words=words(broken))
    resumed = toy(dropout=0.3)
    run(resumed, tmp_path / "broken", words=words(resumed))
    assert equal(whole, resumed)


def test_a_checkpoint_more_or_less_changes_nothing(tmp_path):
    often, never = toy(), toy()
    run(often, tmp_path / "often", words=words(often), checkpoint_every=1)
    run(never, tmp_path / "never", words=words(never), checkpoint_every=1000)
    assert equal(often, never)


def test_a_table_that_stands_still_is_left_alone(tmp_path):
    model = toy()
    run(model, tmp_path, words=words(model), params=[ParamGroup(model.head)])
    assert torch.equal(model.embeddings.weight, toy().embeddings.weight)
    assert not torch.equal(model.head.weight, toy().head.weight)
