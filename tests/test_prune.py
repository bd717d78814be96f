"""method=prune: the importance of heads and units, which of them go, and runs."""

import gc
import json
import weakref
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

from kdbench.cli import main as cli
from kdbench.errors import Code
from kdbench.methods import prune
from kdbench.methods.prune import Importance, costs, importance, normalised, remaining
from kdbench.models import students
from kdbench.models.network import view
from kdbench.models.pruned import pruned
from kdbench.runs.context import Run
from kdbench.runs.models import RunModels
from kdbench.training import loop as train
from kdbench.training.hardware import accelerator, settle
from tests.models.test_encoders import batch
from tests.models.test_pruned import PRUNABLE, whole
from tests.test_methods import same, weights


def changes(model: Any, inputs: Any, scale: Any) -> torch.Tensor:
    """dL(x) / dxi of each text by a central difference; `scale(factor)` multiplies what reads the part."""
    losses, step = [], 1e-5
    for factor in (1 + step, (1 - step) / (1 + step)):
        scale(factor)
        with torch.no_grad():
            z = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            losses.append(F.cross_entropy(z, inputs["labels"], reduction="none"))
    scale(1 / (1 - step))
    return (losses[0] - losses[1]) / (2 * step)


@pytest.mark.parametrize("kind", PRUNABLE)
def test_importance_is_the_mean_size_of_the_losses_derivative(tmp_path, kind):
    """A part is scaled by scaling the weights that read it, one part after another, and the loss is seen to change."""
    model = whole(tmp_path, kind).double()
    inputs = batch(model.config.pad_token_id) | {"labels": torch.tensor([0, 2, 1, 1])}
    one, rest = ({name: value[rows] for name, value in inputs.items()} for rows in (slice(1), slice(1, 4)))
    found = importance(model, "classification", iter([one, rest]))  # type: ignore[list-item]
    assert [len(own) for own in found.heads] == [4] * 4 and [len(own) for own in found.units] == [32] * 4
    mixing = {"distilbert": "attention.out_lin", "mpnet": "attention.attn.o"}.get(kind, "attention.output.dense")
    read = {"distilbert": "ffn.lin2"}.get(kind, "output.dense")
    for index, layer in enumerate(view(model).layers):
        for name, own, width in ((mixing, found.heads[index], 4), (read, found.units[index], 1)):
            weight = layer.get_submodule(name).weight
            for part in range(0, len(own), 1 if width == 4 else 7):
                columns = slice(width * part, width * (part + 1))

                def scale(factor: float, weight: Any = weight, columns: slice = columns) -> None:
                    with torch.no_grad():
                        weight[:, columns] *= factor

                expected = changes(model, inputs, scale).abs().mean()
                torch.testing.assert_close(own[part], expected, rtol=1e-3, atol=1e-7)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_importance_of_a_words_task_counts_each_text_once(tmp_path):
    """A text's loss is the mean over its own words, whatever else is in its batch; a text without words counts 0."""
    model = whole(tmp_path, "bert", words=True).double()
    inputs = batch(model.config.pad_token_id)
    labels = torch.full((4, 11), -100)
    labels[0, 1:4], labels[1, 1], labels[2, 2:7] = torch.tensor([0, 1, 2]), 1, 2
    inputs["labels"] = labels
    together = importance(model, "token_classification", iter([inputs]))
    texts = [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(4)]
    apart = [importance(model, "token_classification", iter([text])) for text in texts]  # type: ignore[list-item]
    for layer in range(4):
        mean = torch.stack([one.units[layer] for one in apart]).mean(0)
        torch.testing.assert_close(together.units[layer], mean, rtol=1e-4, atol=1e-7)
        assert not apart[3].units[layer].any() and apart[1].units[layer].any()


