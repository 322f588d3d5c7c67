"""What all blocks of one forward pass share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask


class Context(NamedTuple):
    """Made once, read by every block."""

    x0: Tensor
    """(B, T, D) the stem's output."""
    rotation: tuple[Tensor, Tensor]
    """cos and sin of the T positions."""
    mask: Tensor | BlockMask | None = None
    """As of `masks.py`."""
    values: Tensor | None = None
    """(B, T, kv_dim) value embeddings."""
    start: int = 0
    """Position of the first of the T tokens."""
    read_from: int = 0
    """Index of the first of the T tokens whose output is read after this block."""
