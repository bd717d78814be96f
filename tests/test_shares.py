"""A step in several passes is the step of the whole batch, whatever its losses are means over."""

import json
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "words",
    [
        "method=mlm phase=general corpus.schedule",
        "method=distilbert phase=general method.init.weights=random method.stages.pretraining",
        "method=distilbert phase=general method.init.weights=random method.soft_on=all method.stages.pretraining",
        "method=tinybert phase=general method.stages.general",
        "method=tinybert phase=general method.padding=all method.stages.general",
        "method=mobilebert phase=general method.stages.transfer",
        "method=minilm phase=general method.stages.distillation",
        "method=pkd method.stages.training",
        "method=pkd method.patient_tokens=all method.last_layer=true method.stages.training",
    ],
)
def test_passes_are_shares_of_the_whole_batch(configure, execute, words):
    *overrides, stage = words.split()
    losses, folders = [], set()
    for size, passes in ((9, 1), (3, 3), (1, 9)):  # pieces of many lengths, some without a token to predict
        given = [f"++{stage}.batch_size={size}", f"++{stage}.accumulation={passes}", f"++{stage}.steps=1"]
        result = execute(configure(*overrides, *given, "corpus.schedule.steps=1"))
        folders.add(result["folder"])
        line = (Path(result["folder"]) / result["stages"][0]["folder"] / "metrics.jsonl").read_text().splitlines()[0]
        losses.append(json.loads(line)["losses"])
    assert len(folders) == 3  # by the same teacher, each a run of its own
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-5, abs=1e-6)
