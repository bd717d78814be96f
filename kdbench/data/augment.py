"""More texts for the teacher to label, made from those there are.

`augment_words` and `augment_pairs`: Distilled BiLSTM (Tang et al. 2019, section 3.3). `augment_tokens`: TinyBERT
(Jiao et al. 2020, algorithm 1), whose code also repeats the originals: here no text is given twice, nor one that was
handed in. All draws are the `rng`'s.
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
    p_mask: float  # chance of a word to be masked
    p_pos: float  # chance of a word to become another one of its part of speech
    p_ngram: float  # chance of a sentence to become an n-gram of it
    max_ngram: int
    rounds: int  # new sentences tried for each
    max_words: int  # of a sentence; the rest is cut off before


def augment_words(
    sentences: list[Words],
    tags: list[Words],
    options: NGramAugmentation,
    rng: np.random.Generator,
) -> tuple[list[Words], list[int]]:
    """New sentences, round by round, and for each the index of the one it was made from.

    Each word draws one u ~ U(0, 1): below p_mask it is masked, else below p_mask + p_pos it becomes a word drawn
    from all the corpus' words of its tag (a frequent one more often), else it is kept. With p_ngram the sentence
    then becomes an n-gram of itself: n uniform in 1..max_ngram, at most its length, starting anywhere (the authors'
    code never takes the last one). Raises ValueError where words and tags do not match.
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
    """New first sentences, their second sentences, and the index of the pair each was made from.

    The rounds change only the first sentence, only the second, both, and so on again (Tang et al. 2019, 3.3; the
    authors' code draws which). Sentences are changed as in `augment_words`, with words of both sides.
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
    """Sentences end to end as word numbers: sentence i is flat[offsets[i]:offsets[i + 1]]."""

    words: NDArray[np.object_]  # number -> word; 0 is the mask
    flat: Ids
    offsets: NDArray[np.int64]
    by_tag: Ids  # the same words in the order of their tags
    first: NDArray[np.int64]  # (words,) where in `by_tag` those of this word's tag begin
    count: NDArray[np.int64]  # (words,) and how many they are

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
    """Every sentence changed once."""
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
    """What was drawn, without the originals and what was drawn before."""
    seen = {tuple(ids.tobytes() for ids in original) for original in originals}
    for source, parts in drawn:
        key = tuple(ids.tobytes() for ids in parts)
        if key not in seen:
            seen.add(key)
            yield source, parts


@dataclass(frozen=True)
class LmAugmentation:
    p: float  # chance of a word to be replaced
    candidates: int  # words to choose from
    copies: int  # new texts tried for each
    max_words: int | None  # words of a text that may be replaced, drawn once; None: all. Bounds the forward passes


class Augmented(NamedTuple):
    token_ids: list[Ids]  # without special tokens, text by text
    sources: list[int]  # index of the text that each was made from
    forward_rows: int  # sequences that the masked language model has read


def augment_tokens(
    token_ids: list[Ids], lm: MaskedLm, options: LmAugmentation, rng: np.random.Generator, batch_size: int
) -> Augmented:
    """New texts as word pieces, in which words are replaced by likely or similar ones.

    Words of the letters a-z that are no stop words are each replaced with probability p, by one of their candidates.
    Of a word that is one piece, these are the model's likeliest for its place, which may be the word itself; of a
    word of several pieces, the pieces nearest to it in the model's embeddings: the paper has the nearest GloVe
    vectors. Candidates are whole words; the authors drop word pieces only after taking the likeliest, and so have
    fewer. `token_ids` are without special tokens. The result depends on `batch_size` by rounding only. Raises
    ValueError where a text and two special tokens are too long for the model.
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
    """The text with each word that has candidates replaced with probability p; `copies` times."""
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
    """What `make` returns, from `augmented/<key>/` in the cache where that is whole; else made and stored there.

    Items (texts, pairs of texts, token ids) and their sources' indices, a line each. `key` must tell everything
    that `make` depends on.
    """

    def fill(staged: Path) -> None:
        lines = (json.dumps({"item": item, "source": source}) + "\n" for item, source in zip(*make(), strict=True))
        (staged / "texts.jsonl").write_text("".join(lines), encoding="utf8")

    folder = cached(cache / "augmented" / key, fill)
    with fitting(folder):
        rows = [json.loads(line) for line in (folder / "texts.jsonl").read_bytes().splitlines()]
        return [row["item"] for row in rows], [row["source"] for row in rows]
