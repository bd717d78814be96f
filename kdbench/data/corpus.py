"""Make examples and batches from the corpus of the general stages: texts without labels, cut to a fixed length."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdbench.data.batches import Examples, TrainBatches
from kdbench.data.datasets import load_dataset
from kdbench.data.readers import read_texts
from kdbench.data.tokenize import AT_A_TIME, Encoded, cached_tokens, load_tokenizer, tokenizer_files
from kdbench.data.unlabelled import stored_unlabelled
from kdbench.losses import IGNORED
from kdbench.schema import CorpusConfig
from kdbench.sources.sources import text_files
from kdbench.stage import Batch

_MASKED, _RANDOM = 0.8, 0.1  # shares of the chosen tokens; the rest is kept (Devlin et al. 2019, 3.1)


def load_texts(config: CorpusConfig, cache: Path) -> list[str]:
    """Return the texts of the data sets without repeats, labelled and unlabelled ones, then the running texts.

    Texts that are in a dev or test split are left out. A file of running text is one text. Raises SourceError.
    """
    data = {name: load_dataset(dataset, cache) for name, dataset in config.datasets.items()}
    held_out = {text for one in data.values() for split in (one.dev, one.test) for text in split.texts}
    given = [one.train for one in data.values()]
    for name, dataset in config.datasets.items():
        if dataset.unlabelled is not None:
            given.append(stored_unlabelled(dataset, data[name], cache).split)
    texts = [*dict.fromkeys(text for split in given for text in split.texts if text not in held_out)]
    if running := config.running:
        files = text_files(running, cache).items()
        texts += ["\n".join(read_texts(path, running.files[name], running.encoding)) for name, path in files]
    return texts


def corpus_examples(config: CorpusConfig, content: str, tokenizer_folder: Path, pad_id: int, cache: Path) -> Examples:
    """Return the corpus as examples without labels: consecutive pieces of each text, as [CLS] ... [SEP].

    `content` identifies the texts, so that they are read only if the pieces are not in the cache.
    """
    digest = hashlib.sha256(f"corpus|1|{config.max_length}|{content}".encode() + tokenizer_files(tokenizer_folder))
    pieces = partial(_pieces, config, tokenizer_folder, cache)
    tokens = cached_tokens(digest.hexdigest()[:16], pieces, cache)
    count = len(tokens.lengths)
    return Examples(tokens, np.arange(count), np.zeros(count, np.int64), pad_id)


def _pieces(config: CorpusConfig, tokenizer_folder: Path, cache: Path) -> Iterator[Encoded]:
    texts, tokenizer = load_texts(config, cache), load_tokenizer(tokenizer_folder)
    first, last, room = tokenizer.cls_token_id, tokenizer.sep_token_id, config.max_length - 2
    for begin in range(0, len(texts), AT_A_TIME):
        pieces = []
        for ids in tokenizer(texts[begin : begin + AT_A_TIME], add_special_tokens=False, verbose=False)["input_ids"]:
            pieces += [[first, *ids[start : start + room], last] for start in range(0, len(ids), room)]
        yield Encoded(pieces)


class Masking:
    """Dynamic masking: draws the tokens to predict for each batch."""

    def __init__(self, tokenizer_folder: Path, probability: float, weights: Tensor | None = None) -> None:
        """Set relative probabilities `weights` (V,) with which each token is chosen. None: all are equal."""
        tokenizer = load_tokenizer(tokenizer_folder)
        self.mask_id, self.special = tokenizer.mask_token_id, torch.tensor(tokenizer.all_special_ids)
        self.vocabulary, self.probability, self.weights = len(tokenizer), probability, weights

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with a share `probability` of its tokens chosen: 80 % masked, 10 % random, 10 % kept.

        `mlm_labels` (B, T) has the ids of the chosen tokens, else IGNORED. Special tokens are never chosen.
        """
        ids = batch["input_ids"]
        open_to_choice = ~torch.isin(ids, self.special) & batch["attention_mask"].bool()
        chance = torch.full(ids.shape, self.probability)
        if self.weights is not None:  # choose as many tokens as without weights
            relative = self.weights[ids] * open_to_choice
            count = self.probability * open_to_choice.sum()
            chance = (relative * count / relative.sum().clamp_min(1e-12)).clamp_max(1.0)
        chosen = (torch.rand(ids.shape, generator=generator) < chance) & open_to_choice
        what = torch.rand(ids.shape, generator=generator)
        drawn = torch.randint(0, self.vocabulary, ids.shape, generator=generator)
        masked = torch.where(chosen & (what < _MASKED), self.mask_id, ids)
        masked = torch.where(chosen & (what >= _MASKED) & (what < _MASKED + _RANDOM), drawn, masked)
        return batch | {"input_ids": masked, "mlm_labels": torch.where(chosen, ids, IGNORED)}


def smoothed_weights(examples: Examples, vocabulary: int, exponent: float) -> Tensor:
    """Return (V,): count^-exponent of each token, so that rare tokens are masked more often (DistilBERT's code)."""
    counts = np.bincount(np.asarray(examples.tokens.flat), minlength=vocabulary).clip(min=1)
    return torch.from_numpy(counts.astype(np.float64) ** -exponent).float()


@dataclass(frozen=True)
class MaskedBatches:
    """Batches with masked tokens, which depend only on seed, epoch and number of the batch (kdbench.stage.Data)."""

    batches: TrainBatches
    masking: Masking

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for index, batch in enumerate(self.batches.epoch(epoch, start), start):
            seed = np.random.SeedSequence([self.batches.seed, epoch, index]).generate_state(1, np.uint64)[0]
            yield self.masking(batch, torch.Generator().manual_seed(int(seed >> np.uint64(1))))
