"""DistilBERT: its published size, what is copied from BERT, saving and loading, FLOPs."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench.errors import Code, UserError
from kdbench.models import bert, distilbert, students
from tests.refusals import refused

SHAPE = {"vocab_size": 30, "hidden": 16, "layers": 4, "heads": 2, "ffn": 32, "max_positions": 20, "pad_token_id": 0}
LABELS = ["a", "b", "c"]


def teacher() -> Any:
    """A BertModel whose biases and norms are not their initial zeros and ones, which would hide a wrong copy."""
    model = bert.Model.build(SHAPE, LABELS, "eager", 1).bert.eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def batch() -> Any:
    ids = torch.randint(1, 30, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 4:] = ids[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_size():
    base = SHAPE | {"vocab_size": 30522, "hidden": 768, "layers": 6, "heads": 12, "ffn": 3072, "max_positions": 512}
    with torch.device("meta"):
        encoder = distilbert.Model.build(base, LABELS, "eager", 0).distilbert
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 66_362_880


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, same, other = (distilbert.Model.build(SHAPE, LABELS, "eager", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert first.config.id2label == {0: "a", 1: "b", 2: "c"} and first.config.label2id["c"] == 2
    assert {module.p for module in first.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


def test_the_whole_bert_copied_gives_its_hidden_states():
    source, target = teacher(), distilbert.Model.build(SHAPE, LABELS, "eager", 2).eval()
    distilbert.Model(target.distilbert).copy_from_bert(source, [0, 1, 2, 3], add_token_type=True)
    expected = source(**batch()).last_hidden_state
    torch.testing.assert_close(target.distilbert(**batch()).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    distilbert.Model(target.distilbert).copy_from_bert(source, [0, 1, 2, 3], add_token_type=False)
    assert (target.distilbert(**batch()).last_hidden_state - expected).abs().max() > 0.01


def test_listed_layers_are_copied_bitwise():
    source, target = teacher(), distilbert.Model.build(SHAPE | {"layers": 2}, LABELS, "eager", 2)
    distilbert.Model(target.distilbert).copy_from_bert(source, [0, 3], add_token_type=False)
    for layer, index in zip(target.distilbert.transformer.layer, [0, 3], strict=True):
        copied = layer.state_dict()
        for name, name_in_bert in distilbert.LAYER_NAMES.items():
            for key, value in source.encoder.layer[index].get_submodule(name_in_bert).state_dict().items():
                assert torch.equal(copied.pop(f"{name}.{key}"), value), name
        assert copied == {}
    for name, value in target.distilbert.embeddings.state_dict().items():
        assert torch.equal(value, source.embeddings.state_dict()[name])
    with torch.no_grad():
        target.distilbert.embeddings.position_embeddings.weight.zero_()
    assert source.embeddings.position_embeddings.weight.abs().sum() > 0  # a copy, not the same storage


def test_other_sizes_and_counts_are_refused():
    target = distilbert.Model.build(SHAPE | {"max_positions": 10}, LABELS, "eager", 2).distilbert
    with pytest.raises(RuntimeError, match="size mismatch"):
        distilbert.Model(target).copy_from_bert(teacher(), [0, 1, 2, 3], add_token_type=True)
    target = distilbert.Model.build(SHAPE, LABELS, "eager", 2).distilbert
    with pytest.raises(ValueError, match="zip"):
        distilbert.Model(target).copy_from_bert(teacher(), [0, 1], add_token_type=True)


def test_save_and_load(tmp_path):
    model = distilbert.Model.build(SHAPE, LABELS, "eager", 4).eval()
    model.save_pretrained(tmp_path)
    loaded = distilbert.Model.load(tmp_path, "sdpa")
    assert not loaded.training and loaded.config._attn_implementation == "sdpa"
    torch.testing.assert_close(students.logits(loaded, batch()), students.logits(model, batch()))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["classifier.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with refused(Code.INCOMPLETE_MODEL, "classifier.bias", kind=UserError):
        distilbert.Model.load(tmp_path, "eager")


@pytest.mark.parametrize(("layers", "length"), [(1, 7), (3, 16)])
@pytest.mark.parametrize("words", [False, True])
def test_flops_are_those_of_the_matrix_products(layers, length, words):
    h, t = SHAPE["hidden"], length
    layer = 4 * t * h * h + 2 * t * t * h + 2 * t * h * SHAPE["ffn"]
    head = t * h * 3 if words else h * h + h * 3  # of all words, or of the first token
    assert distilbert.Model.flops(SHAPE | {"layers": layers}, length, 3, words) == 2 * (layers * layer + head)
