"""Rotary position embedding, half-split, on the first elements of each head (techniques.md 1.2).

With r rotated elements and theta_i(t) = t * base^(-2i/r), i < r/2, the halves (x1, x2) become
(x1 cos + x2 sin, -x1 sin + x2 cos); the elements after the first r stay.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(
    start: int, num_positions: int, *, dims: int, base: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin, (num_positions, 1, dims / 2) float32, of positions from `start` on."""
    exponents = torch.arange(0, dims, 2, dtype=torch.float32, device=device) / dims
    positions = torch.arange(start, start + num_positions, dtype=torch.float32, device=device)
    angles = torch.outer(positions, base**-exponents)[:, None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, T, heads, head_dim) by the positions' angles; same dtype."""
    half = cos.size(-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    x1, x2, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin, rest), dim=-1)
