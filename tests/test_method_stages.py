"""What each method trains, what it leaves alone, and what its parts share, on tiny models."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import load_file

from kdbench.cli.compose import conf_dir
from kdbench.losses import patience
from kdbench.methods import minilm, pkd, tinybert
from kdbench.methods.tinybert import Projection
from kdbench.models import bert, relu_bert, students
from kdbench.models.network import view
from kdbench.runs.identity import run_id
from kdbench.runs.related import baseline
from kdbench.training.hardware import settle
from kdbench.validation.load import _fill_from_run
from tests.conftest import NARROW

pytestmark = pytest.mark.usefixtures("taught")

SLOW = pytest.mark.slow
SHAPE: dict[str, Any] = {
    "architecture": "bert",
    "vocab_size": 30,
    "hidden": 8,
    "layers": 3,
    "heads": 2,
    "ffn": 12,
    "max_positions": 16,
}


def tiny(seed=0, **changes):
    return bert.Model.build(SHAPE | {"pad_token_id": 0} | changes, ["a", "b"], "eager", seed).eval()


def batch(rows=3, length=7, pad=2):
    ids = torch.randint(1, 30, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, length - pad :] = 0
    return {"ids": torch.arange(rows), "input_ids": ids, "attention_mask": mask, "labels": torch.zeros(rows).long()}


def weights(result, stage=None):
    folder = Path(result["folder"])
    return load_file(folder / stage / "student.safetensors" if stage else folder / "model" / "model.safetensors")


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_hidden_states_and_scores_are_transformers_own():
    model, inputs = tiny(), batch()
    given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    out = model.bert(**given, output_hidden_states=True, output_attentions=True)
    parts = view(model)
    states = parts.states(inputs)
    for ours, theirs in zip(states, out.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs)
    blocked = (1 - inputs["attention_mask"])[:, None, None, :].bool()
    for index, (x, probabilities) in enumerate(zip(states, out.attentions, strict=False)):
        own = parts.scores(index, x).masked_fill(blocked, -torch.inf).softmax(-1)
        torch.testing.assert_close(own, probabilities)
    assert len(parts.states(inputs, 1)) == 2
    assert [part.shape for part in parts.queries_keys_values(0, states[0])] == [(3, 2, 7, 4)] * 3


@pytest.mark.parametrize(
    ("choice", "teacher", "student", "expected"),
    [
        ("skip", 12, 6, [2, 4, 6, 8, 10]), ("last", 12, 6, [7, 8, 9, 10, 11]), ("skip", 12, 3, [4, 8]),
        ("last", 12, 3, [10, 11]), ("skip", 24, 6, [4, 8, 12, 16, 20]), ([1, 5], 12, 3, [1, 5]),
    ],
)  # fmt: skip
def test_pkd_maps_layers_as_the_paper(choice, teacher, student, expected):
    assert pkd.layer_map(choice, teacher, student) == expected


@pytest.mark.parametrize(
    ("choice", "teacher", "student", "expected"),
    [
        ("skip", 12, 6, [2, 4, 6, 8, 10, 12]), ("last", 12, 6, [7, 8, 9, 10, 11, 12]), ("skip", 12, 1, [12]),
        ("last", 3, 1, [3]), ([1, 5, 6], 12, 3, [1, 5, 6]),
    ],
)  # fmt: skip
def test_pkd_with_the_last_layer_ends_with_the_teachers(choice, teacher, student, expected):
    assert pkd.layer_map(choice, teacher, student, last_layer=True) == expected


def unit(x):
    return x / sum(value * value for value in x) ** 0.5


@pytest.mark.parametrize("chosen", [[2, 4], [2, 4, 6]], ids=["without the last layer", "with it"])
@pytest.mark.parametrize("tokens", ["cls", "all"])
def test_pkds_term_beside_one_from_transformers_states(tokens, chosen):
    """A loop over texts, tokens and layers; the first text has two tokens of padding, which do not count."""
    student, teacher, inputs = tiny(1), tiny(2, layers=6), batch()
    given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    own, target = (
        [state.detach().double().numpy() for state in model.bert(**given, output_hidden_states=True).hidden_states]
        for model in (student, teacher)
    )
    count = {"cls": [1, 1, 1], "all": [5, 7, 7]}[tokens]
    total = sum(
        ((unit(own[layer][text, token]) - unit(target[theirs][text, token])) ** 2).sum()
        for text, length in enumerate(count)
        for token in range(length)
        for layer, theirs in enumerate(chosen, start=1)
    )
    if tokens == "all":
        found = pkd.all_token_states(view(student), view(teacher), inputs, chosen)
    else:
        first = torch.stack([torch.tensor(state[:, 0]) for state in target[1:]], 1)
        found = pkd.first_token_states(view(student), inputs | {"teacher_cls": first}, chosen)
    a, b, last = found
    assert a.shape == b.shape == (sum(count), len(chosen), 8)
    assert patience(a, b, True, "batchmean").item() == pytest.approx(total / sum(count), rel=1e-5)
    assert patience(a, b, True, "elementmean").item() == pytest.approx(total / (sum(count) * len(chosen) * 8), rel=1e-5)
    logits = view(student).logits_of(last, inputs["attention_mask"])
    torch.testing.assert_close(logits, student(**given).logits)


def test_pkd_on_all_tokens_does_not_see_padding():
    student, teacher, short = view(tiny(1)), view(tiny(2, layers=6)), batch()
    longer: Any = {key: value if value.ndim == 1 else F.pad(value, (0, 3), value=0) for key, value in short.items()}
    for ours, theirs in zip(
        *(pkd.all_token_states(student, teacher, inputs, [2, 4, 6])[:2] for inputs in (short, longer)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_large_teachers_first_layers_are_pkds_student(configure, execute, teacher_folder, tmp_path):
    """BERT-large's 24 layers, narrow: the student starts from the first 6, and Skip compares every fourth."""
    from transformers import BertConfig, BertModel

    shutil.copytree(teacher_folder, large := tmp_path / "large")
    config = BertConfig.from_pretrained(teacher_folder, num_hidden_layers=24)
    torch.manual_seed(3)
    model = BertModel(config)
    model.save_pretrained(large)
    given = [f"teacher.source={large}", "student.layers=6", "schedule.lr=1e-12"]
    given += ["schedule.steps=1", "teacher.schedule.steps=1"]
    run = configure("experiment=question/pkd_large", *given)
    assert (run.method.name, run.teacher.layers, run.student.hidden) == ("pkd", 24, run.teacher.hidden)
    assert pkd.layer_map(run.method.patient_layers, 24, run.student.layers) == [4, 8, 12, 16, 20]
    student, teacher = weights(execute(run)), model.state_dict()
    for layer in range(6):
        name = f"encoder.layer.{layer}.output.dense.weight"
        torch.testing.assert_close(student[f"bert.{name}"], teacher[name], rtol=0, atol=1e-9)
    assert not any(".layer.6." in name for name in student)


