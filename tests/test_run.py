"""Runs: identity, teacher, baselines, the limits in which methods are each other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.utils import logging

from kdbench.data.stored import stored_dataset
from kdbench.data.teacher_cache import cached_outputs, compute_outputs
from kdbench.errors import Code, UserError
from kdbench.methods import theseus
from kdbench.models import students
from kdbench.models.network import view
from kdbench.runs import execute as run
from kdbench.runs import texts as context_data
from kdbench.runs.context import Run
from kdbench.runs.execute import run_folder
from kdbench.runs.identity import id_without_teacher_seed, run_id
from kdbench.runs.related import baseline, teacher_run, total_baseline
from kdbench.training import dropout
from kdbench.training import loop as train
from kdbench.training.hardware import accelerator, settle
from kdbench.training.interrupts import Stopped
from tests.refusals import refused


def identity(config):
    return run_id(config, settle(config.hardware))


def weights(result):
    return load_file(Path(result["folder"]) / "model" / "model.safetensors")


@pytest.fixture
def bare_run(configure):
    """A Run whose teacher is trained by the test's own execute."""

    def make(*overrides, ensure=None):
        config = configure(*overrides)
        hardware = settle(config.hardware)
        return Run(config, hardware, accelerator(hardware), run_folder(config, hardware), ensure)

    return make


class TestIdentity:
    def test_what_is_in(self, configure):
        ids = {
            identity(configure("method=logit_kd", *change))
            for change in (
                [], ["method.alpha=0.7"], ["schedule.lr=2e-3"], ["student.layers=1"], ["dataset.max_length=12"],
                ["dataset.max_train_samples=50"], ["hardware.attention=sdpa"], ["teacher.seed=1"],
                ["teacher.schedule.lr=2e-3"], ["method.init.layers=last"], ["schedule.dropout=0.1"],
            )
        }  # fmt: skip
        assert len(ids) == 11

    def test_what_is_out(self, configure, tmp_path):
        ids = {
            identity(configure("method=logit_kd", *change))
            for change in (
                [], ["seed=3"], ["checkpoint_every=7"], [f"outputs={tmp_path}/x"], ["hardware.threads=1"],
                ["dataset.name=other"], ["student.name=other"], ["schedule.steps=20", "schedule.epochs=9"],
                ["schedule.steps=20", "schedule.epochs=3"],
            )
        }  # fmt: skip
        assert len(ids) == 2  # the last two count steps, and are one

    def test_without_the_teachers_seed(self, configure):
        """Each method with a teacher of another seed is another run of the same row."""

        def ids(*words):
            config = configure(*words)
            return run_id(config, settle(config.hardware)), id_without_teacher_seed(config, settle(config.hardware))

        for method in ("logit_kd", "theseus", "pkd"):
            (one, row), (other, same) = (ids(f"method={method}", f"teacher.seed={seed}") for seed in (0, 1))
            assert one != other and row == same
        others = ([], ["method.alpha=0.7"], ["teacher.schedule.lr=2e-3"])
        assert len({ids("method=logit_kd", *change)[1] for change in others}) == 3
        (one, row), (other, same) = (ids("method=logit_kd", f"+teacher.seeds={seeds}") for seeds in ("[0,1]", "[2,3]"))
        assert one != other and row == same
        assert len({*ids("method=finetune")}) == 1

    def test_one_and_one_point_zero_are_one(self, configure):
        kd = [identity(configure("method=logit_kd", f"method.temperature={t}")) for t in ("1", "1.0")]
        assert kd[0] == kd[1]

    def test_only_keys_that_the_method_uses(self, configure):
        finetune = {identity(configure("method=finetune", *c)) for c in ([], ["teacher.seed=1"])}
        tfidf = {identity(configure("method=tfidf", *c)) for c in ([], ["schedule.lr=1"], ["dataset.max_length=9"])}
        assert len(finetune) == len(tfidf) == 1

    def test_local_data_count_by_content(self, configure, tmp_path, data_folder):
        for name in ("train.csv", "test.csv"):
            (tmp_path / name).write_text((data_folder / name).read_text())
        copied = configure(f"dataset.source={tmp_path}")
        assert identity(copied) == identity(configure())
        (tmp_path / "train.csv").write_text((data_folder / "train.csv").read_text() + "apple,fruit\n")
        assert identity(copied) != identity(configure())


