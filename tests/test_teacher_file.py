"""A teacher whose answers are in a file: what it may hold, how it joins the data, and that it teaches as a network."""

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from kdbench.cli.main import main
from kdbench.compare.cli import main as compare
from kdbench.data.datasets import Split
from kdbench.data.teacher_answers import read_answers
from kdbench.errors import Code
from kdbench.inference.finished_run import open_run
from kdbench.runs.context import Run
from kdbench.runs.texts import RunData
from kdbench.schema import TeacherConfig
from kdbench.shipping.card import model_card
from kdbench.storage.results import read_result
from kdbench.training.hardware import accelerator, settle
from kdbench.validation.fit import cross_faults
from kdbench.validation.load import load
from tests.conftest import composed
from tests.refusals import refused

NAMES = ["fruit", "metal", "water"]


def teacher(source: Path | str, **keys: Any) -> TeacherConfig:
    given: dict[str, Any] = {
        "join": "text",
        "text": "text",
        "text_pair": "pair",
        "id": "id",
        "answer": "*",
        "values": "probabilities",
    }
    return TeacherConfig(name="file", source=str(source), **given | {"floor": 1e-6, "missing": "refuse"} | keys)


def split(*texts: str, pairs: list[str] | None = None) -> Split:
    return Split(np.arange(len(texts)), texts, np.zeros(len(texts), np.int64), pairs)


def answers(path: Path, *texts: str, pairs: Any = None, **keys: Any) -> Any:
    """The probabilities that the file has for these texts."""
    found = read_answers(teacher(path, **keys), NAMES, pairs is not None).of(split(*texts, pairs=pairs))
    return found.double().softmax(-1).numpy()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf8")
    return path


ROWS = {"a": [0.7, 0.2, 0.1], "b": [0.1, 0.1, 0.8]}


@pytest.mark.parametrize("order", [["fruit", "metal", "water"], ["water", "fruit", "metal"]])
@pytest.mark.parametrize(
    "form", ["csv", "jsonl", "parquet", "map.jsonl", "map.csv", "map.parquet", "list.jsonl", "log.csv"]
)
def test_every_form_is_read_by_name(tmp_path, order, form):
    by_name = {text: {name: row[NAMES.index(name)] for name in order} for text, row in ROWS.items()}
    kind, _, ending = form.rpartition(".")
    path, keys = tmp_path / f"answers.{ending}", dict[str, Any]()
    if kind == "":
        rows = [{"text": text, **{f"p {name}": p for name, p in row.items()}} for text, row in by_name.items()]
        keys = {"answer": "p *"}
    elif kind == "log":
        rows = [{"text": text, **{name: math.log(p) for name, p in row.items()}} for text, row in by_name.items()]
        keys = {"values": "log_probabilities"}
    elif kind == "map":
        rows, keys = [{"text": text, "said": row} for text, row in by_name.items()], {"answer": "said"}
    else:
        rows = [{"text": text, "said": [*row.values()]} for text, row in by_name.items()]
        keys = {"answer": "said", "classes": order}
    if ending == "jsonl":
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "csv":
        cells = [[json.dumps(cell) if isinstance(cell, dict) else str(cell) for cell in row.values()] for row in rows]
        quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [[*rows[0]], *cells]]
        write(path, "\n".join(quoted) + "\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    np.testing.assert_allclose(answers(path, "b", "a", "b", **keys), [ROWS["b"], ROWS["a"], ROWS["b"]], rtol=1e-6)


def test_a_map_of_arrow(tmp_path):
    column = pyarrow.array([[("water", 0.1), ("fruit", 0.9)]], pyarrow.map_(pyarrow.string(), pyarrow.float64()))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "said": column}), tmp_path / "x.parquet")
    found = answers(tmp_path / "x.parquet", "a", answer="said", rest="renormalise")
    np.testing.assert_allclose(found, [[0.9, 0, 0.1]], atol=2e-6)


