"""Make a word-level tokenizer from the train texts once, and keep it in the cache: `vocabulary/<digest>/`.

Students that read words instead of word pieces use it (the BiLSTM of Tang et al. 2019). Texts are cleaned, lower-cased
and split as in BERT before its word pieces, so a Chinese character is a word.
"""

import hashlib
from pathlib import Path

from kdbench.storage.cache import cached

PAD, UNK, MASK = SPECIAL = ("[PAD]", "[UNK]", "[MASK]")  # ids 0, 1, 2


def word_tokenizer(texts: list[str], cache: Path, min_count: int = 2, max_size: int = 30000) -> Path:
    """Return the folder of a Hugging Face fast tokenizer whose tokens are the words of `texts`.

    Special tokens have the first ids. Words follow by descending count, and with equal counts by code point. A word
    with a count below `min_count` is [UNK], and so is a word beyond `max_size` tokens, including special tokens. No
    special tokens are added to a text, so an empty text has no tokens. Tokens of the second text of a pair have type 1.
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
