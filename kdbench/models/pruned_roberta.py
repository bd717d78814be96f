"""A RoBERTa that method=prune has removed heads and feed-forward units from."""

from kdbench.declared import Architecture
from kdbench.models import roberta
from kdbench.models.pruned import Pruned


class Traits(Architecture):
    model_type = "kdbench_pruned_roberta"
    student = False  # method=prune makes it of a RoBERTa
    encoder = False
    token_types = False


class Model(Pruned, roberta.Model):
    kind = Traits.model_type
