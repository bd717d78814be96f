"""Augmentation: the written-out case, the chances, what is never made, the words that may stand for one another."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.data.augment import (
    LmAugmentation,
    NGramAugmentation,
    augment_pairs,
    augment_tokens,
    augment_words,
    cached_augmentation,
)
from kdbench.data.word_classes import MaskedLm, nearest_pieces, pos_tags, word_classes

OPTIONS = NGramAugmentation(p_mask=0.1, p_pos=0.1, p_ngram=0.25, max_ngram=5, rounds=1, max_words=100)
PIGS, PIGS_TAGS = ["what", "do", "pigs", "eat"], ["WP", "VBP", "NNS", "VB"]
# Kept as it is: the words of a tag are drawn from it too.
COWS, COWS_TAGS = ["cows", "graze", "to", "sleep"], ["NNS", "VBP", "TO", "VB"]


class Scripted(np.random.Generator):
    """A generator whose u are given; of whole numbers it draws the greatest."""

    def __init__(self, *uniforms):
        super().__init__(np.random.PCG64())
        self.uniforms = [np.array(u) for u in uniforms]

    def random(self, size):  # type: ignore[override]
        drawn = self.uniforms.pop(0)
        assert drawn.shape == (size,)
        return drawn

    def integers(self, low, high, size=None):  # type: ignore[override]
        return np.broadcast_to(np.asarray(high) - 1, np.shape(high) if size is None else size)


def within(count, trials, probability, sigmas=4):
    return abs(count - trials * probability) <= sigmas * math.sqrt(trials * probability * (1 - probability))


def corpus(sentences=400, words=50, tags=7):
    """No word twice; a word's tag is the part of its name before the dash."""
    text = [[f"{(i + j) % tags}-{i}.{j}" for j in range(words)] for i in range(sentences)]
    return text, [[word.split("-")[0] for word in row] for row in text]


@pytest.mark.parametrize(
    ("u", "expected"),
    [
        ([0.05, 0.15, 0.50, 0.19], ["[MASK]", "graze", "pigs", "sleep"]),
        ([0.10, 0.20, 0.50, 0.50], ["what", "do", "pigs", "eat"]),  # exactly .1: its tag (only "what"); .2: kept
        ([0.50, 0.10, 0.09, 0.20], ["what", "graze", "[MASK]", "eat"]),
    ],
)
def test_words_by_script(u, expected):
    rng = Scripted([*u, 0.9, 0.9, 0.9, 0.9], [0.25, 0.25])  # 0.25 is no n-gram
    new, sources = augment_words([PIGS, COWS], [PIGS_TAGS, COWS_TAGS], OPTIONS, rng)
    assert (new, sources) == (([], []) if expected == PIGS else ([expected], [0]))


def test_the_last_ngram_is_reached_and_n_is_at_most_the_length():
    eight, tags = [f"w{i}" for i in range(8)], ["T"] * 8
    new, sources = augment_words([PIGS, eight], [PIGS_TAGS, tags], OPTIONS, Scripted([0.9] * 12, [0.24, 0.24]))
    assert (new, sources) == ([eight[3:]], [1])  # n = 5 of 4 words is the sentence itself: not new
    unigrams = dataclasses.replace(OPTIONS, p_mask=0, p_pos=0, p_ngram=1, max_ngram=1, rounds=200)
    new, _ = augment_words([eight], [tags], unigrams, np.random.default_rng(0))
    assert sorted(new) == [[word] for word in eight]


def test_chances_of_mask_and_part_of_speech():
    sentences, tags = corpus()
    options = dataclasses.replace(OPTIONS, p_mask=0.1, p_pos=0.3, p_ngram=0)
    new, sources = augment_words(sentences, tags, options, np.random.default_rng(1))
    assert sources == list(range(400))  # fifty words: none stays as it was
    pairs = [pair for old, row in zip(sentences, new, strict=True) for pair in zip(old, row, strict=True)]
    masked = sum(word == "[MASK]" for _, word in pairs)
    swapped = [(old, word) for old, word in pairs if word not in (old, "[MASK]")]
    assert len(pairs) == 20_000 and within(masked, 20_000, 0.1) and within(len(swapped), 20_000, 0.3)
    assert all(old.split("-")[0] == word.split("-")[0] for old, word in swapped)


def test_a_frequent_word_of_the_tag_is_drawn_more_often():
    options = dataclasses.replace(OPTIONS, p_mask=0, p_pos=1, p_ngram=0, max_words=2000)
    new, _ = augment_words([["a", "a", "a", "b"] * 500], [["T"] * 2000], options, np.random.default_rng(2))
    assert within(new[0].count("a"), 2000, 0.75)


