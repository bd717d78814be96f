"""Oracle O6: MobileBERT's and IB-BERT's parts and sizes; hidden states, scores and heads beside transformers' own."""

import copy
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from kdbench.errors import Code, UserError
from kdbench.models import ib_bert, mobilebert, students
from kdbench.models.network import view
from tests.refusals import refused

SHAPE: dict[str, Any] = {
    "vocab_size": 30, "max_positions": 20, "pad_token_id": 0, "layers": 3, "hidden": 12, "heads": 2, "ffn": 10,
    "bottleneck": 8, "embedding": 6, "ffn_blocks": 4, "normalization": "no_norm", "activation": "relu",
}  # fmt: skip
IB_SHAPE = SHAPE | {"bottleneck": 24, "ffn": 32, "ffn_blocks": 1}
PAPER = {
    "vocab_size": 30522, "max_positions": 512, "pad_token_id": 0, "layers": 24, "hidden": 512, "heads": 4, "ffn": 512,
    "bottleneck": 128, "embedding": 128, "ffn_blocks": 4, "normalization": "no_norm", "activation": "relu",
}  # fmt: skip
IB_PAPER = PAPER | {"bottleneck": 1024, "ffn": 4096, "ffn_blocks": 1}
LABELS = ["a", "b", "c"]

both = pytest.mark.parametrize("module", [mobilebert, ib_bert])


def shape_of(module: Any) -> dict[str, Any]:
    return SHAPE if module is mobilebert else IB_SHAPE


def perturbed(module: Any, attention: str = "eager") -> Any:
    """Weights wide enough for attention to differ from uniform; the padding's embedding stays zero."""
    model = module.Model.build(shape_of(module), LABELS, attention, 1).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        model.get_input_embeddings().weight[0] = 0
    return model


def batch() -> Any:
    ids = torch.randint(1, 30, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 4:] = ids[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    ("module", "shape", "key"),
    [
        (mobilebert, PAPER, "params_student_emb_layer_total"),
        (ib_bert, IB_PAPER, "params_ibbert_emb_layer_total_nopooler"),
    ],
)
def test_sizes(oracles, module, shape, key):
    with torch.device("meta"):
        base = module.Model.build(shape, LABELS, "eager", 0).mobilebert
    counts = [sum(p.numel() for p in part.parameters()) for part in (base.embeddings, base.encoder.layer[0], base)]
    assert counts == oracles["O6_mobilebert"][key]


