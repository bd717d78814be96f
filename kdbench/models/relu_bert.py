"""A BERT with the classifier of TinyBERT's published code: a ReLU between pooler and classifier."""

from functools import cache
from typing import Any

from torch import nn

from kdbench.declared import Architecture
from kdbench.models import bert


class Traits(Architecture):
    model_type = "kdbench_relu_bert"
    student = False  # method.relu_head makes it of a BERT
    encoder = False
    starts_from = ("bert",)


class Model(bert.Model):
    @classmethod
    def model_class(cls, words: bool) -> Any:
        _classes()
        return super().model_class(words)


def use_relu_head(model: Any) -> None:
    """Put a ReLU between a BERT's pooler and classifier, where BERT has a dropout, as the authors' code does.

    Such a model has a model_type of its own, so that no other loader takes it for a plain BERT: kdbench.load reads it.
    """
    model.dropout = nn.ReLU()
    model.config = _classes().from_dict(model.config.to_dict())


@cache
def _classes() -> Any:
    """Register the architecture with transformers on first use, and return its class of configurations."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

    class ReluBertConfig(BertConfig):
        model_type = Traits.model_type

    class ReluBertForSequenceClassification(BertForSequenceClassification):
        config_class = ReluBertConfig

        def __init__(self, config: ReluBertConfig) -> None:
            super().__init__(config)
            self.dropout = nn.ReLU()  # type: ignore[assignment]

    AutoConfig.register(Traits.model_type, ReluBertConfig)
    AutoModelForSequenceClassification.register(ReluBertConfig, ReluBertForSequenceClassification)
    return ReluBertConfig
