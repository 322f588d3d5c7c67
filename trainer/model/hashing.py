"""Tables looked up by a hash of the last tokens, added to the token embedding (techniques.md 1.6).

    term_t = scale * P embed[row_t]

The table starts at zero and its projection does not (both at zero would never move), so a new model
starts without this term. In the lineage that is an accident: the constructor zeroes the projection
too, and a global pass that looks for a flag overwrites it. As in the lineage, a hash sees past the
beginning of a document.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers import Embedding, Linear

DEPTH = 2
"""Tokens ahead of its own that a hash may see."""


class History(NamedTuple):
    """The tokens that hashes see, each (B, T) int64; 0 stands where there is none."""

    current: Tensor
    previous: Tensor
    earlier: Tensor
    """Two positions ahead."""
    positions: Tensor
    """(T,), from 0."""

    def after(self, first: int) -> History:
        """Of the positions from `first` on."""
        c, p, pp = (tokens[:, first:] for tokens in self[:3])
        return History(c, p, pp, self.positions[first:])


def history(tokens: Tensor, before: Tensor | None = None, start: int = 0) -> History:
    """Of `tokens` (B, T) at positions from `start` on; `before` (B, n) are the n ahead of them.

    Only the last two of `before` count, and it must have two unless there are fewer: n is at least
    min(2, start). int64, because the products of the hashes pass 2^31 from token 59,138 on.
    """
    tokens = tokens.long()
    known = tokens[:, :0] if before is None else before[:, -DEPTH:].long()
    nothing = tokens.new_zeros(tokens.size(0), DEPTH - known.size(1))
    line = torch.cat((nothing, known, tokens), dim=1)
    positions = torch.arange(start, start + tokens.size(1), device=tokens.device)
    return History(line[:, 2:], line[:, 1:-1], line[:, :-2], positions)


class HashEmbedding(nn.Module):
    """`scale * proj(embed[row])`: rows (B, T) to (B, T, D)."""

    def __init__(self, num_rows: int, dim: int, model_dim: int, *, scale: float) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.embed = Embedding(num_rows, dim, std=0.0)
        self.proj = Linear(dim, model_dim)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The term to add to the token embeddings, computed in `dtype`."""
        out: Tensor = self.proj(self.embed(rows).to(dtype), self.scale)
        return out