def test_what_kdbench_predict_writes(tmp_path):
    """Blank texts have no answer; the column of labels is not read."""
    columns = {"text": ["a", "", "b"], "label": ["fruit", None, "water"]}
    columns |= {f"probability:{name}": [ROWS["a"][at], None, ROWS["b"][at]] for at, name in enumerate(NAMES)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "answers.parquet")
    found = answers(tmp_path / "answers.parquet", "a", "b", answer="probability:*")
    np.testing.assert_allclose(found, [*ROWS.values()], rtol=1e-6)


def test_pairs_and_ids(tmp_path):
    pairs = write(tmp_path / "pairs.csv", "text,pair,fruit,metal,water\na,x,1,0,0\na,y,0,1,0\n")
    assert answers(pairs, "a", "a", pairs=["y", "x"]).argmax(1).tolist() == [1, 0]
    ids = write(tmp_path / "ids.csv", "id,fruit,metal,water\n1,0,1,0\n0.0,0,0,1\n")
    assert answers(ids, "a", "b", join="id").argmax(1).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("rest", "expected"), [("spread", [0.6, 0.3, 0.1]), ("renormalise", [0.6 / 0.9, 0.3 / 0.9, 0])]
)
def test_the_most_likely_classes_of_a_service(tmp_path, rest, expected):
    """Two of three classes: the other one has the rest, or nothing. exp is the inverse of what the service gives."""
    path = write(
        tmp_path / "x.jsonl", json.dumps({"text": "a", "top": {"metal": math.log(0.3), "fruit": math.log(0.6)}})
    )
    found = answers(path, "a", answer="top", values="log_probabilities", rest=rest)
    np.testing.assert_allclose(found, [expected], atol=2e-6)


def test_labels_and_the_floor(tmp_path):
    """A label is probability 1; log 0 is replaced by the logarithm of the floor."""
    path = write(tmp_path / "x.csv", "text,class\na,water\nb,fruit\n")
    given = teacher(path, answer="class", values="labels", floor=1e-3)
    found = read_answers(given, NAMES, False).of(split("a", "b")).numpy()
    low = math.log(1e-3)
    np.testing.assert_allclose(found, [[low, low, 0], [0, low, low]], rtol=1e-6)


def test_several_files_are_averaged_or_joined(tmp_path, caplog):
    """A text in both has the mean; a text in one has its answer there."""
    write(tmp_path / "1.csv", "text,fruit,metal,water\na,0.6,0.2,0.2\nb,0.5,0.5,0\n")
    write(tmp_path / "2.csv", "text,water,metal,fruit\na,0.8,0.2,0.0\n")
    found = answers(tmp_path / "?.csv", "a", "b")
    np.testing.assert_allclose(found, [[0.3, 0.2, 0.5], [0.5, 0.5, 0]], atol=2e-6)


HEAD = "text,fruit,metal,water\n"


