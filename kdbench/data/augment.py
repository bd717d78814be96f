"""Make new texts from the train texts, for the teacher to label.

`augment_words` and `augment_pairs` follow the distilled BiLSTM (Tang et al. 2019, section 3.3). `augment_tokens`
follows TinyBERT (Jiao et al. 2020, algorithm 1). No new text equals an original or another new text; TinyBERT's code
also repeats the originals. All random numbers come from `rng`.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdbench.data.vocabulary import MASK
from kdbench.data.word_classes import MaskedLm, Pieces, likely_pieces, nearest_pieces, replaceable, whole_words
from kdbench.storage.cache import cached
from kdbench.storage.files import fitting

Ids = NDArray[np.int32]
Words = list[str]


@dataclass(frozen=True)
class NGramAugmentation:
    p_mask: float  # probability that a word is masked
    p_pos: float  # probability that a word becomes another word of its part of speech
    p_ngram: float  # probability that a sentence becomes one of its n-grams
    max_ngram: int
    rounds: int  # new sentences tried for each sentence
    max_words: int  # to which sentences are cut before


def augment_words(
    sentences: list[Words],
    tags: list[Words],
    options: NGramAugmentation,
    rng: np.random.Generator,
) -> tuple[list[Words], list[int]]:
    """Return new sentences, round by round, and for each the index of its source.

    Each word draws u ~ U(0, 1). Below p_mask, the word is masked. Else, below p_mask + p_pos, it becomes a word that is
    drawn from all words of the corpus with its tag, by their frequency. Else it is kept. With probability p_ngram, the
    sentence then becomes an n-gram of itself. n is uniform in 1..max_ngram, but at most the sentence's length, and all
    starts are equally likely (the authors' code never takes the last one). Raises ValueError if numbers of words and
    tags differ.
    """
    corpus = _Corpus.of(sentences, tags, options.max_words)
    drawn = ((i, (ids,)) for _ in range(options.rounds) for i, ids in enumerate(_one_round(corpus, options, rng)))
    new = list(_unseen(drawn, [(ids,) for ids in corpus.sentences()]))
    return [corpus.spell(ids) for _, (ids,) in new], [source for source, _ in new]


def augment_pairs(
    first: list[Words],
    second: list[Words],
    first_tags: list[Words],
    second_tags: list[Words],
    options: NGramAugmentation,
    rng: np.random.Generator,
) -> tuple[list[Words], list[Words], list[int]]:
    """Return new first sentences, their second sentences, and the index of the pair that each was made from.

    The rounds change the first sentence only, then the second only, then both, and so on (Tang et al. 2019, 3.3; the
    authors' code draws which). Sentences are changed as in `augment_words`, with the words of both sides.
    """
    corpus = _Corpus.of([*first, *second], [*first_tags, *second_tags], options.max_words)
    kept, count = corpus.sentences(), len(first)

    def rounds() -> Iterator[tuple[int, tuple[Ids, ...]]]:
        for number in range(options.rounds):
            drawn = _one_round(corpus, options, rng)
            a = kept if number % 3 == 1 else drawn
            b = kept if number % 3 == 0 else drawn
            yield from enumerate(zip(a[:count], b[count:], strict=True))

    new = list(_unseen(rounds(), list(zip(kept[:count], kept[count:], strict=True))))
    firsts, seconds = ([corpus.spell(pair[side]) for _, pair in new] for side in (0, 1))
    return firsts, seconds, [source for source, _ in new]


@dataclass(frozen=True)
class _Corpus:
    """All sentences as word numbers, end to end. Sentence i is flat[offsets[i]:offsets[i + 1]]."""

    words: NDArray[np.object_]  # number -> word; 0 is the mask
    flat: Ids
    offsets: NDArray[np.int64]
    by_tag: Ids  # the words of `flat` in the order of their tags
    first: NDArray[np.int64]  # (words,) where in `by_tag` the words with this word's tag begin
    count: NDArray[np.int64]  # (words,) and their number

    @classmethod
    def of(cls, sentences: list[Words], tags: list[Words], max_words: int) -> "_Corpus":
        tagged = [
            list(zip(words, classes, strict=True))[:max_words]
            for words, classes in zip(sentences, tags, strict=True)
        ]  # fmt: skip
        numbers = {MASK: 0}
        flat = np.array([numbers.setdefault(word, len(numbers)) for row in tagged for word, _ in row], np.int32)
        tag_names = np.array([tag for row in tagged for _, tag in row], dtype=str)
        _, tag, count = np.unique(tag_names, return_inverse=True, return_counts=True)
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in tagged])]).astype(np.int64)
        by_tag = flat[np.argsort(tag, kind="stable")]
        first = np.cumsum(count) - count
        return cls(np.array(list(numbers), object), flat, offsets, by_tag, first[tag], count[tag])

    def sentences(self) -> list[Ids]:
        return np.split(self.flat, self.offsets[1:-1])

    def spell(self, ids: Ids) -> Words:
        words: Words = self.words[ids].tolist()
        return words


def _one_round(corpus: _Corpus, options: NGramAugmentation, rng: np.random.Generator) -> list[Ids]:
    """Return all sentences, each changed once."""
    u = rng.random(len(corpus.flat))
    ids = np.where(u < options.p_mask, np.int32(0), corpus.flat)
    swapped = (u >= options.p_mask) & (u < options.p_mask + options.p_pos)
    ids[swapped] = corpus.by_tag[corpus.first[swapped] + rng.integers(0, corpus.count[swapped])]
    lengths = np.diff(corpus.offsets)
    is_ngram = rng.random(len(lengths)) < options.p_ngram
    n = np.minimum(rng.integers(1, options.max_ngram + 1, len(lengths)), lengths)
    kept = np.where(is_ngram, n, lengths)
    starts = corpus.offsets[:-1] + rng.integers(0, lengths - kept + 1)
    return [ids[start : start + size] for start, size in zip(starts.tolist(), kept.tolist(), strict=True)]


def _unseen(
    drawn: Iterable[tuple[int, tuple[Ids, ...]]], originals: Iterable[tuple[Ids, ...]]
) -> Iterator[tuple[int, tuple[Ids, ...]]]:
    """Yield what was drawn, without originals and repeats."""
    seen = {tuple(ids.tobytes() for ids in original) for original in originals}
    for source, parts in drawn:
        key = tuple(ids.tobytes() for ids in parts)
        if key not in seen:
            seen.add(key)
            yield source, parts


@dataclass(frozen=True)
class LmAugmentation:
    p: float  # probability that a word is replaced
    candidates: int  # words that may replace a word
    copies: int  # new texts tried for each text
    max_words: int | None  # words of a text that may be replaced, drawn once; None: all. It limits the forward passes


class Augmented(NamedTuple):
    token_ids: list[Ids]  # without special tokens, text by text
    sources: list[int]  # index of the source of each new text
    forward_rows: int  # sequences that the masked language model read


def augment_tokens(
    token_ids: list[Ids], lm: MaskedLm, options: LmAugmentation, rng: np.random.Generator, batch_size: int
) -> Augmented:
    """Return new texts as word pieces, in which likely or similar words replace words.

    A word of the letters a-z that is no stop word is replaced with probability p by one of its candidates. For a word
    of one piece, the candidates are the likeliest pieces at its place, which may include the word itself. For a word of
    several pieces, they are the pieces with the nearest embeddings in the model; the paper takes the nearest GloVe
    vectors. Candidates are whole words. The authors' code drops word pieces only after it has taken the likeliest, so
    it has fewer candidates. `token_ids` have no special tokens. `batch_size` changes the result by rounding only.
    Raises ValueError if a text and two special tokens are too long for the model.
    """
    texts = [whole_words(ids.tolist(), lm.vocabulary) for ids in token_ids]
    chosen = [replaceable(words, lm.vocabulary, options.max_words, rng) for words in texts]
    sites = [(text, word) for text, words in enumerate(chosen) for word in words]
    single = [(text, word) for text, word in sites if len(texts[text][word]) == 1]
    likely = likely_pieces(texts, single, lm, options.candidates, batch_size)
    candidates = dict(zip(single, likely, strict=True))

    multiple = {(text, word): tuple(texts[text][word]) for text, word in sites if len(texts[text][word]) > 1}
    distinct = list(dict.fromkeys(multiple.values()))
    near = nearest_pieces([list(word) for word in distinct], lm, options.candidates)
    similar = dict(zip(distinct, near, strict=True))
    candidates |= {site: similar[word] for site, word in multiple.items()}

    drawn = (
        (text, (ids,))
        for text, words in enumerate(texts)
        for ids in _copies(words, {word: candidates[text, word] for word in chosen[text]}, options, rng)
    )
    new = list(_unseen(drawn, [(np.asarray(ids, np.int32),) for ids in token_ids]))
    return Augmented([ids for _, (ids,) in new], [source for source, _ in new], len(single))


def _copies(
    words: list[Pieces], candidates: dict[int, list[int]], options: LmAugmentation, rng: np.random.Generator
) -> Iterator[Ids]:
    """Yield `copies` copies of the text. Each word that has candidates is replaced with probability p."""
    found = {word: pieces for word, pieces in candidates.items() if pieces}
    counts = np.array([len(pieces) for pieces in found.values()], np.int64)
    shape = (options.copies, len(found))
    replaced, picked = rng.random(shape) < options.p, rng.integers(0, counts, shape)
    for copy in range(options.copies):
        new = list(words)
        for column, (word, pieces) in enumerate(found.items()):
            if replaced[copy, column]:
                new[word] = [pieces[picked[copy, column]]]
        yield np.array([piece for word in new for piece in word], np.int32)


Item = TypeVar("Item", str, list[str], list[int])


def cached_augmentation(
    cache: Path, key: str, make: Callable[[], tuple[list[Item], list[int]]]
) -> tuple[list[Item], list[int]]:
    """Return the result of `make`, from `augmented/<key>/` in the cache if it is there. Else make and store it.

    The result has items (texts, pairs of texts or token ids) and the indices of their sources. `key` must identify
    everything that `make` depends on.
    """

    def fill(staged: Path) -> None:
        lines = (json.dumps({"item": item, "source": source}) + "\n" for item, source in zip(*make(), strict=True))
        (staged / "texts.jsonl").write_text("".join(lines), encoding="utf8")

    folder = cached(cache / "augmented" / key, fill)
    with fitting(folder):
        rows = [json.loads(line) for line in (folder / "texts.jsonl").read_bytes().splitlines()]
        return [row["item"] for row in rows], [row["source"] for row in rows]
