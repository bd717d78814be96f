"""The data pipeline alone: batches of reuters_r52 with and without cached teacher outputs, and its padding."""

import harness


def main() -> None:
    given = harness.options(__doc__)
    rows = []
    with harness.scratch() as outputs:
        run, hardware = harness.make_run(harness.configure(outputs, "dataset=reuters_r52", "method=pkd"))
        loaders = {
            "tokens": run.batches("training"),
            "tokens, logits, [CLS] of 6 layers": run.batches("training", "logits", "cls"),
        }
        for name, data in loaders.items():
            seconds = harness.interleave({name: lambda data=data: list(data.epoch(0))}, max(3, given.rounds // 10))[
                name
            ]
            masks = [batch["attention_mask"] for batch in data.epoch(0)]
            real, padded = sum(mask.sum().item() for mask in masks), sum(mask.numel() for mask in masks)
            rows.append(
                {
                    "batches of": name,
                    "ms a batch": 1000 * seconds / len(data),
                    "examples/s": len(data.examples) / seconds,
                    "padding %": 100 * (1 - real / padded),
                }
            )
    harness.report("data pipeline, batch 32, reuters_r52", harness.machine(hardware), rows, given.json)


if __name__ == "__main__":
    main()