@pytest.mark.parametrize(
    ("content", "keys", "code", "named"),
    [
        (HEAD + "a,0.5,0.2,0.2\n", {}, Code.OUT_OF_RANGE, ["teacher.values", "0.9", "line 2"]),
        (HEAD + "a,0.9,0.2,-0.1\n", {}, Code.OUT_OF_RANGE, ["teacher.values", "'-0.1'", "water"]),
        (HEAD + "a,0.9,nan,0.1\n", {}, Code.OUT_OF_RANGE, ["teacher.values", "nan", "metal"]),
        (HEAD + "a,0.9,much,0.1\n", {}, Code.OUT_OF_RANGE, ["teacher.values", "much"]),
        (HEAD + "a,0,0,0\n", {}, Code.OUT_OF_RANGE, ["teacher.values", "sum 0"]),
        (HEAD + "a,1,0.1,0\n", {"values": "log_probabilities"}, Code.OUT_OF_RANGE, ["teacher.values", "'1'"]),
        (HEAD + "a,0.9,,0.1\n", {}, Code.MISSING_VALUE, ["teacher.rest", "metal", "renormalise"]),
        (HEAD + "a,1,0,0\na,0,1,0\n", {}, Code.CONFLICTING_VALUES, ["teacher.source", "line 3", "line 2"]),
        (HEAD, {}, Code.UNREADABLE_TABLE, ["teacher.source", "no row"]),
        ("", {}, Code.UNREADABLE_TABLE, ["teacher.source", "empty"]),
        ("body,fruit,metal,water\na,1,0,0\n", {}, Code.MISSING_COLUMN, ["teacher.text=text", "body"]),
        ("text,fruit,metal\na,1,0\n", {}, Code.MISSING_COLUMN, ["teacher.answer=*", "water"]),
        ("text,p:fruit,p:metal,p:wood\n", {"answer": "p:*"}, Code.MISMATCHED_CLASSES, ["teacher.answer=p:*", "'wood'"]),
        ("text,said\na,wood\n", {"answer": "said", "values": "labels"}, Code.MISMATCHED_CLASSES, ["'wood'", "fruit"]),
        ("text,said\na,0.5\n", {"answer": "said"}, Code.INVALID_LABEL, ["teacher.answer=said", "0.5"]),
        ("text,said\na,\"[1,0,0]\"\n", {"answer": "said"}, Code.MISSING_VALUE, ["teacher.classes"]),
        ("text,said\na,\"[1,0]\"\n", {"answer": "said", "classes": NAMES}, Code.MISMATCHED_CLASSES, ["2 numbers"]),
        ("text,said\na,1\n", {"answer": "says"}, Code.MISSING_COLUMN, ["teacher.answer=says", "said"]),
        ("id,fruit,metal,water\nx,1,0,0\n", {"join": "id"}, Code.INVALID_LABEL, ["teacher.id=id", "'x'"]),
        (HEAD + "b,1,0,0\n", {}, Code.UNSUITABLE_TEACHER, ["teacher.source", "1 of 1", "'a'"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path, content, keys, code, named):
    with refused(code, *named):
        answers(write(tmp_path / "x.csv", content), "a", **keys)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding(tmp_path, encoding):
    path = tmp_path / "x.csv"
    path.write_text(HEAD + "naïve,1,0,0\n", encoding=encoding)
    with refused(Code.WRONG_ENCODING, "teacher.source", "UTF-8") as caught:
        answers(path, "naïve")
    assert "dataset.encoding" not in str(caught.value)  # no key of a data set reads it otherwise


def test_no_such_file(tmp_path):
    with refused(Code.MISSING_FILE, "teacher.source", "none.csv"):
        answers(tmp_path / "none.csv", "a")
    with refused(Code.INVALID_SOURCE, "teacher.source", "x.pdf"):
        answers(write(tmp_path / "x.pdf", "a"), "a")


# --- runs


def data_of(config) -> RunData:
    hardware = settle(config.hardware)
    return RunData(config, hardware, accelerator(hardware))


def log_probabilities(config, path: Path, weights: Path) -> None:
    """Write what the model of a finished run says of the data, in float64 and with the classes in another order."""
    from kdbench.data.teacher_cache import compute_outputs
    from kdbench.models import students

    data, model = data_of(config), students.load(weights / "model", "eager").eval()
    lines = ["text,water,fruit,metal"]
    for part in (data.data.train, data.data.dev, data.data.test):
        found = compute_outputs(data.examples(part, weights / "model"), lambda batch, _: students.logits(model, batch))
        rows = found.double().log_softmax(-1)[:, [2, 0, 1]].tolist()
        lines += [",".join([text, *map(repr, row)]) for text, row in zip(part.texts, rows, strict=True)]
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf8")


@pytest.fixture
def pair(configure, taught, tmp_path):
    """The config of a student of the tiny teacher, the file of what that teacher says, and that teacher's run."""
    network = configure("method=logit_kd", "schedule.epochs=1")
    teacher_folder = next((tmp_path / "outputs/topics/finetune").rglob("results.json")).parent
    path = tmp_path / "answers.csv"
    log_probabilities(network, path, teacher_folder)
    return network, path, teacher_folder


@pytest.fixture
def file_words(command_line, teacher_folder):
    """`file_words(path, ...)` -> the words of a run that learns from a file, from the tiny teacher's layers on."""

    def make(path, *more, without_encoder=False):
        own = [] if without_encoder else ["student=own", "teacher@student.encoder=local"]
        own += [] if without_encoder else [f"student.encoder.source={teacher_folder}", "student.layers=2"]
        words = command_line("method=logit_kd", "schedule.epochs=1", *own)
        words = [word for word in words if not word.startswith(("teacher=", "teacher."))]
        words = [word for word in words if not without_encoder or word != "student.layers=2"]
        given = ["teacher=file", f"teacher.source={path}", "teacher.answer='*'", "teacher.values=log_probabilities"]
        return [*words, *given, "teacher.floor=1e-12", *more]

    return make


@pytest.fixture
def file_run(file_words):
    """`file_run(path, ...)` -> the run of `file_words`."""

    def make(path, *more, without_encoder=False):
        return load(composed(tuple(file_words(path, *more, without_encoder=without_encoder))))

    return make


def undivided(folder: Path) -> dict:
    """The scores of a run without its temperature, as a file of answers has none."""
    result = read_result(folder)
    before = result["calibration"]["before"]
    return {split: pytest.approx(one | before[split], abs=1e-5) for split, one in result["metrics"].items()}


def test_it_teaches_as_the_network_does(pair, file_run, execute, capsys, tmp_path):
    """The same losses, weights and scores to 1e-6, as log p and logits differ by a constant for each text."""
    network_config, path, taught_by = pair
    config = file_run(path)
    assert cross_faults(config) == []
    network, found = execute(network_config), execute(config)
    for mine, its in zip(found["stages"][0]["epochs"], network["stages"][0]["epochs"], strict=True):
        assert mine["means"] == pytest.approx(its["means"], abs=1e-6) and mine["dev"] == its["dev"]
    mine, its = (load_file(Path(one["folder"]) / "model" / "model.safetensors") for one in (found, network))
    for name in its:
        free = name.endswith("key.bias")  # no output depends on it: its gradient is noise, which Adam scales up
        torch.testing.assert_close(mine[name], its[name], rtol=0, atol=1e-4 if free else 1e-6)
    for split, scores in network["metrics"].items():
        assert found["metrics"][split] == pytest.approx(scores, abs=1e-5)
    assert found["id"] != network["id"]
    assert found["baseline_id"] == network["baseline_id"]
    # its row
    assert found["teacher"]["metrics"] == undivided(taught_by) and found["cost"]["teacher_seconds"] == 0
    (row,) = [read_result(one.parent) for one in (tmp_path / "outputs/topics/answers").rglob("results.json")]
    assert (
        row["id"] == found["teacher"]["id"] and row["latency"]["batch_1"] is None and row["parameters"]["total"] is None
    )
    assert found["teacher_identity"]["files"] == [[".csv", hashlib.sha256(path.read_bytes()).hexdigest()]]
    capsys.readouterr()
    assert compare([str(tmp_path / "outputs"), "--format", "json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    roles = {one["method"]: one["role"] for one in table["rows"]}
    assert roles["answers"] == "teacher"
    card = " ".join(model_card(open_run(Path(found["folder"])), None).split())
    assert f"answers are in `{path.name}`" in card and found["teacher_identity"]["files"][0][1] in card
    assert f"Encoder: local, from `{Path(config.student.encoder.source).name}`" in card and "(file)" in card


def kept(path: Path, texts: set[str], name: str) -> Path:
    """Write the rows of these texts to another file."""
    head, *rows = path.read_text(encoding="utf8").splitlines()
    return write(path.with_name(name), "\n".join([head, *(row for row in rows if row.split(",")[0] in texts)]) + "\n")


def test_texts_without_an_answer(pair, file_run, execute, tmp_path, caplog):
    """They are refused with their number, and nothing is written; or they keep their labels; or they are left out."""
    _, path, _ = pair
    data = data_of(file_run(path)).data
    short = kept(path, {*data.train.texts[5:]}, "short.csv")
    lost = sum(text not in data.train.texts[5:] for text in data.train.texts)
    outputs = sorted((tmp_path / "outputs").rglob("*"))
    with refused(Code.UNSUITABLE_TEACHER, "teacher.source", f"{lost} of 60", "teacher.missing=drop"):
        execute(file_run(short))
    assert sorted((tmp_path / "outputs").rglob("*")) == outputs
    with caplog.at_level("INFO", "kdbench"):
        result = execute(file_run(short, "teacher.missing=drop"))
    assert f"{lost} of 60 texts have no answer: {lost} are learned by their label alone" in caplog.text
    assert "has no row in tables" in caplog.text and "0 of 40 test texts" in caplog.text
    assert result["teacher"] is None and result["stages"][0]["steps"] == math.ceil(60 / 8)
    caplog.clear()
    with caplog.at_level("INFO", "kdbench"):
        result = execute(file_run(short, "teacher.missing=drop", "method.alpha=1"))  # labels are not learned
    assert f"{lost} of 60 texts have no answer: {lost} are left out" in caplog.text
    assert result["stages"][0]["steps"] == math.ceil((60 - lost) / 8)
    with refused(Code.UNSUITABLE_TEACHER, "teacher.source", "60 of 60"):
        execute(file_run(kept(path, {*data.test.texts} - {*data.train.texts}, "none.csv"), "teacher.missing=drop"))


def test_a_text_without_an_answer_learns_its_label_and_one_without_a_label_too_is_left_out(pair, file_run, data_folder):
    """What the batches of a run hold: the answers of a file where it has them, and else NaN and the label."""
    _, path, _ = pair
    raw = data_folder / "corpus.txt"
    texts = raw.read_text(encoding="utf8").splitlines()
    data = data_of(file_run(path)).data
    known = {*data.train.texts[5:], *texts[:40]}
    said = [math.log(0.9), math.log(0.06), math.log(0.04)]  # of water, fruit and metal
    rows = [",".join([text, *map(str, said)]) for text in texts]
    short = kept(
        write(path.with_name("both.csv"), path.read_text(encoding="utf8") + "\n".join(rows) + "\n"), known, "some.csv"
    )
    config = file_run(short, "teacher.missing=drop", f"dataset.unlabelled={raw}", "method.unlabelled_share=0.4")
    hardware = settle(config.hardware)
    made = Run(config, hardware, accelerator(hardware), path.parent, lambda other: pytest.fail("no row is needed"))
    split = made.with_unlabelled(made.data.train)
    batches = made.batches("training", "logits", split=split, hard=True)
    examples, train = batches.examples, made.data.train
    assert examples.answered is not None and examples.labelled is not None
    learned = [*train.texts, *texts[:40]]
    assert len(examples) == len(learned) and examples.labelled.tolist() == [True] * 60 + [False] * 40
    assert examples.answered.tolist() == [text in known for text in learned]
    logits = examples.teacher["teacher_logits"]
    assert (logits.isnan().all(1).numpy() == ~examples.answered).all()
    torch.testing.assert_close(logits[-1], torch.tensor([said[1], said[2], said[0]]))
    batch = batches.examples.batch(np.arange(8))
    assert torch.equal(batch["answered"], torch.from_numpy(examples.answered[:8]))
    alone = made.batches("training", "logits", split=split)  # no term of the labels
    assert alone.examples.answered is None and len(alone.examples) == sum(text in known for text in learned)


def test_a_bilstm_learns_labels_where_answers_lack(pair, file_run, execute):
    _, path, _ = pair
    short = kept(path, {*data_of(file_run(path)).data.train.texts[5:]}, "short.csv")
    more = ["method=bilstm", "student=bilstm_150", "student.word_vectors=random", "student.hidden=6", "student.ffn=8"]
    more += ["student.embedding=8", "method.augment=false", "teacher.missing=drop"]
    steps = {}
    for alpha in (0.5, 1):
        result = execute(file_run(short, *more, f"method.alpha={alpha}", without_encoder=True))
        steps[alpha] = result["stages"][0]["steps"]
    assert steps[0.5] == math.ceil(60 / 8) > steps[1]


def test_its_answers_are_pseudo_labels(pair, file_run, execute, data_folder):
    """For a network and for TF-IDF; a raw text without an answer is left out, and train needs none: it has labels."""
    _, path, _ = pair
    raw = data_folder / "corpus.txt"
    texts = raw.read_text(encoding="utf8").splitlines()
    rows = [f"{text},{math.log(0.9)},{math.log(0.06)},{math.log(0.04)}" for text in texts]
    head = path.read_text(encoding="utf8").partition("\n")[0]
    only_raw = write(path.with_name("only_raw.csv"), "\n".join([head, *rows]) + "\n")
    found = execute(file_run(only_raw, "method=pseudo_label", f"dataset.unlabelled={raw}"))
    assert found["reported"]["pseudo_labels"] == {"texts": 60, "kept": 60} and found["teacher"] is None
    whole = write(path.with_name("some_raw.csv"), "\n".join([head, *rows[:40]]) + "\n")
    with refused(Code.UNSUITABLE_TEACHER, "teacher.source", "20 of 60", "teacher.missing=drop"):
        execute(file_run(whole, "method=pseudo_label", f"dataset.unlabelled={raw}"))
    words = [f"dataset.unlabelled={raw}", "teacher.missing=drop"]
    network = execute(file_run(whole, "method=pseudo_label", *words))
    assert network["reported"]["pseudo_labels"] == {"texts": 40, "kept": 40}
    surest = execute(file_run(whole, "method=pseudo_label", "method.threshold=0.99", *words))
    assert surest["reported"]["pseudo_labels"]["kept"] == 0  # the answers have 0.9
    tfidf = execute(file_run(whole, "method=tfidf", "method.pseudo_labels=true", *words))
    assert tfidf["reported"]["tried"]["words up to 1"]["train_texts"] == 60 + 40


def test_a_row_of_its_own(pair, file_run, execute):
    """method=answers needs dev and test, and no student."""
    _, path, taught_by = pair
    result = execute(file_run(path, "method=answers"))
    assert result["metrics"] == undivided(taught_by) and result["identity"]["teacher"] == "file"
    data = data_of(file_run(path)).data
    with refused(Code.UNSUITABLE_TEACHER, "teacher.source", "20 of 20"):
        execute(file_run(kept(path, {*data.test.texts} - {*data.dev.texts}, "test.csv"), "method=answers"))


def test_a_row_of_the_texts_that_are_answered(pair, file_run, execute, tmp_path, caplog, capsys):
    """Its score is of them alone, their number is said everywhere, and it is compared with no other row."""
    _, path, teacher_folder = pair
    data = data_of(file_run(path)).data
    known = {*data.train.texts, *data.dev.texts[:7], *data.test.texts[10:]}
    with caplog.at_level("INFO", "kdbench"):
        found = execute(file_run(kept(path, known, "part.csv")))
    answered = {name: [text in known for text in getattr(data, name).texts] for name in ("dev", "test")}
    counts = {name: sum(one) for name, one in answered.items()}
    told = f"{counts['dev']} of 20 dev texts and {counts['test']} of 40 test texts"
    assert f"is judged by the texts that its file answers: {told}" in caplog.text
    (row,) = [read_result(one.parent) or {} for one in (tmp_path / "outputs/topics/answers").rglob("results.json")]
    rows = pyarrow.parquet.read_table(teacher_folder / "predictions.parquet").to_pylist()
    for name, one in answered.items():  # by hand, from the predictions of the network that wrote the file
        own = [row for row in rows if row["split"] == name]
        right = [int(np.argmax(row["logits"])) == row["label"] for row, its in zip(own, one, strict=True) if its]
        assert row["metrics"][name]["n"] == len(right) == counts[name] < len(one)
        assert row["metrics"][name]["accuracy"] == pytest.approx(np.mean(right))
    assert row["reported"]["answered"] == {
        name: {"rows": counts[name], "of": len(one)} for name, one in answered.items()
    }
    assert found["teacher"]["metrics"] == row["metrics"] and found["teacher"]["id"] == row["id"]
    assert row["identity"]["test_id"] == found["identity"]["test_id"]
    capsys.readouterr()
    assert compare([str(tmp_path / "outputs"), "--format", "json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert table["examples"] == 40
    mine = next(one for one in table["rows"] if one["id"] == found["id"])
    assert mine["gap_closed"] is None and mine["score_low_points"] is not None
    assert any(f"the file answers {counts['test']} of 40 texts" in note for note in table["notes"])
    assert not any("another test split" in note or "left out of the tests" in note for note in table["notes"])
    assert compare([str(tmp_path / "outputs"), "--format", "markdown"]) == 0
    assert f"teacher (answers to {counts['test']} of 40)" in capsys.readouterr().out


def test_a_student_with_words_of_its_own_needs_no_encoder(pair, file_run, execute):
    _, path, _ = pair
    more = ["method=bilstm", "student=bilstm_150", "student.word_vectors=random", "student.hidden=6", "student.ffn=8"]
    config = file_run(path, *more, "student.embedding=8", "method.augment=false", without_encoder=True)
    assert cross_faults(config) == []
    assert execute(config)["metrics"]["test"]["n"] == 40


@pytest.mark.parametrize(
    ("words", "code", "key", "named"),
    [
        (["method=theseus"], Code.UNSUITABLE_TEACHER, "teacher", "layers"),
        (["method=cascade"], Code.UNSUITABLE_TEACHER, "teacher", "model"),
        (["method=minilm"], Code.UNSUITABLE_TEACHER, "teacher", "encoder"),
        (["method.init.weights=finetuned"], Code.UNUSABLE_START, "method.init.weights", "pretrained"),
        (["teacher.values=labels"], Code.CONFLICTING_VALUES, "teacher.answer", "labels"),
        (["teacher.floor=null"], Code.MISSING_VALUE, "teacher.floor", "must be set"),
        (["+teacher.seeds=[0,1]"], Code.CONFLICTING_VALUES, "teacher.seeds", "teacher.join"),
        (["dataset.task=regression"], Code.UNSUPPORTED_TASK, "dataset.task", "classification"),
        (["teacher.source=none.csv"], Code.MISSING_FILE, "teacher.source", "none.csv"),
        (["method=bilstm", "student=own"], Code.UNSUPPORTED_ARCHITECTURE, "student.architecture", "bilstm"),
    ],
)
def test_what_a_file_cannot_do_is_refused(file_run, tmp_path, words, code, key, named):
    config = file_run(write(tmp_path / "answers.csv", HEAD), *words)
    (fault,) = [one for one in cross_faults(config) if one.code == code]
    assert fault.key == key and named in str(fault)


def test_the_refusal_of_a_student_without_an_encoder_has_the_command(file_run, tmp_path):
    config = file_run(write(tmp_path / "answers.csv", HEAD), "student=bert_2l", without_encoder=True)
    (fault,) = cross_faults(config)
    assert fault.key == "student.encoder" and "student=own" in fault.nearest


@pytest.fixture
def sweep(file_words, monkeypatch, tmp_path, capsys):
    """`sweep(path, ...)` -> exit code and stderr of a sweep of TF-IDF, which asks no teacher, and another method."""

    def do(path, *more):
        monkeypatch.setattr(sys, "argv", ["kdbench", "-m", *file_words(path, *more, without_encoder=True)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    return do


def test_a_sweep_finds_faults_of_its_files_before_its_first_job(sweep, data_folder, tmp_path):
    outputs = tmp_path / "outputs"
    texts = [line.rpartition(",")[0] for line in (data_folder / "train.csv").read_text().splitlines()[1:]]
    rows = [f"{text},-0.1,-3,-4" for text in texts]
    asks = ["method=tfidf,answers", "seed=0,1"]
    broken = write(tmp_path / "broken.csv", "\n".join(["text,water,fruit,metal", *rows]) + "\nx,1,1,1\n")
    code, err = sweep(broken, *asks)
    assert code == 2 and err.count("KD") == 1 and "teacher.values" in err and "line 82" in err and not outputs.exists()
    rows = [f"{text},{math.log(0.8)},{math.log(0.1)},{math.log(0.1)}" for text in texts]
    short = write(tmp_path / "short.csv", "\n".join(["text,water,fruit,metal", *rows]) + "\n")
    code, err = sweep(short, *asks)
    assert code == 2 and err.count("KD") == 1 and "teacher.source" in err and "of 40 examples" in err
    assert not outputs.exists()
    other = write(tmp_path / "other.csv", HEAD.replace("water", "wood") + "a,1,0,0\n")
    code, err = sweep(short, *asks, f"teacher.source={short},{other}")
    assert code == 2 and err.count("KD") == 2 and "other.csv" in err and not outputs.exists()
