"""Each kind of task from a file to results: labels, losses, metrics, answers; what cannot do it is refused."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from kdbench.cli.predict import main as predict
from kdbench.compare.cli import main as compare
from kdbench.data.stored import stored_dataset
from kdbench.errors import Code
from kdbench.inference.classifier import load_classifier
from kdbench.runs.identity import data_id, run_id
from kdbench.schema import ExportConfig, method_schema
from kdbench.shipping.export import export_run
from kdbench.storage.results import read_result
from kdbench.tasks import kind
from kdbench.tasks.arrays import plain
from kdbench.training.hardware import settle
from kdbench.validation.fit import cross_faults
from kdbench.validation.keys import method_names
from tests.conftest import FILLER, TOPICS

TOPIC = {word: topic for topic, words in TOPICS.items() for word in words.split()}
TAGS = ["O", *(f"{start}-{topic}" for topic in sorted(TOPICS) for start in "BI")]
METRIC = {"multi_label": "micro_f1", "regression": "spearman", "token_classification": "entity_f1"}
PROBLEM = {"multi_label": "multi_label_classification", "regression": "regression"}
SETTINGS = {
    "multi_label": [],
    "regression": ["dataset.metric=spearman"],
    "token_classification": ["dataset.text=words", "dataset.label=tags"],
}
METHODS = {  # beside logit_kd, which is tried on all of them
    "multi_label": ["finetune", "theseus", "tinybert", "pkd", "tfidf", "mobilebert"],
    "regression": ["two_stage", "tinybert", "distilbert", "tfidf", "pkd"],
    "token_classification": ["finetune", "theseus", "two_stage", "tinybert", "distilbert", "minilm"],
}
TAG_WORDS = [name for name in method_names() if "token_classification" in method_schema(name).tasks]  # type: ignore[attr-defined]
QUICK = {("regression", "tfidf"), ("token_classification", "theseus")}


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
        return configure(
            f"dataset.source={task_folders[task]}", "dataset.splits.train=train.jsonl",
            "dataset.splits.test=test.jsonl", f"dataset.task={task}", *SETTINGS[task], *overrides,
        )  # fmt: skip

    return make


def checked(config, result) -> list[dict]:
    """The test rows of predictions.parquet, after the results have been worked out from them again."""
    task, folder = config.dataset.task, Path(result["folder"])
    assert (result["identity"]["task"], result["identity"]["metric"]) == (task, METRIC[task])
    data = stored_dataset(config.dataset, Path(config.cache_dir))
    table = pyarrow.parquet.read_table(folder / "predictions.parquet")
    assert json.loads(table.schema.metadata[b"labels"]) == data.label_names
    rows = [one for one in table.to_pylist() if one["split"] == "test"]
    assert [one["label"] for one in rows] == plain(data.test.labels)
    logits = [np.array(one["logits"], np.float32) for one in rows]
    arranged = logits if task == "token_classification" else np.stack(logits)
    assert kind(task).judge(data.test.labels, arranged, data.label_names).items() <= result["metrics"]["test"].items()
    for stage in result["stages"]:  # the weights that were kept are those of the best dev score
        dev = [next(iter(epoch["dev"].values()))[METRIC[task]] for epoch in stage["epochs"] if epoch["dev"]]
        assert not dev or stage[f"best_dev_{METRIC[task]}"] == max(dev)
    return rows


def others() -> list:
    every = [(task, method) for task in METHODS for method in METHODS[task]]
    return [pytest.param(*one, marks=[] if one in QUICK else pytest.mark.slow) for one in every]


@pytest.mark.parametrize(("task", "method"), others())
def test_other_methods_serve_it(of_task, execute, task, method):
    whole = method == "tinybert" and task == "token_classification"
    config = of_task(task, f"method={method}", *(["method.augment=false"] if whole else []))
    assert cross_faults(config) == []
    checked(config, execute(config))


@pytest.mark.parametrize("method", TAG_WORDS)
def test_a_batch_without_a_labelled_word_teaches_nothing(of_task, execute, tmp_path, shared_folder, method):
    """A zero-width space is a word to the file and no token to the model: at batch 1 it is a batch without a label."""
    nothing = {"words": ["\u200b"], "tags": ["O"]}
    for name, rows in {"train": 9, "dev": 3, "test": 3}.items():
        draw = random.Random(name)
        lines = [json.dumps(row(draw, "token_classification") if at % 3 else nothing) for at in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf8")
    own = ["method.augment=false"] if method == "tinybert" else []
    config = of_task(
        "token_classification", f"method={method}", *own, f"dataset.source={tmp_path}", "dataset.splits.dev=dev.jsonl",
        "schedule.batch_size=1", "teacher.schedule.batch_size=1", "schedule.epochs=1",
        f"outputs={shared_folder / 'unlabelled_words'}",  # so that they have one teacher
    )  # fmt: skip
    assert cross_faults(config) == []
    folder = Path(execute(config)["folder"])  # a loss or a weight that is not finite ends a run
    assert all(value.isfinite().all() for value in load_file(folder / "model" / "model.safetensors").values())


@pytest.mark.parametrize("task", METRIC)
def test_from_a_file_to_answers(of_task, execute, tmp_path, capsys, task):
    config = of_task(task, "method=logit_kd", "schedule.epochs=4", "teacher.schedule.epochs=4")
    result = execute(config)
    folder = Path(result["folder"])
    rows = checked(config, result)
    assert result["metrics"]["test"][METRIC[task]] > 0.3, "tiny models learn which words belong to which topic"
    # the model's folder is stock, and says what was stored
    texts = [json.loads(line) for line in (Path(config.dataset.source) / "test.jsonl").read_text().splitlines()]
    auto = AutoModelForTokenClassification if task == "token_classification" else AutoModelForSequenceClassification
    model = auto.from_pretrained(folder / "model").eval()
    assert model.config.problem_type == PROBLEM.get(task)
    encoded = AutoTokenizer.from_pretrained(folder / "model")(texts[0]["text"], return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0]
    if task == "token_classification":
        logits = logits[1:-1]  # each word is one token here
    torch.testing.assert_close(logits, torch.tensor(rows[0]["logits"]), rtol=1e-4, atol=1e-5)
    # so does kdbench-predict
    capsys.readouterr()
    assert predict([str(folder), "--text", texts[0]["text"], "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    first = torch.tensor(rows[0]["logits"])
    if task == "multi_label":
        names = ["fruit", "metal", "water"]
        entry = result["calibration"]
        shares = (first / (entry["temperature"] if entry["kept"] else 1.0)).sigmoid().tolist()
        assert list(answer["probabilities"].values()) == pytest.approx(shares, abs=1e-5)
        least = entry["thresholds"]["values"] if entry["thresholds"]["kept"] else dict.fromkeys(names, 0.5)
        assert answer["labels"] == [name for name, p in zip(names, shares, strict=True) if p > least[name]]
    elif task == "regression":
        assert answer["value"] == pytest.approx(float(first), abs=1e-5)
    else:
        assert answer["words"] == texts[0]["words"] and len(answer["tags"]) == len(answer["words"])
        assert [TAGS[k] for k in first.argmax(-1)] == answer["tags"]
    # and compare-runs shows the metric that chose
    assert compare([str(tmp_path / "outputs"), "--format", "json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert table["metric"] == METRIC[task] and (table["missing_tfidf"] == []) == (task == "token_classification")
    row = next(one for one in table["rows"] if one["method"] == "logit_kd")
    assert row["score_points"] == pytest.approx(100 * result["metrics"]["test"][METRIC[task]])
    assert row["score_low_points"] <= row["score_points"] <= row["score_high_points"]


@pytest.mark.slow
@pytest.mark.parametrize("task", METRIC)
def test_its_export_answers_alike(of_task, execute, task):
    result = execute(of_task(task, "method=finetune"))
    target = export_run(Path(result["folder"]), ExportConfig(onnx=True))
    form = read_result(target.parent / "forms/onnx")
    assert form["metrics"]["test"] == pytest.approx(result["metrics"]["test"], abs=1e-3)
    assert (
        f"type: {'token' if task == 'token_classification' else 'text'}-classification"
        in (target / "README.md").read_text()
    )
    assert load_classifier(target / "onnx")(["apple the iron"]) is not None


def test_words_behind_the_cut_are_answered_with_o(of_task, execute):
    config = of_task("token_classification", "method=finetune", "dataset.max_length=4", "schedule.steps=2")
    rows = checked(config, execute(config))  # [CLS], two words, [SEP]
    assert all(np.isnan(one["logits"][2:]).all() and not np.isnan(one["logits"][:2]).any() for one in rows)


def test_several_passes_give_the_step_of_one(of_task, execute):
    """Of tagged words the mean is over words: a pass counts for as many as it has."""
    one, two = (
        execute(of_task("token_classification", "method=finetune", "schedule.steps=3", f"schedule.batch_size={size}",
                        f"schedule.accumulation={8 // size}", "schedule.dropout=0"))
        for size in (8, 2)
    )  # fmt: skip
    weights = [load_file(Path(result["folder"]) / "model" / "model.safetensors") for result in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)


REFUSED = [
    (
        "token_classification",
        ["method=tfidf"],
        Code.UNSUPPORTED_TASK,
        "dataset.task",
        "supported: classification, ",
    ),
    ("token_classification", ["method=pkd"], Code.UNSUPPORTED_TASK, "dataset.task", "method=pkd"),
    ("regression", ["method=fastbert"], Code.UNSUPPORTED_TASK, "dataset.task", "supported: classification"),
    ("multi_label", ["method=cascade"], Code.UNSUPPORTED_TASK, "dataset.task", "supported: classification"),
    ("multi_label", ["method=bilstm"], Code.UNSUPPORTED_TASK, "dataset.task", "method=bilstm"),
    (
        "token_classification",
        ["method=finetune", "student=bilstm_150"],
        Code.UNSUPPORTED_ARCHITECTURE,
        "student.architecture",
        "bert and distilbert",
    ),
    ("token_classification", ["method=tinybert"], Code.CONFLICTING_VALUES, "method.augment", "false"),
    (
        "token_classification",
        ["method=finetune", "dataset.text_pair=text"],
        Code.INAPPLICABLE_KEY,
        "dataset.text_pair",
        "null",
    ),
    (
        "regression",
        ["method=finetune", "dataset.metric=accuracy"],
        Code.UNSUPPORTED_TASK,
        "dataset.metric",
        "pearson or spearman",
    ),
    ("regression", ["method=finetune", "dataset.classes=3"], Code.INAPPLICABLE_KEY, "dataset.classes", "null"),
]


@pytest.mark.parametrize(("task", "overrides", "code", "key", "named"), REFUSED)
def test_what_cannot_be_done_is_refused_with_the_reason(of_task, task, overrides, code, key, named):
    (fault,) = [one for one in cross_faults(of_task(task, *overrides)) if one.key == key]
    assert fault.code == code and named in f"{fault.problem} {fault.legal}"


def test_ids_are_those_of_before_and_tell_what_chose(configure):
    def id_(*overrides: str) -> str:
        config = configure("method=tfidf", *overrides)
        return run_id(config, settle(config.hardware))

    before = id_()
    assert id_("dataset.metric=accuracy", "dataset.task=classification") == before == id_("dataset.metric=null")
    assert len({before, id_("dataset.metric=matthews"), id_("dataset.task=multi_label")}) == 3
    plain_, other = configure("method=tfidf"), configure("method=tfidf", "dataset.metric=macro_f1")
    assert data_id(plain_) == data_id(other), "the same examples may be compared"