@pytest.mark.parametrize("tokens", ["cls", "all"])
def test_pkd_with_other_tokens_and_the_last_layer_runs(configure, execute, tokens):
    result = execute(configure("method=pkd", f"method.patient_tokens={tokens}", "method.last_layer=true"))
    assert set(result["stages"][0]["epochs"][0]["means"]) == {"soft", "hard", "patience"}


def test_tinybert_maps_hidden_states_and_layers_one_apart():
    assert tinybert.layer_map(12, 4) == [(3, 2), (6, 5), (9, 8), (12, 11)]
    assert [state for state, _ in tinybert.layer_map(12, 6)] == [2, 4, 6, 8, 10, 12]


def tinybert_params(**changes):
    keys: dict[str, Any] = {
        "embedding": True,
        "hidden": True,
        "attention": True,
        "padding": "masked",
        "projection": "separate",
    }
    return tinybert.Params(**(keys | changes))


@pytest.mark.parametrize("padding", ["masked", "counted"])
def test_tinybert_terms_are_zero_for_a_copy_and_padding_changes_nothing_where_it_is_masked(padding):
    teacher = tiny(layers=3).bert
    projection = Projection(8, 8, separate=True)
    for linear in (projection.hidden, projection.embedding):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    same = tinybert.transformer_layers(teacher, teacher, projection, tinybert_params(padding=padding))(batch(), 0)
    assert {name: value.item() for name, value in same.losses.items()} == pytest.approx(
        {"embedding": 0, "hidden": 0, "attention": 0}, abs=1e-10
    )
    other = tinybert.transformer_layers(tiny(1, layers=3).bert, teacher, projection, tinybert_params(padding=padding))
    longer: Any = {key: value if value.ndim == 1 else F.pad(value, (0, 3)) for key, value in batch().items()}
    short, long = other(batch(), 0).losses, other(longer, 0).losses
    assert all(value.item() > 0 for value in short.values())
    alike = all(torch.isclose(short[name], long[name], rtol=1e-5) for name in short)
    assert alike == (padding == "masked")


