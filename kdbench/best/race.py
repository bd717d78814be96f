"""Do the planned runs until the time is up, and write the answer anew for each better model."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.best import answer
from kdbench.best.show import Screen
from kdbench.best.standing import Entry, Form, Standing
from kdbench.best.work import Ended, Workers, export, run
from kdbench.storage.files import read_json
from kdbench.storage.results import MEASURED, RESULTS, read_result
from kdbench.training.progress import in_words

RESERVE = 10.0  # seconds that the folder and the page need at the end
WORTH = 1.0  # points below the best on dev; other forms of such a run are made and measured, too


class Race:
    def __init__(self, standing: Standing, workers: Workers, screen: Screen) -> None:
        self.standing, self.workers, self.screen = standing, workers, screen

    def go(self) -> None:
        """Do runs until there is no more to do, or no time."""
        standing, before = self.standing, None
        for candidate in standing.plan.candidates(standing):
            entry = Entry(candidate)
            standing.entries.append(entry)
            expected = 0.0 if candidate.name in standing.clock.done else candidate.seconds * standing.pace
            if standing.leading is not None and expected > standing.clock.left - RESERVE:
                entry.state, entry.why = "no time", f"it needs {in_words(expected)}"
                standing.decided.pop(candidate.name, None)  # the same command may have the time later
            else:
                self.screen.begun(entry)
                self._do(entry)
            self.screen.ended(standing, entry)
            if (leading := standing.leading) is not None and leading != before:
                before = leading
                answer.write(standing, page=False)
                self.screen.better(standing, leading)

    def _do(self, entry: Entry) -> None:
        """Do a run, and make its other forms if it is among the best."""
        began, when = time.monotonic(), time.time()
        ended = self._job(run, entry.candidate.words)
        entry.seconds = time.monotonic() - began
        folder: Path | None = ended.found
        if folder is None:
            entry.state = "stopped" if ended.stopped else "failed"
            entry.why = "its time was up" if ended.stopped else ended.problem or f"see {self.standing.log}"
            return
        entry.state = "done"
        if entry.candidate.name not in self.standing.clock.done:
            self.standing.clock.done.append(entry.candidate.name)
        if entry.candidate.steps and (folder / RESULTS).stat().st_mtime >= when:  # else it was there already
            self.standing.pace = (self.standing.pace + entry.seconds / entry.candidate.seconds) / 2
        result = read_result(folder)
        assert result is not None  # its job has just ended
        entry.forms = [Form(folder, "pytorch", folder / RESULTS, result)]
        best = max(one.dev for one in self.standing.entries if one.dev is not None)
        if entry.candidate.ships and entry.forms[0].dev >= best - WORTH:
            self._job(export, folder)
            records = sorted((folder / MEASURED).glob(f"*/{RESULTS}"))
            entry.forms += [Form(folder, path.parent.name, path, read_json(path)) for path in records]

    def _job(self, job: Callable[..., Any], *given: Any) -> Ended:
        def meanwhile() -> None:
            self.standing.clock.save()
            self.screen.standing(self.standing)

        return self.workers.do(job, *given, seconds=max(self.standing.clock.left - RESERVE, 1.0), meanwhile=meanwhile)
