"""SmearGate: each position takes in a part of the one before (techniques.md 1.5).

x_t becomes (1 - g) x_t + g x_(t-1) with g = sigmoid(gate), element by element, and x_(-1) = 0.

In the lineage (#65, #162) the last token of one document reaches the first of the next (#1797).
With `mask_bos`, as #1851 mended it, x_(t-1) counts as 0 where token t begins a document.
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

    def forward(
        self, x: Tensor, before: Tensor | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) to the same; `before` (B, 1, D) is the position ahead, where there is one.

        `starts` (B, T) bool: positions that nothing reaches.
        """
        g = self.gate.sigmoid().to(x.dtype)
        previous = shift(x, before)
        if starts is not None:
            previous = previous.masked_fill(starts[..., None], 0.0)
        return (1 - g) * x + g * previous
