"""Inference at batch 1 and 32 on reuters_r52: teacher and 3-layer student in fp32 and bf16, FastBERT by its exits.

The FastBERT here is untrained, so its rows are made to leave after chosen layers: that is what dropping rows from the
batch has to be fast at. `measured / FLOPs`: the speed-up over all layers gained, over the one counted.
"""

from copy import deepcopy
from functools import partial

import harness
import torch
from torch import Tensor, nn

from kdbench.models import fastbert, students
from kdbench.runs.context import Run
from kdbench.stage import Batch

PLANS: dict[
    int, dict[str, list[float]]
] = {  # batch size: name: the share of the rows still inside that leaves after each layer
    1: {"all layers": [], "layer 3": [0, 0, 1], "layer 2": [0, 1]},
    32: {
        "all layers": [],
        "a third after 4, a third after 5": [0, 0, 0, 1 / 3, 1 / 2],
        "evenly": [1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2],
        "half after each": [1 / 2] * 5,
    },
}


class Leaving(nn.Module):
    """A head that computes what the real one does, and then is sure of the first `share` of the rows."""

    def __init__(self, branch: nn.Module, share: float, classes: int) -> None:
        super().__init__()
        self.branch, self.share = branch, share
        self.sure = torch.zeros(classes).index_fill(0, torch.tensor(0), 100.0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        z = self.branch(x, mask) * 0
        leaving = round(self.share * len(x))
        return torch.cat([z[:leaving] + self.sure, z[leaving:]])


def leaving(run: Run, plan: list[float]) -> fastbert.FastBert:
    model = run.student
    result = fastbert.FastBert(deepcopy(model.config)).eval()  # the speed is kept there
    result.load_state_dict(model.state_dict())
    classes = len(run.data.label_names)
    for layer, share in enumerate(plan):
        result.branches[layer] = Leaving(result.branches[layer], share, classes)
    for layer in range(len(plan), len(result.branches) - 1):
        result.branches[layer] = Leaving(result.branches[layer], 0, classes)
    result.speed = 0.5 if plan else 0.0
    return result.to(harness.DEVICE)


def speed_up(run: Run, model: fastbert.FastBert, batches: list[Batch]) -> float:
    """FLOPs of all layers over those of the layers that the rows of `batches` went through."""
    shape, length = run.shape(run.config.student), run.config.dataset.max_length
    if not model.speed:
        return 1.0
    left = torch.cat([model.early_exit(b["input_ids"], b["attention_mask"], model.speed)[1] for b in batches]).tolist()
    spent = [fastbert.flops(shape, length, layer) for layer in left]
    return fastbert.full_flops(shape, length) * len(left) / sum(spent)


def main() -> None:
    given = harness.options(__doc__)
    threads = [f"hardware.threads={given.threads}"] if given.threads else []
    rows = []
    with harness.scratch() as outputs:
        base = ["dataset=reuters_r52", *threads]
        small, hardware = harness.make_run(harness.configure(outputs, *base, "method=finetune"))
        large, _ = harness.make_run(harness.configure(outputs, *base, "method=finetune", "student=full"))
        exits, _ = harness.make_run(harness.configure(outputs, *base, "method=fastbert"))
        for size, plans in PLANS.items():
            examples = small.examples(small.data.test)
            batches = [batch for _, batch in examples.in_length_order(size)][:: max(1, 16 // size)]
            batches = harness.on_device(batches)
            state = {"step": 0}

            def forward(model: nn.Module, precision: str) -> None:
                batch = batches[state["step"] % len(batches)]  # noqa: B023
                state["step"] += 1  # noqa: B023
                with torch.inference_mode(), harness.within(precision):
                    students.forward(model, batch)

            cases = {
                f"{name}, {precision}": partial(forward, run.student.to(harness.DEVICE).eval(), precision)
                for name, run in {"6 layers": large, "3 layers": small}.items()
                for precision in harness.precisions(hardware)
            }
            models = {f"FastBERT, fp32: {name}": leaving(exits, plan) for name, plan in plans.items()}
            cases |= {name: partial(forward, model, "fp32") for name, model in models.items()}
            seconds = harness.interleave(cases, given.rounds)
            full = seconds["FastBERT, fp32: all layers"]
            for name, value in seconds.items():
                counted = speed_up(exits, models[name], batches) if name in models else None
                rows.append(
                    {
                        "model": name,
                        "batch": size,
                        "ms": 1000 * value,
                        "examples/s": size / value,
                        "speed-up in FLOPs": counted or "",
                        "measured / FLOPs": full / value / counted if counted else "",
                    }
                )
    harness.report("inference, reuters_r52", harness.machine(hardware), rows, given.json)


if __name__ == "__main__":
    main()
