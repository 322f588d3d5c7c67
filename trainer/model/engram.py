"""EngramLite: hashed bigrams and trigrams, by several hashes each (techniques.md 1.6).

With c, p, pp the token at a position, the one before and the one before that (0 where there is
none) and B rows, the hashes are

    b0 = (1009 p + c) mod B                            b1 = ((2719 p + 314159) xor 3137 c) mod B
    t0 = (36313 pp xor 27191 p xor 4903 c) mod B       t1 = (7919 pp xor 4391 p xor 6151 c) mod B

Stem form (#1089): each hash has B rows of its own; what they hold is put side by side, projected to
the model's width, times sigmoid(gate) element by element (gate 0 at first), and added to the token
embedding.

Logit form (README of #1440, "Raki"): all hashes share one table of B rows; the rows of an order's
hashes are added, times sigmoid(gate) of the order (gate -1 at first), and the sum is projected to
the vocabulary and added to the logits, before the softcap. Honest version: #1440's program has no
EngramLite at all. Its README leaves open how rows combine and what the gate sees; the gate for each
order and the projection that starts at zero are those of a third party's port (taka6745).

In both forms the projection starts at zero and the table does not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .hashing import History
from .layers import Embedding, Linear

NUM_ORDERS = 2
TABLE_STD = 0.01
LOGIT_GATE = -1.0


def engram_rows(seen: History, num_rows: int, num_heads: int) -> Tensor:
    """Row of each hash at each position, (B, T, 2, num_heads) int64: order, then hash."""
    c, p, pp = seen.current, seen.previous, seen.earlier
    bigrams = [1_009 * p + c, (2_719 * p + 314_159) ^ (3_137 * c)]
    trigrams = [
        (36_313 * pp) ^ (27_191 * p) ^ (4_903 * c),
        (7_919 * pp) ^ (4_391 * p) ^ (6_151 * c),
    ]
    orders = (bigrams, trigrams)
    hashes = torch.stack([torch.stack(order[:num_heads], dim=-1) for order in orders], dim=-2)
    return hashes % num_rows


class EngramStem(nn.Module):
    """`sigmoid(gate) * proj(rows side by side)`: a term for the stem, (B, T, D)."""

    def __init__(self, num_rows: int, dim: int, model_dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_rows, self.num_heads = num_rows, num_heads
        num_hashes = NUM_ORDERS * num_heads
        self.embed = Embedding(num_hashes * num_rows, dim, std=TABLE_STD)
        self.proj = Linear(num_hashes * dim, model_dim, zero=True)
        self.gate = nn.Parameter(torch.zeros(model_dim))

    def forward(self, seen: History, dtype: torch.dtype) -> Tensor:
        """The term to add to the token embeddings, computed in `dtype`."""
        rows = engram_rows(seen, self.num_rows, self.num_heads).flatten(2)  # (B, T, hashes)
        own = torch.arange(rows.size(2), device=rows.device) * self.num_rows
        found = self.embed(rows + own).to(dtype).flatten(2)
        out: Tensor = self.proj(found, self.gate.sigmoid())
        return out


class EngramLogits(nn.Module):
    """Features (B, T, dim), whose product with `proj.weight` (V, dim) is added to the logits."""

    def __init__(self, num_rows: int, dim: int, vocab_size: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_rows, self.num_heads = num_rows, num_heads
        self.embed = Embedding(num_rows, dim, std=TABLE_STD)
        self.proj = Linear(dim, vocab_size, zero=True)
        self.gate = nn.Parameter(torch.full((NUM_ORDERS,), LOGIT_GATE))

    def features(self, seen: History, dtype: torch.dtype) -> Tensor:
        """Gated rows, added up, in `dtype`."""
        rows = engram_rows(seen, self.num_rows, self.num_heads)
        by_order = self.embed(rows).sum(dim=3)  # (B, T, 2, dim)
        gates = self.gate.sigmoid()[:, None]
        return torch.sum(gates * by_order, dim=2).to(dtype)

    def forward(self, seen: History, dtype: torch.dtype) -> Tensor:
        """What is added to the logits, (B, T, V)."""
        out: Tensor = self.proj(self.features(seen, dtype))
        return out