def test_importance_does_not_depend_on_how_the_texts_are_cut_into_batches(tmp_path):
    """Whole, in halves, and text by text, each part padded to its own longest text."""
    model = whole(tmp_path, "bert")
    inputs = batch(model.config.pad_token_id) | {"labels": torch.tensor([0, 2, 1, 1])}
    together = importance(model, "classification", iter([inputs]))
    for size in (2, 1):
        parts = []
        for start in range(0, 4, size):
            part = {name: value[start : start + size] for name, value in inputs.items()}
            length = int(part["attention_mask"].sum(1).max())
            parts.append({name: value if value.dim() == 1 else value[:, :length] for name, value in part.items()})
        apart = importance(model, "classification", iter(parts))  # type: ignore[arg-type]
        assert len({part["input_ids"].shape[1] for part in parts}) > 1
        for one, other in zip([*together.heads, *together.units], [*apart.heads, *apart.units], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", PRUNABLE)
def test_costs_are_those_of_a_layer(tmp_path, kind):
    model = whole(tmp_path, kind, "eager")
    head, unit, rest = costs("parameters", 16, 4, 32, 9)
    assert 4 * head + 32 * unit + rest == sum(one.numel() for one in view(model).layers[0].parameters())
    head, unit, rest = costs("flops", 16, 4, 32, 9)
    x, mask = torch.randn(1, 9, 16), torch.ones(1, 9).long()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        view(model).whole_passes(x, mask)[0](x)
    assert 4 * head + 32 * unit + rest == counter.get_total_flops()


def scores(*layers: list[float]) -> list[torch.Tensor]:
    return [torch.tensor(layer, dtype=torch.float64) for layer in layers]


def test_what_matters_least_for_its_size_goes_first():
    found = Importance(scores([8.0, 1.0], [9.0, 7.0]), scores([0.5, 3.0, 2.0], [2.5, 0.1, 4.0]))
    # Per parameter: heads 0.8, 0.1, 0.9, 0.7; units 0.25, 1.5, 1.0, 1.25, 0.05, 2.0.
    assert remaining(found, 10, 2, 0, together=True) == ([[0, 1], [0, 1]], [[0, 1, 2], [0, 1, 2]])
    assert remaining(found, 10, 2, 2, together=True) == ([[0, 1], [0, 1]], [[0, 1, 2], [0, 2]])
    assert remaining(found, 10, 2, 12, together=True) == ([[0], [0, 1]], [[0, 1, 2], [0, 2]])
    assert remaining(found, 10, 2, 14, together=True) == ([[0], [0, 1]], [[1, 2], [0, 2]])


def test_heads_and_units_that_are_ranked_apart_lose_the_same_share():
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(size, generator=generator, dtype=torch.float64) for size in (4, 4, 32, 32)]
    found = Importance([1e-6 * one for one in drawn[:2]], drawn[2:])  # together, all heads but two would go first
    heads, units = remaining(found, 10, 2, 4 * 10 + 32 * 2, together=False)  # half of 8 heads and of 64 units
    assert (sum(map(len, heads)), sum(map(len, units))) == (4, 32)
    for kept, scored in ((heads, found.heads), (units, found.units)):
        least = min(scored[layer][at] for layer, own in enumerate(kept) for at in own)
        gone = [one for layer, own in enumerate(scored) for at, one in enumerate(own) if at not in kept[layer]]
        assert max(gone) < least  # over all layers
    assert sum(map(len, remaining(found, 10, 2, 4 * 10 + 32 * 2, together=True)[0])) == 2


def test_a_head_that_is_too_large_is_passed_over_while_there_are_units():
    found = Importance(scores([8.0, 1.0]), scores([9.0, 3.0, 4.0]))
    assert remaining(found, 10, 2, 3, together=True) == ([[0, 1]], [[0]])  # two units, 4 in all
    assert remaining(found, 10, 2, 5, together=True) == ([[0]], [[0]])  # no third unit may go, so the head must


def test_each_layer_keeps_its_most_important_head_and_unit():
    found = Importance(scores([0.1, 0.2], [5.0, 6.0]), scores([0.3, 0.1], [7.0, 8.0]))
    assert remaining(found, 10, 2, 10**9, together=True) == ([[1], [1]], [[0], [1]])


def test_normalised_scores_have_equal_norms_and_keep_their_size():
    given = scores([3.0, 4.0], [0.6, 0.8], [0.0, 0.0])
    made = normalised(given)
    typical = ((25 + 1 + 0) / 3) ** 0.5
    torch.testing.assert_close(made[0], given[0] / 5 * typical)
    torch.testing.assert_close(made[1], given[1] * typical)
    assert not made[2].any()


# Runs


@pytest.fixture
def run(configure, execute, taught):
    return lambda *words: execute(configure("method=prune", *words))


