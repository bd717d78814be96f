"""Oracle O10: sizes and FLOPs, and that leaving early is real, keeps the order and changes no answer."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdbench.errors import Code, UserError
from kdbench.models import bert, fastbert, students
from kdbench.models.network import view
from tests.refusals import refused

SHAPE = {"vocab_size": 30, "hidden": 16, "layers": 4, "heads": 2, "ffn": 32, "max_positions": 20, "pad_token_id": 0}
SHAPE |= {"config": {"model_type": "bert"}, "embedding_branch": False}
LABELS = ["a", "b", "c"]
BASE = SHAPE | {"vocab_size": 30522, "hidden": 768, "layers": 12, "heads": 12, "ffn": 3072, "max_positions": 512}


def batch() -> dict[str, torch.Tensor]:
    """Twelve rows of 3 to 14 tokens, not sorted by length."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randperm(12, generator=generator) + 3
    mask = (torch.arange(14) < lengths[:, None]).long()
    return {"input_ids": torch.randint(1, 30, (12, 14), generator=generator) * mask, "attention_mask": mask}


def make(attention: str = "eager") -> fastbert.FastBert:
    """Weights as large as a trained model's: rows differ, and some heads are sure of some of them."""
    model = fastbert.Model.build(SHAPE, LABELS, attention, 3).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        for branch in model.branches:
            for name in ("dense", "classifier"):
                getattr(branch, name).weight.mul_(6)
    return model


def speeds(model: fastbert.FastBert) -> list[float]:
    """Thresholds in the middle of gaps between the uncertainties that occur, so that rounding decides nothing."""
    with torch.no_grad():
        u = torch.stack([fastbert.uncertainty(z) for z in model.all_logits(**batch())[:-1]]).flatten().sort().values
    return [((u[i] + u[i + 1]) / 2).item() for i in (3, 9, 16, 24, 30)]


@pytest.fixture(scope="module")
def model() -> fastbert.FastBert:
    return make()


def count_rows(model: Any) -> tuple[list[int], list[Any]]:
    """Rows that each layer is given from now on, and the hooks that count them."""
    rows = [0] * len(model.encoder.encoder.layer)

    def hook(index: int) -> Any:
        def count(module: nn.Module, args: Any) -> None:
            rows[index] += len(args[0])

        return count

    return rows, [layer.register_forward_pre_hook(hook(i)) for i, layer in enumerate(model.encoder.encoder.layer)]


def test_size_of_a_head():
    with torch.device("meta"):
        model = fastbert.Model.build(BASE, ["a", "b"], "eager", 0)
    assert len(model.branches) == 12
    for branch in model.branches:
        assert sum(parameter.numel() for parameter in branch.parameters()) == 181_250
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    assert encoder == 109_482_240 - (768 * 768 + 768)  # no pooler