def test_a_term_that_is_left_out_is_not_there():
    projection = Projection(8, 8, separate=False)
    student, teacher = tiny(1).bert, tiny().bert
    terms = tinybert.transformer_layers(
        student, teacher, projection, tinybert_params(attention=False, projection="shared")
    )
    assert set(terms(batch(), 0).losses) == {"embedding", "hidden"}


def minilm_params(version, relations=None):
    heads = 4 if version == "v2" else None
    return minilm.Params(version=version, relations=relations, teacher_layer=None, relation_heads=heads, assistants=[])


def uneven(seed):
    """A model whose attention is not nearly uniform, so that rounding is small beside the divergences."""
    model, generator = tiny(seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def divergence(mask, teacher, student):
    """Mean of KL(teacher || student) over heads and real queries of each text, then over texts; (B, A, T, T) each."""
    means = []
    for text, length in enumerate(mask.sum(1).tolist()):
        p, q = (x[text, :, :length, :length].detach().double() for x in (teacher, student))
        means.append((p * (p / q).log()).sum(-1).mean())
    return torch.stack(means).mean().item()


def value_relation(model, inputs, projection, heads):
    """Softmax of V V' / sqrt(d) (or of K K') of the last layer, from transformers' hidden states and weights."""
    given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    below = model.bert(**given, output_hidden_states=True).hidden_states[-2]
    x = getattr(model.bert.encoder.layer[-1].attention.self, projection)(below)
    x = x.view(*x.shape[:2], heads, -1).transpose(1, 2)
    scores = x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5
    return scores.masked_fill(inputs["attention_mask"][:, None, None] == 0, -torch.inf).softmax(-1)


def test_minilm_v1_without_value_relations_is_the_attention_alone():
    student, teacher, inputs = uneven(1), uneven(2), batch()
    p = minilm_params("v1", ["attention"])
    found = minilm.relation_terms(student.bert, teacher.bert, p, None)(inputs, 0).losses
    given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    own, target = (model.bert(**given, output_attentions=True).attentions[-1] for model in (student, teacher))
    expected = divergence(inputs["attention_mask"], target, own)
    assert {name: loss.item() for name, loss in found.items()} == {"attention": pytest.approx(expected, rel=1e-4)}
    everything = minilm.relation_terms(student.bert, teacher.bert, minilm_params("v1"), None)(inputs, 0).losses
    assert set(everything) == {"attention", "value"}


@pytest.mark.parametrize(("names", "projections"), [(["vv"], ["value"]), (["kk", "qq"], ["key", "query"])])
def test_minilm_v2_has_the_relations_that_are_named(names, projections):
    student, teacher, inputs = uneven(1), uneven(2), batch()
    found = minilm.relation_terms(student.bert, teacher.bert, minilm_params("v2", names), None)(inputs, 0).losses
    expected = {
        name: divergence(
            inputs["attention_mask"], *(value_relation(model, inputs, projection, 4) for model in (teacher, student))
        )
        for name, projection in zip(names, projections, strict=True)
    }
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(expected, rel=1e-4)


def test_the_general_run_knows_its_relations(configure):
    from kdbench.runs.related import general_run

    given = ["", "method.relations=null", "method.relations=[attention]", "method.relations=[value]"]
    configs = [general_run(configure("method=minilm", *filter(None, [one]))) for one in given]
    ids = [run_id(config, settle(config.hardware)) for config in configs]
    assert ids[0] == ids[1] and len(set(ids)) == 3


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_minilm_trains_up_to_the_last_layers_projections_and_nothing_after(version):
    student, teacher = tiny(1).bert, tiny(0).bert.requires_grad_(False)
    p = minilm_params(version)
    same = minilm.relation_terms(teacher, teacher, p, None)(batch(), 0)
    assert sum(value.item() for value in same.losses.values()) == pytest.approx(0, abs=1e-6)
    loss = minilm.relation_terms(student, teacher, p, None)(batch(), 0)
    sum(loss.losses.values()).backward()
    trained = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    last = {name for name in trained if name.startswith("encoder.layer.2")}
    assert last == {
        f"encoder.layer.2.attention.self.{part}.{kind}"
        for part in ("query", "key", "value")
        for kind in ("weight", "bias")
    }
    assert any(name.startswith("encoder.layer.1.output") for name in trained)
    assert not any(name.startswith("pooler") for name in trained)


def test_minilm_reads_the_chosen_teacher_layer():
    teacher = tiny().bert
    query, _, _ = minilm.last_qkv(teacher, batch(), 2)
    parts = view(teacher)
    torch.testing.assert_close(query, parts.queries_keys_values(1, parts.states(batch())[1])[0])


def test_minilm_assistants_are_stages_of_the_general_run(configure, execute):
    result = execute(configure("method=minilm", "method.assistants=[[3,8],[2,8]]", "phase=general"))
    assert [stage["folder"] for stage in result["stages"]] == ["00_assistant_0", "01_assistant_1", "02_distillation"]


@pytest.mark.parametrize("method", ["pkd", "logit_kd"])
def test_without_distillation_it_is_the_direct_fine_tune(configure, execute, finished, method):
    off = ["method.alpha=0", *(["method.beta=0"] if method == "pkd" else [])]
    config = configure(f"method={method}", *off)
    own, direct = execute(config), finished("finetune")
    assert own["baseline_id"] == direct["id"]
    assert not changed(weights(own), weights(direct))


def test_pkd_reads_the_cache_as_it_would_read_the_teacher(configure, execute, tmp_path):
    first = execute(configure("method=pkd"))
    again = execute(configure("method=pkd", f"outputs={tmp_path / 'again'}"))
    assert not changed(weights(first), weights(again))


def test_fastbert_stands_still_but_for_the_branches(finished):
    result = finished("fastbert")
    before, after = (weights(result, stage) for stage in ("00_training", "01_self_distillation"))
    assert {name.split(".")[1] for name in changed(before, after)} == {"0", "1"}
    assert all(name.startswith("branches.") for name in changed(before, after))
    curve = result["reported"]["curve_test"]
    exits = [point["mean_exit_layer"] for point in curve]
    assert exits[0] == 3 and exits == sorted(exits, reverse=True)
    assert all(abs(sum(point["exit_shares"]) - 1) < 1e-9 and point["n"] == 40 for point in curve)
    assert len(result["reported"]["layers_test"]) == 3 and result["reported"]["break_even_share"] < 1
    assert result["reported"]["layers_test"][-1] == curve[0]["accuracy"]
    at_speed = next(point for point in curve if point["speed"] == 0.5)
    assert at_speed["accuracy"] == pytest.approx(result["metrics"]["test"]["accuracy"])


def layers_of(names):
    return {int(name.split("layer.")[1].split(".")[0]) for name in names if "layer." in name}


@pytest.mark.parametrize(("freeze", "moving"), [("soft", {0, 1}), ("hard", {1})])
def test_progressive_transfer_moves_one_block_after_another(configure, execute, freeze, moving):
    result = execute(configure("method=mobilebert", f"method.freeze={freeze}", "phase=general"))
    names = [stage["folder"] for stage in result["stages"]]
    assert names == ["00_transfer_0", "01_transfer_1", "02_distillation"]
    first, second = (changed(weights(result, a), weights(result, b)) for a, b in pairwise(names))
    assert layers_of(first) == moving and all("layer." in name for name in first)
    assert any("embeddings" in name for name in second)


def test_a_mobilebert_with_layer_norm_and_gelu_learns_from_the_same_ib_bert(configure, execute, tmp_path):
    other = ["student.normalization=layer_norm", "student.activation=gelu"]
    first, second = (execute(configure("method=mobilebert", *more)) for more in ([], other))
    assert first["id"] != second["id"] and changed(weights(first), weights(second))
    config = json.loads((Path(second["folder"]) / "model/config.json").read_text())
    assert (config["normalization_type"], config["hidden_act"]) == ("layer_norm", "gelu")
    ib = {path.parent.name for path in (tmp_path / "outputs").rglob("ib_bert_*/seed0") if path.is_dir()}
    assert len(ib) == 1
    named = configure("method=mobilebert", "student.normalization=no_norm", "student.activation=relu")
    assert run_id(named, settle(named.hardware)) == first["id"]


@pytest.mark.parametrize("strategy", ["akt", "jkt"])
def test_the_other_strategies(configure, execute, strategy):
    result = execute(configure("method=mobilebert", f"method.strategy={strategy}", "phase=general"))
    assert len(result["stages"]) == {"akt": 1, "jkt": 2}[strategy]


def test_the_general_run_does_not_depend_on_the_task(configure):
    from kdbench.runs.related import general_run

    a, b = (
        general_run(configure("method=tinybert", *more)) for more in ([], ["schedule.lr=1e-3", "method.augment=false"])
    )
    c = general_run(configure("method=tinybert", "method.attention=false"))
    ids = [run_id(config, settle(config.hardware)) for config in (a, b, c)]
    assert ids[0] == ids[1] != ids[2]


def test_a_finished_student_teaches_the_next_one(configure, execute):
    assistant = execute(configure("method=finetune", "student.layers=3"))
    config = configure(
        "method=pkd", "method.patient_layers=last", "teacher=run", f"teacher.path={assistant['folder']}",
        "student.layers=2",
    )  # fmt: skip
    result = execute(config)
    assert config.teacher.layers == 3 and config.teacher.name == "finetune_bert_3l"
    assert result["teacher"]["id"] == assistant["id"]
    assert result["teacher"]["metrics"] == assistant["metrics"]


def test_a_run_as_teacher_brings_where_its_encoder_came_from_and_the_digest():
    asked, made = (
        cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(conf_dir() / f"teacher/{name}.yaml")))
        for name in ("run", "minilm_l6")
    )
    record = {"teacher": made, "student": {**made, "name": "bert_3l", "layers": 3}, "method": {"name": "logit_kd"}}
    _fill_from_run(asked, record)
    assert (asked["source"], asked["sha256"], asked["folder"]) == (made["source"], made["sha256"], made["folder"])
    assert (asked["name"], asked["layers"]) == ("logit_kd_bert_3l", 3)