@pytest.mark.parametrize("measure", ["parameters", "flops"])
def test_the_target_is_met_within_one_unit(run, measure):
    result = run("method.target=0.4", f"method.measure={measure}")
    first, *rounds = result["reported"]["rounds"]
    head, unit, rest = costs(measure, 16, 2, 32, 16)
    full = 4 * (2 * head + 32 * unit + rest)
    assert first["heads"] == [2] * 4 and first["units"] == [32] * 4 and len(rounds) == 2
    for number, one in enumerate(rounds, start=1):
        size = sum(one["heads"]) * head + sum(one["units"]) * unit + 4 * rest
        target = full * (1 - 0.6 * number / 2)
        assert target - unit < size <= target
        assert min(one["heads"]) >= 1 and min(one["units"]) >= 1
        assert 0 <= one["dev_before_recovery"] <= 1 and 0 <= one["dev"] <= 1
    key = {"parameters": "layer_parameters", "flops": "flops_per_example"}[measure]
    assert first[key] - rounds[-1][key] == full - size
    for key in ("parameters", "flops_per_example"):
        assert first[key] > rounds[0][key] > rounds[1][key]
    assert result["parameters"]["total"] == rounds[-1]["parameters"]
    assert result["flops_per_example"] == rounds[-1]["flops_per_example"]
    assert rounds[-1]["dev"] == pytest.approx(result["metrics"]["dev"]["accuracy"])
    assert first["dev"] == pytest.approx(result["teacher"]["metrics"]["dev"]["accuracy"])
    config = json.loads((Path(result["folder"]) / "model" / "config.json").read_text())
    assert [len(own) for own in config["kept_heads"]] == rounds[-1]["heads"]
    assert config["kept_units"] == rounds[-1]["units"]
    assert [stage["name"] for stage in result["stages"]] == ["recovery_1", "recovery_2"]
    assert [stage["steps"] for stage in result["stages"]] == [8, 8]  # of 16, shared


def test_killed_in_its_second_round_it_resumes_with_the_same_shape_and_weights(configure, execute, run, monkeypatch):
    broken = configure("method=prune", "seed=3")
    step = train._Trainer._step
    taken = []

    def counted(self, batch):
        taken.append(self.stage.name)
        if taken.count("recovery_2") == 4:
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(train._Trainer, "_step", counted)
    with pytest.raises(KeyboardInterrupt):
        execute(broken)
    assert taken.count("recovery_1") == 8
    monkeypatch.setattr(train._Trainer, "_step", step)
    resumed = execute(broken)
    fresh = run("seed=3", "rerun=true")
    assert same(weights(resumed), weights(fresh)) and resumed["metrics"] == fresh["metrics"]
    assert resumed["reported"] == fresh["reported"]


def test_the_soft_term_comes_from_the_unpruned_teacher(run):
    pure, both = run("method.rounds=1"), run("method.rounds=1", "method.alpha=0.5")
    lines = [(Path(one["folder"]) / "00_recovery_1" / "metrics.jsonl").read_text() for one in (pure, both)]
    assert '"soft"' not in lines[0] and '"soft"' in lines[1]
    assert pure["reported"]["rounds"][1]["heads"] == both["reported"]["rounds"][1]["heads"]
    assert not same(weights(pure), weights(both))


def test_a_pruned_run_teaches_by_its_logits_and_is_refused_by_what_reads_its_layers(
    run, configure, execute, command_line
):
    teacher = ["teacher=run", f"teacher.path={run()['folder']}"]
    config = configure("method=logit_kd", *teacher)
    assert config.teacher.architecture == "pruned_bert"
    assert execute(config)["metrics"]["test"]["n"] == 40
    for method in ("pkd", "two_stage", "prune"):
        (fault, *others) = cli.refuse(command_line(f"method={method}", *teacher))
        assert not others and fault.code == Code.UNSUPPORTED_ARCHITECTURE and "pruned_bert" in str(fault), str(fault)
        assert "reads its layers" in str(fault)


# The start, and layers by their contribution


@pytest.fixture
def bare_run(configure, execute, taught, tmp_path):
    def make(*words: str) -> Run:
        config = configure(*words)
        hardware = settle(config.hardware)

        def ensure(other: Any) -> tuple[dict[str, Any], Path]:
            result = execute(other)
            return result, Path(result["folder"])

        return Run(config, hardware, accelerator(hardware), tmp_path / "run", ensure)

    return make


@pytest.mark.parametrize(("method", "weights"), [("two_stage", "finetuned"), ("finetune", "pretrained")])
def test_the_layers_that_change_cls_least_are_dropped(bare_run, method, weights):
    run = bare_run(f"method={method}", "method.init.layers=contribution", "student.layers=2")
    source = students.base(run.teacher) if weights == "finetuned" else run.pretrained
    tokenizer = AutoTokenizer.from_pretrained(run.encoder_folder)
    inputs = tokenizer([*run.data.train.texts], padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        states = source(**inputs, output_hidden_states=True).hidden_states
    cosines = [F.cosine_similarity(a[:, 0], b[:, 0], dim=-1).mean().item() for a, b in pairwise(states)]
    student = run.student
    assert run.reported["layer_similarities"] == pytest.approx(cosines, abs=1e-6)
    least = sorted(sorted(range(4), key=lambda layer: cosines[layer])[:2])
    assert run.chosen_layers(run.config.student) == least and len({*cosines}) == 4
    for own, layer in zip(view(student).layers, least, strict=True):
        theirs = view(source).layers[layer].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in own.state_dict().items())


