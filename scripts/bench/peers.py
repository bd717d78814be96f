"""Logit KD of the 3-layer student on reuters_r52, batch 32, length 64: kdbench beside HF Trainer and TextBrewer.

HF Trainer has a `compute_loss` with the teacher run live in it, bf16 autocast and length groups; TextBrewer its
GeneralDistiller, fp32 and fixed padding. All start from the same teacher and student, on the same examples.
TextBrewer is left out where it is not installed (pip install textbrewer tensorboardX).
"""

import copy
import importlib.util
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import harness
import torch
import torch.nn.functional as F

from kdbench.models.network import view
from kdbench.runs.context import Run
from kdbench.stage import Batch
from kdbench.training.dropout import cheap
from kdbench.training.hardware import Hardware

STEPS = 12  # of a round; the first two warm up
TEMPERATURE, HARD = 10.0, 0.2  # as conf/method/logit_kd.yaml has them
DROPOUTS = (0.0, 0.1)
COMPARED = {"no dropout": (0.0, 0.0), "dropout 0.1": (0.1, 0.1), "own defaults": (0.0, 0.1)}  # ours, the peers'
Seconds = list[float]


def ours(run: Run, dropout: float) -> Callable[[], Seconds]:
    stage = harness.stage_of(run)
    view(stage.student).set_dropout(dropout)
    batches = harness.first_batches(stage, 64)
    step = harness.stepper(run, stage, batches)

    def train() -> Seconds:
        stamps = [time.perf_counter()]
        with cheap(run.hardware, dropout):
            for _ in range(STEPS):
                step()
                harness.finish()
                stamps.append(time.perf_counter())
        return _steps(stamps)

    return train


def student_of(run: Run) -> Any:
    """A student of a peer's own, whose word embeddings have dense gradients."""
    student = copy.deepcopy(run.student)
    student.bert.embeddings.word_embeddings.sparse = False
    return student


