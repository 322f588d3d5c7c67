"""One layer: mix in the stem, then attention, then MLP, each scaled element by element."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Attention
from .cache import LayerCache
from .config import GPTConfig
from .layers import rms_norm
from .mlp import MLP


class Block(nn.Module):
    """x <- m0 x + m1 x0;  x <- x + a Attn(RMS(x));  x <- x + b MLP(RMS(x)) (techniques.md 1.1)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        dim = config.model_dim
        self.attn = Attention(config)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(dim))
        self.mlp_scale = nn.Parameter(torch.ones(dim))
        self.resid_mix = nn.Parameter(torch.ones(2, dim))
        self.resid_mix.data[1].zero_()

    def forward(
        self,
        x: Tensor,  # (B, T, D) the residual stream
        x0: Tensor,  # (B, T, D) the stem's output
        rotation: tuple[Tensor, Tensor],
        start: int = 0,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """The stream after this layer, (B, T, D)."""
        x = self.resid_mix[0] * x + self.resid_mix[1] * x0
        x = x + self.attn_scale * self.attn(rms_norm(x), rotation, start, cache)
        x = x + self.mlp_scale * self.mlp(rms_norm(x))
        return x
