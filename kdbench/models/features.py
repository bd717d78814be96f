"""What feature distillation trains beside the student."""

from torch import Tensor, nn


class Projection(nn.Module):
    """TinyBERT's W of the hidden states and, where it is separate, of the embeddings: (B, T, H_s) -> (B, T, H_t)."""

    def __init__(self, student: int, teacher: int, separate: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(student, teacher)
        self.embedding = nn.Linear(student, teacher) if separate else None

    def forward(self, state: Tensor, layer: int) -> Tensor:
        project = self.embedding if layer == 0 and self.embedding is not None else self.hidden
        return project(state)
