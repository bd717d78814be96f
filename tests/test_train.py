"""The loop's invariants, on a toy network: no transformers, no data sets."""

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from kdbench.data.batches import Examples, TrainBatches
from kdbench.data.tokenize import Tokens
from kdbench.stage import Batch, ParamGroup, Schedule, Stage, Terms
from kdbench.storage.status import StatusFile
from kdbench.training.finite import NonFiniteLoss
from kdbench.training.interrupts import Limits
from kdbench.training.loop import train
from kdbench.training.progress import Display

SCHEDULE = Schedule(
    steps=12, lr=1e-2, accumulation=1, warmup=0.1, decay="linear", weight_decay=0.01, clip=1.0, patience=None
)


class Toy(nn.Module):
    """Mean of token embeddings, dropout, two linear layers. No text has the last five of its words."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(25, 8)
        self.body = nn.Linear(8, 8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 3)

    def forward(self, batch: Batch) -> Tensor:
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled = (self.embeddings(batch["input_ids"]) * mask).sum(1) / mask.sum(1)
        return self.head(self.dropout(torch.tanh(self.body(pooled))))


def toy(dropout: float = 0.0) -> Toy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Toy(dropout)


def examples(count: int = 37) -> Examples:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 9, (count,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    flat = torch.randint(1, 20, (int(offsets[-1]),), generator=generator).int()
    labels = flat[offsets[:-1]].long() % 3
    return Examples(Tokens("toy", flat.numpy(), offsets.numpy()), torch.arange(count).numpy(), labels.numpy(), 0)


def supervised(model: Toy, fail_at: int | None = None) -> Any:
    def objective(batch: Batch, step: int) -> Terms:
        if step == fail_at:
            raise KeyboardInterrupt
        return Terms({"ce": nn.functional.cross_entropy(model(batch), batch["labels"])}, {"step": float(step)})

    return objective


def run(model: Toy, folder: Path, objective: Any = None, **changes: Any) -> dict[str, Any]:
    schedule = dataclasses.replace(SCHEDULE, **changes.pop("schedule", {}))
    data = TrainBatches(examples(), changes.pop("batch_size", 8), seed=3)
    stage = Stage(
        "toy",
        model,
        objective or supervised(model),
        data,
        schedule,
        params=changes.pop("params", None),
        words=changes.pop("words", None),
        predict={"student": lambda batch, step: model(batch)},
    )
    held = examples(16)

    def score(predict: Any, step: int) -> dict[str, float]:
        with torch.inference_mode():
            correct = predict(held.batch(torch.arange(16).numpy()), step).argmax(-1).numpy() == held.labels
        return {"accuracy": float(correct.mean())}

    display = Display(Console(quiet=True), 8, StatusFile(folder, writes=False))
    every = changes.pop("checkpoint_every", 5)
    assert not changes
    accelerator = Accelerator(cpu=True)
    return train(stage, folder, accelerator, score, metric="accuracy", seed=7, limits=Limits(every), display=display)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_stage_learns_and_is_not_trained_again(tmp_path):
    model = toy()
    record = run(model, tmp_path)
    assert not equal(model, toy())
    again = toy()
    assert run(again, tmp_path, objective=None) == record
    assert equal(model, again)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("fail_at", range(1, 12))
def test_resumed_equals_unbroken_bitwise(tmp_path, fail_at):
    whole = toy(dropout=0.3)
    record = run(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        broken = toy(dropout=0.3)
        run(broken, tmp_path / "broken", supervised(broken, fail_at))
    steps: list[int] = []
    resumed = toy(dropout=0.3)
    inner = supervised(resumed)
    resumed_record = run(resumed, tmp_path / "broken", lambda batch, step: (steps.append(step), inner(batch, step))[1])
    assert equal(whole, resumed)
    assert steps == list(range(fail_at // 5 * 5, 12))  # at most checkpoint_every steps are repeated
    assert resumed_record["epochs"] == record["epochs"]
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "broken")]
    assert metrics[1] == metrics[0]


def test_accumulation_equals_the_big_batch(tmp_path):
    whole, parts = toy(), toy()
    run(whole, tmp_path / "a")
    run(parts, tmp_path / "b", schedule={"accumulation": 4})
    for x, y in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_an_objective_that_trains_nothing_in_some_steps(tmp_path):
    """Theseus may draw no successor: then the step has a zero gradient, and backward() must not raise."""
    model = toy()
    inner = supervised(model)

    def objective(batch: Batch, step: int) -> Terms:
        terms = inner(batch, step)
        return terms if step % 3 else Terms({"ce": terms.losses["ce"].detach()}, terms.logged)

    record = run(model, tmp_path, objective)
    assert record["steps"] == 12
    assert not equal(model, toy())


def test_only_the_named_parameters_move(tmp_path):
    model = toy()
    run(model, tmp_path, params=[ParamGroup(model.head)])
    start = toy()
    assert torch.equal(model.body.weight, start.body.weight)
    assert torch.equal(model.embeddings.weight, start.embeddings.weight)
    assert not torch.equal(model.head.weight, start.head.weight)


def test_lr_multiplier_scales_the_first_adam_step(tmp_path):
    """O9: under Adam every parameter's first step is its learning rate, so a group's is multiplied exactly."""
    model, start = toy(), toy()
    schedule = {"steps": 1, "warmup": 0.0, "weight_decay": 0.0, "clip": None, "lr": 1e-3}
    run(model, tmp_path, params=[ParamGroup(model.body), ParamGroup(model.head, 5.0)], schedule=schedule)
    body, head = (getattr(model, n).bias - getattr(start, n).bias for n in ("body", "head"))
    torch.testing.assert_close(body.abs(), torch.full_like(body, 1e-3), rtol=1e-3, atol=0)
    torch.testing.assert_close(head.abs(), torch.full_like(head, 5e-3), rtol=1e-3, atol=0)


def test_the_best_dev_weights_are_kept(tmp_path):
    model = toy()
    record = run(model, tmp_path, schedule={"lr": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["dev"]["student"]["accuracy"] for line in lines if "dev" in line}
    assert record["best_dev_accuracy"] == max(scores.values())
    assert record["best_step"] == min(step for step, score in scores.items() if score == max(scores.values()))


def test_patience_stops(tmp_path):
    record = run(toy(), tmp_path, schedule={"lr": 1e-12, "patience": 1, "steps": 40})
    assert record["steps"] == 10  # two epochs of five steps: the second was no better


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path):
    model = toy()

    def objective(batch: Batch, step: int) -> Terms:
        loss = model(batch).square().mean()
        return Terms({"fine": loss, "broken": loss * (math.inf if step == 3 else 1)})

    with pytest.raises(NonFiniteLoss, match=r"stage toy, step 4: .*fine [\d.]+, broken inf"):
        run(model, tmp_path, objective)
    assert not (tmp_path / "stage.json").exists()


@pytest.mark.parametrize("bad_step", [0, 1])
def test_no_learning_rate_is_blamed_for_the_first_step(tmp_path, bad_step):
    model = toy()

    def objective(batch: Batch, step: int) -> Terms:
        return Terms({"soft": model(batch).square().mean() * (math.inf if step == bad_step else 1)})

    with pytest.raises(NonFiniteLoss) as caught:
        run(model, tmp_path, objective)
    assert ("schedule.lr" in str(caught.value)) is (bad_step > 0)
    assert ("temperature" in str(caught.value)) is (bad_step == 0)


def test_lr_factor():
    factors = [SCHEDULE.lr_factor(step) for step in range(12)]
    assert factors[0] == 0.5 and factors[1] == 1.0  # one warm-up step of 12
    assert factors[-1] == pytest.approx(1 / 11)
    assert all(a > b for a, b in pairwise(factors[1:]))


def test_every_example_once_an_epoch_and_any_start():
    data = TrainBatches(examples(), 8, seed=3)
    first = [batch["ids"].tolist() for batch in data.epoch(0)]
    assert sorted(i for batch in first for i in batch) == list(range(37))
    assert [batch["ids"].tolist() for batch in data.epoch(0, 3)] == first[3:]
    assert [batch["ids"].tolist() for batch in data.epoch(1)] != first
    assert len(first) == len(data) == 5
