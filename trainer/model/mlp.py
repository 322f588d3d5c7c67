"""The feed-forward half of a block: `W2 leaky_relu(W1 x; a)^2` (techniques.md 1.3).

Slope a = 0 is relu squared (#398). The square loses the sign, so that a negative u counts a^2 u^2:
a = 0.5 (#493, #549) is a quarter, a = 0.9 (#769, #806) nearly u^2. #1089 gives each block its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import GPTConfig
from .layers import Linear


class MLP(nn.Module):
    """Two matrices with a squared rectifier between them; `layer` is the block's index."""

    own_slope: Tensor | None

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        self.slope = 0.0 if isinstance(config.mlp_slope, tuple) else config.mlp_slope
        own = torch.tensor(config.slope(layer)) if isinstance(config.mlp_slope, tuple) else None
        # A tensor, so that all blocks are one graph to the compiler; not part of the state.
        self.register_buffer("own_slope", own, persistent=False)
        self.fc = Linear(config.model_dim, config.hidden_dim)
        self.proj = Linear(config.hidden_dim, config.model_dim, zero=True)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """(..., D) to (..., D), times `gain` (D,)."""
        slope = self.slope if self.own_slope is None else self.own_slope.to(x.dtype)
        out: Tensor = self.proj(squared(self.fc(x), slope), gain)
        return out


def squared(u: Tensor, slope: float | Tensor) -> Tensor:
    """`leaky_relu(u; slope)^2`; a slope that is a tensor, (), is in the dtype of `u`."""
    if isinstance(slope, Tensor):
        return torch.where(u > 0, u, slope * u).square()
    return (nn.functional.leaky_relu(u, slope) if slope else u.relu()).square()
