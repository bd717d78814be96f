"""`hardware.compile=true`: the training step of the 3-layer student with and without torch.compile of its layers."""

import time
from pathlib import Path

import harness
import torch

from kdbench.models.students import compile_layers


def row_of(outputs: Path, method: str, rounds: int, threads: list[str]) -> harness.Row:
    cases = {}
    for name in ("plain", "compiled"):
        run, _ = harness.make_run(harness.configure(outputs, "dataset=reuters_r52", f"method={method}", *threads))
        stage = harness.stage_of(run)
        batches = harness.first_batches(stage)
        if name == "compiled":
            torch.compiler.reset()
            compile_layers(run.student)
        cases[name] = harness.stepper(run, stage, batches)
        started = time.perf_counter()
        for _ in batches:  # all shapes
            cases[name]()
        first, steps = time.perf_counter() - started, len(batches)
    seconds = harness.interleave(cases, rounds)
    return {
        "method": method,
        "plain ms": 1000 * seconds["plain"],
        "compiled ms": 1000 * seconds["compiled"],
        "compiled / plain": seconds["compiled"] / seconds["plain"],
        "compiling s": first - steps * seconds["compiled"],
    }


def main() -> None:
    given = harness.options(__doc__)
    threads = [f"hardware.threads={given.threads}"] if given.threads else []
    with harness.scratch() as outputs:
        rows = [row_of(outputs, method, given.rounds, threads) for method in ("finetune", "theseus")]
        _, hardware = harness.make_run(harness.configure(outputs, *threads))
    harness.report("torch.compile, 3 layers, reuters_r52, batch 32", harness.machine(hardware), rows, given.json)


if __name__ == "__main__":
    main()
