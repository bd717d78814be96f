"""A kind of task that kdbench does not have is one file: no other file knows its name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute
import pyarrow.parquet
import pytest

ROOT = Path(__file__).parents[1]
STARS = '''
"""A number of stars, 0 and up: a class a text, where the next class is half right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from kdbench.errors import Code
from kdbench.tasks import Metric, Task
from kdbench.tasks.arrays import in_points
from kdbench.tasks.cells import ReadLabels

if TYPE_CHECKING:
    from kdbench.schema import RunConfig


class Traits(Task):
    metrics: ClassVar = {"closeness": Metric("closeness", "accuracy")}
    loss = "ce"
    one_class = True
    described = "A model of {} stars"

    def conflicts(self, config: RunConfig):
        if config.dataset.classes == 7:
            yield Code.INAPPLICABLE_KEY, "dataset.classes", "seven stars are too many"


class Stars(NamedTuple):
    stars: int


class Kind(Traits):
    def read(self, files):
        read = [[str("fmw".index(value[0])) for value in file.values] for file in files]
        return [ReadLabels(labels, ["topics are stars"]) for labels in read]

    def encode(self, labels, names, texts, where):
        return np.array([names.index(label) for label in labels], np.int64)

    def stored(self, column):
        return np.array(column.to_numpy(), np.int64)

    def hard_loss(self, z, labels, weights=None):
        from kdbench.losses import cross_entropy

        return cross_entropy(z, labels, weights)

    def soft_loss(self, z, batch, p, of_classes):
        return of_classes(z, batch["teacher_logits"])

    def answers(self, logits):
        return np.asarray(logits).argmax(-1)

    def figures(self, labels, predicted, names):
        return {"closeness": float(np.clip(1 - abs(labels - predicted) / 2, 0, 1).mean())}

    def points(self, metric, labels, predicted, names):
        return in_points(np.clip(1 - abs(labels - predicted) / 2, 0, 1))

    def answer(self, probable):
        return Stars

    def tell(self, logits, texts, names, probable):
        return [Stars(int(names[at])) for at in self.answers(logits)]

    def cells(self, answer):
        return ("" if answer is None else "*" * answer.stars,), ()
'''
COMMANDS = """
import contextlib, functools, glob, io, json, sys
import kdbench.tasks

kdbench.tasks.__path__.append(sys.argv[1])
from kdbench.cli import main, predict
from kdbench.compare import cli as compare
from kdbench.inference import measure

measure.latency = functools.partial(measure.latency, rounds=2)
told = []
for program, *words in json.loads(sys.argv[2]):
    out = io.StringIO()
    sys.argv[1:] = [found for word in words for found in (glob.glob(word) if "/*/" in word else [word])]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            {"kdbench": main.main, "compare-runs": compare.main, "kdbench-predict": predict.main}[program]()
        except SystemExit as end:
            assert end.code in (0, 2), out.getvalue()
    told.append(out.getvalue())
print(json.dumps(told))
"""


def commands(folder: Path, *lines: list[str]) -> list[str]:
    """What each command prints, in one process in which the package of tasks has this folder as well."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, folder, json.dumps(lines)], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_new_kind_of_task_is_one_file(command_line, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "stars.py").write_text(STARS, encoding="utf8")
    outputs = tmp_path / "outputs"
    line = command_line("method=logit_kd", "dataset.task=stars", "export.onnx=true")
    mistyped, refused, unable, ran, answered, compared = commands(
        tmp_path / "own",
        ["kdbench", *line, "dataset.task=star"],
        ["kdbench", *line, "dataset.classes=7", "dataset.metric=accuracy"],
        ["kdbench", *line, "method=pkd"],
        ["kdbench", *line],
        ["kdbench-predict", f"{outputs}/*/logit_kd/*/seed0/export/onnx", "--text", "apple pear"],
        ["compare-runs", str(outputs), "--format", "json"],
    )
    assert "classification, multi_label, regression, stars or token_classification. Did you mean stars?" in mistyped
    assert "seven stars are too many" in refused and "dataset.metric=accuracy: is not a metric of stars" in refused
    assert "dataset.task=stars: is not supported by method=pkd" in unable
    assert "data: train: topics are stars" in ran
    (folder,) = outputs.glob("*/logit_kd/*/seed0")
    result = json.loads((folder / "results.json").read_text(encoding="utf8"))
    assert (result["identity"]["task"], result["identity"]["metric"]) == ("stars", "closeness")
    rows = pyarrow.parquet.read_table(folder / "predictions.parquet").filter(pyarrow.compute.field("split") == "test")
    off = np.abs(rows["label"].to_numpy() - np.stack([*rows["logits"].to_numpy()]).argmax(-1))
    assert result["metrics"]["test"]["closeness"] == pytest.approx(1 - off.mean() / 2)
    assert answered.strip("*") == "\tapple pear\n" and "A model of 3 stars" in (folder / "export/README.md").read_text()
    (table,) = json.loads(compared)["tables"]
    assert table["metric"] == "closeness"
    found = [row["score_points"] for row in table["rows"] if row["method"] == "logit_kd"]  # the run and its ONNX graph
    assert found[0] == pytest.approx(100 * (1 - off.mean() / 2)) and len(found) == 2
