"""A DistilBERT that method=prune has removed heads and feed-forward units from."""

from kdbench.declared import Architecture
from kdbench.models import distilbert
from kdbench.models.pruned import Pruned


class Traits(Architecture):
    model_type = "kdbench_pruned_distilbert"
    student = False  # method=prune makes it of a DistilBERT
    encoder = False
    token_types = False
    words = True


class Model(Pruned, distilbert.Model):
    kind = Traits.model_type
