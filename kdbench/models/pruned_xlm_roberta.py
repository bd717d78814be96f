"""An XLM-RoBERTa that method=prune has removed heads and feed-forward units from."""

from kdbench.declared import Architecture
from kdbench.models import xlm_roberta
from kdbench.models.pruned import Pruned


class Traits(Architecture):
    model_type = "kdbench_pruned_xlm-roberta"
    student = False  # method=prune makes it of an XLM-RoBERTa
    encoder = False
    token_types = False


class Model(Pruned, xlm_roberta.Model):
    kind = Traits.model_type
