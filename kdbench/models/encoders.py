"""The encoders that can be walked layer by layer: what each architecture calls its parts, and does otherwise.

An `Encoder` has no weights of its own: `view(model)` makes one wherever it is needed. transformers is imported inside
the functions: methods import this module, and a refusal must come quickly.
"""

from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.encoder import Encoder, Pass, attention_bias, first_token
from kdbench.stage import Batch


class Bert(Encoder):
    above: ClassVar[tuple[str, ...]] = ("pooler",)
    projections = ("attention.self.query", "attention.self.key", "attention.self.value")

    def passes(self, x: Tensor, mask: Tensor) -> list[Pass]:
        last = self.layers[-1]
        return [*self.whole_passes(x, mask)[:-1], lambda x: first_token(last, x, mask)]

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.model.classifier(self.model.dropout(self.encoder.pooler(hidden)))


class Roberta(Bert):
    """One token type, and a head that does not read the pooler."""

    above = ()
    dropouts = ("classifier_dropout",)

    def embed(self, batch: Batch) -> Tensor:
        return self.encoder.embeddings(input_ids=batch["input_ids"])

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.model.classifier(hidden)


class Electra(Bert):
    """Embeddings of their own width, no pooler."""

    above = ()
    dropouts = ("classifier_dropout",)

    @property
    def inputs(self) -> list[nn.Module]:
        return [self.encoder.embeddings, *([self.encoder.embeddings_project] if self._projected else [])]

    @property
    def _projected(self) -> bool:
        return self.config.embedding_size != self.config.hidden_size

    def embed(self, batch: Batch) -> Tensor:
        x = super().embed(batch)
        return self.encoder.embeddings_project(x) if self._projected else x

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.model.classifier(hidden)


class DistilBert(Encoder):
    stack = "transformer.layer"
    head: ClassVar[tuple[str, ...]] = ("pre_classifier", "classifier")
    projections = ("attention.q_lin", "attention.k_lin", "attention.v_lin")
    dropouts = ("dropout", "attention_dropout", "seq_classif_dropout")

    def embed(self, batch: Batch) -> Tensor:
        return self.encoder.embeddings(batch["input_ids"])

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.model.classifier(self.model.dropout(F.relu(self.model.pre_classifier(hidden[:, 0]))))


class Albert(Encoder):
    """One layer, run again and again."""

    below = ("embeddings", "encoder.embedding_hidden_mapping_in")
    stack = "encoder.albert_layer_groups"
    above = ("pooler",)
    projections = tuple(f"albert_layers.0.attention.{name}" for name in ("query", "key", "value"))
    dropouts = ("classifier_dropout_prob",)

    @property
    def layers(self) -> list[nn.Module]:
        return super().layers * self.config.num_hidden_layers

    def embed(self, batch: Batch) -> Tensor:
        return self.encoder.encoder.embedding_hidden_mapping_in(super().embed(batch))

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.model.classifier(self.model.dropout(torch.tanh(self.encoder.pooler(hidden[:, 0]))))


class DebertaV2(Encoder):
    """DeBERTa-v3: relative positions, which all layers read from one table."""

    below = ("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm")
    head = ("pooler", "classifier")
    dropouts = ("pooler_dropout",)

    def embed(self, batch: Batch) -> Tensor:
        return self.encoder.embeddings(input_ids=batch["input_ids"], mask=batch["attention_mask"])

    def whole_passes(self, x: Tensor, mask: Tensor) -> list[Pass]:
        stack = self.encoder.encoder
        given = {
            "attention_mask": stack.get_attention_mask(mask),
            "relative_pos": stack.get_rel_pos(x),
            "rel_embeddings": stack.get_rel_embedding(),
        }
        return [partial(_states_of, layer, given) for layer in self.layers]

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.model.classifier(self.model.dropout(self.model.pooler(hidden)))


def _states_of(layer: nn.Module, given: dict[str, Any], x: Tensor) -> Tensor:
    """DeBERTa's layers also return their attention."""
    return layer(x, **given)[0]


class ModernBert(Encoder):
    """Layers that see all of the text or a window of it, with rotary positions for each of the two."""

    stack = "layers"
    above = ("final_norm",)
    head = ("head", "classifier")
    dropouts = ("embedding_dropout", "mlp_dropout", "attention_dropout", "classifier_dropout")

    def embed(self, batch: Batch) -> Tensor:
        return self.encoder.embeddings(batch["input_ids"])

    def whole_passes(self, x: Tensor, mask: Tensor) -> list[Pass]:
        from transformers.masking_utils import create_bidirectional_sliding_window_mask

        places = torch.arange(x.shape[1], device=x.device)[None]
        biases = {
            "full_attention": attention_bias(self.encoder, x, mask),
            "sliding_attention": create_bidirectional_sliding_window_mask(
                config=self.config, inputs_embeds=x, attention_mask=mask
            ),
        }
        given = {
            kind: {
                "attention_mask": biases[kind],
                "position_embeddings": self.encoder.rotary_emb(x, places, kind),
            }
            for kind in set(self.config.layer_types)
        }
        return [partial(layer, **given[str(layer.attention_type)]) for layer in self.layers]

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder.final_norm(hidden)
        if self.config.classifier_pooling == "mean":
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            pooled = hidden[:, 0]
        return self.model.classifier(self.model.drop(self.model.head(pooled)))

    def set_dropout(self, dropout: float) -> None:
        super().set_dropout(dropout)
        for layer in self.layers:  # not read from a module; and where it was 0, there is no module for the output
            attention: Any = layer.attn
            attention.attention_dropout, attention.out_drop = dropout, nn.Dropout(dropout)


class BertOfWords(Bert):
    """A classifier of each word: it reads all states, and no pooler."""

    above = ()

    def passes(self, x: Tensor, mask: Tensor) -> list[Pass]:
        return self.whole_passes(x, mask)

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C)"""
        return self.model.classifier(self.model.dropout(hidden))


class DistilBertOfWords(DistilBert):
    head = ("classifier",)

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C)"""
        return self.model.classifier(self.model.dropout(hidden))


_VIEWS: dict[str, type[Encoder]] = {  # by transformers' base_model_prefix
    "bert": Bert,
    "roberta": Roberta,
    "electra": Electra,
    "distilbert": DistilBert,
    "albert": Albert,
    "deberta": DebertaV2,
    "model": ModernBert,
}


_OF_WORDS: dict[str, type[Encoder]] = {"bert": BertOfWords, "distilbert": DistilBertOfWords}


def view(model: Any) -> Encoder:
    """Of a classifier, of texts or of their words, or of its encoder alone."""
    kinds = _OF_WORDS if type(model).__name__.endswith("ForTokenClassification") else _VIEWS
    return kinds[model.base_model_prefix](model)
