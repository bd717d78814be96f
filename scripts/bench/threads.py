"""How long OpenMP's threads may spin while they wait: steps of the 3-layer student, one, two and three runs at once.

Each case is processes of its own, for libgomp reads its settings when it is loaded. The cases take turns; the ratio is
to libgomp's own setting in the same round, and the median of the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "libgomp's own (300,000)": {"GOMP_SPINCOUNT": "300000"},
    "10,000": {"GOMP_SPINCOUNT": "10000"},
    "30,000": {"GOMP_SPINCOUNT": "30000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def steps(count: int) -> float:
    """Median seconds of a training step: random texts of 64 tokens, batch 32, bf16."""
    import torch

    from kdbench.models import bert

    shape = {"vocab_size": 8000, "hidden": 384, "layers": 3, "heads": 12, "ffn": 1536, "max_positions": 64}
    model = bert.Model.build(shape | {"pad_token_id": 0}, [str(label) for label in range(8)], "eager", 0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    ids, labels = torch.randint(0, 8000, (32, 64)), torch.randint(0, 8, (32,))
    times = []
    for _ in range(3 + count):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def at_once(processes: int, own: dict[str, str], count: int) -> float:
    """Mean seconds of a step over so many processes."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))} | own
    call = [sys.executable, __file__, "--steps", str(count)]
    running = [subprocess.Popen(call, env=env, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return statistics.mean(float(one.communicate()[0]) for one in running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="only print the seconds of a step in this process")
    parser.add_argument("--json", type=Path, help="write the rows there")
    given = parser.parse_args()
    if given.steps:
        print(steps(given.steps))
        return
    rows = []
    for processes in (1, 2, 3):
        rounds = [{name: at_once(processes, own, 20) for name, own in CASES.items()} for _ in range(given.rounds)]
        for name in CASES:
            ratio = statistics.median(one[name] / one[next(iter(CASES))] for one in rounds)
            ms = 1000 * statistics.median(one[name] for one in rounds)
            rows.append({"at once": processes, "spin": name, "ms a step": ms, "ratio": ratio})
            print(f"{processes} at once, {name:24} {ms:8.1f} ms a step, {ratio:.3f} of libgomp's own", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
