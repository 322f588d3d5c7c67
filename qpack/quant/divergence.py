"""How far a model's outputs are from another's, and the slope of that: the losses of tuning.

    categorical   mean over tokens of KL(p || q), p and q the softmax of reference and output logits
    gaussian      sum |y - y'|^2 / sum |y|^2, y the reference's outputs

Both slopes are known in closed form (`q - p`, and twice the error), so nothing of a softmax is kept
for a backward pass: the caller starts its own at the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LIKELIHOODS = ("categorical", "gaussian")

BLOCK_ELEMENTS = 1 << 22
"""Logits reduced at a time: 16 MiB of float32."""


def divergence(reference: Tensor, output: Tensor, likelihood: str) -> tuple[float, float]:
    """(distance, amount) of `output` from `reference`, float tensors of one shape.

    Categorical: the KL summed over all rows of the last axis, and their number. Gaussian: the
    squared error, and the square of the reference. Distances and amounts of several batches add up;
    their quotient is what the module's docstring says. Summed in float64.
    """
    distance = amount = 0.0
    for p, q in _blocks(reference, output):
        if likelihood == "categorical":
            log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
            distance += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
            amount += len(p)
        else:
            distance += float((q - p).square().sum(-1).double().sum())
            amount += float(p.square().sum(-1).double().sum())
    return distance, amount


def slope(reference: Tensor, output: Tensor, likelihood: str) -> Tensor:
    """Derivative of the `divergence` (its distance) by `output`, in its shape and dtype."""
    parts = []
    for p, q in _blocks(reference, output):
        if likelihood == "categorical":
            parts.append(q.softmax(-1).sub_(p.softmax(-1)))
        else:
            parts.append((q - p).mul_(2.0))
    return torch.cat(parts).reshape(output.shape).to(output.dtype)


def sampled_slope(output: Tensor, likelihood: str, generator: torch.Generator) -> Tensor:
    """A random slope whose outer product is, on average, the second derivative of the distance
    where reference and output agree (true Fisher: labels, or noise, drawn from the model itself).

    `generator` is one of the CPU, so that every device draws the same.
    """
    parts = []
    for _, q in _blocks(output, output):
        if likelihood == "categorical":
            part = q.softmax(-1)
            drawn = torch.rand((len(q), 1), generator=generator).to(q.device)
            label = (part.cumsum(-1) < drawn).sum(-1, keepdim=True).clamp_(max=q.shape[1] - 1)
            parts.append(part.scatter_add_(-1, label, -torch.ones_like(drawn)))
        else:
            parts.append(2**0.5 * torch.randn(q.shape, generator=generator).to(q.device))
    return torch.cat(parts).reshape(output.shape).to(output.dtype)


def _blocks(reference: Tensor, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both as float32 rows of the last axis, some at a time."""
    columns = output.shape[-1] if output.ndim else 1
    p, q = (item.detach().reshape(-1, columns) for item in (reference, output))
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    for start in range(0, len(p), step):
        yield p[start : start + step].float(), q[start : start + step].float()
