"""Peak memory of a distillation run on 1, 4 and 16 times reuters_r52: it should grow by the token ids and no more.

Each run is a process of its own; the figure is its highest resident set, pages of memory maps included. `first` reads,
tokenises, trains the teacher and caches its logits; `again` finds all that and distils.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import harness

from kdbench.data.datasets import Split
from kdbench.data.stored import stored_dataset
from kdbench.training.hardware import settle
from kdbench.validation.load import cache_folder

TIMES = (1, 4, 16)
MIB = 1 << 20


def main() -> None:
    given = harness.options(__doc__)
    rows = []
    with harness.scratch() as scratch:
        config = harness.configure(scratch, "dataset=reuters_r52", "method=logit_kd")
        on = harness.machine(settle(config.hardware))
        data = stored_dataset(config.dataset, cache_folder(config))
        for split in ("dev", "test"):
            write(scratch / f"{split}.jsonl", data.label_names, getattr(data, split), 1)
        for times in TIMES:
            write(scratch / "train.jsonl", data.label_names, data.train, times)
            first = peak(scratch, f"outputs={scratch}/first{times}")
            again = peak(scratch, f"outputs={scratch}/first{times}", "rerun=true")
            sizes = {name: size(scratch / "cache", name) for name in ("tokens", "splits", "teacher")}
            rows.append(
                {
                    "train texts": times * len(data.train),
                    "file MiB": (scratch / "train.jsonl").stat().st_size / MIB,
                    "tokens MiB": sizes["tokens"],
                    "teacher's logits MiB": sizes["teacher"],
                    "peak MiB, first": first,
                    "peak MiB, again": again,
                }
            )
    harness.report("peak memory, logit KD, 3 layers, batch 32", on, rows, given.json)


def write(path: Path, names: list[str], split: Split, times: int) -> None:
    """`times` copies of the split, told apart by a word."""
    with path.open("w", encoding="utf8") as file:
        for copy in range(times):
            for text, label in zip(split.texts, split.labels, strict=True):
                file.write(json.dumps({"text": f"{text} {copy}", "label": names[label]}) + "\n")


def peak(scratch: Path, *overrides: str) -> float:
    """Highest resident set in MiB of one kdbench command."""
    words = ["dataset=files", "dataset.name=many", f"dataset.source={scratch}", f"cache_dir={scratch}/cache"]
    words += [f"dataset.splits.{name}={name}.jsonl" for name in ("train", "dev", "test")]
    words += ["method=logit_kd", "schedule.steps=60", "teacher.schedule.steps=60", *overrides]
    process = subprocess.Popen([sys.executable, "-m", "kdbench", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"kdbench failed: {words}")
    return used.ru_maxrss / 1024


def size(cache: Path, name: str) -> float:
    """MiB of the largest folder of one kind in the cache: the train split's."""
    folders = [folder for folder in (cache / name).iterdir() if folder.is_dir()]
    return max(sum(file.stat().st_size for file in folder.iterdir()) for folder in folders) / MIB


if __name__ == "__main__":
    main()
