"""The feed-forward half of a block: `W2 relu(W1 x)^2` (techniques.md 1.3)."""

from __future__ import annotations

from torch import Tensor, nn

from .config import GPTConfig
from .layers import Linear


class MLP(nn.Module):
    """Two matrices with a squared rectifier between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc = Linear(config.model_dim, config.hidden_dim)
        self.proj = Linear(config.hidden_dim, config.model_dim, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        out: Tensor = self.proj(self.fc(x).relu().square())
        return out
