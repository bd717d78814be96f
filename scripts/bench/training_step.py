"""The training step of the 3- and 6-layer student, beside the floor of its matrix products."""

from pathlib import Path

import harness


def rows_of(outputs: Path, where: str, dataset: list[str], layers: int, rounds: int, threads: list[str]) -> harness.Row:
    shape = [f"student=bert_{layers}l", "method=finetune"]
    run, hardware = harness.make_run(harness.configure(outputs, *dataset, *shape, *threads))
    stage = harness.stage_of(run)
    batches = harness.first_batches(stage)
    cases = {
        "step": harness.stepper(run, stage, batches),
        "floor": harness.floor(batches, vars(run.config.student), hardware.precision),
    }
    seconds = harness.interleave(cases, rounds)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches) / len(batches)
    return {
        "input": where,
        "layers": layers,
        "tokens a batch": round(tokens),
        "step ms": 1000 * seconds["step"],
        "floor ms": 1000 * seconds["floor"],
        "step / floor": seconds["step"] / seconds["floor"],
        "examples/s": run.config.schedule.batch_size / seconds["step"],
    }


def main() -> None:
    given = harness.options(__doc__)
    threads = [f"hardware.threads={given.threads}"] if given.threads else []
    with harness.scratch() as outputs:
        data = {
            "synthetic, 64": harness.synthetic(outputs, 64),
            "reuters_r52": ["dataset=reuters_r52"],
        }
        rows = [
            rows_of(outputs, where, dataset, layers, given.rounds, threads)
            for where, dataset in data.items()
            for layers in (3, 6)
        ]
        _, hardware = harness.make_run(harness.configure(outputs, *threads))
    harness.report("training step, batch 32", harness.machine(hardware), rows, given.json)


if __name__ == "__main__":
    main()