def test_it_starts_as_the_fine_tuned_teacher_with_its_head(bare_run, monkeypatch):
    run, seen = bare_run("method=prune"), []

    def spied(model: Any, *kept: Any) -> Any:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return pruned(model, *kept)

    monkeypatch.setattr(prune, "pruned", spied)
    stage = next(prune.stages(run, run.config.method))
    assert same(seen[0], run.teacher.state_dict()) and not same(seen[0], stage.student.state_dict())


def test_nothing_of_the_teacher_or_an_earlier_round_is_in_memory_while_a_round_is_trained(run, monkeypatch):
    """Weights, moments and best weights are dead without a garbage collection, which would come late."""
    train_round, measure, read = train._Trainer.run, prune.importance, RunModels.classifier
    earlier: list[Any] = []
    alive: dict[str, int] = {}

    def seen(tensors: Any) -> None:
        earlier.extend(weakref.ref(one) for one in tensors)

    def classifier(self, folder):
        teacher = read(self, folder)
        seen(teacher.parameters())
        return teacher

    def importance(student, *more):
        seen(student.parameters())  # in the first round the unpruned student
        return measure(student, *more)

    def trained(self):
        alive[self.stage.name] = sum(one() is not None for one in earlier)
        train_round(self)
        moments = [value for of_one in self.updates.optimizer.state.values() for value in of_one.values()]
        seen([*self.module.parameters(), *self.updates.trained, *moments, *self.state.best.weights.values()])

    monkeypatch.setattr(train._Trainer, "run", trained)
    monkeypatch.setattr(prune, "importance", importance)
    monkeypatch.setattr(RunModels, "classifier", classifier)
    gc.collect()
    gc.disable()
    try:
        run("seed=5")
    finally:
        gc.enable()
    assert alive == {"recovery_1": 0, "recovery_2": 0} and len(earlier) > 100


def test_no_student_is_in_memory_while_its_teacher_is_trained(bare_run, monkeypatch):
    run, calls = bare_run("method=prune"), []
    ensure, build = run.ensure, students.build
    monkeypatch.setattr(run, "ensure", lambda other: calls.append("teacher") or ensure(other))
    monkeypatch.setattr(students, "build", lambda *given: calls.append("student") or build(*given))
    assert run.student is run.student and calls == ["teacher", "student"]


def test_a_released_model_is_made_again_when_it_is_used(bare_run):
    run = bare_run("method=prune")
    first = run.student
    run.release("teacher", "student", "origin")
    assert run.student is not first and same(run.student.state_dict(), first.state_dict())


def test_a_sample_begins_with_its_longest_texts(bare_run):
    run = bare_run("method=prune")
    batches = [*run.sample(run.data.train, 20, 6, "importance")]
    lengths = [length for one in batches for length in one["attention_mask"].sum(1).tolist()]
    assert lengths == sorted(lengths, reverse=True) and len({*lengths}) > 1
    ids = [number for one in batches for number in one["ids"].tolist()]
    assert len({*ids}) == 20 and {*ids} < {*run.data.train.ids.tolist()}


def test_each_round_has_its_own_order_of_the_texts(run, monkeypatch):
    """A round may be shorter than an epoch: with one order, it would never see the epoch's last texts."""
    step, seen = train._Trainer._step, {}

    def spied(self, batch):
        seen.setdefault(self.stage.name, []).append(batch["ids"].tolist())
        step(self, batch)

    monkeypatch.setattr(train._Trainer, "_step", spied)
    run()
    first, second = seen["recovery_1"], seen["recovery_2"]
    assert first != second and sorted(chain(*first)) == sorted(chain(*second))


def test_a_run_reports_the_similarities_and_is_the_same_when_done_again(configure, execute, taught):
    config = configure("method=two_stage", "method.init.layers=contribution")
    first = execute(config)
    again = execute(configure("method=two_stage", "method.init.layers=contribution", "rerun=true"))
    assert len(first["reported"]["layer_similarities"]) == 4 and first["reported"] == again["reported"]
    assert same(weights(first), weights(again))
