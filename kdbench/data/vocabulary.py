"""A word-level tokenizer of the training texts, made once: `vocabulary/<digest>/` in the cache.

For students that read words, not word pieces (the BiLSTM of Tang et al. 2019). Texts are cleaned, lower-cased
and split as BERT does before its word pieces, so that a Chinese character is a word.
"""

import hashlib
from pathlib import Path

from kdbench.storage.cache import cached

PAD, UNK, MASK = SPECIAL = ("[PAD]", "[UNK]", "[MASK]")  # ids 0, 1, 2


def word_tokenizer(texts: list[str], cache: Path, min_count: int = 2, max_size: int = 30000) -> Path:
    """The folder of a Hugging Face fast tokenizer whose tokens are the words of `texts`.

    Ids: the special tokens, then words by falling count, equal counts by code point; words seen fewer than
    `min_count` times, and those beyond `max_size` tokens (special ones included), are [UNK]. Nothing is put
    around a text: an empty one has no token. In a pair, the second text's tokens have type 1.
    """
    digest = hashlib.sha256(f"1|{min_count}|{max_size}|{len(texts)}".encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    folder = cache / "vocabulary" / digest.hexdigest()[:16]
    return cached(folder, lambda staged: _write(staged, texts, min_count, max_size))


def _write(folder: Path, texts: list[str], min_count: int, max_size: int) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.trainers import WordLevelTrainer
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel(vocab={}, unk_token=UNK))
    words.normalizer = BertNormalizer(lowercase=True)
    words.pre_tokenizer = BertPreTokenizer()
    trainer = WordLevelTrainer(
        vocab_size=max_size, min_frequency=min_count, special_tokens=list(SPECIAL), show_progress=False
    )
    words.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNK,
        mask_token=MASK,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