@pytest.mark.parametrize("method", ["logit_kd", "theseus"])
def test_a_student_may_be_as_large_as_its_teacher(configure, execute, method):
    result = execute(configure(f"method={method}", "student=full", "student.layers=4"))
    assert result["identity"]["layers"] == 4


def test_the_mlm_head_is_transformers_own(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(config).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(tmp_path / "with")
    head = bert.Model.load_mlm_head(tmp_path / "with")
    assert head is not None
    hidden = torch.randn(5, 8)
    torch.testing.assert_close(head(hidden, students.word_embeddings(model.bert)), model.cls(hidden))
    model.bert.save_pretrained(tmp_path / "without")
    assert bert.Model.load_mlm_head(tmp_path / "without") is None


def test_the_relu_head_survives_its_folder_and_no_other_loader_takes_it(configure, execute):
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

    result = execute(configure("method=tinybert", "method.relu_head=true", "method.augment=false"))
    folder = Path(result["folder"]) / "model"
    model = students.load(folder)
    inputs = batch()
    inputs["input_ids"] %= 27
    pooled = model.bert(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
    torch.testing.assert_close(students.logits(model, inputs), model.classifier(pooled.relu()))
    # transformers alone does not know it, so it cannot load it as a plain BERT; kdbench makes it known.
    assert json.loads((folder / "config.json").read_text())["model_type"] == relu_bert.Traits.model_type
    assert relu_bert.Traits.model_type not in CONFIG_MAPPING_NAMES
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(folder).dropout, torch.nn.ReLU)


def test_tinybert_without_its_logits_learns_the_labels(configure, execute):
    off = ["method.prediction=false", "method.intermediate=false", "method.general=false", "method.augment=false"]
    changes = ["method.stages.prediction.epochs=2", "seed=1"]
    result = execute(configure("method=tinybert", *off, *changes))
    assert [stage["name"] for stage in result["stages"]] == ["prediction"]
    assert set(result["stages"][0]["epochs"][0]["means"]) == {"ce"}


def test_tinybert_leaves_its_projection_out_of_the_export(configure, execute):
    result = execute(configure("method=tinybert", "method.augment=false"))
    assert not any("projection" in name or "fit" in name for name in weights(result))
    assert (Path(result["folder"]) / "00_intermediate" / "extra.safetensors").is_file()


def test_augmentation_is_labelled_by_the_teacher(configure, execute):
    plain, more = (execute(configure("method=bilstm", f"method.augment={value}")) for value in ("false", "true"))
    assert more["reported"]["augmented_examples"] > 0
    assert more["stages"][0]["steps"] > plain["stages"][0]["steps"]


def test_the_cascade_is_both_its_models(finished):
    result = finished("cascade")
    points = {point["speed"]: point for point in result["reported"]["curve_test"]}
    small, large = (points[speed]["accuracy"] for speed in (1.0, 0.0))
    assert large == pytest.approx(result["teacher"]["metrics"]["test"]["accuracy"])
    assert result["metrics"]["test"]["accuracy"] == pytest.approx(points[0.5]["accuracy"])
    assert points[0.0]["mean_exit_layer"] == 2 and 0 <= small <= 1


@pytest.mark.parametrize("vectors", ["random", "teacher"])
def test_bilstm_starts_from_the_vectors_that_are_asked_for(configure, execute, vectors):
    small = ["student.hidden=6", "student.ffn=8", "student.embedding=8", f"student.word_vectors={vectors}"]
    result = execute(configure("method=finetune", "student=bilstm_300", "method.init.weights=random", *small))
    assert result["identity"]["student"] == "bilstm_6"


@pytest.mark.parametrize(
    ("method", "architecture", "weights_"),
    [
        ("fastbert", "bert", "pretrained"), ("distilbert", "distilbert", "pretrained"), ("pkd", "bert", "pretrained"),
        ("bilstm", "bilstm", "random"), ("mobilebert", "mobilebert", "random"), ("tinybert", "bert", "random"),
    ],
)  # fmt: skip
def test_the_baseline_is_the_same_student_fine_tuned_directly(configure, method, architecture, weights_):
    config = configure(f"method={method}")
    direct = baseline(config)
    assert direct.method.name == "finetune" and direct.method.init.weights == weights_
    assert (direct.student.architecture, direct.student.layers) == (architecture, config.student.layers)
    assert direct.schedule == config.schedule and direct.corpus is None and direct.phase == "task"


@pytest.mark.parametrize(("method", "student"), [("fastbert", "full"), ("mobilebert", "mobilebert"), ("pkd", "full")])
def test_the_baseline_is_the_run_that_a_user_would_start(configure, method, student):
    layers = {"fastbert": 3}.get(method, 2)
    start = {"mobilebert": [*NARROW, "student.embedding=4", "student.bottleneck=4", "student.ffn_blocks=2"]}
    more = [*start.get(method, []), "method.init.weights=random"] if method == "mobilebert" else []
    direct = configure("method=finetune", f"student={student}", f"student.layers={layers}", *more)
    own = baseline(configure(f"method={method}"))
    assert run_id(own, settle(own.hardware)) == run_id(direct, settle(direct.hardware))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, in tracing
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")  # the same
@pytest.mark.parametrize(
    "method", ["theseus", pytest.param("finetune", marks=SLOW), pytest.param("mobilebert", marks=SLOW)]
)
def test_compiled_layers_learn_what_plain_ones_do(configure, execute, monkeypatch, tmp_path, method):
    """Of torch.compile the tracing, which is what could go wrong here; the code it makes is its own affair."""
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compile_(self, backend="eager", **options))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    (teacher,) = (tmp_path / "outputs/topics/finetune").glob("*/seed0")  # which is not compiled as well
    words = [f"method={method}", "teacher=run", f"teacher.path={teacher}"]
    plain = execute(configure(*words))
    assert not torch._dynamo.utils.counters["stats"]
    compiled = execute(configure(*words, "hardware.compile=true"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert compiled["id"] != plain["id"]
    ours, theirs = (load_file(Path(run["folder"]) / "model/model.safetensors") for run in (compiled, plain))
    assert ours.keys() == theirs.keys()
    for name, weights in theirs.items():
        torch.testing.assert_close(ours[name], weights, rtol=0, atol=1e-5)
