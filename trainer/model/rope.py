"""Rotary position embedding, half-split, on the first elements of each head (techniques.md 1.2).

With r rotated elements and theta_i(t) = t * base^(-2i/r), i < r/2, the halves (x1, x2) become
(x1 cos + x2 sin, -x1 sin + x2 cos); the elements after the first r stay.

NTK stretch: a context of T > T_train tokens uses base (T / T_train)^(r / (r - 2)), so that the
slowest angle spans what it spanned in training. Honest version: T_train is the configuration's
`train_seq_len`; #398 and #826 left it at 1,024 while training at 2,048, and so trained with the
stretched base.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stretched(base: float, *, dims: int, num_tokens: int, trained: int) -> float:
    """The base for a context of `num_tokens`, of a model that was trained on `trained`."""
    if num_tokens <= trained:
        return base
    return float(base * (num_tokens / trained) ** (dims / (dims - 2)))


def rotation(
    start: int, num_positions: int, *, dims: int, base: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin, (num_positions, 1, dims / 2) float32, of positions from `start` on."""
    exponents = torch.arange(0, dims, 2, dtype=torch.float32, device=device) / dims
    positions = torch.arange(start, start + num_positions, dtype=torch.float32, device=device)
    angles = torch.outer(positions, base**-exponents)[:, None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, T, heads, head_dim) by the positions' angles, in float32 or wider; same dtype."""
    half = cos.size(-1)
    if not half:
        return x
    x1, x2 = x[..., :half], x[..., half : 2 * half]
    parts = [(x1 * cos + x2 * sin).to(x.dtype), (x2 * cos - x1 * sin).to(x.dtype)]
    if 2 * half < x.size(-1):
        parts.append(x[..., 2 * half :])
    return torch.cat(parts, dim=-1)
