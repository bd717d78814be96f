"""Run the plan of the study in its order. The same command resumes after a stop.

    python -m scripts.study.run [--outputs outputs] [--cores 0,1] [--minutes 600] [--steps 9-11,35] [--dry]

Each core has a worker that takes the next command of the plan. kdbench skips finished runs and resumes stopped ones.
The output of a command goes to logs/<number>.log below --outputs. Ctrl-C, SIGTERM and the end of --minutes let every
run save and stop. Exit code: 0 all done, 1 a command failed (the others ran), 130 or 143 stopped, 75 time is up.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from kdbench.console import guarded
from scripts.study.plan import ROOT, Step, load_plan

TIME_IS_UP = 75  # as kdbench's stop_after


@dataclass
class Worker:
    """A core and the command that runs on it."""

    core: int
    number: int = 0  # of the step, in the plan
    process: subprocess.Popen[bytes] | None = None


@dataclass
class Runner:
    steps: list[tuple[int, Step]]  # with their numbers in the plan
    outputs: Path
    workers: list[Worker]
    deadline: float
    failed: list[int] = field(default_factory=list)
    stopped: int = 0  # exit code once it was asked to stop
    asked: int = 0  # how often it was asked to stop, and how often the runs were told
    told: int = 0

    def run(self) -> int:
        (self.outputs / "logs").mkdir(parents=True, exist_ok=True)
        waiting = list(self.steps)
        while (waiting and not self.stopped) or self._busy():
            for worker in self.workers:
                if not self._settle(worker) and waiting and not self.stopped:
                    self._start(worker, *waiting.pop(0))
            if time.monotonic() > self.deadline and not self.stopped:
                self._stop(TIME_IS_UP)
            while self.told < self.asked:
                self._tell()
            time.sleep(1)
        return self.stopped or (1 if self.failed else 0)

    def _busy(self) -> bool:
        return any(worker.process is not None for worker in self.workers)

    def _settle(self, worker: Worker) -> bool:
        """Return whether the worker is busy, and report the end of its command."""
        if worker.process is None:
            return False
        code = worker.process.poll()
        if code is None:
            return True
        worker.process = None
        if code and not self.stopped:
            self.failed.append(worker.number)
        say(f"{worker.number}: exit code {code}")
        return False

    def _start(self, worker: Worker, number: int, step: Step) -> None:
        try:
            words = arguments(step, self.outputs)
        except LookupError as error:
            self.failed.append(number)
            say(f"{number}: {error}")
            return
        say(f"{number}, core {worker.core}: {step.command}")
        worker.number = number
        with (self.outputs / "logs" / f"{number:03d}.log").open("ab") as log:
            # A session of its own: a signal from the terminal reaches kdbench once, through the runner.
            worker.process = subprocess.Popen(
                ["taskset", "-c", str(worker.core), sys.executable, "-m", "kdbench", *words],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop(128 + number)

    def _stop(self, code: int) -> None:
        """Ask the loop to stop. It tells the runs, because a signal may come while one of them is being started."""
        self.stopped = self.stopped or code
        self.asked += 1

    def _tell(self) -> None:
        """Let every run save and stop; if told again, they stop at once."""
        self.told += 1
        for worker in self.workers:
            if worker.process is not None and worker.process.poll() is None:
                worker.process.send_signal(signal.SIGTERM)


def arguments(step: Step, outputs: Path) -> list[str]:
    """Return the words for `kdbench`, with the folder of each run they ask for. Raises LookupError if not done."""
    words = (*step.words, f"dataset={step.dataset}")
    if "={" in " ".join(words):
        from scripts.study.finished import Finished  # loads torch

        words = Finished(outputs).filled(words)
    return ["-m", *words, "hardware.threads=1", f"outputs={outputs.resolve()}"]


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def numbers(text: str) -> list[int]:
    """Return 9, 10, 11 and 35 for `9-11,35`."""
    found: list[int] = []
    for span in text.split(","):
        first, _, last = span.partition("-")
        steps = range(int(first), int(last or first) + 1)
        if not steps:
            raise ValueError(span)
        found += steps
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs")
    parser.add_argument("--cores", default="0,1", help="a worker each (default: 0,1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then stop as if asked to")
    parser.add_argument("--steps", type=numbers, help="only these of the plan, in this order: 9-11,35")
    parser.add_argument("--dry", action="store_true", help="print the commands and what they cost, and run none")
    options = parser.parse_args(argv)
    plan = load_plan()
    every = range(1, len(plan.steps) + 1)
    if unknown := set(options.steps or ()) - set(every):
        parser.error(f"--steps: {min(unknown)} is none of the plan's, which are 1 to {len(every)}")
    steps = [(number, plan.steps[number - 1]) for number in options.steps or every]
    if options.dry:
        for number, step in steps:
            runs = len(plan.new_runs[number - 1])
            print(f"{number:3d} {runs * step.seconds / 3600:5.1f} h, {runs:2d} runs: {step.command}")
        return 0
    return execute(steps, options.outputs, options.cores, options.minutes)


def execute(steps: list[tuple[int, Step]], outputs: Path, cores: str, minutes: float) -> int:
    """Run the numbered steps with a worker on each of the `cores` (0,1). Returns the exit code."""
    runner = Runner(steps, outputs, [Worker(int(core)) for core in cores.split(",")], time.monotonic() + 60 * minutes)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.on_signal)
    return runner.run()


if __name__ == "__main__":
    sys.exit(guarded("scripts.study.run", main))