@pytest.mark.parametrize("length", [7, 16])
def test_flops_at_speed_0_equal_torchs_counter(length):
    ids = torch.ones(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        fastbert.Model.build(SHAPE, LABELS, "eager", 1).eval()(ids, ids)
    assert students.flops(SHAPE | {"architecture": "fastbert"}, length, 3) == counter.get_total_flops()


def test_flops(oracles):
    expected = oracles["O10_fastbert"]
    layer, head = expected["flops_layer_2mac"], expected["flops_branch_2mac"]
    assert fastbert.flops(BASE, 128, 1) == expected["flops_exit_layer1"] == layer + head
    assert fastbert.flops(BASE, 128, 12) == expected["flops_run_all12_branches"] == 12 * (layer + head)
    assert fastbert.full_flops(BASE, 128) == expected["flops_bertbase_fullpath_one_head"] == 12 * layer + head


def test_uncertainty(oracles):
    for text, expected in oracles["O10_fastbert"]["norm_entropy"].items():
        probabilities = [0.25] * 4 if text == "[.25]*4" else json.loads(text.replace("[.", "[0.").replace(",.", ",0."))
        value = fastbert.uncertainty(torch.tensor([probabilities], dtype=torch.float64).log()).item()
        assert value == pytest.approx(expected, rel=1e-6, abs=1e-12), text


def test_certain_rows_are_certain_each_by_itself():
    rows = torch.tensor([[0.0, -1e4, -1e4], [3.0, 3.0, 3.0], [0.0, -math.inf, -math.inf]])
    assert fastbert.uncertainty(rows).tolist() == pytest.approx([0, 1, 0], abs=1e-6)


@pytest.mark.parametrize("classes", range(2, 60))
def test_equal_logits_are_exactly_uncertain(classes):
    for value in (0.0, -1.7, 33.3):
        assert fastbert.uncertainty(torch.full((1, classes), value)).item() == 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_speed_0_is_the_full_model_and_asks_the_last_head_only(attention):
    model = make(attention)
    asked: list[int] = []
    for number, branch in enumerate(model.branches, start=1):
        branch.register_forward_pre_hook(lambda *_, number=number: asked.append(number))
    states = bert.Model.build(SHAPE, LABELS, attention, 0).bert.eval()
    states.load_state_dict(model.encoder.state_dict(), strict=False)  # its pooler stays its own
    expected = model.branches[-1](states(**batch()).last_hidden_state, batch()["attention_mask"])
    asked.clear()
    logits, exit_layer = model.early_exit(**batch(), speed=0.0)
    assert asked == [4]
    assert torch.equal(logits, expected)
    assert torch.equal(model(**batch()).logits, expected)
    assert exit_layer.tolist() == [4] * 12
    assert torch.equal(model.all_logits(**batch())[-1], expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_each_row_gets_the_answer_of_the_first_sure_head_in_the_order_of_the_input(attention):
    model = make(attention)
    everything = model.all_logits(**batch())
    seen = set()
    for speed in speeds(model):
        logits, exit_layer = model.early_exit(**batch(), speed=speed)
        for row in range(12):
            sure = [i for i in range(4) if i == 3 or fastbert.uncertainty(everything[i, row : row + 1]).item() < speed]
            assert exit_layer[row].item() == sure[0] + 1
            torch.testing.assert_close(logits[row], everything[sure[0], row], rtol=1e-4, atol=1e-5)
        seen |= set(exit_layer.tolist())
    assert seen == {1, 2, 3, 4}


def test_batched_is_one_by_one(model):
    ids, mask = batch().values()
    for speed in speeds(model):
        logits, exit_layer = model.early_exit(ids, mask, speed)
        for row in range(12):
            length = int(mask[row].sum())
            alone, layer = model.early_exit(ids[row : row + 1, :length], mask[row : row + 1, :length], speed)
            assert layer.tolist() == [exit_layer[row]]
            torch.testing.assert_close(alone[0], logits[row], rtol=1e-4, atol=1e-5)


def test_skipping_is_real(model):
    for speed in [0.0, *speeds(model), 2.0]:
        rows, hooks = count_rows(model)
        _, exit_layer = model.early_exit(**batch(), speed=speed)
        for hook in hooks:
            hook.remove()
        assert rows == [(exit_layer >= number).sum().item() for number in range(1, 5)]
        assert sum(rows) == exit_layer.sum()


def test_columns_that_only_the_rows_gone_had_are_gone_too(model):
    ids, mask = batch().values()
    first = fastbert.uncertainty(model.all_logits(ids, mask)[0])
    surest = first.argmin()
    rows = mask.sum(1) <= mask[surest].sum()  # the surest row is their longest, and alone in leaving at once
    ids, mask, first = ids[rows], mask[rows], first[rows].sort().values
    shapes: list[tuple[int, ...]] = []
    hook = model.encoder.encoder.layer[1].register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[:2]))
    _, exit_layer = model.early_exit(ids, mask, first[:2].mean().item())
    hook.remove()
    stay = exit_layer > 1
    assert stay.sum() == len(ids) - 1 >= 2
    assert mask[stay].sum(1).max() < mask[~stay].sum()
    assert shapes == [(stay.sum(), mask[stay].sum(1).max())]


