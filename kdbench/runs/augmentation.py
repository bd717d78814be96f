"""Augment the train texts and let the teacher label the new ones: made once, then kept in the cache."""

import hashlib
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.data.augment import LmAugmentation, NGramAugmentation, augment_pairs, augment_tokens, augment_words
from kdbench.data.augment import cached_augmentation as cached
from kdbench.data.datasets import Split
from kdbench.data.tokenize import load_tokenizer
from kdbench.data.word_classes import MaskedLm, pos_tags, word_classes
from kdbench.models.students import word_embeddings
from kdbench.runs.context import Run
from kdbench.tasks import kind

log = logging.getLogger("kdbench")
CLASSES = 50  # of `clusters`: about as many as the Penn Treebank has tags
LM_BATCH = 64  # sequences of one pass of the masked LM


def augmented_words(
    run: Run, tagger: str, mask: float, same_tag: float, ngram: float, max_ngram: int, rounds: int
) -> Split:
    """Return train with its augmentation by Tang et al. 2019, section 3.3.

    Words are masked or replaced, and texts are cut to n-grams. A text is split into words at its spaces.
    """
    train = run.data.train
    options = NGramAugmentation(mask, same_tag, ngram, max_ngram, rounds, run.config.dataset.max_length)
    texts = [*train.texts, *(train.pairs or [])]

    def make() -> tuple[list[list[str]], list[int]]:
        split = [text.split() for text in texts]
        tags = pos_tags(split) if tagger == "english" else _classes(run, split)
        rng = np.random.default_rng(run.seed("augment"))
        if train.pairs is None:
            new, sources = augment_words(split, tags, options, rng)
            return [[" ".join(sentence)] for sentence in new], sources
        n = len(train)
        first, second, sources = augment_pairs(split[:n], split[n:], tags[:n], tags[n:], options, rng)
        return [[" ".join(a), " ".join(b)] for a, b in zip(first, second, strict=True)], sources

    key = _key("words", texts, options, tagger, run.seed("augment"), str(run.encoder_folder))
    return _labelled(run, *cached(run.cache, key, make))


def _classes(run: Run, sentences: list[list[str]]) -> list[list[str]]:
    """Return a class for each word, from clusters of the teacher's embeddings of its pieces."""
    tokenizer = load_tokenizer(run.encoder_folder)
    distinct = sorted({word for sentence in sentences for word in sentence})
    pieces = [tokenizer.encode(f" {word}", add_special_tokens=False) or [tokenizer.unk_token_id] for word in distinct]
    seed = run.seed("classes")
    classes = dict(zip(distinct, word_classes(pieces, word_embeddings(run.pretrained), CLASSES, seed), strict=True))
    return [[classes[word] for word in sentence] for sentence in sentences]


def augmented_tokens(run: Run, copies: int, replace: float, candidates: int, max_words: int | None) -> Split:
    """Return train with its augmentation by Jiao et al. 2020, algorithm 1.

    Words are replaced by words that the teacher's masked LM predicts in their place.
    """
    train, options = run.data.train, LmAugmentation(replace, candidates, copies, max_words)
    tokenizer = load_tokenizer(run.encoder_folder)

    def make() -> tuple[list[list[str]], list[int]]:
        longest = run.config.dataset.max_length - 2
        encoded = tokenizer([*train.texts], add_special_tokens=False, truncation=True, max_length=longest)["input_ids"]
        rng = np.random.default_rng(run.seed("augment"))
        ids = [np.asarray(row, np.int32) for row in encoded]
        made = augment_tokens(ids, _masked_lm(run, tokenizer), options, rng, LM_BATCH)
        log.info("augmentation: %d texts from %d passes of the masked LM", len(made.token_ids), made.forward_rows)
        return [[str(tokenizer.decode(row))] for row in made.token_ids], made.sources

    key = _key("tokens", [*train.texts], options, run.config.dataset.max_length, run.seed("augment"), _weights(run))
    return _labelled(run, *cached(run.cache, key, make))


def _masked_lm(run: Run, tokenizer: Any) -> MaskedLm:
    lm = run.mlm
    table, device = word_embeddings(lm.encoder), run.accelerator.device

    def logits(ids: Tensor, mask: Tensor, types: Tensor, positions: Tensor) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        with run.accelerator.autocast():
            hidden = lm.encoder(**{name: value.to(device) for name, value in inputs.items()}).last_hidden_state
            found: Tensor = lm.head(hidden[torch.arange(len(ids)), positions.to(device)], table)
        return found

    return MaskedLm(
        logits=logits,
        vocabulary=tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))),
        embeddings=table,
        mask_id=tokenizer.mask_token_id,
        cls_id=tokenizer.cls_token_id,
        sep_id=tokenizer.sep_token_id,
        max_length=run.config.teacher.max_positions,
    )


def _weights(run: Run) -> str:
    """Return a digest of the masked LM's weights."""
    digest = hashlib.sha256()
    for module in run.mlm:
        for value in module.state_dict().values():
            digest.update(value.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _key(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for text in part if isinstance(part, list) else [repr(part)]:
            digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:16]


def _labelled(run: Run, made: list[list[str]], sources: list[int]) -> Split:
    """Return train followed by the new texts with the teacher's labels; their ids come after all other ids."""
    train = run.data.train
    first = 1 + max(int(split.ids.max()) for split in (train, run.data.dev, run.data.test))
    run.report("augmented_examples", len(made))
    ids = np.arange(first, first + len(made))
    pairs = None if train.pairs is None else [parts[1] for parts in made]
    new = Split(ids, [parts[0] for parts in made], train.labels[np.asarray(sources, np.int64)], pairs)
    labels = kind(run.task).answers(run.teacher_outputs("logits", new).numpy())
    return train.followed_by(replace(new, labels=labels))
