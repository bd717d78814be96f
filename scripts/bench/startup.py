"""Start-up: CPU and wall seconds of the commands, and of a run's first training step with warm caches."""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import harness

RUNS = 9_990  # copies of one finished run, over ids and seeds


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


def many_runs(outputs: Path) -> None:
    """RUNS finished runs, from the one that is there."""
    (made,) = outputs.glob("*/tfidf/*/seed0/results.json")
    result, config = json.loads(made.read_text()), (made.parent / "config.yaml").read_text()
    for number in range(RUNS):
        folder = made.parents[1].with_name(f"no_network-{number // 3:08x}") / f"seed{number % 3}"
        folder.mkdir(parents=True)
        changed = result | {"id": f"{number // 3:08x}", "seed": number % 3}
        (folder / "results.json").write_text(json.dumps(changed))
        (folder / "config.yaml").write_text(config)


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
        shutil.rmtree(outputs / "reuters_r52")
        tfidf = [kdbench, "dataset=reuters_r52", "method=tfidf", f"outputs={outputs}"]
        subprocess.run(tfidf, check=True, capture_output=True)
        many_runs(outputs)
        wall, cpu = measure([compare, str(outputs), "--format", "csv"], outputs)
        rows.append({"command": f"compare-runs on {RUNS} runs", "wall s": wall, "CPU s": cpu})
        _, hardware = harness.make_run(harness.configure(outputs))
    harness.report("start-up", harness.machine(hardware), rows, given.json)


if __name__ == "__main__":
    main()
