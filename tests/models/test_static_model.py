"""A static student's numbers against formulas of their own: means, weights, axes, 8 bits; and its files."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.errors import Code, UserError
from kdbench.inference import int8
from kdbench.inference import onnx as graph
from kdbench.models import static, students
from kdbench.models.network import view
from tests.refusals import refused

LABELS = ["a", "b", "c"]
SHAPE = {
    "architecture": "static", "vocab_size": 20, "hidden": 6, "layers": 2, "ffn": 12, "pairs": False,
    "int8_table": False, "pad_token_id": 0,
}  # fmt: skip
SHAPES = [SHAPE, SHAPE | {"layers": 1}, SHAPE | {"pairs": True}]
LENGTHS = [4, 1, 0, 6]


def build(shape=SHAPE, seed=0):
    return static.Model.build(shape, LABELS, "eager", seed).eval()


def batch(lengths=LENGTHS):
    ids = torch.randint(1, 20, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    types = (torch.arange(max(lengths)) >= 2).long() * mask
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types}


def by_hand(model, ids, types=None):
    """Logits of one text, piece by piece."""
    table = model.embedding.weight.detach().numpy().astype(float)

    def mean(chosen):
        total = np.zeros(table.shape[1])
        for one in chosen:
            total += table[one]
        return total / max(1, len(chosen))

    x = mean(ids)
    if types is not None:
        u, v = (mean([one for one, kind in zip(ids, types, strict=True) if kind == of]) for of in (0, 1))
        x = np.concatenate([u, v, abs(u - v), u * v])
    for layer, last in ((model.hidden, False), (model.classifier, True)):
        if layer is not None:
            x = layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()
            x = x if last else np.maximum(x, 0)
    return torch.from_numpy(x).float()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_the_heads_of_the_mean_of_the_real_pieces(shape):
    model, given = build(shape), batch()
    found = model(**given).logits
    for row, length in enumerate(LENGTHS):
        ids, types = (given[name][row, :length].tolist() for name in ("input_ids", "token_type_ids"))
        torch.testing.assert_close(found[row], by_hand(model, ids, types if shape["pairs"] else None))
    assert len(found.unique(dim=0)) == len(LENGTHS)


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_and_company_change_nothing(shape):
    model = build(shape)
    together = model(**batch()).logits
    padded = {name: nn.functional.pad(tensor, (0, 4)) for name, tensor in batch().items()}
    padded["input_ids"][padded["attention_mask"] == 0] = 7  # whatever stands there
    torch.testing.assert_close(model(**padded).logits, together)
    for row, length in enumerate(LENGTHS):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch().items()}
        torch.testing.assert_close(model(**alone).logits[0], together[row])


def test_pairs_need_types():
    given = batch()
    with pytest.raises(ValueError, match="token_type_ids"):
        build(SHAPE | {"pairs": True})(given["input_ids"], given["attention_mask"])


@pytest.mark.parametrize("shape", SHAPES)
def test_flops_are_the_weights_of_the_head(shape):
    matrices = [module.weight.numel() for module in build(shape).modules() if isinstance(module, nn.Linear)]
    assert students.flops(shape, 11, 3) == static.Model.flops(shape, 11, 3) == 2 * sum(matrices)


@pytest.mark.parametrize("count", [1, 7])
def test_weights_follow_zipfs_law(count):
    shares = [1 / rank for rank in range(2, count + 2)]
    expected = [1e-3 / (1e-3 + share / sum(shares)) for share in shares]
    found = static.zipf_weights(count, 1e-3)
    assert found.tolist() == pytest.approx(expected) and (found.diff() > 0).all()


@pytest.mark.parametrize("size", [3, 8])
def test_axes_are_those_of_numpys_svd(size):
    vectors = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9) + 5
    ranked = torch.tensor([3, 4, 5, *range(8, 30)])
    table = static.start_table(vectors, ranked, size, True, None).numpy()
    chosen = vectors[ranked].double().numpy()
    left, strength, _ = np.linalg.svd(chosen - chosen.mean(0), full_matrices=False)
    expected = (left * strength)[:, :size]
    expected /= np.sqrt((expected**2).mean())
    np.testing.assert_allclose(np.abs(table[ranked]), np.abs(expected), rtol=1e-4, atol=1e-5)  # up to their signs
    np.testing.assert_allclose(table[ranked] @ table[ranked].T, expected @ expected.T, rtol=1e-4, atol=1e-4)
    assert not table[[0, 1, 2, 6, 7]].any()


def test_without_axes_the_vectors_keep_their_directions_and_get_their_weights():
    vectors, ranked = torch.randn(9, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([2, 5, 8])
    plain = static.start_table(vectors, ranked, 4, False, None)
    torch.testing.assert_close(plain[ranked], vectors[ranked] / vectors[ranked].square().mean().sqrt())
    weighed = static.start_table(vectors, ranked, 4, False, 1e-2)
    ratio = (weighed / plain)[ranked]
    torch.testing.assert_close(ratio / ratio[0], (static.zipf_weights(3, 1e-2) / static.zipf_weights(3, 1e-2)[0])
                               .float()[:, None].expand(3, 4))  # fmt: skip


def test_integers_of_8_bits_are_off_by_half_a_scale_at_most():
    table = torch.randn(50, 9, generator=torch.Generator().manual_seed(3)) * torch.logspace(-6, 4, 50)[:, None]
    table[7] = 0
    whole, scale = static.to_int8(table)
    assert whole.dtype == torch.int8 and whole.abs().amax() == 127 and scale.shape == (50, 1)
    assert ((whole * scale - table).abs() <= scale / 2 * (1 + 1e-5)).all()
    assert not whole[7].any() and (whole.abs().amax(1)[torch.arange(50) != 7] == 127).all()


@pytest.mark.parametrize("shape", [*SHAPES, SHAPE | {"int8_table": True}])
def test_save_and_load(shape, tmp_path):
    model = build(shape)
    view(model).set_dropout(0.25)
    view(model).save(tmp_path / "model")
    before = torch.get_rng_state()
    loaded = static.Model.load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before) and not loaded.training
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"} and loaded.config.dropout == 0.25
    if not shape["int8_table"]:
        assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
        return
    assert loaded.embedding.weight.dtype == torch.int8
    with torch.no_grad():
        model.embedding.weight.copy_(loaded.embedding.weight * loaded.scale.weight)
    torch.testing.assert_close(loaded(**batch()).logits, model(**batch()).logits)
    view(loaded).save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


SPOIL = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "another size": lambda folder: change(folder, units=4),
    "other bits": lambda folder: change(folder, int8_table=True),
    "no labels": lambda folder: change(folder, id2label=None),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
def test_files_that_do_not_fit_are_said(spoil, tmp_path):
    view(build()).save(tmp_path)
    spoil(tmp_path)
    with refused(Code.INCOMPLETE_MODEL, tmp_path, kind=UserError):
        static.Model.load(tmp_path)


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]) and not torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("shape", [SHAPE | {"int8_table": True}, SHAPE | {"pairs": True}], ids=["int8", "pairs"])
def test_a_graph_answers_as_its_model_and_so_nearly_does_its_quantised_one(shape, tmp_path):
    view(build(shape)).save(tmp_path)
    loaded = static.Model.load(tmp_path)
    assert graph.to_onnx(view(loaded), tmp_path / "model.onnx", shape["pairs"]) <= graph.TOLERANCE
    int8.to_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx", "dynamic_7bit")  # 8 bits overflow on AVX2
    given = batch()
    expected = loaded(**given).logits
    torch.testing.assert_close(graph.Graph(tmp_path / "model.onnx").logits(given), expected, rtol=1e-5, atol=1e-5)
    assert (graph.Graph(tmp_path / "int8.onnx").logits(given) - expected).abs().max() < 0.1 * expected.abs().max()
