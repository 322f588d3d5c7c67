"""Linear and embedding tables that say how they start, and the norm without weights.

torch's own constructors draw from the global generator; these start at zero and leave drawing to
`init.initialize`, which a checkpoint does not need.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`x @ weight.T`, no bias. With `zero`, training starts from zero, else orthogonal."""

    def __init__(self, in_features: int, out_features: int, *, zero: bool = False) -> None:
        self.zero = zero
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Zero."""
        nn.init.zeros_(self.weight)


class Embedding(nn.Embedding):
    """A table of rows. Training starts from `N(0, std^2)`."""

    def __init__(self, num_rows: int, dim: int, *, std: float) -> None:
        self.std = std
        super().__init__(num_rows, dim)

    def reset_parameters(self) -> None:
        """Zero."""
        nn.init.zeros_(self.weight)


def rms_norm(x: Tensor) -> Tensor:
    """`x / sqrt(mean(x^2) + eps)` over the last axis; eps is the dtype's own."""
    return nn.functional.rms_norm(x, (x.size(-1),))


def shift(x: Tensor, before: Tensor | None) -> Tensor:
    """What precedes each position of (B, T, ...): `before` (B, 1, ...), or 0, comes first."""
    first = torch.zeros_like(x[:, :1]) if before is None else before
    return torch.cat((first, x[:, :-1]), dim=1)
