"""The feed-forward half of a block: `W2 leaky_relu(W1 x; a)^2` (techniques.md 1.3).

Slope a = 0 is relu squared (#398). The square loses the sign, so that a negative u counts a^2 u^2:
a = 0.5 (#493, #549) is a quarter, a = 0.9 (#769, #806) nearly u^2. #1089 gives each block its own.
"""

from __future__ import annotations

from torch import Tensor, nn

from .config import GPTConfig
from .layers import Linear


class MLP(nn.Module):
    """Two matrices with a squared rectifier between them; `layer` is the block's index."""

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        self.slope = config.slope(layer)
        self.fc = Linear(config.model_dim, config.hidden_dim)
        self.proj = Linear(config.hidden_dim, config.model_dim, zero=True)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """(..., D) to (..., D), times `gain` (D,)."""
        out: Tensor = self.proj(squared(self.fc(x), self.slope), gain)
        return out


def squared(u: Tensor, slope: float) -> Tensor:
    """`leaky_relu(u; slope)^2`."""
    rectified = nn.functional.leaky_relu(u, slope) if slope else u.relu()
    return rectified.square()
