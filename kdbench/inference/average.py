"""Several classifiers as one: the mean of their logits, in one graph."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.models.network import Network, view
from kdbench.stage import Batch


class Average(Network):
    """Classifiers of any architecture that read the same tokens and have the same labels."""

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__(members[0])
        self.members = list(members)

    @property
    def token_types(self) -> bool:
        """Whether any member reads which of two texts a token is of."""
        return any(view(member).token_types for member in self.members)

    def divide_logits(self, temperature: float) -> None:
        for member in self.members:
            view(member).divide_logits(temperature)

    def forward(self, batch: Batch) -> Tensor:
        return torch.stack([view(member).forward(batch) for member in self.members]).mean(0)

    def traced(self) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
        return _Mean(self.members), {}, ["logits"]


class _Mean(nn.Module):
    """The members, with tensors as arguments and answer."""

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__()
        self.members = nn.ModuleList(view(member).traced()[0] for member in members)
        self.types = [view(member).token_types for member in members]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        found = [
            member(input_ids, attention_mask, token_type_ids if types else None)
            for member, types in zip(self.members, self.types, strict=True)
        ]
        return torch.stack(found).mean(0)