class TestTeacherAndBaselines:
    def test_a_sweep_over_the_students_schedule_has_one_teacher(self, configure):
        teachers = {identity(teacher_run(configure("method=theseus", f"schedule.lr={lr}"))) for lr in ("1e-3", "2e-3")}
        assert len(teachers) == 1

    def test_the_teacher_is_the_full_depth_direct_fine_tune(self, configure):
        teacher = identity(teacher_run(configure("method=theseus")))
        assert teacher == identity(
            configure("method=finetune", "student=full", "student.layers=4", "schedule.epochs=1")
        )

    def test_a_direct_fine_tune_is_its_own_baseline(self, configure):
        config = configure("method=finetune")
        assert identity(baseline(config)) == identity(config)
        last = configure("method=finetune", "method.init.layers=last")
        assert identity(baseline(last)) == identity(config) != identity(last)

    def test_equal_updates(self, configure):
        config = configure("method=theseus", "schedule.epochs=4")  # 4 and 2
        assert identity(total_baseline(config, 48, 8)) == identity(configure("method=finetune", "schedule.epochs=6"))
        other = configure("method=theseus", "+method.stages.successor.batch_size=4")
        assert identity(total_baseline(other, 31, 8)) == identity(configure("method=finetune", "schedule.steps=31"))

    @pytest.mark.parametrize("method", ["logit_kd", "minilm", "distilbert", "mobilebert", "mlm"])
    def test_one_stage_of_the_task_has_one_baseline(self, configure, method):
        config = configure(f"method={method}")
        assert identity(total_baseline(config, 16, 8)) == identity(baseline(config))

    def test_the_result_names_them(self, configure, finished):
        result = finished("theseus")
        assert result["baseline_id"] == identity(configure("method=finetune"))
        assert result["total_baseline_id"] == identity(configure("method=finetune", "schedule.epochs=3"))
        assert result["teacher"]["id"] == identity(teacher_run(configure("method=theseus")))
        assert result["cost"]["student_updates"] == 24  # 60 rows: 8 batches an epoch; 2 epochs and 1


