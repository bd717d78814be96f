"""XLM-RoBERTa (Conneau et al. 2020): RoBERTa with a vocabulary of a hundred languages."""

from typing import ClassVar

from kdbench.declared import Architecture
from kdbench.models import roberta


class Traits(Architecture):
    model_type = "xlm-roberta"
    token_types = False
    prefix = "roberta."
    first_position = 2
    tokenizers = frozenset({"XLMRobertaTokenizer"})
    fixed: ClassVar[dict[str, object]] = {
        "pad_token_id": 1,
        "position_embedding_type": "absolute",
        "is_decoder": False,
    }


class Model(roberta.Model):
    pass
