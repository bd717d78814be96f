"""A pass of the 6-layer teacher over reuters_r52: short and whole, by precision; and the cache's read."""

from typing import Any

import harness
import torch

from kdbench.data.teacher_cache import cached_outputs
from kdbench.models import students

BATCHES, SIZE = 16, 64


def main() -> None:
    given = harness.options(__doc__)
    threads = [f"hardware.threads={given.threads}"] if given.threads else []
    rows = []
    with harness.scratch() as outputs:
        config = harness.configure(outputs, "dataset=reuters_r52", "method=logit_kd", *threads)
        run, hardware = harness.make_run(config)
        run.teacher_outputs("logits", run.data.train)  # from here on they are cached
        examples, teacher = run.examples(run.data.train), run.teacher
        batches = [batch for _, (_, batch) in zip(range(BATCHES), examples.in_length_order(SIZE), strict=False)]
        batches = harness.on_device(batches)
        state = {"step": 0}

        def forward(logits: Any, precision: str) -> None:
            batch = batches[state["step"] % BATCHES]
            state["step"] += 1
            with torch.inference_mode(), harness.within(precision):
                logits(teacher, batch)

        shape = vars(config.student) | {"layers": config.teacher.layers}
        cases = {
            f"{hardware.precision}, no more than is read": lambda: forward(students.logits, hardware.precision),
            f"{hardware.precision}, transformers' forward": lambda: forward(students.forward, hardware.precision),
            "fp32, transformers' forward": lambda: forward(students.forward, "fp32"),
            "floor": harness.floor(batches, shape, hardware.precision, backward=False),
        }
        seconds = harness.interleave(cases, given.rounds)
        rows += [
            {"what": name, "ms a batch": 1000 * value, "examples/s": SIZE / value, "/ floor": value / seconds["floor"]}
            for name, value in seconds.items()
        ]
        read = harness.interleave({"read": lambda: run.teacher_outputs("logits", run.data.train)}, 5)["read"]
        per_batch = read * SIZE / len(run.data.train)
        rows.append(
            {
                "what": f"read from the cache ({cached_outputs.__name__})",
                "ms a batch": 1000 * per_batch,
                "examples/s": SIZE / per_batch,
                "/ floor": per_batch / seconds["floor"],
            }
        )
    harness.report("teacher pass, batch 64, reuters_r52", harness.machine(hardware), rows, given.json)


if __name__ == "__main__":
    main()
