"""An ELECTRA that method=prune has removed heads and feed-forward units from."""

from kdbench.declared import Architecture
from kdbench.models import electra
from kdbench.models.pruned import Pruned


class Traits(Architecture):
    model_type = "kdbench_pruned_electra"
    student = False  # method=prune makes it of an ELECTRA
    encoder = False


class Model(Pruned, electra.Model):
    kind = Traits.model_type
