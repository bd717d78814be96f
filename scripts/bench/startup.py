"""Start-up: CPU and wall seconds of the commands, and of a run's first training step with warm caches."""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import harness

from kdbench.storage import files as store

RUNS = (10_000, 100_000)  # copies of one finished run; 100,000 need 1.5 GB of disk and some minutes


def measure(command: list[str], cwd: Path) -> tuple[float, float]:
    """(wall, CPU) seconds of a command, the median of three by wall time."""
    seen = []
    for _ in range(3):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=cwd, check=True, capture_output=True)
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        seen.append((wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return sorted(seen)[1]


def to_first_step(command: list[str], cwd: Path) -> float:
    """Wall seconds until a run says that its first stage starts; it is stopped there."""
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("stage "):
                break
        wall = time.perf_counter() - started
        process.kill()
    return wall


def many_runs(made: Path, outputs: Path, count: int) -> None:
    """Write `count` finished runs like the one in `made`: ten data sets, three seeds."""
    value = store.read_record(made / "results.json")
    with mock.patch("os.fsync"):
        for number in range(count):
            setting, seed = divmod(number, 3)
            data, id_ = f"data{setting % 10}", f"{setting:08x}"
            parameters = value["identity"]["parameters"] | {"setting": setting}
            identity = value["identity"] | {"dataset": data, "test_id": data, "parameters": parameters}
            own = {"id": id_, "id_without_teacher_seed": id_, "seed": seed, "identity": identity}
            folder = outputs / data / "tfidf" / f"no_network-{id_}" / f"seed{seed}"
            store.write_record(folder / "results.json", value | own, [])


def compared(name: str, *command: str) -> harness.Row:
    """Wall and CPU seconds of one call."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    assert status == 0
    return {"command": name, "wall s": wall, "CPU s": used.ru_utime + used.ru_stime}


def main() -> None:
    given = harness.options(__doc__)
    scripts = Path(sys.executable).parent
    kdbench, compare = str(scripts / "kdbench"), str(scripts / "compare-runs")
    rows: list[harness.Row] = []
    os.environ["COLUMNS"] = "160"
    with harness.scratch() as outputs:
        smoke = [kdbench, "dataset=reuters_r52", "method=finetune", "schedule=smoke", f"outputs={outputs}"]
        subprocess.run(smoke, check=True, capture_output=True)  # warms the caches
        commands = {
            "kdbench --help": [kdbench, "--help"],
            "compare-runs --help": [compare, "--help"],
            "a refusal: student.layers=0": ["sh", "-c", f"{kdbench} student.layers=0 || true"],
        }
        for name, command in commands.items():
            wall, cpu = measure(command, outputs)
            rows.append({"command": name, "wall s": wall, "CPU s": cpu})
        first = statistics.median(to_first_step([*smoke, "seed=1"], outputs) for _ in range(3))
        rows.append({"command": "finetune on reuters_r52 to its first step", "wall s": first, "CPU s": ""})
        subprocess.run(
            [kdbench, "dataset=reuters_r52", "method=tfidf", f"outputs={outputs}"], check=True, capture_output=True
        )
        (made,) = outputs.glob("*/tfidf/*/seed0")
        for count in RUNS:
            many = outputs / f"of_{count}"
            many_runs(made, many, count)
            time.sleep(3)  # what has just been written is not trusted
            called = (compare, str(many), "--format", "csv")
            rows.append(compared(f"compare-runs on {count:,} runs, the first call", *called))
            rows.append(compared(f"compare-runs on {count:,} runs, again", *called))
            rows.append(compared(f"compare-runs on {count:,} runs, again, --dataset", *called, "--dataset", "data0"))
        _, hardware = harness.make_run(harness.configure(outputs))
    harness.report("start-up", harness.machine(hardware), rows, given.json)


if __name__ == "__main__":
    main()
