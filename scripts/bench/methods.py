"""The training step of each method's stages on reuters_r52: beside plain fine-tuning, and beside its own products.

`/ products` is the step's time over that of its matrix products alone, forward and backward, teacher's and student's.
"""

import harness

STAGES: dict[
    str, list[tuple[str, list[str]]]
] = {  # method: its stages and what they need; general stages read the corpus
    "logit_kd": [("training", [])],
    "pkd": [("training", [])],
    "theseus": [("replacing", ["method.variant=bernoulli"]), ("replacing", ["method.variant=mix"]), ("successor", [])],
    "two_stage": [("successor", [])],
    "distilbert": [("pretraining", ["phase=general"]), ("training", ["method.general=false"])],
    "minilm": [("distillation", ["phase=general"])],
    "tinybert": [("general", ["phase=general"]), ("intermediate", ["method.augment=false", "method.general=false"])],
    "mobilebert": [("transfer", ["phase=general", "method.strategy=akt"])],
    "fastbert": [("training", []), ("self_distillation", [])],
    "bilstm": [("training", ["method.augment=false"])],
    "prune": [("recovery_1", ["student=full", "student.layers=6"])],
    "static": [("training", [])],
}
TEACHERS = ["corpus.schedule.steps=3"]


def main() -> None:
    given = harness.options(__doc__)
    threads = [f"hardware.threads={given.threads}"] if given.threads else []
    rows = []
    with harness.scratch() as outputs:
        base = ["dataset=reuters_r52", *threads]
        plain, hardware = harness.make_run(harness.configure(outputs, *base, "method=finetune"))
        stage = harness.stage_of(plain)
        batches = harness.first_batches(stage)
        direct = harness.stepper(plain, stage, batches)
        for method, stages in STAGES.items():
            for name, overrides in stages:
                corpus = TEACHERS if method in ("distilbert", "minilm", "tinybert", "mobilebert") else []
                config = harness.configure(outputs, *base, f"method={method}", *corpus, *overrides)
                run, _ = harness.make_run(config)
                own = harness.stage_of(run, name)
                own_batches = harness.first_batches(own)
                step = harness.stepper(run, own, own_batches)
                cases = {"direct": direct, "method": step, "products": harness.own_products(step, len(own_batches))}
                seconds = harness.interleave(cases, given.rounds)
                tokens = sum(batch["attention_mask"].sum().item() for batch in own_batches) / len(own_batches)
                rows.append(
                    {
                        "method": method,
                        "stage": " ".join([name, *(o.removeprefix("method.") for o in overrides if "variant" in o)]),
                        "student": config.student.name,
                        "tokens": round(tokens),
                        "step ms": 1000 * seconds["method"],
                        "/ direct 3L": seconds["method"] / seconds["direct"],
                        "/ products": seconds["method"] / seconds["products"],
                    }
                )
    harness.report("training step by method, batch 32", harness.machine(hardware), rows, given.json)


if __name__ == "__main__":
    main()
