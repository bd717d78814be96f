"""Optimise only those word embeddings that occur in a stage's texts; the others follow in closed form.

reuters_r52 uses 10,399 of BERT's 30,522 word pieces. Without this, the gradient, its norm, the clipping and AdamW's
moments cover all of them in every step (scripts/bench/NOTES.md). An unused row gets no gradient. AdamW moves it by
weight decay alone, which is a product of known factors (Loshchilov & Hutter 2019, Algorithm 2).
"""

import math
from typing import Any

import torch
from torch import nn

from kdbench.stage import Schedule, Words


class UsedRows:
    """Replaces a table's weight (V, E) in the optimiser by `rows` (U, E), the rows of the words in use.

    The table keeps its weight, so code that reads it does not change. Its gradient is sparse.
    """

    def __init__(self, words: Words, group: dict[str, Any], schedule: Schedule) -> None:
        self.table, self.used = words
        self.weight = self.table.weight
        self.schedule, self.rate, self.decay = schedule, schedule.lr * group["lr_multiplier"], group["weight_decay"]
        self.rows = nn.Parameter(self.weight.detach()[self.used])
        others = torch.ones(len(self.weight), dtype=torch.bool)
        others[self.used] = False
        self.others = others.nonzero().squeeze(1)
        self.start = self.weight.detach()[self.others]
        self.place = torch.zeros(len(self.weight), dtype=torch.long)
        self.place[self.used] = torch.arange(len(self.used))
        group["params"] = [self.rows if one is self.weight else one for one in group["params"]]
        self.table.sparse = True

    @torch.no_grad()
    def read(self) -> None:
        """Copy the rows from the table, into which a checkpoint may have been loaded."""
        self.rows.copy_(self.weight[self.used])

    def take_gradient(self) -> None:
        """Move the table's gradient, if any, to the rows; equal ids are summed in the order of the tokens."""
        gradient, self.weight.grad = self.weight.grad, None
        if gradient is not None:
            (ids,), values = gradient._indices(), gradient._values()  # not coalesced, which would sort them
            self.rows.grad = torch.zeros_like(self.rows).index_add_(0, self.place[ids], values)

    @torch.no_grad()
    def give_back(self) -> None:
        """Copy the updated rows to the table."""
        self.weight.index_copy_(0, self.used, self.rows)

    @torch.no_grad()
    def settle(self, steps: int) -> None:
        """Set the unused rows to their values after `steps` updates, a function of their start alone."""
        factors = (1 - self.rate * self.schedule.lr_factor(step) * self.decay for step in range(steps))
        self.weight.index_copy_(0, self.others, self.start * math.prod(factors))

    def release(self) -> None:
        """Make the table's gradient dense again."""
        self.table.sparse = False