def test_a_greater_speed_leaves_no_later(model):
    layers = [model.early_exit(**batch(), speed=speed)[1] for speed in [0.0, *speeds(model), 1.0, 1.1]]
    assert all((b <= a).all() for a, b in pairwise(layers))


def test_above_1_all_leave_at_once(model):
    logits, exit_layer = model.early_exit(**batch(), speed=1.01)
    assert exit_layer.tolist() == [1] * 12
    assert torch.equal(logits, model.all_logits(**batch())[0])


def test_uncertainty_that_equals_the_speed_stays():
    model = make()
    for branch in model.branches:
        for parameter in cast(nn.Linear, branch.classifier).parameters():
            nn.init.zeros_(parameter)
    for speed in (0.5, 1.0):
        assert model.early_exit(**batch(), speed=speed)[1].tolist() == [4] * 12
    assert model.early_exit(**batch(), speed=1.0001)[1].tolist() == [1] * 12


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_changes_nothing(attention):
    """Nor what stands in it, also through the heads' attention."""
    model = make(attention)
    data = batch()
    ids, mask = nn.functional.pad(data["input_ids"], (0, 5), value=7), nn.functional.pad(data["attention_mask"], (0, 5))
    torch.testing.assert_close(model.all_logits(ids, mask), model.all_logits(**data), rtol=1e-4, atol=1e-5)
    for speed in speeds(model):
        a, b = model.early_exit(ids, mask, speed), model.early_exit(**data, speed=speed)
        torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(a[1], b[1])


