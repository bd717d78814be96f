"""RoBERTa (Liu et al. 2019): BERT with one token type, and a head that does not read the pooler."""

from typing import ClassVar

from kdbench.declared import Architecture
from kdbench.models.encoder import BertForm
from kdbench.models.network import Network
from kdbench.models.stock import Stock


class Traits(Architecture):
    model_type = "roberta"
    token_types = False
    prefix = "roberta."
    first_position = 2
    tokenizers = frozenset({"RobertaTokenizer"})
    fixed: ClassVar[dict[str, object]] = {
        "pad_token_id": 1,
        "position_embedding_type": "absolute",
        "is_decoder": False,
    }


class Model(Stock, BertForm):
    above = ()
    dropouts = (*Network.dropouts, "classifier_dropout")