@pytest.mark.usefixtures("taught")
class TestLimits:
    def test_each_stage_has_its_own_dropout(self, configure, execute, monkeypatch):
        seen, keep = [], dropout.keep
        step = train._Trainer._step

        def watched(self, batch):
            probabilities = {module.p for module in self.stage.student.modules() if isinstance(module, nn.Dropout)}
            seen.append((self.stage.name, probabilities))
            step(self, batch)

        drawn = set()
        monkeypatch.setattr(train._Trainer, "_step", watched)
        monkeypatch.setattr(dropout, "keep", lambda x, p: drawn.add(p) or keep(x, p))
        execute(configure("method=theseus", "schedule.dropout=0.1", "+method.stages.successor.dropout=0.3"))
        assert drawn == {0.1, 0.3}  # by kdbench.training.dropout, the teacher's stage without any
        assert [p for name, p in seen if name == "replacing"] == [{0.1}] * 16
        assert [p for name, p in seen if name == "successor"] == [{0.3}] * 8

    def test_two_stage_starts_as_the_predecessors_layers_under_its_head(self, bare_run, configure, execute):
        teacher_result = execute(teacher_run(configure("method=two_stage")))
        run = bare_run("method=two_stage", ensure=lambda _: (teacher_result, Path(teacher_result["folder"])))
        stage = next(iter(method_stages(run)))
        batch = next(stage.data.epoch(0))
        with torch.inference_mode():
            found = students.logits(stage.student.eval(), batch)
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            hidden = run.teacher(**inputs, output_hidden_states=True).hidden_states[2]
            expected = view(run.teacher).logits_of(hidden, batch["attention_mask"])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    def test_two_stage_with_all_layers_is_the_predecessor(self, bare_run, configure, execute):
        teacher_result = execute(teacher_run(configure("method=two_stage")))
        ensure = lambda _: (teacher_result, Path(teacher_result["folder"]))  # noqa: E731
        whole = bare_run("method=two_stage", "student.layers=4", ensure=ensure)
        student = next(iter(method_stages(whole))).student.state_dict()
        assert all(torch.equal(student[name], value) for name, value in whole.teacher.state_dict().items())
        fresh = bare_run("method=two_stage", "student.layers=4", "method.head=reinit", ensure=ensure)
        other = next(iter(method_stages(fresh))).student.state_dict()
        assert [name for name in student if not torch.equal(student[name], other[name])] == [
            "classifier.weight",
            "classifier.bias",
        ]

    def test_theseus_trains_only_the_successors_layers_while_replacing(self, configure, execute):
        result = execute(configure("method=theseus", "method.successor_trains=none"))
        teacher_id = result["teacher"]["id"]
        folder = next(Path(result["folder"]).parents[2].glob(f"finetune/*-{teacher_id}/seed0/model"))
        teacher, student = load_file(folder / "model.safetensors"), weights(result)
        same = {name for name in student if torch.equal(student[name], teacher[name])}
        still = "bert.encoder.layer.1.attention.self.key.bias"  # of no effect on the first token's shares
        assert same - {still} == {name for name in student if ".encoder." not in name}

    def test_theseus_reports_the_hybrid_the_rates_and_the_graft(self, configure, execute):
        result = execute(configure("method=theseus", "method.variant=bernoulli", "schedule.epochs=4"))
        epochs = result["stages"][0]["epochs"]
        assert all(set(epoch["dev"]) == {"successor", "hybrid"} for epoch in epochs)
        rates = [epoch["means"][f"replaced_{module}"] for epoch in epochs for module in range(2)]
        assert 0.2 < np.mean(rates) < 0.8
        assert 0 <= result["reported"]["predecessor_encoder_successor_head"]["accuracy"] <= 1

    @pytest.mark.parametrize(
        ("variant", "embeddings"),
        [
            pytest.param(variant, embeddings, marks=() if (i - j) % 3 == 0 else pytest.mark.slow)
            for i, variant in enumerate(["bernoulli", "linear", "mix", "uniform", "annealed", "ordered"])
            for j, embeddings in enumerate(["frozen", "trained", "replaced"])
        ],
    )
    def test_every_theseus_runs(self, configure, execute, variant, embeddings):
        result = execute(
            configure(
                "method=theseus", f"method.variant={variant}", f"method.embeddings={embeddings}", "schedule.steps=4"
            )
        )
        assert result["cost"]["steps"] == 6

    @pytest.mark.parametrize("embeddings", ["frozen", "replaced"])
    def test_an_examples_draw_is_the_same_in_any_batch(self, bare_run, execute, embeddings):
        def ensure(other):
            result = execute(other)
            return result, Path(result["folder"])

        more = ["method.variant=bernoulli", "method.draw=example", f"method.embeddings={embeddings}"]
        run = bare_run("method=theseus", *more, ensure=ensure)
        stage = next(iter(method_stages(run)))
        whole = run.examples(run.data.train)
        terms = stage.objective(whole.batch(np.arange(8)), 3)
        parts = [stage.objective(whole.batch(np.arange(start, start + 2)), 3) for start in (4, 0, 6, 2)]
        rates = [terms.logged[f"replaced_{module}"] for module in range(2 + (embeddings == "replaced"))]
        assert any(0 < rate < 1 for rate in rates)  # not one draw for all
        together = np.mean([part.losses["ce"].item() for part in parts])
        assert together == pytest.approx(terms.losses["ce"].item(), rel=1e-5)
        assert [np.mean([part.logged[name] for part in parts]) for name in terms.logged] == pytest.approx(rates)
        assert stage.objective(whole.batch(np.arange(8)), 4).logged != terms.logged  # another step, another draw

    @pytest.mark.parametrize("frozen", [True, False])
    def test_what_stands_still_has_dropout_only_in_training_and_if_asked(self, bare_run, execute, frozen):
        def ensure(other):
            result = execute(other)
            return result, Path(result["folder"])

        more = ["method.variant=bernoulli", "method.replace_rate=0", "schedule.dropout=0.3"]  # the predecessor alone
        run = bare_run("method=theseus", *more, f"method.frozen_dropout={str(frozen).lower()}", ensure=ensure)
        stage = next(iter(method_stages(run)))
        stage.student.train()
        batch = run.examples(run.data.train).batch(np.arange(8))
        losses = {stage.objective(batch, 0).losses["ce"].item() for _ in range(3)}
        assert len(losses) == (3 if frozen else 1)
        scores = [stage.predict["hybrid"](batch, 0) for _ in range(2)]
        assert torch.equal(*scores) and not any(module.training for module in run.teacher.modules())

    def test_dropout_of_what_stands_still_is_the_same_after_a_stop(self, configure, execute, tmp_path):
        given = ["method=theseus", "method.frozen_dropout=true", "schedule.dropout=0.3"]
        whole = execute(configure(*given, f"outputs={tmp_path / 'whole'}"))
        with pytest.raises(Stopped):
            execute(configure(*given, "preempt_at=11"))  # the teacher has 8 steps, `replacing` 16
        resumed = execute(configure(*given))
        assert all(torch.equal(one, weights(resumed)[name]) for name, one in weights(whole).items())

    @pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (500, 0.55), (1000, 1.0), (4000, 1.0)])
    def test_the_step_at_which_every_module_is_replaced(self, configure, step, expected):
        config = configure("method=theseus", "method.base_rate=0.1", "method.full_step=1000")
        assert theseus.rate(config.method, step, 5000) == pytest.approx(expected)

    @pytest.mark.parametrize(("share", "steps"), [(0.0, [24]), (0.25, [6, 18]), (1.0, [24])])
    def test_the_replacing_share_divides_the_same_total(self, configure, execute, share, steps):
        result = execute(configure("method=theseus", f"method.replacing_share={share}"))
        assert [stage["steps"] for stage in result["stages"]] == steps
        assert result["stages"][0]["name"] == ("successor" if share == 0 else "replacing")
        assert result["total_baseline_id"] == identity(configure("method=finetune", "schedule.epochs=3"))

    def test_without_replacing_theseus_is_two_stage(self, configure, execute):
        theseus = execute(configure("method=theseus", "method.replacing_share=0.0"))
        other = execute(configure("method=two_stage", "method.head_lr_multiplier=1", "schedule.epochs=3"))
        mine, theirs = weights(theseus), weights(other)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)

    def test_without_a_second_stage_both_baselines_are_one(self, configure, execute):
        result = execute(configure("method=theseus", "method.successor_trains=none"))
        assert result["total_baseline_id"] == result["baseline_id"]

    @pytest.mark.parametrize("trained", ["head", "last_layer_and_head", "encoder"])
    def test_what_the_successor_stage_trains(self, configure, execute, trained):
        result = execute(configure("method=theseus", f"method.successor_trains={trained}"))
        folder = Path(result["folder"])
        before, after = (load_file(next(folder.glob(f"0{i}_*")) / "student.safetensors") for i in (0, 1))
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        heads = {name for name in before if name.startswith(("classifier", "bert.pooler"))}
        layers = {name for name in before if ".encoder.layer." in name and ".key.bias" not in name}
        expected = {
            "head": heads,
            "last_layer_and_head": heads | {name for name in layers if ".layer.1." in name},
            "encoder": layers,
        }[trained]
        assert moved - {name for name in moved if ".key.bias" in name} == expected


