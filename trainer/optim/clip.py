"""Clipping by the global norm, with gradients that lie on several ranks.

Muon's gradients exist reduced only on the ranks that own them, AdamW's on all. So clipping rewrites
no gradients: it is a factor, a tensor on the device, that every update multiplies its gradients by
as it reads them. Nothing waits for the device.

    |g| = sqrt(sum over ranks of owned squares + squares of what all ranks hold)
    factor = min(1, limit / (|g| + 1e-6))

The same as `torch.nn.utils.clip_grad_norm_` on one rank. Under Muon the length of one step's
gradient is lost in the orthogonalization: clipping decides how much the step counts beside earlier
ones in the momentum (techniques.md 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from qpack.distributed import world_size

EPS = 1e-6


def global_norm(owned: Sequence[Tensor], whole: Sequence[Tensor], device: torch.device) -> Tensor:
    """L2 norm (0-d float32) over `owned` of every rank and `whole`, the same on all ranks."""
    squares = _squares(owned, device)
    if world_size() > 1:
        dist.all_reduce(squares)
    return (squares + _squares(whole, device)).sqrt()


def clip_factor(norm: Tensor, limit: float) -> Tensor:
    """What gradients of that norm are multiplied by; a limit of 0 clips nothing."""
    if not limit:
        return torch.ones_like(norm)
    return (limit / (norm + EPS)).clamp_max(1.0)


def _squares(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    if not tensors:
        return torch.zeros((), device=device)
    norms = torch._foreach_norm(list(tensors))
    return torch.stack([norm.float() for norm in norms]).square().sum()
