"""TF-IDF's n-grams and weights against scikit-learn's own; texts that have no word, or no space; blank ones."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from kdbench.errors import Code, UserError
from kdbench.inference.onnx import to_onnx
from kdbench.models import tfidf
from kdbench.models.network import view
from tests.refusals import refused

PLAIN = ["a big pear is a pear", "iron and a lead lake", "pear", "", "lake lake lake lake river", "a"]
AWKWARD = [
    "I\u0307STANBUL ŞİMDİ", "ΟΔΟΣ οδος", "Straße STRASSE", "e\u0301té été", "ｆｕｌｌ　ｗｉｄｔｈ",
    "a\u00a0b\tc\r\n d", "नमस्ते दुनिया", "👩‍👩‍👧 ☺️ 😀😀", "\u200b", "[PAD] [UNK] [START]", "水很好喝。天气也好",
    "a\x00b\x07", "\ud7ff \U0010ffff", " ", "don't-stop_me 3.14",
]  # fmt: skip


def matrix(texts: list[str], analyzer: str, longest: int, sublinear: bool) -> np.ndarray:
    """(n, G) with columns in the order of their sums, which is the same for any order of n-grams."""
    tokenizer = tfidf.tokenizer_of([(text,) for text in texts], analyzer)
    encoded = tfidf.encode(tokenizer, [(text,) for text in texts])
    ngrams = tfidf.NGrams(len(tokenizer))
    ngrams.learn(encoded, longest)
    counts = ngrams.count(encoded)
    dense = np.zeros((len(texts), ngrams.sizes[-1]))
    weighed = tfidf.weights(counts, tfidf.inverse_frequency(counts, ngrams.sizes[-1]), sublinear)
    dense[counts.rows.numpy(), counts.grams.numpy()] = weighed.numpy()
    return dense


@pytest.mark.parametrize("sublinear", [True, False])
@pytest.mark.parametrize(("analyzer", "longest"), [("word", 1), ("word", 3), ("char", 1), ("char", 4)])
def test_the_weights_are_scikit_learns(analyzer, longest, sublinear):
    pattern = {"token_pattern": r"\w+"} if analyzer == "word" else {}
    theirs = TfidfVectorizer(analyzer=analyzer, ngram_range=(1, longest), sublinear_tf=sublinear, **pattern)
    expected, found = theirs.fit_transform(PLAIN).toarray(), matrix(PLAIN, analyzer, longest, sublinear)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-12)
    np.testing.assert_allclose(np.sort(found.sum(0)), np.sort(expected.sum(0)), atol=1e-12)


def model_of(texts: list[str], analyzer: str, longest: int, classes: int = 3) -> tuple[tfidf.TfIdf, Any]:
    tokenizer = tfidf.tokenizer_of([(text,) for text in texts], analyzer)
    encoded = tfidf.encode(tokenizer, [(text,) for text in texts])
    ngrams = tfidf.NGrams(len(tokenizer))
    ngrams.learn(encoded, longest)
    draw = torch.Generator().manual_seed(0)
    size = ngrams.sizes[-1]
    planes, offsets = torch.randn(size, classes, generator=draw), torch.randn(classes, generator=draw)
    idf = tfidf.inverse_frequency(ngrams.count(encoded), size)
    return tfidf.build(ngrams, idf, planes, offsets, analyzer, True, ["a", "b", "c"][:classes], None), tokenizer


@pytest.mark.parametrize(("analyzer", "longest"), [("word", 2), ("char", 3)])
def test_a_text_has_the_same_scores_alone_in_a_batch_and_read_back(analyzer, longest, tmp_path):
    model, tokenizer = model_of([*PLAIN, *AWKWARD[:8]], analyzer, longest)
    texts = [*AWKWARD, *PLAIN, "nothing ofthis wasseen"]
    expected = model.logits(tfidf.encode(tokenizer, [(text,) for text in texts]))
    view(model).save(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    read, again = tfidf.Model.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    with torch.inference_mode():
        batch = read(**again(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([read(**again([text], return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(batch, expected)
    torch.testing.assert_close(alone, expected)
    torch.testing.assert_close(expected[texts.index(" ")], model.bias)  # nothing to go by


def test_signs_and_single_letters_are_words_and_forms_of_a_letter_are_one():
    def ids(*texts: str) -> list[list[int]]:
        return [tokenizer(text)["input_ids"] for text in texts]

    tokenizer = tfidf.tokenizer_of([("a b 7 😀 A+ été full ss",)], "word")
    assert all(tfidf.SPECIAL.index(tfidf.UNK) not in one for one in ids("a 7 b", "😀+"))
    for one, other in (("été", "e\u0301TE\u0301"), ("full", "ＦＵＬＬ"), ("😀😀", "😀 😀")):
        assert len({*map(tuple, ids(one, other))}) == 1


def test_no_ngram_is_of_both_texts_of_a_pair():
    tokenizer = tfidf.tokenizer_of([("a b", "c d")], "word")
    ngrams = tfidf.NGrams(len(tokenizer))
    ngrams.learn(tfidf.encode(tokenizer, [("a b", "c d")]), 2)
    assert ngrams.sizes == [4, 6]


@pytest.mark.parametrize("analyzer", ["word", "char"])
def test_blank_texts_alone_are_refused(analyzer):
    with refused(Code.INVALID_TEXT, "dataset.text", kind=UserError):
        tfidf.tokenizer_of([("",), (" \n\u3000",)], analyzer)


def test_a_folder_that_is_none_is_refused(tmp_path):
    model, _ = model_of(PLAIN, "word", 2)
    view(model).save(tmp_path)
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"vocab_size": ', '"vocab_size": 1')
    )
    with refused(Code.INCOMPLETE_MODEL, tmp_path, kind=UserError):
        tfidf.Model.load(tmp_path)


@pytest.mark.parametrize("sublinear", [True, False])
@pytest.mark.parametrize(("analyzer", "longest"), [("word", 1), ("word", 3), ("char", 4)])
def test_its_graph_answers_awkward_texts_alike(analyzer, longest, sublinear, tmp_path):
    model, tokenizer = model_of([*PLAIN, *AWKWARD[:8]], analyzer, longest)
    model.config.sublinear_tf = sublinear
    assert to_onnx(view(model), tmp_path / "model.onnx", False) <= 1e-5
    texts = [*AWKWARD, *PLAIN, "nothing ofthis wasseen"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for given in ([text] for text in texts), [texts]:
        for batch in given:
            inputs = tokenizer(batch, padding=True, return_tensors="pt")
            (logits,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
            torch.testing.assert_close(torch.from_numpy(logits), model(**inputs).logits, rtol=1e-5, atol=1e-5)
