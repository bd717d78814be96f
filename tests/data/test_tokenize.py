"""Long texts are not read to their ends, and nothing comes out otherwise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.data.datasets import Split
from kdbench.data.tokenize import _encode, _head
from tests.encoders import KINDS, WORDS, make_tokenizer

TOKENIZERS = {kind: make_tokenizer(kind) for kind in KINDS}
ODD = [*WORDS, "Unheard", "文字", "\u200b", "\x1c", "a\x1cb", "a\nb", "[SEP]", "🙂", "\u00a0", "-", "e\u0301"]
TEXTS = st.lists(
    st.lists(st.tuples(st.sampled_from(ODD), st.sampled_from([" ", "  ", "\n", "\t ", " \n"])), max_size=40).map(
        lambda parts: "".join(word + space for word, space in parts)
    ),
    min_size=1,
    max_size=4,
)


def read(tokenizer, texts, length):
    split = Split(np.arange(len(texts)), texts, np.zeros(len(texts), np.int64))
    (rows,) = _encode(split, tokenizer, length)
    return rows


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS, length=st.integers(4, 16))
def test_a_long_texts_end_changes_nothing(kind, texts, length):
    tokenizer = TOKENIZERS[kind]
    whole = tokenizer(texts, truncation=True, max_length=length)
    rows = read(tokenizer, texts, length)
    assert rows.ids == whole["input_ids"]
    cut = sum(len(ids) > length for ids in tokenizer(texts)["input_ids"])
    assert rows.counts is not None and rows.counts["cut"] == cut


def test_a_text_of_words_that_have_no_piece_is_read_to_its_end():
    tokenizer = TOKENIZERS["bert"]
    text = "\u200b " * 50 + "apple pear"
    assert read(tokenizer, [text], 8).ids == tokenizer([text], truncation=True, max_length=8)["input_ids"]
    assert len(read(tokenizer, [text], 8).ids[0]) == 4


def test_the_head_of_a_text():
    assert [_head("one  two three", n) for n in (1, 2, 3, 4)] == ["one", "one  two", "one  two three", "one  two three"]
    assert _head("", 3) == "" and _head("  ", 3) == "  "
