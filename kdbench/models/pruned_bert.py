"""A BERT that method=prune has removed heads and feed-forward units from."""

from kdbench.declared import Architecture
from kdbench.models import bert
from kdbench.models.pruned import Pruned


class Traits(Architecture):
    model_type = "kdbench_pruned_bert"
    student = False  # method=prune makes it of a BERT
    encoder = False
    words = True


class Model(Pruned, bert.Model):
    kind = Traits.model_type
