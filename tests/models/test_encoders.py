"""The way through each architecture's parts, held against transformers' own forward."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdbench.errors import Code, UserError
from kdbench.inference import onnx as graph
from kdbench.methods import minilm
from kdbench.models import fastbert, students
from kdbench.models.network import network, view
from kdbench.models.stock import load_pretrained
from kdbench.sources.model_folder import shape_of, verify
from kdbench.storage.files import read_json
from tests.encoders import KINDS, write_encoder
from tests.refusals import refused

each = pytest.mark.parametrize("kind", KINDS)
LABELS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {kind: write_encoder(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def classifier(folder: Any, layers: list[int], attention: str = "sdpa") -> Any:
    config = read_json(folder / "config.json")
    shape = shape_of(folder) | {"layers": len(layers), "config": config, "chosen_layers": layers}
    student = students.build(shape | {"pad_token_id": config["pad_token_id"]}, LABELS, attention, 1).eval()
    view(students.base(student)).copy_from(view(load_pretrained(folder, attention, 0)), layers)
    return student


def loud(model: Any) -> Any:
    """With weights so large that a part left out would be seen in the logits."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def batch(pad: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 25, (4, 11), generator=generator)
    mask = (torch.arange(11) < torch.tensor([11, 4, 8, 2])[:, None]).long()
    return {"input_ids": torch.where(mask == 1, ids, pad), "attention_mask": mask, "labels": torch.zeros(4).long()}


def of(model: Any) -> Any:
    return batch(model.config.pad_token_id)


@each
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_are_transformers_own(folders, kind, attention):
    verify(folders[kind])
    for layers in ([0, 1, 2, 3], [0, 2]):
        model = loud(classifier(folders[kind], layers, attention))
        inputs = of(model)
        own = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        torch.testing.assert_close(students.logits(model, inputs), own, rtol=1e-5, atol=1e-5)
        assert own.std(0).max() > 0.01  # the rows differ


@each
def test_states_are_transformers_own(folders, kind):
    model = loud(classifier(folders[kind], [0, 1, 2, 3]))
    inputs = of(model)
    expected = model.base_model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True
    )
    states, real = view(model).states(inputs), inputs["attention_mask"].bool()
    theirs = [*expected.hidden_states[-4:-1], expected.last_hidden_state]
    ours = states[1:]
    if kind == "modernbert":  # what stands above the last layer belongs to the head
        ours = [*ours[:-1], model.model.final_norm(ours[-1])]
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own[real], other[real], rtol=1e-5, atol=1e-5)
    below, last = view(model).first_tokens(inputs)
    for short, state in zip([*below, last[:, :1]], states[1:], strict=True):
        torch.testing.assert_close(short, state[:, :1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "mpnet"])
def test_scores_give_transformers_attention(folders, kind):
    model = loud(classifier(folders[kind], [0, 1, 2, 3], "eager"))
    inputs = of(model)
    expected = model.base_model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], output_attentions=True
    ).attentions
    parts, blocked = view(model), (inputs["attention_mask"] == 0)[:, None, None]
    states = parts.states(inputs)
    for index, probabilities in enumerate(expected):
        own = parts.scores(index, states[index]).masked_fill(blocked, -torch.inf).softmax(-1)
        torch.testing.assert_close(own, probabilities, rtol=1e-5, atol=1e-6)
        query, key, value = parts.queries_keys_values(index, states[index])
        assert query.shape == key.shape == value.shape == (4, 2, 11, 8)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_minilm_compares_transformers_attention(folders, kind):
    student, teacher = (loud(classifier(folders[kind], layers, "eager")).base_model for layers in ([0], [0, 1]))
    inputs = of(student)
    p = minilm.Params(version="v1", relations=None, teacher_layer=None, relation_heads=None, assistants=[])
    found = minilm.relation_terms(student, teacher, p, None)(inputs, 0).losses["attention"]
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    own, target = (model(**given, output_attentions=True).attentions[-1] for model in (student, teacher))
    kl = (torch.special.xlogy(target, target) - torch.special.xlogy(target, own)).sum(-1).mean(1)  # (B, T)
    real = inputs["attention_mask"]
    torch.testing.assert_close(found, ((kl * real).sum(1) / real.sum(1)).mean(), rtol=1e-4, atol=1e-6)


@each
def test_a_student_starts_from_the_chosen_layers_and_shares_nothing(folders, kind):
    source = load_pretrained(folders[kind], "sdpa", 0)
    student = classifier(folders[kind], [0, 3])
    own, theirs = view(student), view(source)
    for layer, index in zip(own.layers, [0, 3], strict=True):
        same = zip(layer.state_dict().values(), theirs.layers[index].state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in same)
    if kind == "modernbert":  # how far a layer sees comes along with it
        assert [layer.attention_type for layer in own.layers] == ["full_attention"] * 2
    outside, stack = source.state_dict(), f"{own.stack}."
    for name, value in students.base(student).state_dict().items():  # what is below and above the layers
        assert name.startswith(stack) or torch.equal(value, outside[name]), name
    before = {name: value.clone() for name, value in source.state_dict().items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in before.items())


@each
def test_below_layers_and_above_are_the_whole_model(folders, kind):
    model = classifier(folders[kind], [0, 1, 2, 3])
    parts = view(model)
    known = {p for part in [*parts.inputs, parts.stacked, *parts.tops] for p in part.parameters()}
    assert known == set(model.parameters())


