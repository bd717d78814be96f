"""The row to beat: words or, where they cannot be split, characters; and texts of which there is little to count."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from kdbench.cli import predict
from kdbench.compare import cli as compare_runs
from kdbench.data.stored import stored_dataset
from kdbench.errors import Code, UserError
from kdbench.methods.tfidf import drawn
from tests.refusals import refused

ALPHABETS = {"chinese": "水火木金土日月山川田", "thai": "กขคงจฉชซญด", "japanese": "あいうえおかきくけこ"}


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows), encoding="utf8")
    return path.name


@pytest.fixture
def of(configure, tmp_path):
    """Rows of (text, label) -> a run of TF-IDF on them."""

    def make(train: list[tuple[str, str]], test: list[tuple[str, str]], *overrides: str):
        names = write(tmp_path / "train.jsonl", train), write(tmp_path / "test.jsonl", test)
        return configure(
            "method=tfidf", f"dataset.source={tmp_path}", f"dataset.splits.train={names[0]}",
            f"dataset.splits.test={names[1]}", *overrides,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_characters_are_counted_where_words_cannot_be_split(of, execute, tmp_path, capsys, alphabet):
    draw, letters = random.Random(0), ALPHABETS[alphabet]
    classes = {"a": letters[:2] + letters[4:], "b": letters[2:]}
    rows = [("".join(draw.choices(classes[label], k=12)), label) for label in "ab" * 60]
    result = execute(of(rows[:80], rows[80:]))
    assert result["metrics"]["test"]["accuracy"] > 0.9
    reported = result["reported"]
    assert reported["unknown_words"] > 0.5 and reported["chosen"].startswith("characters")
    assert len(reported["tried"]) == 4 and {one["train_texts"] for one in reported["tried"].values()} == {60}
    capsys.readouterr()
    assert compare_runs.main([str(tmp_path / "outputs"), "--format", "markdown"]) == 0
    assert reported["chosen"] in capsys.readouterr().out


def test_a_script_without_spaces_is_counted_by_characters_even_where_dev_repeats_the_sentences_of_train(of, execute):
    draw = random.Random(1)
    classes = {"a": "好快喜美物天", "b": "坏慢恨丑物天"}

    def sentence(label):
        return "".join(draw.choices(classes[label], k=6)), label

    seen = [sentence(label) for label in "ab" * 8]
    result = execute(of(seen * 6, [sentence(label) for label in "ab" * 20], "dataset.deduplicate=false"))
    assert result["reported"]["unknown_words"] < 0.1 and result["reported"]["chosen"].startswith("characters")
    assert result["metrics"]["test"]["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("one", "other"),
    [("😀 🎉", "😢 💔"), ("A", "F"), ("A+", "A-"), ("7", "3"), ("好", "坏"), ("!", "?"), ("नि", "नी")],
)
def test_texts_without_a_word_of_two_letters(of, execute, one, other):
    result = execute(of([(one, "a"), (other, "b")] * 8, [(one, "a"), (other, "b")], "dataset.deduplicate=false"))
    assert result["metrics"]["test"]["accuracy"] == 1


def test_words_are_counted_as_scikit_learn_counts_them(configure, execute):
    config = configure("method=tfidf", "method.max_ngrams=[2]", "method.max_char_ngrams=[]")
    result = execute(config)
    assert result["reported"]["chosen"] == "words up to 2"
    data = stored_dataset(config.dataset, Path(config.cache_dir))
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    machine = LinearSVC(random_state=0).fit(words.fit_transform(data.train.texts), data.train.labels)
    theirs = (machine.predict(words.transform(data.test.texts)) == data.test.labels).mean()
    assert result["metrics"]["test"]["accuracy"] == pytest.approx(theirs)
    assert result["parameters"]["total"] == machine.coef_.size + machine.intercept_.size


def test_nothing_to_count_is_refused_and_blank_texts_beside_others_are_not(of, execute):
    with refused(Code.INVALID_TEXT, "dataset.text", kind=UserError):
        execute(of([(" ", "a"), ("\n", "b")] * 8, [("c", "a")]))
    result = execute(of([("gold", "a"), ("", "b")] * 8, [("gold", "a"), (" ", "b")]))
    assert result["metrics"]["test"]["accuracy"] == 1


def test_a_class_that_train_lacks_is_never_answered_and_one_class_alone_always(of, execute):
    rows = [(f"gold {at}", "a") for at in range(30)] + [(f"sea {at}", "b") for at in range(30)] + [("pear", "c")]
    result = execute(of(rows, [("pear", "c"), ("gold", "a"), ("sea", "b")], "dataset.max_train_samples=12"))
    assert result["metrics"]["test"]["accuracy"] == pytest.approx(2 / 3)
    alone = execute(of([*rows[:29], ("sea", "b"), ("sea 2", "b")], [("gold", "a")], "dataset.max_train_samples=2"))
    assert alone["metrics"]["test"]["accuracy"] == 1


def test_many_characters_are_drawn_from(of, execute, configure):
    config = configure("method=tfidf")
    train = stored_dataset(config.dataset, Path(config.cache_dir)).train
    part = drawn(train, 300, 0)
    assert 1 < len(part) < len(train) and sum(map(len, part.texts)) <= 300
    assert np.isin(part.ids, train.ids).all() and (np.diff(part.ids) > 0).all()
    assert len(drawn(train, 1, 0)) == 1 and len(drawn(train, 10**9, 0)) == len(train)


@pytest.mark.parametrize(("test", "said"), [("test.csv", "test: test; "), ("null", "test: cut from train; ")])
def test_the_record_says_where_the_test_is_from(configure, execute, test, said):
    result = execute(configure("method=tfidf", f"dataset.splits.test={test}"))
    assert result["identity"]["split"] == f"{said}dev: cut from train"


@pytest.mark.parametrize("header", [True, False])
def test_a_file_to_predict_is_read_as_the_training_data_were(configure, execute, tmp_path, capsys, header):
    rows = [f"{word} Gerät {at};{label}" for at in range(30) for word, label in (("schön", "gut"), ("übel", "mies"))]
    head = ["body;verdict"] if header else []
    (tmp_path / "own.csv").write_text("\n".join([*head, *rows]), encoding="cp1252")
    names = ["body", "verdict"] if header else ["1", "2"]
    result = execute(
        configure(
            "method=tfidf", f"dataset.source={tmp_path / 'own.csv'}", "dataset.splits.train=.",
            "dataset.splits.test=null",
            "dataset.encoding=cp1252", f"dataset.header={header}", f"dataset.text={names[0]}",
            f"dataset.label={names[1]}",
        )
    )  # fmt: skip
    for encoding in ("cp1252", "utf-8"):
        capsys.readouterr()
        (tmp_path / "asked.csv").write_text("\n".join([*head, rows[1], rows[0]]), encoding=encoding)
        assert predict.main([result["folder"], "--file", str(tmp_path / "asked.csv"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["answers"]
        assert [(one["text"].split()[0], one["label"]) for one in found] == [("übel", "mies"), ("schön", "gut")]
