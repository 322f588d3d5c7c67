"""Value embeddings: values of some blocks take in an embedding of the token (techniques.md 1.2).

    v_t <- v_t + s_l * scale * P table[token_t]

One table and one projection for all of these blocks (#374, #414), computed once a pass; s_l, from
1, is the block's own. `scale` starts at 0.1 and the table at N(0, 0.01^2). The projection starts
orthogonal: #374's constructor zeroes it, but its global pass overwrites that, as with BigramHash.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import Embedding, Linear

TABLE_STD = 0.01
SCALE = 0.1


class ValueEmbedding(nn.Module):
    """`scale * proj(embed[token])`, tokens (B, T) to (B, T, kv_dim)."""

    def __init__(self, vocab_size: int, dim: int, kv_dim: int) -> None:
        super().__init__()
        self.embed = Embedding(vocab_size, dim, std=TABLE_STD)
        self.proj = Linear(dim, kv_dim)
        self.scale = nn.Parameter(torch.tensor(SCALE))

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """What blocks add to their values, each by its own factor, computed in `dtype`."""
        out: Tensor = self.proj(self.embed(tokens).to(dtype), self.scale)
        return out
