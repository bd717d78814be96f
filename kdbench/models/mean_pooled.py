"""A linear classifier on the mean of an encoder's last hidden states, whichever the encoder.

transformers' classifiers read the first token, which says little before it is fine-tuned. Encoders for sentences were
trained so that the mean does.
"""

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kdbench.declared import Architecture, architecture_traits
from kdbench.models.around import Around, base_config, encoder_of
from kdbench.models.network import view
from kdbench.models.own import Output

if TYPE_CHECKING:
    from kdbench.schema import RunConfig


class Traits(Architecture):
    model_type = "kdbench_mean_pooled"
    encoder = False
    choice = "mean_pooled"
    wraps = True
    masked_lm = False

    @classmethod
    def start_conflicts(cls, config: "RunConfig") -> Iterable[tuple[str, str]]:
        return architecture_traits(config.origin.source_architecture).start_conflicts(config)


class MeanPooled(nn.Module):
    """An encoder of any architecture, and a linear layer on the mean over the real tokens."""

    def __init__(self, config: Any) -> None:
        """Draw the weights of `config.encoder`, an encoder's config.json, and of the linear layer."""
        super().__init__()
        self.encoder: Any = encoder_of(config)
        self.config: Any = config
        self.classifier = nn.Linear(self.encoder.config.hidden_size, len(config.id2label))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Output:
        return Output(self.classifier(self.mean(input_ids, attention_mask, token_type_ids)))

    def mean(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Mean states (B, H) of ids, mask (0 = padding) and types, each (B, T)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        weights = attention_mask.to(states.dtype).unsqueeze(-1)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


class Model(Around):
    module_class = MeanPooled

    @classmethod
    @cache
    def config_class(cls) -> Any:
        class MeanPooledConfig(base_config()):  # type: ignore[misc]
            model_type = Traits.model_type

        return MeanPooledConfig

    def counted(self, ids: Tensor) -> None:
        self.model.classifier(self.encoder(input_ids=ids).last_hidden_state[:, 0])

    def set_dropout(self, dropout: float) -> None:
        view(self.encoder).set_dropout(dropout)