def method_stages(run):
    from kdbench.schema import method_module

    return method_module(run.config.method.name).stages(run, run.config.method)


def test_cached_teacher_logits_equal_live_ones_and_a_damaged_cache_is_rebuilt(bare_run, configure, execute, tmp_path):
    teacher_result = execute(teacher_run(configure("method=logit_kd")))
    run = bare_run("method=logit_kd", ensure=lambda _: (teacher_result, Path(teacher_result["folder"])))
    examples = run.examples(run.data.train)
    calls = []

    def predict(batch, step):
        calls.append(1)
        return students.logits(run.teacher, batch)

    file = Path(teacher_result["folder"]) / "model" / "model.safetensors"
    first, again = (cached_outputs("logits", examples, predict, file, "fp32", tmp_path) for _ in range(2))
    count = len(calls)
    torch.testing.assert_close(
        first, compute_outputs(examples, lambda b, s: students.logits(run.teacher, b)), rtol=0, atol=1e-6
    )
    assert torch.equal(first, again)
    batch = next(run.batches("training", "logits").epoch(0))
    torch.testing.assert_close(batch["teacher_logits"], students.logits(run.teacher, batch), rtol=0, atol=1e-5)
    path = next((tmp_path / "teacher").glob("*/*.safetensors"))
    first = first.clone()  # it was read by memory map
    path.write_bytes(path.read_bytes()[:-40])
    assert torch.equal(cached_outputs("logits", examples, predict, file, "fp32", tmp_path), first)
    assert len(calls) == 2 * count


