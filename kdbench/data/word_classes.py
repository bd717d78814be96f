"""Find words that may replace a word: of the same part of speech or class, likely at its place, or similar."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_CHUNK = 256  # words compared with the vocabulary at a time: 31 MB of cosines with BERT's

Pieces = list[int]  # ids of the pieces of one word


@dataclass(frozen=True)
class MaskedLm:
    """A masked language model of the BERT family, for `augment_tokens`."""

    # (input_ids, attention_mask, token_type_ids: all (B, T); positions (B,)) -> logits (B, V) at the positions.
    # Logits at all positions would be T times as many.
    logits: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    vocabulary: list[str]  # id -> piece
    embeddings: Tensor  # (V, H) of the pieces
    mask_id: int
    cls_id: int
    sep_id: int
    max_length: int  # tokens that it can read


def pos_tags(sentences: list[list[str]]) -> list[list[str]]:
    """Return the Penn Treebank tag of each English word, by the lexicon and suffix rules of textblob's PatternTagger.

    The tagger ignores the context, except that it looks up an unknown first word of a sentence in lower case too. It
    needs no downloads of nltk.
    """
    from textblob.en import parser  # PatternTagger itself would join the words and split them again

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # textblob does not close its lexicon's file
        return [[tag for _, tag in parser.find_tags(sentence)] for sentence in sentences]


def word_classes(words: list[Pieces], vectors: Tensor, classes: int, seed: int) -> list[str]:
    """Return a class for each word, in place of its part of speech if there is no tagger (not in the paper).

    `words` are distinct words, as ids of their pieces. `vectors` (V, H) are the teacher's word embeddings. The classes
    come from k-means on the unit vectors of the words. There are `classes` of them, but at most as many as words.
    """
    from sklearn.cluster import MiniBatchKMeans

    random = np.random.RandomState(np.random.MT19937(seed))  # an int seed would have to be below 2^32
    kmeans = MiniBatchKMeans(min(classes, len(words)), random_state=random, n_init=3)
    return [f"class{label}" for label in kmeans.fit_predict(unit_vectors(words, vectors).numpy())]


def nearest_pieces(words: list[Pieces], lm: MaskedLm, count: int) -> list[Pieces]:
    """Return for each word the `count` pieces with the greatest cosine to the mean of its pieces, best first.

    Only pieces that are words of the letters a-z count, without the pieces of the word. There may be fewer.
    """
    vectors = lm.embeddings.detach().float().cpu()
    table, barred = F.normalize(vectors, dim=-1), torch.tensor([not _is_word(piece) for piece in lm.vocabulary])
    nearest: list[Pieces] = []
    for start in range(0, len(words), _CHUNK):
        chunk = words[start : start + _CHUNK]
        cosine = (unit_vectors(chunk, vectors) @ table.T).masked_fill(barred, -torch.inf)
        for row, pieces in enumerate(chunk):
            cosine[row, pieces] = -torch.inf
        nearest += _best(cosine, count)
    return nearest


def unit_vectors(words: list[Pieces], vectors: Tensor) -> Tensor:
    """Return (words, H), float32 on the CPU: the mean of the `vectors` (V, H) of a word's pieces, of length 1."""
    pieces = torch.tensor([piece for word in words for piece in word], dtype=torch.long)
    ends = torch.tensor([len(word) for word in words], dtype=torch.long).cumsum(0)
    starts = F.pad(ends, (1, 0))[:-1]
    return F.normalize(F.embedding_bag(pieces, vectors.detach().float().cpu(), starts, mode="mean"), dim=-1)


def whole_words(ids: list[int], vocabulary: list[str]) -> list[Pieces]:
    """Join the pieces of a text to words. A piece with "##" belongs to the word before it."""
    words: list[Pieces] = []
    for piece in ids:
        if vocabulary[piece].startswith("##") and words:
            words[-1].append(piece)
        else:
            words.append([piece])
    return words


def _is_special(piece: str) -> bool:
    return len(piece) > 2 and piece.startswith("[") and piece.endswith("]")  # BERT's [UNK], [unused7], ...


def _is_word(text: str) -> bool:
    return text.isascii() and text.isalpha() and text.islower()


def replaceable(words: list[Pieces], vocabulary: list[str], most: int | None, rng: np.random.Generator) -> list[int]:
    """Return the indices of words that may be replaced, in order: all, or a random choice of `most`."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    spelled = ["".join(vocabulary[piece].removeprefix("##") for piece in word) for word in words]
    found = [index for index, word in enumerate(spelled) if _is_word(word) and word not in ENGLISH_STOP_WORDS]
    if most is None or len(found) <= most:
        return found
    return sorted(rng.choice(found, most, replace=False).tolist())


def likely_pieces(
    texts: list[list[Pieces]], sites: list[tuple[int, int]], lm: MaskedLm, count: int, batch_size: int
) -> list[Pieces]:
    """Return for each (text, word) the `count` likeliest pieces at its place, best first.

    Pieces with "##" and special tokens are left out. The model reads one sequence for each word: the text with the word
    masked, and the original text (Jiao et al. 2020's code). Batches have similar lengths. The longest come first, so
    that too little memory shows at once. Raises ValueError if a text is too long for the model.
    """
    lengths = [sum(map(len, words)) for words in texts]
    if max(lengths, default=0) + 2 > lm.max_length:
        raise ValueError(f"a text of {max(lengths)} pieces is with [CLS] and [SEP] too long for {lm.max_length}")
    barred = torch.tensor([piece.startswith("##") or _is_special(piece) for piece in lm.vocabulary])
    order = sorted(range(len(sites)), key=lambda index: -lengths[sites[index][0]])
    result: list[Pieces] = [[]] * len(sites)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            logits = lm.logits(*_masked([(texts[text], word) for text, word in (sites[i] for i in batch)], lm))
            pieces = _best(logits.float().masked_fill(barred.to(logits.device), -torch.inf), count)
            for index, found in zip(batch, pieces, strict=True):
                result[index] = found
    return result


def _masked(rows: list[tuple[list[Pieces], int]], lm: MaskedLm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the input of `lm.logits`, for each (text, word): [CLS] text with the word masked [SEP] text [SEP]."""
    ids, firsts, positions = [], [], []
    for words, masked in rows:
        text = [piece for word in words for piece in word]
        position = 1 + sum(len(word) for word in words[:masked])
        row = torch.tensor([lm.cls_id, *text, lm.sep_id, *text, lm.sep_id][: lm.max_length])
        row[position] = lm.mask_id
        ids.append(row)
        firsts.append(len(text) + 2)
        positions.append(position)
    input_ids = pad_sequence(ids, batch_first=True)
    place = torch.arange(input_ids.shape[1])
    mask = (place < torch.tensor([[len(row)] for row in ids])).long()
    types = (place >= torch.tensor(firsts)[:, None]).long() * mask
    return input_ids, mask, types, torch.tensor(positions)


def _best(scores: Tensor, count: int) -> list[Pieces]:
    """Return the columns of the `count` greatest scores in each row of (B, V), best first, without -inf."""
    values, columns = scores.topk(min(count, scores.shape[-1]))
    return [row[kept].tolist() for row, kept in zip(columns.cpu(), values.isfinite().cpu(), strict=True)]
