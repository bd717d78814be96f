"""A run's report and its export: the process dies at each of their operations, or is refused there; then once more.

The report is all that comes after the last stage: the model's folder, predictions, results.json, the run's log.
"""

import contextlib
import errno
import itertools
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from kdbench.inference import measure
from kdbench.schema import ExportConfig
from kdbench.shipping import export
from kdbench.shipping.export import export_run, has_export
from kdbench.storage import files as store
from kdbench.storage.results import EXPORT, MEASURED, PREDICTIONS, RESULTS, STAGE, read_result, verify_run
from tests.reliability.faults import Death, Disk, failing

ERRORS = ("ENOSPC", "EIO", "EACCES", "EMFILE")
FAST, EVERY = pytest.param(19), pytest.param(1, marks=pytest.mark.slow)  # each so-manieth operation


class Work(NamedTuple):
    folder: Path  # of the run
    start: Callable[[], None]  # lays down what was there before
    do: Callable[[], object]
    state: Callable[[], str]  # old, new or missing; raises where what a reader would trust is not whole
    done: Callable[[], bool]  # what is there is whole, and equal to that of a run that nothing befell


@pytest.fixture
def works(configure, execute, monkeypatch) -> dict[str, Work]:
    monkeypatch.setattr(measure, "latency", partial(measure.latency, rounds=1, seconds=0.0))
    config = configure("method=finetune", "student.layers=1")
    first = execute(config)
    folder = Path(first["folder"])
    model = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    predictions = (folder / PREDICTIONS).read_bytes()

    def unreported() -> None:
        for name in (RESULTS, PREDICTIONS, "model"):
            store.remove(folder / name)

    def report() -> str:
        store.verify(next(folder.glob("00_*")) / STAGE)
        if (folder / "model").exists():
            store.verify(folder / "model" / store.MANIFEST)
        found = read_result(folder)
        assert found is None or (verify_run(folder) == found and found["metrics"] == first["metrics"])
        return "old" if found is None else "new"

    def reported() -> bool:
        same = {path.name: path.read_bytes() for path in (folder / "model").iterdir()} == model
        return report() == "new" and same and (folder / PREDICTIONS).read_bytes() == predictions

    # A graph takes seconds to make; its writes are like others.
    monkeypatch.setattr(export, "to_onnx", lambda network, path, types: path.write_bytes(b"graph" * 999) * 0.0)
    monkeypatch.setattr(export, "write_int8", lambda run, source, target, *_: shutil.copy(source, target))
    monkeypatch.setattr(export, "graph_predict", lambda path, speed: lambda batch, step: torch.eye(3)[batch["labels"]])
    before, wanted = folder.parent / "before", ExportConfig(int8=True)

    def exported() -> str:
        assert verify_run(folder) is not None
        if not (folder / EXPORT).exists():
            return "missing"
        store.verify(folder / EXPORT / store.MANIFEST)
        for results in (folder / MEASURED).rglob(RESULTS):
            assert verify_run(results.parent) is not None
        whole = has_export(folder, wanted)
        return "new" if (folder / EXPORT / "onnx").exists() and whole else "old"

    def plain_export() -> None:
        if not before.exists():
            shutil.copytree(export_run(folder, ExportConfig()), before)
        for name in (EXPORT, MEASURED):
            store.remove(folder / name)
        shutil.copytree(before, folder / EXPORT)

    return {
        "report": Work(folder, unreported, lambda: execute(config), report, reported),
        "export": Work(
            folder,
            plain_export,
            lambda: export_run(folder, wanted),
            exported,
            lambda: exported() == "new",
        ),
    }


def leftovers(folder: Path) -> list[Path]:
    return [*folder.rglob("*.part"), *folder.rglob(".tmp*")]


@pytest.mark.parametrize("each", [FAST, EVERY])
@pytest.mark.parametrize("name", ["report", "export"])
def test_a_death_at_each_operation_of(works, capsys, name, each):
    work, states = works[name], []
    for k in itertools.count(1, each):
        work.start()
        with failing(Disk(work.folder, die_at=k)) as disk, contextlib.suppress(Death):
            work.do()
        if disk.count < k:
            break
        states.append(work.state())
        work.do()  # the same command again
        assert work.done() and not leftovers(work.folder)
    assert states.count("missing") <= (name == "export"), "only between its two renames there is neither"
    with capsys.disabled():
        counts = {state: states.count(state) for state in sorted(set(states))}
        print(f"\ndeath at every {each}. operation of: {name}: {len(states)} tried, {counts}, 0 half")


@pytest.mark.parametrize("number", [ERRORS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in ERRORS[1:])])
@pytest.mark.parametrize("each", [FAST, EVERY])
@pytest.mark.parametrize("name", ["report", "export"])
def test_a_refusal_at_each_operation_of(works, capsys, name, each, number):
    work, states, told = works[name], [], 0
    for k in itertools.count(1, each):
        work.start()
        with failing(Disk(work.folder, refuse_at=k, refusal=getattr(errno, number))) as disk:
            try:
                work.do()
            except store.StoreError as error:
                assert str(work.folder) in str(error) and "repeat the command" in str(error)
                told += 1
        if disk.count < k:
            break
        states.append(work.state())
    work.do()
    assert work.done() and not leftovers(work.folder)
    assert told > 0 and "missing" not in states and "Traceback" not in capsys.readouterr().err
    with capsys.disabled():
        print(f"\n{number} at every {each}. operation of: {name}: {len(states)} tried, {told} told in words, 0 half")