def test_chance_and_length_of_ngrams():
    sentences, tags = corpus(4000, 12)
    options = dataclasses.replace(OPTIONS, p_mask=0, p_pos=0)
    new, sources = augment_words(sentences, tags, options, np.random.default_rng(3))
    assert within(len(new), 4000, 0.25)  # the other sentences are unchanged, so not new
    lengths = np.bincount([len(row) for row in new], minlength=6)
    assert lengths[0] == 0 and len(lengths) == 6
    assert all(within(count, len(new), 0.2) for count in lengths[1:])
    for row, source in zip(new, sources, strict=True):
        start = sentences[source].index(row[0])
        assert sentences[source][start : start + len(row)] == row


def test_nothing_twice_nothing_old_and_the_seed_decides():
    few = [["a", "b"], ["a"], [], ["b", "a", "c"], ["a"]]
    tags = [["T"] * len(row) for row in few]
    options = dataclasses.replace(OPTIONS, p_pos=0.5, rounds=50)
    new, sources = augment_words(few, tags, options, np.random.default_rng(4))
    texts = [" ".join(row) for row in new]
    assert len(texts) > 30 and len(set(texts)) == len(texts) == len(sources)
    assert not set(texts) & {" ".join(row) for row in few}
    assert augment_words(few, tags, options, np.random.default_rng(4)) == (new, sources)
    assert augment_words(few, tags, options, np.random.default_rng(5)) != (new, sources)


def test_texts_are_cut_to_max_words():
    options = dataclasses.replace(OPTIONS, max_words=3, p_pos=0.9, p_ngram=0, rounds=30)
    new, _ = augment_words([PIGS, COWS], [PIGS_TAGS, COWS_TAGS], options, np.random.default_rng(6))
    assert new and all(len(row) == 3 for row in new)
    assert not {"eat", "sleep"} & {word for row in new for word in row}
    assert PIGS[:3] not in new and COWS[:3] not in new


def test_words_and_tags_must_match():
    with pytest.raises(ValueError, match="shorter"):
        augment_words([PIGS], [PIGS_TAGS[:3]], OPTIONS, np.random.default_rng(0))


def test_pairs_change_first_then_second_then_both():
    options = dataclasses.replace(OPTIONS, p_mask=1, p_ngram=0, rounds=6)
    a, b, sources = augment_pairs([PIGS], [COWS], [PIGS_TAGS], [COWS_TAGS], options, np.random.default_rng(0))
    masked = ["[MASK]"] * 4
    assert (a, b) == ([masked, PIGS, masked], [COWS, masked, masked])  # rounds 4 to 6 give the same again
    assert sources == [0, 0, 0]


def test_a_pair_is_new_where_one_side_is():
    options = dataclasses.replace(OPTIONS, p_pos=0.5, rounds=30)
    sides = [PIGS, COWS], [COWS, PIGS], [PIGS_TAGS, COWS_TAGS], [COWS_TAGS, PIGS_TAGS]
    a, b, sources = augment_pairs(*sides, options, np.random.default_rng(7))
    pairs = [(" ".join(x), " ".join(y)) for x, y in zip(a, b, strict=True)]
    assert len(set(pairs)) == len(pairs) == len(sources) > 20
    assert (" ".join(PIGS), " ".join(COWS)) not in pairs
    assert any(x == PIGS for x in a) and any(y == COWS for y in b)


def test_part_of_speech_tags():
    assert pos_tags([PIGS, [], ["Running", "and/or", "12.5", "a b"]]) == [
        PIGS_TAGS, [], ["VBG", "NN", "CD", "NN"],
    ]  # fmt: skip


def test_word_classes_are_those_of_the_vectors():
    vectors = torch.cat([torch.eye(3).repeat_interleave(4, 0) + 0.01 * torch.rand(12, 3), torch.zeros(1, 3)])
    words = [[i] for i in range(12)] + [[0, 1], [4, 4, 5]]
    classes = word_classes(words, vectors, 3, seed=2**62)
    assert len(set(classes)) == 3
    assert all(len(set(classes[i : i + 4])) == 1 for i in (0, 4, 8))
    assert classes[12:] == [classes[0], classes[4]]
    assert classes == word_classes(words, vectors, 3, seed=2**62)
    assert len(set(word_classes(words[:2], vectors, 3, 0))) <= 2


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, "the", ".", "é", "##ing", "##s", "play", "eat", "pig", "cow", "run", "sleep", "bird", "fish"]
ID = {piece: index for index, piece in enumerate(VOCABULARY)}
REPLACE = LmAugmentation(p=0.4, candidates=4, copies=20, max_words=None)


def ids(text):
    return np.array([ID[piece] for piece in text.split()], np.int32)


def spell(row):
    return " ".join(VOCABULARY[i] for i in row)


