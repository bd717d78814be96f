"""A stock encoder whose layers have lost some of their heads and feed-forward units (method=prune).

transformers 5 has one number of heads and one of units for all layers, and no longer prunes heads itself. So such a
model has a model_type of its own, `kdbench_pruned_bert` for a BERT, which no other loader takes for a plain one.
config.json has the original's shape, and what each layer kept: `kept_heads` and `kept_units`. The weights are smaller
matrices; the code that runs them is transformers' own, and a head is as wide as before.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import nn

from kdbench.declared import OWN, PRUNED
from kdbench.models.encoder import Encoder
from kdbench.models.network import network, view

Kept = Sequence[Sequence[int]]  # of each layer: numbers from 0, rising


class Pruned(Encoder):
    """What the pruned forms of all architectures have. It comes before the architecture's own `Model`."""

    key: ClassVar[str]  # `pruned_bert`

    @classmethod
    def model_class(cls, words: bool) -> Any:
        _register(OWN + cls.key)
        return super().model_class(words)

    @classmethod
    def config_of(cls, shape: dict[str, Any]) -> dict[str, Any]:
        """`shape`: the original's, with `kept_heads` and `kept_units`."""
        kept = {name: shape[name] for name in ("kept_heads", "kept_units")}
        return super().config_of(shape) | kept | {"model_type": OWN + cls.key}

    @property
    def found_shape(self) -> dict[str, Any]:
        return {"architecture": self.key, "kept_heads": self.kept_heads, "kept_units": self.kept_units}

    @property
    def kept_heads(self) -> list[list[int]]:
        return self.config.kept_heads

    @property
    def kept_units(self) -> list[int]:
        return self.config.kept_units


@cache
def form_of(original: type[Encoder], key: str) -> type[Encoder]:
    """Return the `Model` of an architecture's pruned form, made from its own."""
    made: Any = type("Model", (Pruned, original), {"key": key})
    return made


def pruned(model: Any, heads: Kept, units: Kept) -> Any:
    """Return a new classifier with these of the heads and units that each layer of `model` has, counted from 0.

    `model` is a stock classifier or a pruned one, and stays as it is. The new one is in evaluation mode, on its device.
    """
    from transformers import AutoConfig

    parts = view(model)
    kind = OWN + PRUNED + model.config.model_type.removeprefix(OWN + PRUNED)
    model_class = network(kind).model_class(parts.labels_words)
    own = [[numbers[at] for at in kept] for numbers, kept in zip(parts.kept_heads, heads, strict=True)]
    given = model.config.to_dict() | {"kept_heads": own, "kept_units": [len(kept) for kept in units]}
    config: Any = AutoConfig.for_model(kind, **{key: value for key, value in given.items() if key != "model_type"})
    with torch.random.fork_rng(devices=[]):
        made = model_class.from_config(
            config, attn_implementation=model.config._attn_implementation, dtype=torch.float32
        )
    for new, layer, of_heads, of_units in zip(view(made).layers, parts.layers, heads, units, strict=True):
        smaller = deepcopy(layer)  # one at a time: a copy of the whole model is 440 MB for a BERT-base
        _cut(parts, smaller, of_heads, of_units)
        new.load_state_dict(smaller.state_dict())
    inside = f"{model.base_model_prefix}.{parts.stack}."
    others = {name: value for name, value in model.state_dict().items() if not name.startswith(inside)}
    made.load_state_dict(made.state_dict() | others)
    return made.to(next(model.parameters()).device).eval()


def _cut(parts: Encoder, layer: Any, heads: Sequence[int], units: Sequence[int]) -> None:
    """Keep of a layer these of its heads and units, counted from 0, and remove the others' weights."""
    width = parts.head_width
    inside = [head * width + at for head in heads for at in range(width)]
    made, read = (attrgetter(name)(layer) for name in parts.feed_forward)
    for name in parts.projections:
        _keep_rows(attrgetter(name)(layer), inside)
    _keep_rows(made, units)
    _keep_columns(attrgetter(parts.mixing)(layer), inside)
    _keep_columns(read, units)


def _keep_rows(linear: nn.Linear, rows: Sequence[int]) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[[*rows]], linear.weight.requires_grad)
    linear.bias = nn.Parameter(linear.bias.detach()[[*rows]], linear.bias.requires_grad)
    linear.out_features = len(rows)


def _keep_columns(linear: nn.Linear, columns: Sequence[int]) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[:, [*columns]], linear.weight.requires_grad)
    linear.in_features = len(columns)


@cache
def _register(kind: str) -> None:
    """Make an architecture's pruned form known to transformers, on first use."""
    from transformers import (
        CONFIG_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    original: Any = CONFIG_MAPPING[kind.removeprefix(OWN + PRUNED)]

    class PrunedConfig(original):  # type: ignore[misc]
        model_type = kind
        kept_heads: list[list[int]] | None = None
        kept_units: list[int] | None = None

    AutoConfig.register(kind, PrunedConfig)
    known: Any = (
        (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
        (AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
    )
    for auto, models in known:
        auto.register(PrunedConfig, _classifier(models[original], PrunedConfig))


def _classifier(original: Any, own_config: Any) -> Any:
    """Return the class of pruned classifiers, whose name ends like the original's."""

    class PrunedClassifier(original):  # type: ignore[misc]
        config_class = own_config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            parts = view(self)
            for layer, heads, units in zip(parts.layers, config.kept_heads, config.kept_units, strict=True):
                parts.know_heads(layer, heads)
                _cut(parts, layer, range(len(heads)), range(units))

    PrunedClassifier.__name__ = PrunedClassifier.__qualname__ = f"Pruned{original.__name__}"
    return PrunedClassifier
