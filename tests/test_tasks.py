"""Each kind of task from a file to results: labels, losses, metrics, answers; what cannot do it is refused."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from kdbench.crosscheck import cross_faults
from kdbench.data.stored import stored_dataset
from kdbench.metrics import answers, metrics, plain
from tests.conftest import FILLER, TOPICS

TOPIC = {word: topic for topic, words in TOPICS.items() for word in words.split()}
SETTINGS = {
    "multi_label": [],
    "regression": ["dataset.metric=spearman"],
    "token_classification": ["dataset.text=words", "dataset.label=tags"],
}
METHODS = {
    "multi_label": ["finetune", "logit_kd", "theseus", "tinybert", "pkd", "tfidf", "mobilebert"],
    "regression": ["logit_kd", "two_stage", "tinybert", "distilbert", "tfidf"],
    "token_classification": ["finetune", "logit_kd", "theseus", "two_stage", "tinybert", "distilbert", "minilm"],
}


def row(draw: random.Random, task: str) -> dict:
    """Topic words among others; a run of one topic's words is an entity."""
    words = draw.choices([*TOPIC, *FILLER], k=draw.randint(2, 8))
    topics = [TOPIC.get(word) for word in words]
    tags = [topic and f"{'I' if at and topics[at - 1] == topic else 'B'}-{topic}" for at, topic in enumerate(topics)]
    label = {
        "multi_label": sorted({topic for topic in topics if topic}),
        "regression": sum(topic == "fruit" for topic in topics) / 2,
        "token_classification": None,
    }[task]
    return {"text": " ".join(words), "label": label, "words": words, "tags": [tag or "O" for tag in tags]}


@pytest.fixture(scope="session")
def task_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for task in SETTINGS:
        folder = folders[task] = tmp_path_factory.mktemp(task)
        for seed, (name, rows) in enumerate({"train": 60, "test": 24}.items()):
            draw = random.Random(seed)
            lines = [json.dumps(row(draw, task)) for _ in range(rows)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf8")
    return folders


@pytest.fixture
def of_task(configure, task_folders):
    def make(task: str, *overrides: str):
        general = ["method.general=false"] if f"method={'x'}" in overrides else []
        return configure(
            f"dataset.source={task_folders[task]}", "dataset.splits.train=train.jsonl",
            "dataset.splits.test=test.jsonl", f"dataset.task={task}", *SETTINGS[task], *general, *overrides,
        )  # fmt: skip

    return make


def options(method: str, task: str) -> list[str]:
    return ["method.augment=false"] if method == "tinybert" and task == "token_classification" else []


@pytest.mark.parametrize(("task", "method"), [(task, method) for task in METHODS for method in METHODS[task]])
def test_end_to_end(of_task, execute, task, method):
    config = of_task(task, f"method={method}", *options(method, task))
    assert cross_faults(config) == []
    result = execute(config)
    folder = Path(result["folder"])
    assert result["identity"]["task"] == task
    data = stored_dataset(config.dataset, Path(config.cache_dir))
    table = pyarrow.parquet.read_table(folder / "predictions.parquet")
    assert table.schema.metadata[b"task"].decode() == task
    rows = [one for one in table.to_pylist() if one["split"] == "test"]
    assert [one["label"] for one in rows] == plain(data.test.labels)
    logits = [np.array(one["logits"], np.float32) for one in rows]
    said = answers(task, logits if task == "token_classification" else np.stack(logits))
    assert metrics(task, data.test.labels, said, data.label_names) == result["metrics"]["test"]
