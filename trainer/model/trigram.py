"""TrigramHash: rows for triples of tokens (techniques.md 1.6; #292).

Of B rows, row B - 1 is for the first two positions of a context; the others are shared by all
triples: (48271 t xor 36313 t_(-1) xor 27191 t_(-2)) mod (B - 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .hashing import History

CURRENT, PREVIOUS, EARLIER = 48_271, 36_313, 27_191
SCALE = 0.03
"""Where the learned factor of the term starts."""


def trigram_rows(seen: History, num_rows: int) -> Tensor:
    """Table row of each position, (B, T) int64."""
    current, previous = CURRENT * seen.current, PREVIOUS * seen.previous
    rows = (current ^ previous ^ (EARLIER * seen.earlier)) % (num_rows - 1)
    return torch.where(seen.positions < 2, num_rows - 1, rows)