def masked_lm(logits=None):
    """A random tiny BERT, or the given logits."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    model = BertForMaskedLM(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=24, **shape)).eval()
    model.bert.embeddings.word_embeddings.weight.data.normal_()  # 0.02 would make all rows alike

    def read(input_ids, mask, types, positions):
        hidden = model.bert(input_ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        return model.cls(hidden[torch.arange(len(positions)), positions])

    embeddings = model.bert.embeddings.word_embeddings.weight
    return MaskedLm(logits or read, VOCABULARY, embeddings, ID["[MASK]"], ID["[CLS]"], ID["[SEP]"], 24)


TEXTS = [ids(text) for text in ("the pig eat .", "cow play ##ing é", "the", "bird run the fish sleep ##s .")]


def augment(lm=None, texts=TEXTS, batch_size=16, seed=0, **changes):
    options = dataclasses.replace(REPLACE, **changes)
    return augment_tokens(texts, lm or masked_lm(), options, np.random.default_rng(seed), batch_size)


def test_the_model_reads_the_masked_text_and_the_text():
    seen = []

    def read(input_ids, mask, types, positions):
        seen.append((input_ids, mask, types, positions))
        return torch.zeros(len(input_ids), len(VOCABULARY))

    result = augment(masked_lm(read), [ids("the pig eat ##s"), ids("cow .")])
    assert result.forward_rows == 2  # pig and cow: "the" is a stop word, "eat ##s" has two pieces
    [(input_ids, mask, types, positions)] = seen
    assert [spell(row) for row in input_ids] == [
        "[CLS] the [MASK] eat ##s [SEP] the pig eat ##s [SEP]",
        "[CLS] [MASK] . [SEP] cow . [SEP] [PAD] [PAD] [PAD] [PAD]",
    ]
    assert mask.tolist() == [[1] * 11, [1] * 7 + [0] * 4]
    assert types.tolist() == [[0] * 6 + [1] * 5, [0] * 4 + [1] * 3 + [0] * 4]
    assert positions.tolist() == [2, 1]


def test_what_does_not_fit_is_cut_from_the_whole_text_or_refused():
    seen = []

    def read(input_ids, mask, types, positions):
        seen.append(input_ids)
        return torch.zeros(len(input_ids), len(VOCABULARY))

    augment(masked_lm(read), [ids("pig " + "the " * 21)])
    assert seen[0].shape == (1, 24) and seen[0][0, 23] == ID["[SEP]"]
    with pytest.raises(ValueError, match="23 pieces"):
        augment(masked_lm(read), [ids("pig " + "the " * 22)])


def test_batches_give_what_one_by_one_gives():
    together, alone = augment(batch_size=16, copies=60), augment(batch_size=1, copies=60)
    assert [spell(row) for row in together.token_ids] == [spell(row) for row in alone.token_ids]
    assert together.sources == alone.sources and together.forward_rows == alone.forward_rows == 6
    assert len(together.sources) > 50


def test_whole_words_replace_whole_words_and_the_rest_stays():
    result = augment(p=1, copies=100, candidates=10)
    texts = [spell(row) for row in result.token_ids]
    assert len(set(texts)) == len(texts) and not set(texts) & {spell(row) for row in TEXTS}
    assert {spell(TEXTS[source]) for source in result.sources} == {spell(TEXTS[i]) for i in (0, 1, 3)}
    for text, source in zip(texts, result.sources, strict=True):
        words = text.split()
        assert not any(word.startswith(("##", "[")) for word in words)  # p = 1: words of two pieces are gone too
        fixed = {0: {0: "the", 3: "."}, 1: {2: "é"}, 3: {2: "the", 5: "."}}[source]
        assert {place: words[place] for place in fixed} == fixed
        assert len(words) == max(fixed) + 1


def test_only_the_likeliest_are_taken_and_evenly():
    def read(input_ids, mask, types, positions):  # pieces and special tokens are likelier than all words
        logits = torch.zeros(len(input_ids), len(VOCABULARY))
        logits[:, [ID["##s"], ID["[UNK]"], ID["[MASK]"]]] = 9
        logits[:, ID["cow"]], logits[:, ID["bird"]] = 3, 2
        return logits

    text = ids("pig " * 10)
    result = augment(masked_lm(read), [text], copies=3000, candidates=2)
    rows = np.array(result.token_ids)
    words, counts = np.unique(rows, return_counts=True)
    assert {VOCABULARY[word] for word in words} == {"pig", "cow", "bird"}
    kept, cow, bird = (dict(zip(words, counts, strict=True))[ID[word]] for word in ("pig", "cow", "bird"))
    total = kept + cow + bird
    # Duplicates are dropped, and the untouched text more than others: .05 is far more than that can make.
    assert abs(kept / total - 0.6) < 0.05 and abs(cow / bird - 1) < 0.05


def test_each_word_is_replaced_with_probability_p():
    def read(input_ids, mask, types, positions):  # by one candidate only: what it replaces can be counted
        logits = torch.zeros(len(input_ids), len(VOCABULARY))
        logits[:, ID["cow"]] = 1
        return logits

    draw = np.random.default_rng(0)
    texts = [draw.choice([ID["pig"], ID["eat"], ID["run"]], 20) for _ in range(300)]
    result = augment(dataclasses.replace(masked_lm(read), max_length=64), texts, copies=1, candidates=1)
    assert result.sources == list(range(300))  # twenty words: none stays as it was
    assert within(sum((row == ID["cow"]).sum() for row in result.token_ids), 6000, 0.4)


def test_max_words_bounds_the_forward_rows():
    one = augment(max_words=1, p=1, copies=50)
    assert one.forward_rows <= 3
    assert all(
        sum(a != b for a, b in zip(row, TEXTS[0], strict=True)) == 1
        for row, source in zip(one.token_ids, one.sources, strict=True)
        if source == 0
    )
    text = ids("pig cow run")
    drawn = [augment(texts=[text], max_words=1, p=1, seed=seed).token_ids[0] for seed in range(20)]
    places = {place for row in drawn for place in np.flatnonzero(row != text).tolist()}
    assert places == {0, 1, 2}


def test_the_seed_decides_and_torch_is_not_touched():
    lm = masked_lm()
    state = torch.get_rng_state()
    first, again, other = augment(lm), augment(lm), augment(lm, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert [spell(row) for row in first.token_ids] == [spell(row) for row in again.token_ids]
    assert [spell(row) for row in first.token_ids] != [spell(row) for row in other.token_ids]


def test_nothing_to_replace():
    assert augment(texts=[ids("the é ."), np.zeros(0, np.int32)]) == ([], [], 0)
    assert augment(texts=[]) == ([], [], 0)


def test_nearest_pieces_are_words_near_the_mean_of_the_word():
    embeddings = torch.zeros(len(VOCABULARY), 3)
    embeddings[ID["play"]], embeddings[ID["##ing"]] = torch.tensor([[2.0, 0, 0], [0, 2.0, 0]])  # mean: (1, 1, 0)
    embeddings[ID["[UNK]"]] = embeddings[ID["##s"]] = embeddings[ID["é"]] = torch.tensor([1.0, 1, 0])
    embeddings[ID["fish"]] = torch.tensor([30.0, 29, 0])
    embeddings[ID["cow"]] = torch.tensor([1.0, -0.1, 0])  # less near than "play", which is of the word
    lm = dataclasses.replace(masked_lm(), embeddings=embeddings)
    assert nearest_pieces([[ID["play"], ID["##ing"]]], lm, 2) == [[ID["fish"], ID["cow"]]]
    words = [[ID[a], ID[b]] for a in ("play", "eat", "pig") for b in ("##ing", "##s")] * 100  # more than a chunk
    lm = masked_lm()
    table = lm.embeddings / lm.embeddings.norm(dim=1, keepdim=True).clamp_min(1e-12)
    for word, near in zip(words, nearest_pieces(words, lm, 1), strict=True):
        cosine = table @ lm.embeddings[word].mean(0)
        open_to = [i for i, piece in enumerate(VOCABULARY) if piece.isalpha() and piece != "é" and i not in word]
        assert cosine[near[0]] == cosine[open_to].max()


def test_the_cache_gives_what_was_made_and_makes_anew_what_is_damaged(tmp_path):
    made = []

    def make():
        made.append(1)
        return ["what \n do", "猪 吃", "\u2028"], [0, 0, 2]

    def cached():
        return cached_augmentation(tmp_path, "key", make)

    assert cached() == cached() == make()
    assert len(made) == 2  # one of them the line above
    [path] = (tmp_path / "augmented").glob("*/*.jsonl")
    whole = path.read_bytes()
    assert [json.loads(line)["source"] for line in whole.splitlines()] == [0, 0, 2]
    lines = whole.splitlines(keepends=True)
    for damaged in (b"", b"\xff", whole[:-1], whole[:-9], b"".join(lines[:-1]), lines[0], whole.replace(b"do", b"du")):
        path.write_bytes(damaged)
        before = len(made)
        assert cached() == (["what \n do", "猪 吃", "\u2028"], [0, 0, 2])
        assert len(made) == before + 1 and path.read_bytes() == whole
    assert not list((tmp_path / "augmented").glob(".*.part"))


def test_the_cache_keeps_pairs_ids_and_nothing(tmp_path):
    made: dict[str, list[list[Any]]] = {"pairs": [["a", "b c"]], "ids": [[3, 1, 2]], "none": []}
    for key, items in made.items():
        expected = items, [0] * len(items)
        assert cached_augmentation(tmp_path, key, lambda expected=expected: expected) == expected
        assert cached_augmentation(tmp_path, key, lambda: pytest.fail("made again")) == expected
