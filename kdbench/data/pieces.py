"""Make a tokenizer of pieces without special tokens, and keep it in the cache: `pieces/<digest>/`.

Static students read it. It splits texts as the encoder's tokenizer does, or that of a table of vectors.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.data.tokenize import load_tokenizer, tokenizer_files
from kdbench.errors import Code, SourceError
from kdbench.storage.cache import cached

UNUSED = re.compile(r"\[unused\d+\]")  # BERT's places for new words; no text has them


def bare_tokenizer(source: Path, cache: Path) -> Path:
    """Return the folder of a Hugging Face fast tokenizer that adds no special tokens to the pieces of `source`.

    `source` is a model's folder or a file in the form of tokenizer.json. An empty text has no token. Tokens of the
    second text of a pair have type 1. Raises SourceError if `source` is no tokenizer.
    """
    content = source.read_bytes() if source.is_file() else tokenizer_files(source)
    folder = cache / "pieces" / hashlib.sha256(b"1|" + content).hexdigest()[:16]
    return cached(folder, lambda staged: _write(staged, source))


def _write(folder: Path, source: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    pad = None
    if source.is_file():
        made = _read(source)
    else:
        tokenizer = load_tokenizer(source)
        made, pad = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), tokenizer.pad_token
    made.no_padding()
    made.no_truncation()
    made.post_processor = TemplateProcessing("$A:0", "$A:0 $B:1", [])
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token=_unknown(made),
        pad_token=pad,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)


def _read(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise SourceError(Code.MISMATCHED_MODEL, f"{path} cannot be read as a tokenizer: {error}") from error


def _unknown(tokenizer: Any) -> str | None:
    """Return the token of what the tokenizer does not know; None: it knows all."""
    model = json.loads(tokenizer.to_str())["model"]
    if (number := model.get("unk_id")) is not None:
        return str(tokenizer.id_to_token(number))
    unknown: str | None = model.get("unk_token")
    return unknown


def vocabulary_size(folder: Path) -> int:
    """Return the number of rows that a table needs for the tokens of the tokenizer in `folder`."""
    highest: int = max(load_tokenizer(folder).get_vocab().values())
    return highest + 1


def ranked_pieces(folder: Path) -> Tensor:
    """Return the ids (n,) of the pieces that occur in texts, by falling frequency.

    Tokenizers number pieces so, by and large. Special tokens are left out, but not the one of what is unknown.
    """
    tokenizer = load_tokenizer(folder)
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special and token.content != tokenizer.unk_token}
    found = (number for token, number in tokenizer.get_vocab().items() if not UNUSED.fullmatch(token))
    return torch.tensor(sorted(set(found) - special))


def special_tokens(folder: Path) -> tuple[list[int], list[int]]:
    """Return the ids of the special tokens that the tokenizer of a model's folder puts before a text, and after it."""
    encoded = load_tokenizer(folder)("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    first, last = special.index(0), len(special) - special[::-1].index(0)
    return ids[:first], ids[last:]
