"""XSA, exclusive self-attention: outputs lose their part along the own value (techniques.md 1.2).

For each query head, with v the value at the *query's* position in its group (value embedding
included) and v^ = v / |v|,

    y <- y - (y . v^) v^                   (#265, #287; all layers: #478)
    y <- y - tanh(alpha_h) (y . v^) v^     gated, alpha_h = 0 at first (#2018)
"""

from __future__ import annotations

import torch
from torch import Tensor


def exclude_own_value(y: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
    """`y` (B, T, H, d) without its part along `v` (B, T, Hk, d); `gate` (H,) is alpha.

    Query head h belongs to value head h // (H / Hk). A value of length 0 has no direction, and
    nothing is taken off.
    """
    groups = y.reshape(*v.shape[:3], -1, v.size(3))  # (B, T, Hk, H / Hk, d)
    own = v[:, :, :, None]
    square = own.square().sum(dim=-1, keepdim=True)
    part = (groups * own).sum(dim=-1, keepdim=True)
    along = part / square.clamp_min(torch.finfo(square.dtype).tiny)
    if gate is not None:
        along = along * gate.tanh().to(y.dtype).view(v.size(2), -1, 1)
    return torch.flatten(groups - along * own, 2, 3)