@each
def test_dropout_of_a_stage_reaches_every_part(folders, kind):
    model = classifier(folders[kind], [0, 1]).train()
    inputs = of(model)
    view(model).set_dropout(0.0)
    assert torch.equal(students.logits(model, inputs), students.logits(model, inputs))
    assert torch.allclose(students.logits(model, inputs), students.forward(model, inputs), atol=1e-5)
    view(model).set_dropout(0.5)
    assert not torch.allclose(students.logits(model, inputs), students.logits(model, inputs))
    parts = view(model)
    x = parts.embed(inputs)
    (run, *_) = parts.whole_passes(x, inputs["attention_mask"])
    assert not torch.allclose(run(x), run(x))
    assert all(getattr(model.config, name) == 0.5 for name in parts.dropouts)
    if kind == "modernbert":  # its attention's are no modules
        assert all(layer.attn.attention_dropout == layer.attn.out_drop.p == 0.5 for layer in parts.layers)


@each
def test_flops_equal_torchs_counter(folders, kind):
    model = classifier(folders[kind], [0, 1], "eager")
    config = read_json(folders[kind] / "config.json")
    shape = shape_of(folders[kind]) | {"layers": 2, "config": config, "chosen_layers": [0, 1]}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.full((1, 9), 5), attention_mask=torch.ones(1, 9, dtype=torch.long))
    assert students.flops(shape | {"pad_token_id": 0}, 9, 3) == counter.get_total_flops()


def test_flops_are_counted_once_for_a_shape(monkeypatch):
    counted: list[tuple[Any, ...]] = []
    kind = network("bert")
    monkeypatch.setattr(kind, "flops", lambda *asked: counted.append(asked) or len(counted))
    shape = {"architecture": "bert", "layers": 3, "of": "this test"}
    others = [(shape | {"layers": 2}, 9, 3), (shape, 8, 3), (shape, 9, 2)]
    assert [students.flops(*asked) for asked in [(shape, 9, 3), (dict(shape), 9, 3), *others]] == [1, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["gpt2", "students", "..schema", None])
def test_a_folder_of_no_architecture_is_refused(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=f"model_type={name}; kdbench reads albert, bert"):
        students.load(tmp_path)


def early(folder: Any) -> Any:
    """A FastBERT around an encoder."""
    config = read_json(folder / "config.json")
    shape = shape_of(folder) | {"architecture": "fastbert", "config": config, "chosen_layers": [0, 1, 2, 3]}
    shape["embedding_branch"] = False
    return students.build(shape | {"pad_token_id": config["pad_token_id"]}, LABELS, "sdpa", 1).eval()


@each
def test_a_fastbert_stands_on_every_encoder(folders, kind, tmp_path):
    model = loud(early(folders[kind]))
    for branch in model.branches:
        branch.classifier.weight.data.mul_(3)
    inputs = {name: of(model)[name] for name in ("input_ids", "attention_mask")}
    source = view(load_pretrained(folders[kind], "sdpa", 0))
    view(students.base(model)).copy_from(source, [0, 1, 2, 3])
    own, theirs = model.encoder.state_dict(), source.encoder.state_dict()
    assert own and all(torch.equal(value, theirs[name]) for name, value in own.items())
    hidden = model.encoder(**inputs).last_hidden_state  # transformers' own way
    expected = model.branches[-1](hidden, inputs["attention_mask"])
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
    everything = model.all_logits(**inputs)
    torch.testing.assert_close(everything[-1], expected, rtol=1e-4, atol=1e-5)
    first, *_ = fastbert.uncertainty(everything[0]).sort().values.split(2)
    logits, layers = model.early_exit(
        **inputs, speed=first.mean().item() + 1e-4
    )  # some row leaves, and is trimmed away
    for row, layer in enumerate(layers.tolist()):
        torch.testing.assert_close(logits[row], everything[layer - 1, row], rtol=1e-4, atol=1e-4)
    assert min(layers) == 1 < max(layers)
    view(model).save(tmp_path)
    loaded = students.load(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.slow  # tracing every layer's branch takes the exporter half a minute
@each
def test_a_fastberts_graph_stands_on_every_encoder(folders, kind, tmp_path):
    model = early(folders[kind])
    if kind == "deberta-v2":
        with refused(Code.UNSUPPORTED_EXPORT, "DeBERTa", kind=UserError):
            graph.to_onnx(view(model), tmp_path / "model.onnx", False)
    else:
        assert graph.to_onnx(view(model), tmp_path / "model.onnx", False) <= 1e-4


@each
def test_a_fastberts_flops_are_the_matrices_of_its_layers(folders, kind):
    model = early(folders[kind])
    config = read_json(folders[kind] / "config.json")
    shape = shape_of(folders[kind]) | {"config": config, "embedding_branch": False}
    matrices = {id(m): m.weight.numel() for m in view(model.encoder).layers[0].modules() if isinstance(m, nn.Linear)}
    head = sum(m.weight.numel() for m in model.branches[0].modules() if isinstance(m, nn.Linear))
    once = fastbert.WIDTH * (fastbert.WIDTH + len(LABELS))  # for [CLS] alone, the classifier not at all
    head = 9 * (head - once) + fastbert.WIDTH**2
    assert fastbert.flops(shape, 9, 2) == 2 * 2 * (9 * sum(matrices.values()) + head)


@each
def test_the_last_layer_gives_the_logits(folders, kind):
    """To divide its weights divides the logits: so a temperature goes into an exported model."""
    student = loud(classifier(folders[kind], [0, 2]))
    given = batch(student.config.pad_token_id)
    with torch.inference_mode():
        before = students.forward(student, given)
        view(student).divide_logits(2.0)
        torch.testing.assert_close(students.forward(student, given), before / 2)
