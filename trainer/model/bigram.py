"""BigramHash: an embedding of the last two tokens, hashed into a small table (techniques.md 1.6).

Of B rows, row B - 1 is for the first position of a context; the others are shared by all pairs:
(36313 cur xor 27191 prev) mod (B - 1). The table starts at zero and its projection does not (both
at zero would never move), so a new model starts without this term.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import Embedding, Linear, shift

CURRENT, PREVIOUS = 36_313, 27_191


def bigram_rows(tokens: Tensor, before: Tensor | None, num_rows: int) -> Tensor:
    """Table row of each position of `tokens` (B, T), int64; `before` (B, 1) is the token ahead."""
    tokens = tokens.long()  # the products pass 2^31 from token 59,138 on
    rows = ((CURRENT * tokens) ^ (PREVIOUS * shift(tokens, before))) % (num_rows - 1)
    if before is None:
        rows[:, 0] = num_rows - 1
    return rows


class BigramHash(nn.Module):
    """`scale * proj(embed[row])`, (B, T) to (B, T, D)."""

    def __init__(self, num_rows: int, dim: int, model_dim: int) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.embed = Embedding(num_rows, dim, std=0.0)
        self.proj = Linear(dim, model_dim)
        self.scale = nn.Parameter(torch.tensor(0.05))

    def forward(self, tokens: Tensor, before: Tensor | None = None) -> Tensor:
        """The term to add to the token embeddings."""
        rows = bigram_rows(tokens, before, self.num_rows)
        out: Tensor = self.proj(self.embed(rows)) * self.scale
        return out