@both
def test_weights_are_a_function_of_the_seed(module):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, same, other = (module.Model.build(shape_of(module), LABELS, "eager", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert first.config.id2label == {0: "a", 1: "b", 2: "c"} and first.config.label2id["c"] == 2
    assert {module.p for module in first.modules() if isinstance(module, nn.Dropout)} == {0.0}


def test_ib_projections_are_drawn_like_all_others():
    wide = IB_SHAPE | {"hidden": 128, "bottleneck": 256}
    attention = ib_bert.Model.build(wide, LABELS, "eager", 1).mobilebert.encoder.layer[0].attention.self
    for projection in (attention.query, attention.key, attention.value):
        assert projection.weight.shape == (256, 128)
        assert projection.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert projection.bias.abs().max() == 0


def test_no_norm(oracles):
    norm = mobilebert.Model.build(
        SHAPE | {"hidden": 3, "embedding": 1}, LABELS, "eager", 0
    ).mobilebert.embeddings.LayerNorm
    with torch.no_grad():
        norm.weight.fill_(2)
        norm.bias.fill_(-1)
    expected = oracles["O6_mobilebert"]["nonorm_h_1_2_3_gamma_2_beta_m1"]
    assert norm(torch.tensor([1.0, 2.0, 3.0])).tolist() == expected


def test_only_the_students_norms_are_affine():
    a, b = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(a)
    for module, affine in ((mobilebert, True), (ib_bert, False)):
        norm = perturbed(module).mobilebert.embeddings.LayerNorm
        assert torch.allclose(norm(a + b) + norm(zero), norm(a) + norm(b), atol=1e-5) is affine


@pytest.mark.parametrize("normalization", ["no_norm", "layer_norm"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_norms_and_the_activation_are_those_of_the_shape(normalization, activation, tmp_path):
    """A layer beside its own matrices, with the formulas of LayerNorm and GELU; and after saving and loading."""
    shape = SHAPE | {"normalization": normalization, "activation": activation}
    model = mobilebert.Model.build(shape, LABELS, "eager", 1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    block = model.mobilebert.encoder.layer[0].ffn[0]
    x = torch.randn(2, 5, SHAPE["bottleneck"], generator=generator)
    inner = x @ block.intermediate.dense.weight.T + block.intermediate.dense.bias
    inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2 if activation == "gelu" else inner.clamp(min=0)
    y = x + inner @ block.output.dense.weight.T + block.output.dense.bias
    if normalization == "layer_norm":
        y = (y - y.mean(-1, keepdim=True)) / y.var(-1, keepdim=True, correction=0).add(1e-12).sqrt()
    expected = y * block.output.LayerNorm.weight + block.output.LayerNorm.bias
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    view(model).save(tmp_path)
    for load in (students.load, AutoModelForSequenceClassification.from_pretrained):
        loaded: Any = load(tmp_path).eval()
        torch.testing.assert_close(loaded(**batch()).logits, model(**batch()).logits, rtol=1e-4, atol=1e-4)


def test_ib_bert_has_layer_norm_and_gelu_whatever_its_student_has():
    from kdbench.methods.mobilebert import Params, ib_bert
    from kdbench.schema import StudentConfig

    sizes: dict[str, Any] = {
        "layers": 3,
        "hidden": 12,
        "heads": 2,
        "ffn": 10,
        "embedding": 6,
        "bottleneck": 8,
        "ffn_blocks": 4,
    }
    p = Params("pkt", "soft", "raw", 1.0, 1.0, 0.5, 24, 32)
    plain, other = (
        StudentConfig(name="m", architecture="mobilebert", normalization=norm, activation=act, **sizes)
        for norm, act in (("no_norm", "relu"), ("layer_norm", "gelu"))
    )
    assert ib_bert(plain, p) == ib_bert(other, p)


@both
def test_trigram(oracles, module):
    embeddings = module.Model.build(
        shape_of(module) | {"hidden": 6, "embedding": 2}, LABELS, "eager", 0
    ).mobilebert.embeddings
    with torch.no_grad():
        embeddings.word_embeddings.weight[1:4] = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        embeddings.embedding_transformation.weight.copy_(torch.eye(6))
        embeddings.position_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight.zero_()
    embeddings.LayerNorm = nn.Identity()
    expected = oracles["O6_mobilebert"]["trigram_concat_order_next_cur_prev"]
    assert embeddings(input_ids=torch.tensor([[1, 2, 3]]))[0].tolist() == expected


@both
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_states_are_transformers_own(module, attention):
    model = perturbed(module, attention)
    expected = model(**batch(), output_hidden_states=True).hidden_states
    for found in (view(model).states(batch()), view(model.mobilebert).states(batch())):
        assert len(found) == len(expected) == 4
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@both
def test_scores_give_transformers_probabilities(module):
    model = perturbed(module)
    probabilities = model(**batch(), output_attentions=True).attentions
    states = view(model).states(batch())
    masked = batch()["attention_mask"][:, None, None] == 0
    for index, (x, expected) in enumerate(zip(states, probabilities, strict=False)):
        found = view(model).scores(index, x).masked_fill(masked, -torch.inf).softmax(-1)
        torch.testing.assert_close(found, expected)
    assert expected.std() > 0.05  # not the uniform attention that any wrong scores would give


@both
def test_padding_changes_nothing(module):
    model, data = perturbed(module), batch()
    padded: Any = {name: nn.functional.pad(tensor, (0, 5)) for name, tensor in data.items()}
    torch.testing.assert_close(students.logits(model, data), students.logits(model, padded))


@both
def test_mlm_head_is_transformers_own(module):
    from transformers.models.mobilebert.modeling_mobilebert import MobileBertOnlyMLMHead

    model = perturbed(module)
    head, reference = view(model).mlm_head(3), MobileBertOnlyMLMHead(model.config)
    words = model.get_input_embeddings().weight
    reference.predictions.transform.load_state_dict(head.transform.state_dict())
    with torch.no_grad():
        head.extra.bias.copy_(torch.arange(30))
        reference.predictions.decoder.weight.copy_(words)
        reference.predictions.decoder.bias.copy_(head.extra.bias)
        reference.predictions.dense.weight.copy_(head.extra.weight.T)
    hidden = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(hidden, words), reference(hidden))


def test_mlm_head_trains_the_models_embeddings_but_not_the_paddings():
    model = perturbed(mobilebert)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    head, same, other = (view(model).mlm_head(seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), same.parameters(), strict=True))
    assert not torch.equal(head.extra.weight, other.extra.weight)
    assert head.extra.weight.shape == (30, 12 - 6)
    assert sum(p.numel() for p in head.parameters()) == 12 * 12 + 3 * 12 + 30 * 6 + 30  # no word embeddings
    words = model.get_input_embeddings().weight
    states = view(model).states(batch())[-1].flatten(0, 1)
    head(states, words).logsumexp(-1).sum().backward()
    gradients = words.grad.abs().sum(1)
    assert gradients[0] == 0 and (gradients[1:] > 0).all()


def test_copy_embeddings():
    source, target = perturbed(ib_bert), mobilebert.Model.build(SHAPE, LABELS, "eager", 2)
    blocks = copy.deepcopy(target.mobilebert.encoder.state_dict())
    mobilebert.copy_embeddings(source, target)
    expected = dict(source.mobilebert.embeddings.named_parameters())
    found = dict(target.mobilebert.embeddings.named_parameters())
    assert found.keys() == expected.keys() and len(found) == 7
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(value, blocks[name]) for name, value in target.mobilebert.encoder.state_dict().items())


@both
def test_save_and_load(tmp_path, module):
    model = perturbed(module)
    view(model).save(tmp_path)
    load = module.Model.load
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == module.Traits.model_type
    loaded = load(tmp_path, "eager")
    assert not loaded.training
    assert torch.equal(students.logits(loaded, batch()), students.logits(model, batch()))
    torch.testing.assert_close(
        students.logits(load(tmp_path, "sdpa"), batch()), students.logits(model, batch()), rtol=1e-4, atol=1e-4
    )
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with refused(Code.INCOMPLETE_MODEL, "classifier.bias", kind=UserError):
        load(tmp_path, "eager")


@both
@pytest.mark.parametrize(("layers", "length"), [(1, 7), (3, 16)])
def test_flops_are_those_of_the_matrix_products(module, layers, length):
    """Trigram; of a block bottlenecks (IB-BERT: one), projections, attention, feed-forward, way back; classifier."""
    shape, t = shape_of(module) | {"layers": layers}, length
    h, b = shape["hidden"], shape["bottleneck"]
    queries_and_keys = 2 * h * b if module is ib_bert else h * b + 2 * b * b
    token = h * b + queries_and_keys + h * b + b * b + 2 * t * b + shape["ffn_blocks"] * 2 * b * shape["ffn"] + b * h
    expected = 2 * (t * (3 * shape["embedding"] * h + layers * token) + h * 3)
    assert module.Model.flops(shape, length, 3) == expected
