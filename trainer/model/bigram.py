"""BigramHash: rows for pairs of tokens (techniques.md 1.6; #398, #826, #1019).

Of B rows, row B - 1 is for the first position of a context; the others are shared by all pairs:
(36313 cur xor 27191 prev) mod (B - 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .hashing import History

CURRENT, PREVIOUS = 36_313, 27_191
SCALE = 0.05
"""Where the learned factor of the term starts."""


def bigram_rows(seen: History, num_rows: int) -> Tensor:
    """Table row of each position, (B, T) int64."""
    rows = ((CURRENT * seen.current) ^ (PREVIOUS * seen.previous)) % (num_rows - 1)
    return torch.where(seen.positions < 1, num_rows - 1, rows)