def test_two_teacher_calls_are_bit_identical(bare_run, configure, execute):
    teacher_result = execute(teacher_run(configure("method=logit_kd", "teacher.schedule.dropout=0.2")))
    run = bare_run("method=logit_kd", ensure=lambda _: (teacher_result, Path(teacher_result["folder"])))
    batch = next(run.batches("training").epoch(0))
    assert torch.equal(students.logits(run.teacher, batch), students.logits(run.teacher, batch))


def test_dry_run_takes_a_step_of_each_stage_and_keeps_nothing(configure, execute, tmp_path):
    result = execute(configure("method=theseus", "dry_run=true"))
    assert [stage["steps"] for stage in result["stages"]] == [1, 1]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("method", "rows"), [("logit_kd", 4), ("tfidf", None)])
def test_dry_run_asks_the_models_about_a_batch_of_each_split(configure, monkeypatch, method, rows):
    read = []
    own = stored_dataset
    monkeypatch.setattr(context_data, "stored_dataset", lambda data, cache: read.append(data) or own(data, cache))
    batches = ("schedule.batch_size=4", "teacher.schedule.batch_size=3", "dataset.max_dev_samples=2")
    config = configure(f"method={method}", *batches, "dry_run=true")
    result = run.execute(config, choices={}, command="test", baseline_command=lambda other: "kdbench ...")
    assert [result["metrics"][name]["n"] for name in ("dev", "test")] == [2, 4]
    first, *rest = read
    assert (first.max_train_samples, first.max_test_samples) == (None, None)  # all of it is read, and told
    assert {data.max_train_samples for data in rest} == {rows}  # TF-IDF may need more for all its classes, and is quick


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_libraries_are_quiet(configure, execute, capfd, weights):
    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    execute(configure("method=finetune", f"method.init.weights={weights}"))
    shown = capfd.readouterr().err
    assert "Loading weights" not in shown and "Writing model shards" not in shown


def test_stages_share_no_order(bare_run):
    run = bare_run("method=theseus")
    orders = [next(run.batches(stage).epoch(0))["ids"].tolist() for stage in ("replacing", "successor")]
    assert orders[0] != orders[1]


def test_a_killed_run_has_no_results(configure, execute, monkeypatch, tmp_path):
    monkeypatch.setattr("kdbench.runs.record.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        execute(configure("method=finetune"))
    assert not list((tmp_path / "outputs").rglob("results.json"))


def test_a_sweep_may_have_both_precisions(configure, execute):
    results = [execute(configure("method=finetune", f"hardware.precision={p}")) for p in ("fp32", "bf16", "fp32")]
    assert [result["precision"] for result in results] == ["fp32", "bf16", "fp32"]
    assert results[0] == results[2]
    assert not all(torch.equal(a, b) for a, b in zip(*(weights(r).values() for r in results[:2]), strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the device")
def test_a_device_that_is_not_there_is_refused(configure, execute, tmp_path):
    with refused(Code.MISSING_DEVICE, "hardware.device=cuda: ", "cpu", kind=UserError):
        execute(configure("method=finetune", "hardware.device=cuda"))
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("chip", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, "bf16"),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "AMD EPYC"}, "bf16"),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "Intel Xeon"}, "fp32"),  # its bf16 is slower
        ({"avx2": True, "cpu_name": "AMD EPYC"}, "fp32"),
        ({"architecture": "aarch64"}, "fp32"),
    ],
)
def test_a_processor_trains_in_what_it_is_faster_in(monkeypatch, configure, chip, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: chip)
    config = configure("hardware.device=cpu", "hardware.precision=auto")
    assert settle(config.hardware).precision == expected
