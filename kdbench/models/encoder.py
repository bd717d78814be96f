"""One way into every encoder: what makes the first layer's input, its layers, its head, queries, keys and values.

`Encoder` is what methods know. Each architecture's `Model` names its parts, and says what it does otherwise.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.models.network import Network
from kdbench.stage import Batch

Pass = Callable[[Tensor], Tensor]  # states (B, T, H) -> those after a layer


class Encoder(Network):
    """A Transformer whose layers can be run one by one."""

    below: ClassVar[tuple[str, ...]] = ("embeddings",)  # of the encoder: they make the first layer's input
    stack: ClassVar[str] = "encoder.layer"  # of the encoder: its layers
    above: ClassVar[tuple[str, ...]] = ()  # of the encoder: they stand between its last layer and the head
    head: tuple[str, ...] = ("classifier",)  # of the classifier

    @property
    def projections(self) -> list[str]:
        """Of a layer: what makes its queries, keys and values."""
        return [*self.traits.matrices][:3]

    @property
    def mixing(self) -> str:
        """Of a layer: what reads its heads, side by side."""
        return [*self.traits.matrices][3]

    @property
    def feed_forward(self) -> list[str]:
        """Of a layer: what makes its units, and what reads them."""
        return [*self.traits.matrices][4:]

    @property
    def labels_words(self) -> bool:
        """Whether the classifier has an answer for each word."""
        return type(self.model).__name__.endswith("ForTokenClassification")

    @property
    def inputs(self) -> list[nn.Module]:
        """The modules that make the first layer's input, and what all layers share."""
        return _parts(self.encoder, self.below)

    @property
    def stacked(self) -> nn.ModuleList:
        return attrgetter(self.stack)(self.encoder)

    @property
    def layers(self) -> list[nn.Module]:
        return [*self.stacked]

    @property
    def head_width(self) -> int:
        """The width of a head, which does not depend on how many a layer has."""
        return self.config.hidden_size // self.config.num_attention_heads

    @property
    def kept_heads(self) -> list[list[int]]:
        """Of each layer, the numbers of the original's heads that it has: all, before method=prune."""
        return [[*range(self.config.num_attention_heads)] for _ in self.layers]

    @property
    def kept_units(self) -> list[int]:
        """Of each layer, the number of its feed-forward units."""
        return [attrgetter(self.feed_forward[0])(layer).out_features for layer in self.layers]

    def know_heads(self, layer: Any, heads: Sequence[int]) -> None:
        """Tell a new layer which of the original's heads it will have. In most architectures it need not know."""

    @property
    def tops(self) -> list[nn.Module]:
        """The modules between the last layer and the logits."""
        return [*_parts(self.encoder, self.above), *_parts(self.model, self.head)]

    def embed(self, batch: Batch) -> Tensor:
        """The first layer's input (B, T, H)."""
        types = batch.get("token_type_ids") if self.token_types else None
        return self.encoder.embeddings(input_ids=batch["input_ids"], token_type_ids=types)

    def whole_passes(self, x: Tensor, mask: Tensor) -> list[Pass]:
        """The layers, ready for states like `x` (B, T, H) under the mask (B, T), 0 = padding."""
        bias = attention_bias(self.encoder, x, mask)
        return [partial(layer, attention_mask=bias) for layer in self.layers]

    def passes(self, x: Tensor, mask: Tensor) -> list[Pass]:
        """The same; of the last layer's output, (B, T, H) or (B, 1, H), what `logits_of` reads."""
        return self.whole_passes(x, mask)

    def states(self, batch: Batch, layers: int | None = None) -> list[Tensor]:
        """The first layer's input and the output of each of the first `layers` layers (None: all), each (B, T, H)."""
        states = [self.embed(batch)]
        for run in self.whole_passes(states[0], batch["attention_mask"])[:layers]:
            states.append(run(states[-1]))
        return states

    def first_tokens(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """[CLS] after each layer but the last, (B, 1, H) each, and of the last one's output what the head reads."""
        x = self.embed(batch)
        *below, last = self.passes(x, batch["attention_mask"])
        first = []
        for run in below:
            x = run(x)
            first.append(x[:, :1])
        return first, last(x)

    def finished(self, hidden: Tensor) -> Tensor:
        """Return a layer's output (B, T, H) as a head reads it."""
        return hidden

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, C) from the last layer's output."""
        return self.model.classifier(hidden)

    def logits(self, batch: Batch) -> Tensor:
        """Logits (B, C), without what they do not depend on."""
        return self.logits_of(self.first_tokens(batch)[1], batch["attention_mask"])

    def queries_keys_values(self, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, A, T, d), of layer `index` (from 0) whose input is `x` (B, T, H)."""
        query, key, value = (self._in_heads(projection(x)) for projection in self._projections(index))
        return query, key, value

    def scores(self, index: int, x: Tensor) -> Tensor:
        """Return (B, A, T, T): query by key over sqrt(d), and `position_bias`, before mask and softmax.

        Of layer `index`, whose input is `x` (B, T, H). Computed again, because transformers' `output_attentions` gives
        probabilities after dropout, and its fused attention gives none.
        """
        query, key = (self._in_heads(projection(x)) for projection in self._projections(index)[:2])
        return query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + self.position_bias(x)

    def position_bias(self, x: Tensor) -> Tensor | float:
        """Return what the scores of every layer have besides query by key, (1, A, T, T), for x (B, T) or (B, T, H)."""
        return 0.0

    def first_context(self, x: Tensor, mask: Tensor, dropout: nn.Module, bias: Tensor | float = 0.0) -> Tensor:
        """Return what the first token gathers by the last layer's attention, (B, 1, A * d), from its input x (B, T, H).

        It is all that a classifier reads of that layer's attention; mask (B, T), 0 = padding; `bias`, (1, A, T), is
        added to the scores. A is the number of heads that the layer has, which may be less than the config's. Of keys
        and values nothing is computed for the other tokens: q (x W_k)' = (q W_k') x' and p (x W_v) = (p x) W_v, and the
        keys' bias moves all scores of a row alike, which the softmax does not see.
        """
        query, key, value = self._projections(-1)
        (batch, _, hidden), width = x.shape, self.head_width
        heads = query.out_features // width
        asked = query(x[:, :1]).view(batch, heads, width)
        towards = torch.einsum("bad,adh->bah", asked, key.weight.view(heads, width, hidden))
        scores = (towards @ x.transpose(1, 2)) / math.sqrt(width) + bias  # (B, A, T)
        scores = scores.masked_fill(mask[:, None] == 0, torch.finfo(scores.dtype).min)
        shares = dropout(scores.softmax(-1))
        context = torch.einsum("bah,adh->bad", shares @ x, value.weight.view(heads, width, hidden))
        # shares need not sum to 1 under dropout
        context = context + value.bias.view(heads, width) * shares.sum(-1, keepdim=True)
        return context.reshape(batch, 1, heads * width)

    def _projections(self, index: int) -> list[Any]:
        return _parts(self.layers[index], self.projections)

    def _in_heads(self, x: Tensor) -> Tensor:
        """(B, T, A * d) -> (B, A, T, d)"""
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def copy_from(self, source: "Encoder", layers: list[int]) -> None:
        """Copy what is below and above the layers, and the listed layers (from 0), of an encoder of the same kind.

        What stands above is copied where both have it: FastBERT and RoBERTa's classifier have no pooler.
        """
        chosen = [source.layers[index] for index in layers]
        pairs = [*zip(self.inputs, source.inputs, strict=True), *zip(self.layers, chosen, strict=True)]
        pairs += zip(_parts(self.encoder, self.above), _parts(source.encoder, source.above), strict=False)
        for own, theirs in pairs:
            own.load_state_dict(theirs.state_dict())

    def copy_head(self, source: "Encoder") -> None:
        """Copy all between the last layer and the logits."""
        for own, theirs in zip(self.tops, source.tops, strict=True):
            own.load_state_dict(theirs.state_dict())


class BertForm(Encoder):
    """An encoder whose layers and classifiers are of BERT's form."""

    above: ClassVar[tuple[str, ...]] = ("pooler",)

    def passes(self, x: Tensor, mask: Tensor) -> list[Pass]:
        passes = self.whole_passes(x, mask)
        if not self.labels_words:
            passes[-1] = partial(self._first_token, mask=mask)
        return passes

    def _first_token(self, x: Tensor, mask: Tensor) -> Tensor:
        layer: Any = self.layers[-1]
        context = self.first_context(x, mask, layer.attention.self.dropout)
        attended = layer.attention.output(context, x[:, :1])
        return layer.output(layer.intermediate(attended), attended)

    def logits_of(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if not self.above:  # its head reads no pooler
            return super().logits_of(hidden, mask)
        read = hidden if self.labels_words else self.encoder.pooler(hidden)
        return self.model.classifier(self.model.dropout(read))


def _parts(model: Any, names: Sequence[str]) -> list[Any]:
    return [part for name in names if (part := attrgetter(name)(model)) is not None]


def attention_bias(model: Any, embedded: Tensor, mask: Tensor) -> Any:
    """The mask in the form that the model's attention implementation takes."""
    from transformers.masking_utils import create_bidirectional_mask

    return create_bidirectional_mask(config=model.config, inputs_embeds=embedded, attention_mask=mask)


def states_of(layer: nn.Module, given: dict[str, Any], x: Tensor) -> Tensor:
    """Run a layer that returns its attention too."""
    return layer(x, **given)[0]
