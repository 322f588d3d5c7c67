"""SmearGate: each position takes in a part of the one before (techniques.md 1.5).

x_t becomes (1 - g) x_t + g x_(t-1) with g = sigmoid(gate), element by element, and x_(-1) = 0. As
in the lineage, the last token of one document reaches the first of the next.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import shift


class SmearGate(nn.Module):
    """One gate for each element of the stream; at the start all are one half."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """(B, T, D) to the same; `before` (B, 1, D) is the position ahead, where there is one."""
        g = self.gate.sigmoid()
        return (1 - g) * x + g * shift(x, before)
