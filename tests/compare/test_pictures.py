"""The pictures of compare-runs: what is in them, and that they are files one can open."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from kdbench.compare.cli import main
from kdbench.compare.collect import read_runs
from kdbench.compare.curves import detail
from kdbench.compare.keys import Wanted
from kdbench.compare.pictures import _in_turns, front, grids, looks, pareto, save
from kdbench.compare.rows import build_tables
from kdbench.compare.table import Table
from tests.compare.test_compare_runs import LATENCY, NOISY, make_tree, student


def epochs(*points: float) -> list[dict[str, Any]]:
    scores = [{"student": {"accuracy": score / 100, "macro_f1": 0.5}} for score in points]
    return [{"epoch": at, "step": 10 * (at + 1), "dev": score, "means": {}} for at, score in enumerate(scores)]


def curve(*points: tuple[float, float]) -> dict[str, Any]:
    found = [{"speed": speed, "accuracy": points / 100, "mean_flops": 1e9 * (1 - speed / 2), "mean_exit_layer": 3.0,
              "exit_shares": [speed, 1 - speed]} for speed, points in points]  # fmt: skip
    return {"curve_test": found}


def timed_at(*speeds: float) -> dict[str, Any]:
    return LATENCY | {"by_speed": {f"{speed:g}": {"batch_1": {"median_ms": 9 - 5 * speed}} for speed in speeds}}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = make_tree(tmp_path / "outputs")
    for alpha in (0.5, 0.7):
        for temperature in (5, 10):
            parameters = {"alpha": alpha, "temperature": temperature}
            student(
                root,
                "logit_kd",
                f"0{10 * alpha:.0f}{temperature:02d}0000",
                0,
                90 + alpha,
                identity__parameters=parameters,
            )
    two = [{"name": "one", "steps": 20, "epochs": epochs(50, 80)}, {"name": "two", "steps": 10, "epochs": epochs(85)}]
    for folder in root.glob("r52/theseus/*/*"):
        raw = json.loads((folder / "results.json").read_text()) | {"stages": two}
        (folder / "results.json").write_text(json.dumps(raw))
    fastbert = {"reported": curve((0.0, 93.0), (0.5, 92.0), (1.0, 80.0)), "latency": timed_at(0.0, 0.5, 1.0)}
    student(root, "fastbert", "ffff0001", 0, 93.0, stages=[], **fastbert)
    student(root, "logit_kd", "ffff0002", 0, 93.0, form="int8", stages=[])  # no cell of its method's grid
    return root


def table(tree: Path) -> Table:
    (found,) = build_tables(read_runs([tree], "accuracy", "test", Wanted())[0], lambda run: True)
    return found


def test_every_picture_is_drawn_and_labelled(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "plots"
    assert main([str(tree), "--plots", str(folder)]) == 0
    assert "14 pictures in" in capsys.readouterr().err
    names = {path.stem.removeprefix("r52_") for path in folder.iterdir()}
    assert names == {"pareto", "seeds", "learning", "speeds", "exits", "grid_logit_kd", "grid_finetune"}
    words = {
        "pareto": ["batch 1, ms", "accuracy, %", "theseus (n 3)", "2,568 examples"],
        "learning": ["dev accuracy, %"],
    }
    words |= {"speeds": ["GFLOPs"], "exits": ["share of test rows"], "grid_logit_kd": ["90.70", "n 1", "temperature"]}
    for name, expected in words.items():
        text = " ".join(ElementTree.parse(folder / f"r52_{name}.svg").getroot().itertext())
        assert all(word in text for word in expected), (name, text)
        with Image.open(folder / f"r52_{name}.png") as picture:
            assert picture.size[0] > 300


def test_the_same_figures_draw_the_same_file(tree: Path) -> None:
    files = []
    for _ in range(2):
        found = table(tree)
        figure = pareto(found, {row.id: detail(row) for row in found.rows})
        assert figure is not None
        figure.savefig(held := io.BytesIO(), format="svg", metadata={"Date": None})
        files.append(held.getvalue())
    assert files[0] == files[1]


def test_what_was_timed_on_a_busy_machine_is_on_no_front(tree: Path) -> None:
    fast = NOISY | {"batch_1": {"median_ms": 1.0}}
    student(tree, "pkd", "ffff0003", 0, 99.0, latency=fast)  # would be all of the front
    found = table(tree)
    figure = pareto(found, {row.id: detail(row) for row in found.rows})
    assert figure is not None
    (front_line,) = [line for line in figure.axes[0].lines if line.get_label() == "Pareto front"]
    assert np.min(front_line.get_xdata()) == 3.0
    (label,) = [text.get_text() for text in figure.legends[0].get_texts() if "pkd" in text.get_text()]
    assert "?" in label
    noisy = replace(found, rows=[replace(row, times=replace(row.times, quiet=False)) for row in found.rows])
    figure = pareto(noisy, {row.id: detail(row) for row in found.rows})
    assert figure is not None and "Pareto front" not in [line.get_label() for line in figure.axes[0].lines]


def test_a_models_form_is_no_axis(tree: Path) -> None:
    student(tree, "two_stage", "ffff0004", 0, 93.0)
    for number, form in enumerate(("onnx", "int8")):
        student(tree, "two_stage", f"ffff100{number}", 0, 93.0, form=form)
    assert "grid_two_stage" not in [name for name, _ in grids(table(tree))]


def test_front_keeps_what_nothing_beats_in_both() -> None:
    assert front([(3, 90), (1, 80), (2, 95), (4, 95), (5, 96), (1, 70)]) == [(1, 80), (2, 95), (5, 96)]


def test_stages_are_put_behind_each_other(tree: Path) -> None:
    (row,) = [row for row in table(tree).rows if row.label == "theseus"]
    found = detail(row).learning
    assert [one.seed for one in found] == [0, 1, 2]
    assert found[0].steps == [10, 20, 30] and found[0].scores == [50, 80, 85]
    assert found[0].stages == [("one", 0), ("two", 20)]


def test_a_curve_has_its_measured_times(tree: Path) -> None:
    (row,) = [row for row in table(tree).rows if row.label == "fastbert"]
    (found,) = detail(row).curves
    assert found.latencies == [9, 6.5, 4] and found.exits[1] == [0.5, 0.5] and found.scores == [93, 92, 80]


def test_a_curve_lies_where_its_row_was_measured_again(tree: Path) -> None:
    (row,) = (row for row in table(tree).rows if row.label == "fastbert")
    (curve,) = detail(row).curves
    assert _in_turns(curve, row) == curve.latencies
    slower = replace(row, times=replace(row.times, batch_1=2 * row.times.batch_1))
    assert _in_turns(curve, slower) == [2 * ms for ms in curve.latencies]


def test_no_two_rows_look_alike(tree: Path) -> None:
    found = looks(table(tree).rows)
    assert len({(look["marker"], look["color"]) for look in found.values()}) == len(found)
    assert len({look["marker"] for look in found.values()}) == len(found)  # in grey too


def test_no_name_leads_out_of_the_folder(tree: Path, tmp_path: Path) -> None:
    runs, _ = read_runs([tree], "accuracy", "test", Wanted([]))
    (table,) = build_tables(runs, lambda run: run.method == "theseus")
    files = save([replace(table, dataset="../../out/of it")], tmp_path / "figures")
    assert files and {file.resolve().parent for file in files} == {tmp_path / "figures"}
    assert all(file.is_file() for file in files) and not (tmp_path / "out").exists()
