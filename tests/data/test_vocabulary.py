"""The word tokenizer: which words it has, in which order, and what tokenize makes with it."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from kdbench.data import vocabulary
from kdbench.data.datasets import Split
from kdbench.data.tokenize import tokenize
from kdbench.data.vocabulary import word_tokenizer

TEXTS = ["The cat, the dog", "a cat the zoo", "我爱猫 我", "Zoo dog once"]


def words_of(folder):
    ids = json.loads((folder / "tokenizer.json").read_text(encoding="utf8"))["model"]["vocab"]
    return sorted(ids, key=ids.get)


@pytest.fixture
def folder(tmp_path):
    return word_tokenizer(TEXTS, tmp_path)


def test_words_by_count_then_code_point(folder):
    # the: 3; cat, dog, zoo, 我: 2 each; the rest once
    assert words_of(folder) == ["[PAD]", "[UNK]", "[MASK]", "the", "cat", "dog", "zoo", "我"]


def test_min_count_and_max_size(tmp_path):
    everything = words_of(word_tokenizer(TEXTS, tmp_path, min_count=1))
    assert everything[8:] == [",", "a", "once", "爱", "猫"]
    assert words_of(word_tokenizer(TEXTS, tmp_path, min_count=1, max_size=5)) == everything[:5]


def test_a_hugging_face_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id) == (0, 1, 2)
    assert tokenizer.cls_token is None and tokenizer.sep_token is None
    assert tokenizer("THE unseen [MASK] Zoo我")["input_ids"] == [3, 1, 2, 6, 7]
    assert tokenizer("cat " * 3000)["input_ids"] == [4] * 3000
    pair = tokenizer("the cat", "dog")
    assert pair["input_ids"] == [3, 4, 5] and pair["token_type_ids"] == [0, 0, 1]


def rows_of(tokens, flat):
    return [flat[tokens.span(row)].tolist() for row in range(len(tokens.lengths))]


def test_tokenize_takes_the_folder(folder, tmp_path):
    split = Split(np.arange(3), ["the cat once", "", "Dog"], np.zeros(3, np.int64))
    tokens = tokenize(split, folder, 2, tmp_path)
    assert rows_of(tokens, tokens.flat) == [[3, 4], [], [5]]


def test_tokenize_takes_pairs(folder, tmp_path):
    texts, pairs = ["the cat the cat", "", "dog", ""], ["zoo", "zoo", "", ""]
    tokens = tokenize(Split(np.arange(4), texts, np.zeros(4, np.int64), pairs), folder, 3, tmp_path)
    assert rows_of(tokens, tokens.flat) == [[3, 4, 6], [6], [5], []]
    assert rows_of(tokens, tokens.types) == [[0, 0, 1], [1], [0], []]


def test_a_folder_is_a_function_of_texts_and_options(folder, tmp_path):
    assert folder.parent == tmp_path / "vocabulary"
    others = [
        word_tokenizer(TEXTS[:-1], tmp_path),
        word_tokenizer(TEXTS[::-1], tmp_path),
        word_tokenizer(TEXTS, tmp_path, min_count=1),
        word_tokenizer(TEXTS, tmp_path, max_size=9),
    ]
    assert len({folder, *others}) == 5
    elsewhere = word_tokenizer(TEXTS, tmp_path / "other")
    assert elsewhere.name == folder.name
    for path in folder.iterdir():  # the manifest too
        assert path.read_bytes() == (elsewhere / path.name).read_bytes()


def test_made_once(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "_write", None)
    assert word_tokenizer(TEXTS, tmp_path) == folder
    assert [path.name for path in folder.parent.iterdir() if path.suffix == ".part"] == []


def test_no_text_gives_the_special_tokens(tmp_path):
    assert words_of(word_tokenizer([], tmp_path)) == ["[PAD]", "[UNK]", "[MASK]"]
