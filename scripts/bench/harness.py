"""What the benchmarks share: real stages of real runs, interleaved timing, the matrix-product floor, the report.

Each benchmark prints a table and, with --json FILE, writes the same rows. Cases run A B A B in one process; figures
are medians, so compare within one run only: this kind of machine drifts.
"""

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.cli.compose import conf_dir
from kdbench.console import quiet_libraries
from kdbench.runs.context import Run
from kdbench.runs.execute import ensure, prepared, run_folder
from kdbench.runs.record import About
from kdbench.schema import RunConfig, method_module
from kdbench.stage import Batch, Stage
from kdbench.storage.status import StatusFile
from kdbench.training.hardware import Hardware, accelerator, settle
from kdbench.training.interrupts import Limits
from kdbench.training.loop import _Trainer
from kdbench.training.progress import Display
from kdbench.validation.load import load

Row = dict[str, Any]
Operand = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, strides
SYNTHETIC = 2000  # examples
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRODUCTS = {
    torch.ops.aten.mm.default: torch.mm, torch.ops.aten.addmm.default: torch.mm,
    torch.ops.aten.bmm.default: torch.bmm, torch.ops.aten.baddbmm.default: torch.bmm,
}  # fmt: skip


def options(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each case")
    parser.add_argument("--threads", type=int, help="torch's threads; default: its own choice")
    parser.add_argument("--json", type=Path, help="write the rows there")
    return parser.parse_args()


def interleave(cases: dict[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> dict[str, float]:
    """Median seconds of each case, called in turn."""
    for call in cases.values():
        for _ in range(warm_up):
            call()
    finish()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
            started = time.perf_counter()
            call()
            finish()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def finish() -> None:
    """Wait until a GPU has done what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def precisions(hardware: Hardware) -> list[str]:
    """Return what inference is timed in: fp32 and that of training; on a GPU all three."""
    return ["fp32", "bf16", "fp16"] if hardware.device == "cuda" else [*dict.fromkeys(["fp32", hardware.precision])]


def within(precision: str) -> Any:
    """Return a context in which models answer in this precision."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(DEVICE, kind, enabled=precision != "fp32")


def on_device(batches: list[Any]) -> list[Batch]:
    moved: Any = [{name: value.to(DEVICE) for name, value in batch.items()} for batch in batches]
    return moved


def machine(hardware: Hardware) -> str:
    if hardware.device == "cuda":
        return f"{torch.cuda.get_device_name()}, {hardware.precision}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    features = [name for name in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(name)]
    chip = f"{model} ({', '.join(features) or 'no bf16 units'})"
    return f"{chip}, {hardware.threads} threads, {hardware.precision}, torch {torch.__version__}"


def report(name: str, on: str, rows: list[Row], path: Path | None) -> None:
    table = Table(title=f"{name}\n{on}")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if path is not None:
        path.write_text(json.dumps({"name": name, "machine": on, "rows": rows}, indent=2) + "\n")


def hush() -> None:
    logging.getLogger("kdbench").setLevel(logging.ERROR)
    quiet_libraries()


@contextmanager
def scratch() -> Iterator[Path]:
    """Outputs of the runs that a benchmark needs; downloads and tokens stay in the user's cache."""
    hush()
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def configure(outputs: Path, *overrides: str) -> RunConfig:
    """A run whose teachers and general stages train three steps: their weights do not matter here."""
    quick = ["schedule.steps=null", "schedule@teacher.schedule=smoke", f"outputs={outputs}"]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return load(compose("config", overrides=[*quick, *overrides]))


def synthetic(folder: Path, length: int) -> list[str]:
    """Settings of a data set of random words, every text longer than `length` pieces."""
    path = folder / "synthetic.csv"
    if not path.is_file():
        generator = torch.Generator().manual_seed(0)
        words = ["market", "trade", "oil", "bank", "rate", "share", "price", "wheat", "ship", "gold"]
        drawn = torch.randint(len(words), (SYNTHETIC, 2 * length), generator=generator).tolist()
        rows = [f"{' '.join(words[i] for i in row)},{row[0]}" for row in drawn]
        path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf8")
    return ["dataset=files", "dataset.name=synthetic", f"dataset.source={path}", f"dataset.max_length={length}"]


def make_run(config: RunConfig) -> tuple[Run, Hardware]:
    hardware = settle(config.hardware)
    device, about = accelerator(hardware), About({}, "benchmark", lambda other: "kdbench ...")

    def finished(other: RunConfig) -> tuple[dict[str, Any], Path]:
        return ensure(other, hardware, device, about)

    return Run(config, hardware, device, run_folder(config, hardware), finished), hardware


def stage_of(run: Run, name: str | None = None) -> Stage:
    """The stage `name` of the run's method, or its first; those before it are not trained."""
    method = method_module(run.config.method.name)
    stages = (method.general if run.config.phase == "general" else method.stages)(run, run.config.method)
    return prepared(run, next(stage for stage in stages if name is None or stage.name == name))


def stepper(run: Run, stage: Stage, batches: list[Batch]) -> Callable[[], object]:
    """One optimiser step of the real loop over the next of `batches`."""
    stage = replace(stage, schedule=replace(stage.schedule, steps=10**6))
    folder = Path(tempfile.mkdtemp(dir=run.config.outputs))
    display = Display(Console(quiet=True), run.config.schedule.batch_size, StatusFile(folder, writes=False))
    score, tell = (lambda predict, step: {}), (lambda line: None)
    trainer = _Trainer(stage, folder, run.accelerator, score, run.metric, 0, Limits(10**6), display, tell)
    state = {"step": 0}

    def step() -> None:
        trainer._step(batches[state["step"] % len(batches)])
        trainer.state.passes.clear()
        state["step"] += 1

    return step


def first_batches(stage: Stage, count: int = 16) -> list[Batch]:
    return [batch for _, batch in zip(range(count), stage.data.epoch(0), strict=False)]


def floor(batches: list[Batch], shape: dict[str, int], precision: str, backward: bool = True) -> Callable[[], object]:
    """The matrix products of a whole BERT of `shape` over the next of `batches`, and nothing else.

    Per layer: four products of (N, H) by (H, H), two with the feed-forward width, scores and weighted values;
    with `backward` each twice more. Same shapes, tensors that exist already, transposed as autograd has them.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    h, f, heads = shape["hidden"], shape["ffn"], shape["heads"]
    sizes = [(len(batch["input_ids"]), batch["input_ids"].shape[1]) for batch in batches]
    prepared = {size: _operands(size[0], size[1], h, f, heads, dtype) for size in set(sizes)}
    state = {"step": 0}

    def products() -> None:
        linear, batched = prepared[sizes[state["step"] % len(sizes)]]
        state["step"] += 1
        for _ in range(shape["layers"]):
            for x, weight, gradient in linear:
                torch.mm(x, weight.T)
                if backward:
                    torch.mm(gradient, weight)
                    torch.mm(gradient.T, x)
            for a, b, gradient in batched:
                torch.bmm(a, b.transpose(1, 2))
                if backward:
                    torch.bmm(gradient, b)
                    torch.bmm(gradient.transpose(1, 2), a)

    return products


class _Products(TorchDispatchMode):
    """Notes the operands of every matrix product, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, list[Operand]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (product := PRODUCTS.get(func)) is not None:
            operands = args[1:3] if func in (torch.ops.aten.addmm.default, torch.ops.aten.baddbmm.default) else args[:2]
            self.seen.append((product, [(tuple(x.shape), x.stride(), x.dtype) for x in operands]))
        return func(*args, **(kwargs or {}))


def own_products(step: Callable[[], object], count: int) -> Callable[[], object]:
    """Return the matrix products of the next of `count` steps, alone: same shapes and strides, on random numbers."""
    steps = []
    for _ in range(count):
        with _Products() as mode:
            step()
        steps.append(mode.seen)
    tensors: dict[Operand, Tensor] = {}
    for _, operands in (product for step in steps for product in step):
        for key in operands:
            if key not in tensors:
                shape, strides, kind = key
                own = [size if stride else 1 for size, stride in zip(shape, strides, strict=True)]  # 0: expanded
                tensors[key] = torch.empty_strided(own, strides, device=DEVICE).normal_().to(kind).expand(shape)
    state = {"step": 0}

    def products() -> None:
        for product, operands in steps[state["step"] % count]:
            product(*(tensors[key] for key in operands))
        state["step"] += 1

    return products


def _operands(
    rows: int, length: int, h: int, f: int, heads: int, dtype: torch.dtype
) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    """(input, weight, output gradient) of a layer's products: linear ones, and batched ones of its attention."""
    draw = partial(torch.randn, dtype=torch.float32, device=DEVICE)
    n = rows * length
    widths = [(h, h)] * 4 + [(h, f), (f, h)]
    linear: list[tuple[Tensor, ...]] = [
        (draw(n, a).to(dtype), draw(b, a).to(dtype), draw(n, b).to(dtype)) for a, b in widths
    ]
    d, count = h // heads, rows * heads
    scores = (draw(count, length, d), draw(count, length, d), draw(count, length, length))
    values = (draw(count, length, length), draw(count, d, length), draw(count, length, d))
    return linear, [tuple(x.to(dtype) for x in operands) for operands in (scores, values)]
