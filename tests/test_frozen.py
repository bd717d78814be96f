"""A frozen encoder: the mean of its states, logistic regression on it, and SetFit's pairs before that."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

from kdbench.cli import export, predict
from kdbench.data.stored import stored_dataset
from kdbench.errors import Code
from kdbench.inference.classifier import load_classifier
from kdbench.methods.frozen import linear, pair_similarity
from kdbench.models import students
from kdbench.runs.identity import run_id
from kdbench.runs.related import baseline, uses_teacher
from kdbench.training.hardware import settle
from kdbench.validation.fit import cross_faults
from tests.encoders import KINDS, write_encoder
from tests.test_methods import same, weights

PLAIN = ["method=frozen", "student=mean_pooled", "method.contrastive=false", "student.layers=4"]
FEW = ["method=frozen", "student=mean_pooled", "method.contrastive=true", "method.pairs=2", "student.layers=4"]


def means(folder: Path, texts: list[str]) -> np.ndarray:
    """The mean of the last hidden states of each text alone."""
    encoder, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = [encoder(**tokenizer(one, truncation=True, max_length=16, return_tensors="pt")) for one in texts]
    return torch.stack([one.last_hidden_state[0].mean(0) for one in states]).numpy()


def test_it_is_the_pipeline_of_scikit_learn_on_the_mean_states(configure, execute, teacher_folder):
    config = configure(*PLAIN)
    result = execute(config)
    data = stored_dataset(config.dataset, Path(config.cache_dir))
    x = {name: means(teacher_folder, getattr(data, name).texts) for name in ("train", "dev", "test")}
    fitted = {
        c: make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(x["train"], data.train.labels)
        for c in (0.001, 0.01, 0.1, 1.0, 10.0)
    }
    scores = {f"{c:g}": one.score(x["dev"], data.dev.labels) for c, one in fitted.items()}
    assert {c: one["dev_accuracy"] for c, one in result["reported"]["tried"].items()} == pytest.approx(scores)
    best = max(scores, key=lambda c: scores[c])
    assert f"{result['reported']['c']:g}" == best
    classify = load_classifier(Path(result["folder"]))
    found = classify.logits(data.test.texts).softmax(-1).numpy()
    expected = fitted[float(best)].predict_proba(x["test"])
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert result["metrics"]["test"]["accuracy"] == fitted[float(best)].score(x["test"], data.test.labels)


def test_the_encoder_stays_as_it_was_and_no_teacher_is_trained(configure, execute, teacher_folder, tmp_path):
    config = configure(*PLAIN)
    assert not uses_teacher(config)
    result = execute(config)
    before, after = load_file(teacher_folder / "model.safetensors"), weights(result)
    kept = {name: value for name, value in before.items() if not name.startswith("pooler")}
    assert all(torch.equal(value, after[f"encoder.{name}"]) for name, value in kept.items())
    assert len(after) == len(kept) + 2 and result["stages"] == [] and result["teacher"] is None
    assert result["cost"]["seconds"] > 0 and result["cost"]["examples_per_second"] is None
    again = execute(configure(*PLAIN, "seed=1"))
    assert again["metrics"] == result["metrics"] and same(weights(again), after)
    assert not list((tmp_path / "outputs/topics").glob("finetune/*"))


def test_the_schedule_of_a_stage_that_is_not_trained_changes_no_id(configure):
    ids = {}
    for name, words in {"plain": PLAIN, "pairs": FEW}.items():
        configs = [configure(*words, f"method.stages.contrastive.lr={lr}") for lr in (1e-3, 2e-3)]
        ids[name] = {run_id(one, settle(one.hardware)) for one in configs}
    assert len(ids["plain"]) == 1 and len(ids["pairs"]) == 2


def test_pairs_tune_the_encoder_and_draw_texts_of_one_class_together(configure, execute, teacher_folder):
    config = configure(*FEW, "method.stages.contrastive.lr=1e-2")
    result = execute(config)
    (stage,) = result["stages"]
    assert stage["steps"] == -(-2 * 2 * 60 // 16) and set(stage["epochs"][0]["means"]) == {"pairs"}
    data = stored_dataset(config.dataset, Path(config.cache_dir))
    labels = torch.from_numpy(data.train.labels)
    alike = labels[:, None] == labels

    def apart(x):
        cosines = F.cosine_similarity(x[:, None], x[None], dim=-1)
        return (cosines[alike].mean() - cosines[~alike].mean()).item()

    model = students.load(Path(result["folder"]) / "model")
    given = AutoTokenizer.from_pretrained(teacher_folder)([*data.train.texts], padding=True, return_tensors="pt")
    with torch.no_grad():
        tuned = model.mean(given["input_ids"], given["attention_mask"])
    assert apart(tuned) > apart(torch.from_numpy(means(teacher_folder, [*data.train.texts]))) + 0.1


def test_the_loss_of_pairs_by_hand():
    u, v = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([[6.0, 8.0], [0.0, 2.0], [1.0, 0.0]])
    kinds = torch.tensor([True, True, False])
    assert pair_similarity(u, v, kinds).item() == pytest.approx((0 + 1 + 0.5) / 3)


@pytest.mark.parametrize("classes", [2, 3])
def test_planes_give_the_probabilities_of_scikit_learn(classes):
    draw = np.random.default_rng(0)
    x, labels = draw.normal(size=(60, 5)), draw.integers(classes, size=60)
    planes, offsets = linear("classification", x, labels, classes + 1, 0.5, 1000)
    z = torch.from_numpy(x @ planes.T + offsets)
    expected = LogisticRegression(C=0.5, max_iter=1000).fit(x, labels).predict_proba(x)
    np.testing.assert_allclose(z.softmax(-1)[:, :classes].numpy(), expected, atol=1e-6)
    assert z.softmax(-1)[:, classes].max() < 1e-10 and (z.argmax(-1) < classes).all()  # train lacks the last one


def test_classes_have_weights():
    draw = np.random.default_rng(1)
    x, labels = draw.normal(size=(80, 5)), draw.choice(3, size=80, p=[0.7, 0.2, 0.1])
    planes, offsets = linear("classification", x, labels, 3, 0.5, 1000, np.array([0.5, 1.0, 4.0]))
    expected = LogisticRegression(C=0.5, max_iter=1000, class_weight={0: 0.5, 1: 1.0, 2: 4.0}).fit(x, labels)
    found = torch.from_numpy(x @ planes.T + offsets).softmax(-1).numpy()
    np.testing.assert_allclose(found, expected.predict_proba(x), atol=1e-6)


def test_one_class_alone_is_always_answered():
    planes, offsets = linear("classification", np.ones((4, 3)), np.ones(4, np.int64), 3, 1.0, 10)
    assert not planes.any() and offsets.argmax() == 1


def test_labels_and_numbers_have_regressions_of_their_own():
    draw = np.random.default_rng(1)
    x, several = draw.normal(size=(50, 4)), draw.integers(2, size=(50, 3)).astype(np.int8)
    several[:, 1], several[:, 2] = 0, 1
    planes, offsets = linear("multi_label", x, several, 3, 2.0, 1000)
    alone = LogisticRegression(C=2.0, max_iter=1000).fit(x, several[:, 0])
    np.testing.assert_allclose(x @ planes[0] + offsets[0], alone.decision_function(x), atol=1e-6)
    assert not planes[1:].any() and offsets[1] < 0 < offsets[2]
    numbers = x @ [1.0, -2.0, 0.0, 3.0] + 4
    planes, offsets = linear("regression", x, numbers, 1, 0.25, 1000)
    np.testing.assert_allclose(x @ planes[0] + offsets[0], Ridge(alpha=4).fit(x, numbers).predict(x), atol=1e-9)


@pytest.mark.parametrize("kind", [KINDS[1], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[2:])])
def test_any_encoder_serves_and_its_folder_and_graph_answer_alike(configure, execute, tmp_path, capsys, kind):
    folder = write_encoder(tmp_path / "encoder", kind)
    # Of random weights, states hardly differ between texts: a large C gives weights that enlarge every rounding.
    words = ["student.layers=1", "dataset.max_length=14", "method.c=[0.001]", "export.onnx=true"]
    result = execute(configure(*PLAIN, f"teacher.source={folder}", *words))
    capsys.readouterr()
    answers = []
    for form in (result["folder"], f"{result['folder']}/export", f"{result['folder']}/export/onnx"):
        assert predict.main([form, "--text", "gold near the lead", "--text", "a pear", "--json"]) == 0
        answers.append([one["probabilities"] for one in json.loads(capsys.readouterr().out)["answers"]])
    for other in answers[1:]:
        assert all(a == pytest.approx(b, abs=1e-4) for a, b in zip(answers[0], other, strict=True))
    assert result["flops_per_example"] > 0


def test_the_card_says_what_it_is(configure, execute, capsys):
    result = execute(configure(*PLAIN))
    assert export.main([result["folder"], "--quiet"]) == 0
    card = (Path(result["folder"]) / "export/README.md").read_text()
    assert "made by frozen" in card and "kdbench.load_classifier" in card and "| contrastive |" not in card


def test_fewer_layers_and_the_direct_fine_tune(configure, execute):
    config = configure(*PLAIN, "student.layers=2")
    assert execute(config)["identity"]["student"] == "mean_pooled_2l"
    direct = baseline(config)
    assert (direct.student.architecture, direct.student.layers) == ("bert", 2)


REFUSED = [
    ([*FEW, "dataset.task=regression", "dataset.classes=null"], Code.CONFLICTING_VALUES, "method.contrastive"),
    ([*PLAIN, "dataset.task=token_classification"], Code.UNSUPPORTED_TASK, "dataset.task"),
    (["method=frozen", "student=bert_2l"], Code.UNSUPPORTED_ARCHITECTURE, "student.architecture"),
]


@pytest.mark.parametrize(("words", "code", "key"), REFUSED)
def test_what_does_not_fit_is_refused(configure, words, code, key):
    assert (code, key) in [(fault.code, fault.key) for fault in cross_faults(configure(*words))]


def test_two_texts_of_two_classes_are_a_pair(configure, execute, tmp_path):
    rows = ["text,label", "a pear,fruit"] * 1 + ["gold,metal"]
    (tmp_path / "train.csv").write_text("\n".join([*rows, "lake,fruit", "iron,metal"]) + "\n")
    files = [f"dataset.source={tmp_path}", "dataset.splits.dev=train.csv", "dataset.splits.test=train.csv"]
    words = [*FEW, *files, "dataset.splits.train=train.csv", "dataset.max_train_samples=2"]
    result = execute(configure(*words, "method.stages.contrastive.batch_size=2"))
    assert result["stages"][0]["steps"] > 0