def kd_loss(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    soft = F.kl_div((student / TEMPERATURE).log_softmax(-1), (teacher / TEMPERATURE).softmax(-1), reduction="batchmean")
    return (1 - HARD) * TEMPERATURE**2 * soft + HARD * F.cross_entropy(student, labels)


def trainer(run: Run, dropout: float, bf16: bool | None = None) -> Callable[[], Seconds]:
    """HF Trainer as its users write distillation; `bf16`: None as kdbench has it."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    bf16 = run.hardware.precision == "bf16" if bf16 is None else bf16
    teacher, student = run.teacher, student_of(run)
    view(student).set_dropout(dropout)
    tokens, labels = run.examples(run.data.train).tokens, run.data.train.labels
    rows = [{"input_ids": tokens.flat[tokens.span(i)], "label": int(labels[i])} for i in range(len(labels))]
    stamps: list[float] = []

    class Stamps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            harness.finish()
            stamps.append(time.perf_counter())

    class Distillation(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *_: Any, **__: Any) -> Any:
            outputs = model(**inputs)
            with torch.no_grad():
                target = teacher(**{name: value for name, value in inputs.items() if name != "labels"}).logits
            loss = kd_loss(outputs.logits.float(), target.float(), inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    def train() -> Seconds:
        stamps.clear()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=32, max_steps=STEPS, bf16=bf16, use_cpu=harness.DEVICE == "cpu",
                report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
                train_sampling_strategy="group_by_length",
            )  # fmt: skip
            collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(run.encoder_folder))
            Distillation(
                student,
                arguments,
                train_dataset=rows,
                data_collator=collator,
                callbacks=[Stamps()],
            ).train()
        return _steps(stamps)

    return train


def textbrewer(run: Run, dropout: float) -> Callable[[], Seconds]:
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    teacher, student = run.teacher, student_of(run).to(harness.DEVICE)
    view(student).set_dropout(dropout)
    length = run.config.dataset.max_length
    batches = [_fixed(batch, length) for batch in harness.first_batches(harness.stage_of(run), 64)]
    stamps: list[float] = []

    class Loader:
        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for batch in batches:
                harness.finish()
                stamps.append(time.perf_counter())
                yield batch

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": outputs.logits, "losses": outputs.loss}

    def train() -> Seconds:
        stamps.clear()
        with tempfile.TemporaryDirectory() as folder:
            settings = TrainingConfig(device=harness.DEVICE, output_dir=folder, log_dir=None, ckpt_steps=10**6)
            recipe = DistillationConfig(temperature=TEMPERATURE, hard_label_weight=HARD, kd_loss_weight=1 - HARD)
            distiller = GeneralDistiller(settings, recipe, teacher, student, adaptor, adaptor)
            with distiller:  # sets training and evaluation mode; it hands out nothing
                optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4)
                distiller.train(optimizer, Loader(), num_steps=STEPS, max_grad_norm=1.0)
        return _steps(stamps)

    return train


def _fixed(batch: Batch, length: int) -> dict[str, torch.Tensor]:
    pad = (0, length - batch["input_ids"].shape[1])
    padded = {name: F.pad(batch[name], pad) for name in ("input_ids", "attention_mask")}
    return padded | {"labels": batch["labels"]}


def _steps(stamps: list[float]) -> Seconds:
    return [after - before for before, after in pairwise(stamps[2:])]


CASES: dict[str, Callable[[Run, float], Callable[[], Seconds]]] = {
    "kdbench": ours,
    "HF Trainer, own precision": trainer,
    "HF Trainer, fp32": partial(trainer, bf16=False),
    "TextBrewer, fp32": textbrewer,
}


def work(who: str, dropout: float, words: list[str], outputs: Path, parent: Connection) -> None:
    """A process of one case: it says on what hardware, then trains a round for each word it gets."""
    harness.hush()
    run, hardware = harness.make_run(harness.configure(outputs, *words))
    train = CASES[who](run, dropout)
    parent.send(hardware)
    while parent.recv():
        parent.send(train())


def measured(words: list[str], outputs: Path, rounds: int) -> tuple[Hardware, dict[str, dict[float, float]]]:
    """Median seconds of a step by who and dropout.

    Each case has a process of its own and they take turns: none runs on the heap that the others have left behind.
    """
    there = [who for who in CASES if who != "TextBrewer, fp32" or importlib.util.find_spec("textbrewer") is not None]
    spawn = multiprocessing.get_context("spawn")
    ends: dict[tuple[str, float], Connection] = {}
    times: dict[str, dict[float, Seconds]] = {who: {p: [] for p in DROPOUTS} for who in there}
    for who in there:
        for p in DROPOUTS:
            ends[who, p], child = spawn.Pipe()
            spawn.Process(target=work, args=(who, p, words, outputs, child), daemon=True).start()
            hardware = ends[who, p].recv()
    for _ in range(rounds):
        for (who, p), end in ends.items():
            end.send(True)
            times[who][p] += end.recv()
    for end in ends.values():
        end.send(False)
    return hardware, {who: {p: statistics.median(seconds) for p, seconds in of.items()} for who, of in times.items()}


def main() -> None:
    given = harness.options(__doc__)
    threads = [f"hardware.threads={given.threads}"] if given.threads else []
    with harness.scratch() as outputs:
        words = ["dataset=reuters_r52", "method=logit_kd", *threads]
        hardware, step = measured(words, outputs, max(1, given.rounds // 10))
    rows = []
    for title, (own, theirs) in COMPARED.items():
        for who, of in step.items():
            seconds, here = of[own if who == "kdbench" else theirs], step["kdbench"][own]
            rows.append({"dropout": title, "who": who, "step ms": 1000 * seconds, "examples/s": 32 / seconds})
            rows[-1]["kdbench is faster by"] = seconds / here
    harness.report("logit KD, 6 to 3 layers, reuters_r52", harness.machine(hardware), rows, given.json)


if __name__ == "__main__":
    main()
