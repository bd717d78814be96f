"""What kdbench-best shows: the plan, a live table of the candidates, the answer."""

import json
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.table import Table

from kdbench.best import answer
from kdbench.best.plan import Plan
from kdbench.best.standing import Entry, Form, Standing
from kdbench.training.progress import in_words

_MARKS = {"running": "…", "done": "", "failed": "failed", "stopped": "stopped", "no time": "no time"}


class Screen:
    """The terminal. Use as a context manager while runs are done. Messages go to stderr, the answer to stdout."""

    def __init__(self, explain: bool, as_json: bool) -> None:
        self.explain, self.as_json = explain, as_json
        self.console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 10_000)
        self.live = Live(console=self.console, transient=True, refresh_per_second=2)

    def __enter__(self) -> "Screen":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.live.stop()

    def say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.console.print(f"kdbench-best: {line}", markup=False, soft_wrap=True)

    def plan(self, plan: Plan) -> None:
        """Print the plan as it would go if each run took the time that is expected."""
        spent = 0.0
        for candidate in plan.on_paper():
            spent += candidate.seconds
            late = "" if spent <= plan.wish.seconds else "  (no time)"
            print(f"{in_words(candidate.seconds):>12}  {in_words(spent):>12}  {candidate.name}{late}")
            if self.explain:
                print(f"{'':28}{answer.command_of(candidate.words)}")
        print("After these, schedules of the best student are compared by successive halving while time is left.")

    def begun(self, entry: Entry) -> None:
        if self.explain:
            self.say([answer.command_of(entry.candidate.words)])

    def standing(self, standing: Standing) -> None:
        """Show the candidates so far, their scores on dev, times and sizes."""
        if self.live.is_started:
            self.live.update(_table(standing))

    def ended(self, standing: Standing, entry: Entry) -> None:
        """Tell how a candidate ended."""
        best = max(entry.forms, key=lambda form: form.dev, default=None)
        what = entry.why if best is None else f"dev {best.dev:.2f}, {answer.cost(best)}"
        state = "" if entry.state == "done" else f"{entry.state}: "
        left = f"{in_words(max(standing.clock.left, 0))} left"
        took = f" ({in_words(entry.seconds)}; {left})" if entry.seconds else ""  # one that had no time did not begin
        self.say([f"{entry.candidate.name}: {state}{what}{took}"])

    def better(self, standing: Standing, leading: Form) -> None:
        self.say([f"best so far: {standing.entry_of(leading).candidate.name}, in {standing.wish.out}"])

    def answer(self, standing: Standing, leading: Form) -> None:
        if self.as_json:
            print(json.dumps(answer.document(standing, leading), indent=2, ensure_ascii=False))
            return
        for sentence in answer.sentences(standing, leading):
            print(sentence)
        print(standing.wish.out)


def _table(standing: Standing) -> Table:
    title = f"{standing.wish.name}: {in_words(max(standing.clock.left, 0))} left"
    table = Table("model", "dev", "ms", "MB", "", title=title, title_justify="left")
    for entry in standing.entries:
        best = max(entry.forms, key=lambda form: form.dev, default=None)
        figures = ["", "", ""]
        if best is not None:
            figures = [f"{best.dev:.2f}", *("" if one is None else f"{one:.3g}" for one in (best.ms, best.megabytes))]
        table.add_row(entry.candidate.name, *figures, _MARKS[entry.state] or in_words(entry.seconds))
    return table