def test_a_head_sees_the_tokens_and_only_them(model):
    branch = model.branches[0]
    hidden = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    changed = hidden.clone()
    changed[:, 4:] += 3
    before, after = branch(hidden, mask), branch(changed, mask)
    assert torch.equal(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 1e-3
    torch.testing.assert_close(branch(hidden[:1, :4], mask[:1, :4])[0], before[0])


def test_a_head_is_multi_head_attention(model):
    """Against PyTorch's own, with the projections of all tokens."""
    branch = model.branches[1]
    reference = nn.MultiheadAttention(fastbert.WIDTH, fastbert.HEADS, batch_first=True).eval()
    projections = (branch.query, branch.key, branch.value)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
        reference.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
    reference.out_proj.load_state_dict(branch.output.state_dict())
    hidden = torch.randn(3, 14, 16, generator=torch.Generator().manual_seed(0))
    mask = batch()["attention_mask"][:3]
    x = torch.tanh(branch.narrow(hidden))
    attended = reference(x, x, x, key_padding_mask=mask == 0, need_weights=False)[0]
    expected = branch.classifier(torch.tanh(branch.dense(attended[:, 0])))
    torch.testing.assert_close(branch(hidden, mask), expected, rtol=1e-4, atol=1e-5)


def test_token_types_reach_the_embeddings(model):
    types = batch()["attention_mask"]
    zeros = torch.zeros_like(types)
    assert torch.equal(model.all_logits(**batch(), token_type_ids=zeros), model.all_logits(**batch()))
    a, b = model(**batch(), token_type_ids=types).logits, model(**batch()).logits
    assert (a - b).abs().max() > 1e-3
    assert torch.equal(a, model.all_logits(**batch(), token_type_ids=types)[-1])


def test_gradients_of_both_stages():
    model = make()

    def trained(module: nn.Module) -> set[bool]:
        return {parameter.grad is not None for parameter in module.parameters()}

    model(**batch()).logits.sum().backward()
    assert trained(model.encoder) == trained(model.branches[-1]) == {True}
    assert trained(model.branches[0]) == {False}
    model.zero_grad()
    model.all_logits(**batch()).sum().backward()
    assert trained(model.encoder) == {False}
    assert trained(model.branches) == {True}


def test_dropout_is_the_stages():
    model = make()
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}
    assert torch.equal(model.train()(**batch()).logits, model.eval()(**batch()).logits)
    view(model).set_dropout(0.3)
    assert {branch.dropout.p for branch in model.branches} == {0.3}
    assert model.encoder.config.hidden_dropout_prob == 0.3
    model.branches.train()
    assert not torch.equal(model.all_logits(**batch()), model.all_logits(**batch()))


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    made: list[Any] = [fastbert.Model.build(SHAPE, LABELS, "eager", seed) for seed in (1, 1, 2)]
    first, same, other = made
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    for part in ("encoder.embeddings.word_embeddings", "branches.0.narrow", "branches.3.classifier"):
        assert not torch.equal(first.get_submodule(part).weight, other.get_submodule(part).weight)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_saved_and_loaded(tmp_path: Path, attention):
    model = make(attention)
    model.speed = speeds(model)[2]
    view(model).save(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "kdbench_fastbert"
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    loaded = fastbert.Model.load(tmp_path / "model", attention)
    assert torch.equal(torch.rand(1), expected)
    assert not loaded.training
    assert loaded.speed == model.speed
    assert loaded.config.model_type == "kdbench_fastbert"
    assert loaded.encoder.config._attn_implementation == attention
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"} and loaded.config.label2id["c"] == 2
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    assert torch.equal(loaded.all_logits(**batch()), model.all_logits(**batch()))
    model.speed = 0.0
    assert not torch.equal(loaded(**batch()).logits, model(**batch()).logits)  # the speed is the model's, and counts


def test_a_model_that_is_not_whole_is_refused(tmp_path: Path):
    with pytest.raises(OSError):
        fastbert.Model.load(tmp_path, "eager")
    view(make()).save(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["branches.2.key.bias"]
    save_file(weights, file)
    with refused(Code.INCOMPLETE_MODEL, "branches.2.key.bias", kind=UserError):
        fastbert.Model.load(tmp_path, "eager")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(OSError, match="damaged"):
        fastbert.Model.load(tmp_path, "eager")
    file.unlink()
    with pytest.raises(OSError):
        fastbert.Model.load(tmp_path, "eager")


@pytest.fixture(scope="module")
def posts() -> Any:
    """With a classifier on the embeddings, as layer 0."""
    model = fastbert.Model.build(SHAPE | {"embedding_branch": True}, LABELS, "eager", 3).eval()
    for branch in model.branches:
        for name in ("dense", "classifier"):
            getattr(branch, name).weight.data.mul_(6)
    return model


def test_a_classifier_on_the_embeddings_is_layer_0(posts, tmp_path):
    everything = posts.all_logits(**batch())
    ids, mask = batch().values()
    embedded = posts.encoder.embeddings(input_ids=ids)
    assert len(everything) == len(posts.branches) == 5
    torch.testing.assert_close(everything[0], posts.branches[0](embedded, mask))
    hidden = posts.encoder(**batch(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(everything[2], posts.branches[2](hidden[2], mask), rtol=1e-4, atol=1e-5)
    u = fastbert.uncertainty(everything[0]).sort().values
    rows, hooks = count_rows(posts)
    logits, exit_layer = posts.early_exit(**batch(), speed=((u[4] + u[5]) / 2).item())
    assert (exit_layer == 0).sum() == 5 and rows[0] == 7  # who left at the embeddings saw no layer
    for hook in hooks:
        hook.remove()
    for row, layer in enumerate(exit_layer.tolist()):
        torch.testing.assert_close(logits[row], everything[layer, row], rtol=1e-4, atol=1e-5)
    assert posts.early_exit(**batch(), speed=0.0)[1].tolist() == [4] * 12
    view(posts).save(tmp_path)
    assert torch.equal(fastbert.Model.load(tmp_path, "eager").all_logits(**batch()), everything)
    shape = SHAPE | {"embedding_branch": True}
    head = fastbert.flops(SHAPE, 9, 1) - fastbert.flops(SHAPE, 9, 0)
    assert fastbert.flops(shape, 9, 0) > 0 == fastbert.flops(SHAPE, 9, 0)
    assert fastbert.flops(shape, 9, 1) == head + fastbert.flops(shape, 9, 0)
